"""The daemon's settings: flags over environment over TOML over defaults, checked as a whole, then frozen.

Read by the command line at start and at every SIGHUP; `wiring.py` hands plain values on. What cannot be used is refused
with all its reasons at once, each naming the place, the key and what to do. Must never touch the state directory, and
must never let a refused configuration through in part.
"""

from penstock.settings.reading import ConfigRefused, Refusal, Resolved, config_files, load, resolve
from penstock.settings.schema import BUILT_IN_TOOLCHAINS, Settings, Toolchain, reloadable_changes
from penstock.settings.values import Address, TcpAddress, UnixAddress, parse_listen

__all__ = [
    "BUILT_IN_TOOLCHAINS",
    "Address",
    "ConfigRefused",
    "Refusal",
    "Resolved",
    "Settings",
    "TcpAddress",
    "Toolchain",
    "UnixAddress",
    "config_files",
    "load",
    "parse_listen",
    "reloadable_changes",
    "resolve",
]
