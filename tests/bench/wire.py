"""A client that costs little, so that what is measured is the daemon: one keep-alive connection, raw bytes."""

from __future__ import annotations

import json
import socket
from typing import Any

NO_BODY = (204, 304)


class Wire:
    """One connection to the API's unix socket; one request at a time."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(60)
        self._socket.connect(path)
        self._buffer = b""
        self.etag: str | None = None
        """The name of the content that was answered last; None when it had none."""

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def ask(self, method: str, path: str, body: Any = None, *, known: str | None = None) -> tuple[int, bytes]:
        """Send a request, wait for its whole answer; `known` is the etag of what the client has already."""
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        if known is not None:
            head += f"If-None-Match: {known}\r\n"
        self._socket.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        return self._receive()

    def _receive(self) -> tuple[int, bytes]:
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            self._more()
        first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        status = int(first.split(" ", 2)[1])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self.etag = headers.get("etag")
        total = end + 4
        if status not in NO_BODY:
            total += int(headers.get("content-length", "0"))
        while len(self._buffer) < total:
            self._more()
        body, self._buffer = self._buffer[end + 4 : total], self._buffer[total:]
        return status, body

    def _more(self) -> None:
        data = self._socket.recv(1 << 20)
        if not data:
            raise ConnectionError("the daemon hung up")
        self._buffer += data
