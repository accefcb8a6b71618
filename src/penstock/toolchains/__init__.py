"""What gives programs their meaning: check, build and run, on this machine (design section 4).

`LocalToolchains` implements the Toolchains port; `Toolchain` says what one of them does; `define` makes one from what
an operator configured. Wired by `wiring.py`, driven by the compiler; must never run a program, only tools.
"""

from penstock.toolchains.definition import BUILT_IN, Toolchain, define
from penstock.toolchains.local import LocalToolchains

__all__ = ["BUILT_IN", "LocalToolchains", "Toolchain", "define"]
