"""A client that costs little, so that what is measured is the daemon: one keep-alive connection, raw bytes."""

from __future__ import annotations

import json
import socket
from typing import Any


class Wire:
    """One connection to the API's unix socket; one request at a time."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(60)
        self._socket.connect(path)
        self._buffer = b""

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """Send a request, wait for its whole answer."""
        self.send(method, path, body)
        return self.receive()

    def send(self, method: str, path: str, body: Any = None) -> None:
        """Send a request; `receive` must follow before the next."""
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        self._socket.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)

    def receive(self) -> tuple[int, bytes]:
        """The status and the body of the answer."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            self._more()
        head = self._buffer[:end].decode("latin-1").lower()
        length = int(head.partition("content-length:")[2].partition("\r\n")[0] or 0)
        total = end + 4 + length
        while len(self._buffer) < total:
            self._more()
        body, self._buffer = self._buffer[end + 4 : total], self._buffer[total:]
        return int(head.split(" ", 2)[1]), body

    def _more(self) -> None:
        data = self._socket.recv(1 << 20)
        if not data:
            raise ConnectionError("the daemon hung up")
        self._buffer += data
