"""As much of ZMTP 3.0 as a client of ZeroMQ over a unix socket needs: no encryption, one frame a message."""

from __future__ import annotations

import socket

MORE, LONG, COMMAND = 1, 2, 4
GREETING = b"\xff" + bytes(8) + b"\x7f" + bytes((3, 0)) + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x05READY" + b"\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER" + b"\x08Identity" + bytes(4)


class Dealer:
    """A DEALER that is connected to one ROUTER."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(60)
        self._buffer = b""
        try:
            self._socket.connect(path)
            self._socket.sendall(GREETING)
            self._take(len(GREETING))
            self._send(COMMAND, READY)
            self._frame()
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def send(self, message: bytes) -> None:
        """Send a message of one frame."""
        self._send(0, message)

    def receive(self) -> bytes:
        """The next message, its frames joined."""
        message = b""
        while True:
            flags, body = self._frame()
            if not flags & COMMAND:
                message += body
                if not flags & MORE:
                    return message

    def _send(self, flags: int, body: bytes) -> None:
        self._socket.sendall(bytes((flags | LONG,)) + len(body).to_bytes(8, "big") + body)

    def _frame(self) -> tuple[int, bytes]:
        [flags] = self._take(1)
        length = int.from_bytes(self._take(8 if flags & LONG else 1), "big")
        return flags, self._take(length)

    def _take(self, length: int) -> bytes:
        while len(self._buffer) < length:
            data = self._socket.recv(1 << 20)
            if not data:
                raise ConnectionError("hung up")
            self._buffer += data
        taken, self._buffer = self._buffer[:length], self._buffer[length:]
        return taken
