"""Talks to a daemon: finds it, asks it, and turns what goes wrong into a Failure.

Used by every command that needs a running daemon. Synchronous and of the standard library alone, since commands must
begin at once. Must never print, and never send a request twice that may change something.
"""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import Self, cast
from urllib.parse import quote, urlencode, urlsplit

from penstock import __version__
from penstock.cli import REFUSED, USAGE
from penstock.cli.failures import Failure, Json, Refused, Unreachable

PATIENCE_SECONDS = 15.0
"""How long one answer may take. The daemon answers within milliseconds, or after its store's own time-outs."""

DEFAULT_LISTEN = "127.0.0.1:8080"
"""The default of `[api] listen`; the settings themselves take a third of a second to import."""

_UNIX = "unix:"


class UnixConnection(HTTPConnection):
    """HTTP over a socket file."""

    def __init__(self, path: str, timeout: float | None = None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect, as http.client wants it."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a daemon is: ``unix:/path``, ``http(s)://host[:port][/base]``."""

    url: str
    origin: str
    """Who says so: a flag, a variable, a file."""

    def connection(self, timeout_seconds: float | None) -> HTTPConnection:
        """A connection, not opened yet. Raises Failure for an address that cannot be one."""
        if self.url.startswith(_UNIX):
            return UnixConnection(self.url.removeprefix(_UNIX), timeout_seconds)
        try:
            parts = urlsplit(self.url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise self._unusable(str(error)) from None
        if not host or port == 0 or parts.scheme not in ("http", "https"):
            raise self._unusable("give http://HOST:PORT, https://HOST, HOST:PORT or unix:/path")
        if parts.scheme == "http":
            return HTTPConnection(host, port or 80, timeout=timeout_seconds)
        from http.client import HTTPSConnection

        return HTTPSConnection(host, port or 443, timeout=timeout_seconds)

    @property
    def base(self) -> str:
        """What stands before every path, without a slash at the end."""
        return "" if self.url.startswith(_UNIX) else urlsplit(self.url).path.rstrip("/")

    def _unusable(self, why: str) -> Failure:
        return Failure(
            f"{self.url!r} ({self.origin}) is no address of a daemon: {why}", exit_code=USAGE, code="UnusableAddress"
        )


def find(url: str | None, environ: Mapping[str, str]) -> Address:
    """The daemon that is meant: `url`, else the environment's, else the one that `serve` would be. Raises Failure."""
    for given, origin in (
        (url, "--url"),
        (environ.get("PENSTOCK_URL"), "PENSTOCK_URL"),
        (environ.get("FELDERA_HOST"), "FELDERA_HOST"),
        (environ.get("PENSTOCK_API__LISTEN"), "PENSTOCK_API__LISTEN"),
    ):
        if given:
            return Address(_as_url(given), origin)
    listen, origin = _configured(environ)
    return Address(_as_url(listen), origin)


def key_for(address: Address, environ: Mapping[str, str]) -> str | None:
    """The API key to show there. One that is meant for Feldera is not shown to who was chosen as somebody else."""
    ours = environ.get("PENSTOCK_API_KEY")
    if ours or address.origin in ("--url", "PENSTOCK_URL"):
        return ours or None
    return environ.get("FELDERA_API_KEY") or None


def path_of(pipeline: str, below: str = "") -> str:
    """The path of a pipeline, and of what is `below` it."""
    return f"/v0/pipelines/{quote(pipeline, safe='')}{below}"


class Client:
    """One daemon. Keeps a connection until left, and what it was told with an entity tag."""

    def __init__(self, address: Address, api_key: str | None = None, *, patience_seconds: float = PATIENCE_SECONDS):
        self._address = address
        self._patience_seconds = patience_seconds
        self._connection = address.connection(patience_seconds)
        self._headers = {"User-Agent": f"penstock/{__version__}", "Accept": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._known: dict[str, tuple[str, Json]] = {}
        self._date = ""

    @property
    def address(self) -> Address:
        """Where the daemon is."""
        return self._address

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def answer_within(self, seconds: float) -> None:
        """From now on wait so long for an answer, at most as long as usual."""
        seconds = max(0.1, min(seconds, self._patience_seconds))
        self._connection.timeout = seconds
        if self._connection.sock is not None:
            self._connection.sock.settimeout(seconds)

    def get(self, path: str, **query: str) -> Json:
        """What is there now. The very object of last time, if nothing has changed since. Raises Failure."""
        target = _target(path, query)
        etag, known = self._known.get(target, ("", None))
        response, body = self._exchange("GET", target, None, {"If-None-Match": etag} if etag else {})
        if response.status == 304:
            return known
        value = self._decoded(response, body)
        if etag := response.headers.get("ETag", ""):
            self._known[target] = (etag, value)
        return value

    def get_tagged(self, path: str, **query: str) -> tuple[Json, str]:
        """What is there now, and the tag by which to change just that (`if_match`); empty if it has none."""
        value = self.get(path, **query)
        return value, self._known.get(_target(path, query), ("", None))[0]

    def send(self, method: str, path: str, body: Json = None, *, if_match: str = "", **query: str) -> Json:
        """Ask for something to be done; returns what was answered. Raises Failure."""
        headers = {"If-Match": if_match} if if_match else {}
        data = None
        if body is not None:
            data = json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
            headers["Content-Type"] = "application/json"
        return self._decoded(*self._exchange(method, _target(path, query), data, headers))

    @contextmanager
    def stream(self, path: str, **query: str) -> Generator[HTTPResponse]:
        """An answer that is read as it comes, however long that takes. Raises Failure.

        Reading raises OSError or HTTPException when it breaks off.
        """
        connection = self._address.connection(PATIENCE_SECONDS)
        try:
            response = self._ask(connection, "GET", _target(path, query), None, {"Accept": "*/*"})
            if response.status != 200:
                self._decoded(response, response.read())
                raise self._stranger(response)
            if connection.sock is not None:
                connection.sock.settimeout(None)
                _keep_alive(connection.sock)
            yield response
        finally:
            connection.close()

    def seconds_since(self, stamp: str) -> float:
        """How long ago `stamp` was, by the daemon's clock as of its last answer, to the second."""
        return (self.now() - datetime.fromisoformat(stamp)).total_seconds()

    def now(self) -> datetime:
        """The daemon's time as of its last answer, to the second; ours before any."""
        if self._date:
            return parsedate_to_datetime(self._date)
        from penstock.clock import SystemClock

        return SystemClock().now()

    # --- one exchange -------------------------------------------------------------------------------------------------

    def _exchange(
        self, method: str, target: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[HTTPResponse, bytes]:
        try:
            response = self._ask(self._connection, method, target, body, headers)
            data = response.read()
        except (OSError, HTTPException) as error:
            self._connection.close()
            raise self._broken(error) from None
        except BaseException:
            self._connection.close()  # half an answer is in it
            raise
        self._date = response.headers.get("Date", self._date)
        return response, data

    def _ask(
        self, connection: HTTPConnection, method: str, target: str, body: bytes | None, headers: Mapping[str, str]
    ) -> HTTPResponse:
        kept = connection.sock is not None
        try:
            return self._ask_once(connection, method, target, body, headers)
        except (ConnectionError, HTTPException) as error:
            connection.close()
            # A kept connection may have been given up by the daemon meanwhile; a question can be asked again.
            if not kept or method != "GET":
                raise self._broken(error) from None
        return self._ask_once(connection, method, target, body, headers)

    def _ask_once(
        self, connection: HTTPConnection, method: str, target: str, body: bytes | None, headers: Mapping[str, str]
    ) -> HTTPResponse:
        if connection.sock is None:
            try:
                connection.connect()
            except OSError as error:
                raise self._nobody(error) from None
        try:
            with suppress(BrokenPipeError):  # the answer may be there already, as to a body that is too large
                connection.request(method, self._address.base + target, body, {**self._headers, **headers})
            return connection.getresponse()
        except TimeoutError as error:
            raise self._broken(error) from None

    def _decoded(self, response: HTTPResponse, body: bytes) -> Json:
        try:
            value: Json = json.loads(body) if body else None
        except ValueError:
            if response.status < 400:
                raise self._stranger(response) from None
            value = None
        if 200 <= response.status < 300:
            return value
        if isinstance(value, dict) and "error_code" in value:
            value = cast("dict[str, Json]", value)
            raise Refused(response.status, value["message"], code=value["error_code"], details=value.get("details"))
        if response.status == 401:
            raise Refused(401, f"The daemon at {self._address.url} asks for an API key.", code="Unauthorized")
        raise self._stranger(response)

    # --- what may go wrong --------------------------------------------------------------------------------------------

    def _nobody(self, error: OSError) -> Failure:
        where = f"{self._address.url} ({self._address.origin})"
        if error.errno == errno.EACCES:
            return Unreachable(f"you may not use the daemon at {where}: it is another user's")
        reason = error.strerror or str(error) or type(error).__name__
        return Unreachable(f"no daemon at {where}: {reason}", hint="penstock serve, or say where it is by --url")

    def _broken(self, error: Exception) -> Failure:
        if isinstance(error, TimeoutError):
            return Unreachable(f"the daemon at {self._address.url} has not answered in time")
        reason = str(error) or type(error).__name__
        return Unreachable(f"the connection to {self._address.url} broke off before the answer: {reason}")

    def _stranger(self, response: HTTPResponse) -> Failure:
        said = f"{response.status} {response.reason}".strip()
        return Unreachable(f"what answers at {self._address.url} ({self._address.origin}) is no Penstock: {said}")


def _target(path: str, query: Mapping[str, str]) -> str:
    return f"{path}?{urlencode(query)}" if query else path


def _keep_alive(connection: socket.socket) -> None:
    """Have the kernel notice within two minutes when the daemon's host is gone."""
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)


# --- where it is ------------------------------------------------------------------------------------------------------


def _as_url(given: str) -> str:
    if given.startswith(_UNIX) or "://" in given:
        return given
    host, colon, port = given.rpartition(":")
    if colon and host in ("0.0.0.0", "[::]"):  # noqa: S104 - where it listens on all addresses it is here, too
        given = f"{'127.0.0.1' if host == '0.0.0.0' else '[::1]'}:{port}"  # noqa: S104
    return f"http://{given}"


def _configured(environ: Mapping[str, str]) -> tuple[str, str]:
    """Where `serve` would listen, and who says so; as `penstock.settings` reads it, without checking the rest."""
    for file in _config_files(environ):
        try:
            text = file.read_text("utf-8")
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            raise _unreadable(file, error) from None
        import tomllib

        try:
            section: Json = tomllib.loads(text).get("api", {})
        except tomllib.TOMLDecodeError as error:
            raise _unreadable(file, error) from None
        listen = cast("dict[str, Json]", section).get("listen") if isinstance(section, dict) else None
        return (listen, str(file)) if isinstance(listen, str) else (DEFAULT_LISTEN, "default")
    return DEFAULT_LISTEN, "default"


def _config_files(environ: Mapping[str, str]) -> tuple[Path, ...]:
    home = environ.get("XDG_CONFIG_HOME", "")
    own = home if home.startswith("/") else f"{environ['HOME']}/.config" if environ.get("HOME") else None
    system = Path("/etc/penstock/config.toml")
    return (system,) if own is None else (Path(own) / "penstock" / "config.toml", system)


def _unreadable(file: Path, error: Exception) -> Failure:
    reason = getattr(error, "strerror", None) or str(error)
    return Failure(
        f"{file}: cannot be read: {reason}",
        exit_code=REFUSED,
        code="ConfigRefused",
        hint="say where the daemon is by --url",
    )
