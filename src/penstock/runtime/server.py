"""A small HTTP server in a thread of its own, made for one client that asks short questions: the daemon.

Used by `pipeline.py`. One request per connection, a bounded number of connections, a deadline for each: whoever is slow
or says nothing is in nobody's way. Answers are made in this thread, so making them must not block; one that has to wait
is asked for again when `wake` tells that something has changed. ``http.server`` would take four times the memory and a
thread for each client.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import threading
import time
from contextlib import suppress

TYPE_CHECKING = False  # as typing's, whose import would take a quarter of the time that ours takes
if TYPE_CHECKING:
    from collections.abc import Callable

CONNECTIONS = 64
"""So many at once; the oldest makes room for another."""

DEADLINE_SECONDS = 10.0
"""From a connection's beginning to the last byte of its answer, waiting for the answer included."""

HEAD_LIMIT_BYTES, BODY_LIMIT_BYTES = 1 << 14, 1 << 20
"""Of a request. A body is read and thrown away: no question has one that matters."""

REASONS = {
    200: "OK", 202: "Accepted", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    410: "Gone", 411: "Length Required", 413: "Content Too Large", 431: "Request Header Fields Too Large",
    500: "Internal Server Error", 503: "Service Unavailable",
}  # fmt: skip


class Request:
    """A question. Names of `headers` are in lower case; nothing of `query` is decoded, it holds words only."""

    __slots__ = ("headers", "method", "path", "query", "received_at")

    def __init__(self, method: str, target: str, headers: dict[str, str]) -> None:
        self.method = method
        self.path, _, words = target.partition("?")
        self.query = {name: value for name, _, value in (word.partition("=") for word in words.split("&")) if name}
        self.headers = headers
        self.received_at = time.monotonic()


class Reply:
    """An answer. `body` is sent as JSON, or as plain text when it is bytes."""

    __slots__ = ("allow", "body", "message", "status")

    def __init__(self, status: int, body: object, *, message: str = "", allow: str = "") -> None:
        self.status = status
        self.body = body
        self.message = message
        """Of a refusal, why."""
        self.allow = allow

    def encoded(self) -> bytes:
        """As it is sent."""
        if isinstance(self.body, bytes):
            kind, body = "text/plain", self.body
        else:
            kind, body = "application/json", json.dumps(self.body).encode()
        allow = f"Allow: {self.allow}\r\n" if self.allow else ""
        head = (
            f"HTTP/1.1 {self.status} {REASONS.get(self.status, 'Unknown')}\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\n{allow}Connection: close\r\n\r\n"
        )
        return head.encode() + body


def refusal(status: int, code: str, message: str, **details: object) -> Reply:
    """The answer to what cannot be done (contract.md section 6)."""
    return Reply(status, {"message": message, "error_code": code, "details": details}, message=message)


class _Connection:
    __slots__ = ("again_at", "deadline", "request", "sending", "taken", "wire")

    def __init__(self, wire: socket.socket) -> None:
        self.wire = wire
        self.deadline = self.again_at = time.monotonic() + DEADLINE_SECONDS
        self.taken = bytearray()
        self.request: Request | None = None
        """Set while its answer is waited for."""
        self.sending = memoryview(b"")


