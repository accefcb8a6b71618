"""`penstock healthcheck` against real servers: ready, not ready, silent, dripping, absent, and no HTTP at all."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

READY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
NOT_READY = b'HTTP/1.1 503 Service Unavailable\r\nContent-Length: 23\r\n\r\n{\n"message":"adopting"}'


class Server:
    """Answers the first request; `drip` sends a byte at a time, for ever."""

    def __init__(self, listener: socket.socket, answer: bytes | None, *, drip: bool) -> None:
        self.listener = listener
        self.request = b""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(answer, drip))
        self._thread.start()

    def _serve(self, answer: bytes | None, drip: bool) -> None:
        with suppress(OSError):
            connection, _ = self.listener.accept()
            with connection:
                connection.settimeout(10)
                while b"\r\n\r\n" not in self.request:
                    self.request += connection.recv(4096)
                while drip and not self._over.wait(0.01):
                    connection.sendall(b"x")
                if answer is None:
                    self._over.wait(20)
                else:
                    connection.sendall(answer)

    def end(self) -> None:
        self._over.set()
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self._thread.join(10)


Listen = Callable[..., tuple[Server, str]]


@pytest.fixture(params=["tcp", "unix"])
def listen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listen]:
    servers: list[Server] = []

    def begin(answer: bytes | None, *, drip: bool = False) -> tuple[Server, str]:
        if request.param == "unix":
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(tmp_path / "api.sock"))
            listener.listen()
            where = f"unix:{tmp_path / 'api.sock'}"
        else:
            listener = socket.create_server(("127.0.0.1", 0))
            where = f"127.0.0.1:{listener.getsockname()[1]}"
        servers.append(Server(listener, answer, drip=drip))
        return servers[-1], where

    yield begin
    for server in servers:
        server.end()


def healthcheck(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "penstock", "healthcheck", *arguments],
        env={"HOME": "/nonexistent", "PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        timeout=20,
    )


def test_ready(listen: Listen) -> None:
    server, where = listen(READY)
    done = healthcheck("--listen", where)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"ready: {where}\n", "")
    assert server.request.startswith(b"GET /readyz HTTP/1.1\r\nHost: ")
    assert b"\r\nHost: localhost" in server.request or b"\r\nHost: 127.0.0.1" in server.request


def test_not_ready(listen: Listen) -> None:
    _, where = listen(NOT_READY)
    done = healthcheck("--listen", where)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f'not ready: {where} answered 503 {{ "message":"adopting"}}\n'


@pytest.mark.parametrize("drip", [False, True])
def test_too_slow(listen: Listen, drip: bool) -> None:
    _, where = listen(None, drip=drip)
    began = time.monotonic()
    done = healthcheck("--listen", where, "--timeout", "0.3")
    assert time.monotonic() - began < 5
    assert (done.returncode, done.stderr) == (1, f"no answer from {where} within 0.3 s\n")


@pytest.mark.parametrize("answer", [b"220 mail.example.org\r\n", b""])
def test_something_else_listens(listen: Listen, answer: bytes) -> None:
    _, where = listen(answer)
    done = healthcheck("--listen", where)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    done = healthcheck("--url", f"http://127.0.0.1:{port}/")
    assert done.returncode == 1
    assert done.stderr == f"no daemon at http://127.0.0.1:{port}/: Connection refused\n"
    done = healthcheck("--listen", f"unix:{tmp_path}/x")
    assert (done.returncode, done.stderr) == (1, f"no daemon at unix:{tmp_path}/x: No such file or directory\n")


def test_finds_the_address_as_serve_would(tmp_path: Path, listen: Listen) -> None:
    _, where = listen(READY)
    config = tmp_path / "config.toml"
    config.write_text("[api]\nlisten = '127.0.0.1:1'\n")
    assert healthcheck("--config", str(config), PENSTOCK_API__LISTEN=where).stdout == f"ready: {where}\n"


def test_finds_the_address_in_the_file(tmp_path: Path, listen: Listen) -> None:
    _, where = listen(READY)
    config = tmp_path / "config.toml"
    config.write_text(f"[api]\nlisten = '{where}'\n")
    assert healthcheck("--config", str(config)).stdout == f"ready: {where}\n"


def test_a_refused_configuration(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[api]\nlisten = 'nowhere'\n")
    assert healthcheck("--config", str(config)).returncode == 78


@pytest.mark.parametrize(
    "arguments",
    [
        ("--listen", "127.0.0.1:0"),
        ("--listen", "127.0.0.1:port"),
        ("--url", "ftp://127.0.0.1"),
        ("--url", "http://127.0.0.1", "--listen", "127.0.0.1:1"),
        ("--listen", ""),
        ("--timeout", "0"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    done = healthcheck(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
