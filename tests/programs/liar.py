"""A program that speaks contract `http` as badly as a test wants; what is not said, it does well.

In its environment: PORT_FILE, what becomes of the port file ("TEXT", or one of `PORT_FILES`, "late SECONDS" among
them); SUSPEND, what it does when told to suspend ("never", "refuse", "hang"). In its storage directory, looked for at
each request: ``answers``, one or more raw HTTP answers to /status, given in turn, with `BETWEEN` between them; "hang",
"drip" and "endless" are answers too. ``move`` has it listen elsewhere from then on, and say so ("told") or not.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

STORAGE = Path(os.environ["PENSTOCK_STORAGE_DIR"])
PORT_FILE = Path(os.environ["PENSTOCK_PORT_FILE"])
BETWEEN = b"\n----\n"


def write(port: int) -> None:
    """As a good program does."""
    aside = PORT_FILE.with_suffix(".new")
    aside.write_text(f"{port}\n")
    aside.replace(PORT_FILE)


def huge(port: int) -> None:
    with PORT_FILE.open("w") as file:
        file.write(f"{port}" * 100)
        file.truncate(1 << 30)


def directory(port: int) -> None:
    PORT_FILE.mkdir()


def fifo(port: int) -> None:
    os.mkfifo(PORT_FILE)


def endless(port: int) -> None:
    PORT_FILE.symlink_to("/dev/zero")


def over_and_over(port: int) -> None:
    def forever() -> None:
        while True:
            write(port)

    threading.Thread(target=forever, daemon=True).start()


PORT_FILES: dict[str, Callable[[int], None]] = {
    "well": write,
    "huge": huge,
    "directory": directory,
    "fifo": fifo,
    "endless": endless,
    "over and over": over_and_over,
}


class Liar:
    """What it claims to be, and where it listens."""

    def __init__(self) -> None:
        self.state = os.environ.get("PENSTOCK_INITIAL", "running").capitalize()
        self.asked = itertools.count()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.moved = self.told_to_suspend = False

    def tell_port(self) -> None:
        """Write the port file, one way or another."""
        how, port = os.environ.get("PORT_FILE", "well"), int(self.listener.getsockname()[1])
        if how.startswith("late "):
            time.sleep(float(how.removeprefix("late ")))
            how = "well"
        if how in PORT_FILES:
            PORT_FILES[how](port)
        else:
            PORT_FILE.write_text(how)

    def serve(self) -> None:
        """Answer for ever, each connection in a thread of its own."""
        self.listener.settimeout(0.05)
        while True:
            self.move()
            with suppress(TimeoutError):
                connection, _ = self.listener.accept()
                connection.settimeout(None)
                threading.Thread(target=self.answer, args=(connection,), daemon=True).start()

    def move(self) -> None:
        """Listen elsewhere, once, if that is wanted."""
        if self.moved or not (STORAGE / "move").exists():
            return
        self.moved = True
        former, self.listener = self.listener, socket.create_server(("127.0.0.1", 0))
        former.close()
        self.listener.settimeout(0.05)
        if (STORAGE / "move").read_text() == "told":
            write(self.listener.getsockname()[1])

    def answer(self, connection: socket.socket) -> None:
        """One request."""
        with connection, suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head and (piece := connection.recv(1 << 16)):
                head += piece
            path = head.split(b" ")[1].decode()
            answers = STORAGE / "answers"
            if path == "/status" and answers.exists():
                given = answers.read_bytes().split(BETWEEN)
                self.lie(connection, given[next(self.asked) % len(given)])
            else:
                connection.sendall(self.honestly(path))

    @staticmethod
    def lie(connection: socket.socket, answer: bytes) -> None:
        """Send a raw answer, or none."""
        if answer == b"hang":
            connection.recv(1)  # until the other side has had enough
        elif answer == b"drip":
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            while True:
                connection.sendall(b" ")
                time.sleep(0.1)
        elif answer == b"endless":
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
            while True:
                connection.sendall(b" " * (1 << 16))
        else:
            connection.sendall(answer)

    def honestly(self, path: str) -> bytes:
        """What a good program would say."""
        if path == "/suspend":
            how = os.environ.get("SUSPEND", "")
            if how == "hang":
                time.sleep(3600)
            if how == "refuse":
                return reply(400, {"message": "I will not", "error_code": "Stubborn", "details": {}})
            self.told_to_suspend = True
            if not how:
                self.state = "Suspended"
            return reply(202, "suspending")
        if path in ("/start", "/pause"):
            self.state = "Running" if path == "/start" else "Paused"
            return reply(202, path)
        if path != "/status":
            (STORAGE / "followed").touch()
            return reply(404, {"message": "no such page", "error_code": "NotFound", "details": {}})
        desired = "Suspended" if self.told_to_suspend else self.state
        return reply(
            200, {"runtime_status": self.state, "runtime_desired_status": desired, "runtime_status_details": {}}
        )


def reply(status: int, body: object) -> bytes:
    """A well-formed answer."""
    data = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} Status\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


def main() -> None:
    liar = Liar()
    liar.tell_port()
    print("ready", flush=True)
    liar.serve()


if __name__ == "__main__":
    main()
