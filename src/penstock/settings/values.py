"""What single values may be: addresses, argv lists, tables of variables, patterns, paths.

Called by the fields of `schema.py`. Each function returns the value or raises ValueError with a reason that needs no
further words. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TypeAlias, cast

SQLITE = "sqlite:///"

_LONGEST_SOCKET_PATH_BYTES = 107
"""What fits into sockaddr_un.sun_path with its final NUL."""
_RESERVED_ENVIRONMENT = re.compile(r"PENSTOCK_|NOTIFY_SOCKET$|WATCHDOG_|LISTEN_|INVOCATION_ID$")
"""What a pipeline gets from nobody but the daemon, or must not get at all (design section 5)."""


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A loopback host and a port; port 0 = any free one."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """The absolute path of a unix socket."""

    path: Path


Address: TypeAlias = TcpAddress | UnixAddress

_HOST_AND_PORT = re.compile(r"(?:\[(?P<v6>[^\[\]]*)\]|(?P<host>[^\[\]:]*)):(?P<port>[0-9]{1,5})")


def parse_listen(text: str) -> Address:
    """Read ``host:port`` or ``unix:/path``. Raises ValueError with the reason, also for what others could reach."""
    if text.startswith("unix:"):
        return UnixAddress(_socket_path(text.removeprefix("unix:")))
    match = _HOST_AND_PORT.fullmatch(text)
    if match is None:
        raise ValueError('must be "HOST:PORT", as in "127.0.0.1:8080", or "unix:/absolute/path"')
    host, port = match["host"] if match["v6"] is None else match["v6"], int(match["port"])
    if port > 65_535:
        raise ValueError(f"port {port} does not exist; the highest is 65535")
    if not _is_loopback(host):
        raise ValueError(
            f'others could reach "{host}", and there is no authentication; use a loopback address (127.0.0.1, [::1], '
            "localhost) or unix:/absolute/path"
        )
    return TcpAddress(host, port)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    for kind in (IPv4Address, IPv6Address):
        try:
            return kind(host).is_loopback
        except ValueError:
            continue
    return False


def _socket_path(path: str) -> Path:
    if not path.startswith("/") or path.endswith("/") or "\0" in path:
        raise ValueError('a unix socket is given by its absolute path, as in "unix:/run/penstock/api.sock"')
    if len(path.encode(errors="surrogateescape")) > _LONGEST_SOCKET_PATH_BYTES:
        raise ValueError(f"the path of a unix socket may have at most {_LONGEST_SOCKET_PATH_BYTES} bytes")
    return Path(path)


def number(value: object) -> object:
    """Anything but a switch, which would count as 0 or 1."""
    if isinstance(value, bool):
        raise ValueError(f"must be a number, is {shown(value)}")
    return value


def argv(value: object) -> object:
    """A list as it is, or as JSON, which is how an environment variable holds one."""
    words = _from_json(value)
    example = 'must be a list of words, as in ["mytool", "{program_file}"]'
    if not isinstance(words, (list, tuple)):
        raise ValueError(f"{example}, is {shown(value)}")
    for word in cast("Sequence[object]", words):
        if not isinstance(word, str):
            raise ValueError(f"{example}; {shown(word)} is no text")
        if "\0" in word:
            raise ValueError("holds a NUL character, which no program can be given")
    if words and not words[0]:
        raise ValueError("its first word, the tool, is empty")
    return cast("object", words)


def variables(value: object) -> object:
    """A table of environment variables, or the same as JSON."""
    table = _from_json(value)
    if not isinstance(table, dict):
        raise ValueError(f'must be a table of texts, as in {{ LANG = "C" }}, is {shown(value)}')
    for name, text in cast("dict[object, object]", table).items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"{shown(name)} is no name of an environment variable")
        if _RESERVED_ENVIRONMENT.match(name):
            raise ValueError(f"{name} is reserved: the daemon alone decides what a pipeline gets there")
        if not isinstance(text, str) or "\0" in text:
            raise ValueError(f"{name} must be text without NUL characters, is {shown(text)}")
    return cast("object", table)


def _from_json(value: object) -> object:
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def message_pattern(value: str) -> str:
    """A regular expression that tells at least a line."""
    try:
        groups = re.compile(value, re.MULTILINE).groupindex
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"is no regular expression: {error}") from error
    if "line" not in groups:
        raise ValueError("has no group (?P<line>...), so that it could not tell where a message belongs")
    return value


def named(value: object) -> object:
    """A path that is not empty: as a Path, that would be the current directory."""
    if value == "":
        raise ValueError("is empty; name a directory, or leave it out for the default")
    return value


def absolute(value: Path) -> Path:
    """A path that does not depend on where the daemon was started."""
    if not value.is_absolute() or "\0" in str(value):
        raise ValueError(f"must be an absolute path, is {shown(str(value))}")
    return value


def listen_address(value: str) -> str:
    """The text of what `parse_listen` accepts."""
    parse_listen(value)
    return value


def store_url(value: str) -> str:
    """The URL of an SQLite file; ``{state_dir}`` in it stands for that directory."""
    path = value.removeprefix(SQLITE).replace("{state_dir}", "/")
    if not value.startswith(SQLITE):
        raise ValueError(f"must be {SQLITE} and a path; there is no other kind of store")
    if not path.startswith("/") or path.endswith("/") or re.search(r"[\0?#{}]", path):
        raise ValueError(
            f'must name a file by its absolute path, as in "{SQLITE}{{state_dir}}/penstock.db", is {shown(value)}'
        )
    return value


def nearest(word: str, known: Iterable[str]) -> str:
    """Say which of `known` may have been meant; else which there are."""
    names = sorted(known)
    found = get_close_matches(word, names, n=1)
    return f'did you mean "{found[0]}"?' if found else f"known are {', '.join(names)}"


def shown(value: object) -> str:
    """`value` as one short line, for a reason."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