class Server:
    """Answers with what `answer` returns for a request; a number = ask again at the next `wake`, or in so many seconds.

    `woken` is called in the server's thread after each wake, before any answer.
    """

    def __init__(self, *, answer: Callable[[Request], Reply | float], woken: Callable[[], None]) -> None:
        self._answer = answer
        self._woken = woken
        self._connections: dict[socket.socket, _Connection] = {}
        self._selector = selectors.DefaultSelector()
        self._bell, self._ear = socket.socketpair()
        self._bell.setblocking(False)
        self._ear.setblocking(False)
        self._selector.register(self._ear, selectors.EVENT_READ)
        self._listener: socket.socket | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="penstock-http", daemon=True)

    def start(self, address: str, port: int) -> int:
        """Listen; returns the port, a free one if `port` is 0. Raises OSError."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = socket.create_server((address, port), family=family, backlog=CONNECTIONS)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread.start()
        return int(self._listener.getsockname()[1])

    def wake(self) -> None:
        """Have `woken` called, and answers that wait be asked for again. From any thread, or a signal's handler."""
        with suppress(OSError):  # it is awake already, or closed
            self._bell.send(b"!")

    def close(self) -> None:
        """Send what can be sent at once, and end. From any thread but its own."""
        self._closing = True
        self.wake()
        if self._thread.ident is not None:
            self._thread.join(DEADLINE_SECONDS)
        self.abandon()

    def abandon(self) -> None:
        """Close the descriptors and do nothing else: what a fork has to do in the child, which has no thread."""
        for wire in (*self._connections, self._listener, self._bell, self._ear):
            if wire is not None:
                wire.close()
        self._connections.clear()
        self._selector.close()

    def _run(self) -> None:
        while True:
            now = time.monotonic()
            first = min((min(one.deadline, one.again_at) for one in self._connections.values()), default=None)
            ready = self._selector.select(None if first is None else max(0.0, first - now))
            for key, _ in ready:
                wire = key.fileobj
                if wire is self._ear:
                    self._heed()
                elif wire is self._listener:
                    self._accept()
                elif isinstance(wire, socket.socket) and wire in self._connections:
                    self._go_on(self._connections[wire])
            now = time.monotonic()
            for connection in [one for one in self._connections.values() if min(one.deadline, one.again_at) <= now]:
                if connection.deadline <= now:
                    self._drop(connection)
                else:
                    self._respond(connection)
            if self._closing:
                return

    def _heed(self) -> None:
        with suppress(BlockingIOError):
            while len(self._ear.recv(4096)) == 4096:
                pass
        self._woken()
        for connection in [one for one in self._connections.values() if one.request is not None]:
            self._respond(connection)

    def _accept(self) -> None:
        if self._listener is None:
            return
        if len(self._connections) >= CONNECTIONS:
            self._drop(min(self._connections.values(), key=lambda one: one.deadline))
        try:
            wire, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:  # no descriptor is left: one of ours may help
            for connection in list(self._connections.values())[:1]:
                self._drop(connection)
            time.sleep(0.01)
            return
        wire.setblocking(False)
        self._connections[wire] = connection = _Connection(wire)
        self._selector.register(wire, selectors.EVENT_READ)
        self._go_on(connection)

    def _go_on(self, connection: _Connection) -> None:
        try:
            if connection.sending:
                self._send(connection)
                return
            taken = connection.wire.recv(1 << 16)
            if not taken:
                self._drop(connection)  # also when it waits: nobody is there for its answer
                return
            if connection.request is None:
                connection.taken += taken
                self._parse(connection)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(connection)

    def _parse(self, connection: _Connection) -> None:
        head, end, body = bytes(connection.taken).partition(b"\r\n\r\n")
        if len(head) > HEAD_LIMIT_BYTES:
            self._reply(connection, refusal(431, "InvalidParam", f"More than {HEAD_LIMIT_BYTES} bytes of headers."))
        elif end:
            lines = head.decode("latin-1").split("\r\n")
            words = lines[0].split(" ")
            fields = (line.partition(":") for line in lines[1:])
            headers = {name.strip().lower(): value.strip() for name, _, value in fields}
            length = headers.get("content-length", "0")
            if len(words) != 3 or not words[2].startswith("HTTP/1.") or not length.isdecimal() or len(length) > 18:
                self._reply(connection, refusal(400, "InvalidParam", "This is not an HTTP/1.1 request."))
            elif "transfer-encoding" in headers:
                self._reply(connection, refusal(411, "InvalidParam", "A body must tell its Content-Length."))
            elif int(length) > BODY_LIMIT_BYTES:
                self._reply(connection, refusal(413, "InvalidParam", f"More than {BODY_LIMIT_BYTES} bytes of body."))
            elif len(body) >= int(length):
                connection.request = Request(words[0], words[1], headers)
                self._respond(connection)

    def _respond(self, connection: _Connection) -> None:
        connection.again_at = connection.deadline
        request = connection.request
        if request is None:
            return
        try:
            reply = self._answer(request)
        except Exception as error:  # noqa: BLE001 - one bad answer must not silence all the others
            sys.excepthook(type(error), error, error.__traceback__)
            reply = refusal(500, "ControllerMissingAfterInitialization", "The pipeline's log tells what went wrong.")
        if isinstance(reply, Reply):
            self._reply(connection, reply)
        else:
            connection.again_at = time.monotonic() + reply

    def _reply(self, connection: _Connection, reply: Reply) -> None:
        connection.request = None
        connection.sending = memoryview(reply.encoded())
        self._send(connection)

    def _send(self, connection: _Connection) -> None:
        try:
            sent = connection.wire.send(connection.sending)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(connection)
            return
        connection.sending = connection.sending[sent:]
        if connection.sending:
            self._selector.modify(connection.wire, selectors.EVENT_WRITE)
        else:
            self._drop(connection)

    def _drop(self, connection: _Connection) -> None:
        if self._connections.pop(connection.wire, None) is not None:
            self._selector.unregister(connection.wire)
            connection.wire.close()
