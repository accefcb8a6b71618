"""A real server that nobody here wrote, as a `command` pipeline: steered, crashed with each signal, adopted."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .daemon import Daemon, alive

pytestmark = pytest.mark.skipif(
    shutil.which("redis-server") is None and not os.environ.get("PENSTOCK_TEST_REQUIRE_ALL"),
    reason="redis-server is not installed",
)

CRASHES = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGILL", "SIGABRT", "SIGBUS", "SIGFPE", "SIGKILL", "SIGSEGV", "SIGTERM")


def socket_of(daemon: Daemon) -> Path:
    """Where the server listens; paths of unix sockets are short, those of pipelines are not."""
    return daemon.home / "redis.sock"


def create(daemon: Daemon) -> None:
    # Its own crash report may itself crash, and then end it by another signal.
    options = "--port 0 --dir {storage_dir} --save 3600 1 --daemonize no --crash-log-enabled no"
    program = f"redis-server {options} --unixsocket {socket_of(daemon)}"
    daemon.create("cache", program, program_config={"toolchain": "command"})


def redis(path: Path, *words: str, patience_seconds: float = 5.0) -> str:
    """One command of redis' protocol; waits until the server listens."""
    give_up_at = time.monotonic() + 10
    while True:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(patience_seconds)
                connection.connect(str(path))
                connection.sendall(
                    b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w.encode()) for w in words)
                )
                return connection.recv(4096).decode()
        except (FileNotFoundError, ConnectionRefusedError):
            assert time.monotonic() < give_up_at
            time.sleep(0.01)


def test_its_whole_life(daemon: Daemon) -> None:
    create(daemon)
    daemon.start_pipeline("cache")
    pid = daemon.process("cache")
    path = socket_of(daemon)
    assert redis(path, "SET", "answer", "42") == "+OK\r\n"

    daemon.post("cache", "pause")
    daemon.until("cache", lambda p: p["deployment_status"] == "Paused")
    with pytest.raises(TimeoutError):
        redis(path, "PING", patience_seconds=0.3)
    daemon.post("cache", "resume")
    daemon.until("cache", lambda p: p["deployment_status"] == "Running")

    daemon.kill()
    assert redis(path, "GET", "answer").endswith("42\r\n"), "it serves on while no daemon runs"
    daemon.start()
    assert daemon.process("cache") == pid

    # Told to stop with grace, redis saves; started again, it still knows.
    row = daemon.stop_pipeline("cache", force=False)
    assert row["deployment_error"] is None
    assert row["storage_status"] == "InUse"
    daemon.start_pipeline("cache")
    assert redis(socket_of(daemon), "GET", "answer").endswith("42\r\n")

    daemon.stop_pipeline("cache")
    daemon.post("cache", "clear")
    daemon.until("cache", lambda p: p["storage_status"] == "Cleared")
    daemon.start_pipeline("cache")
    assert redis(socket_of(daemon), "GET", "answer") == "$-1\r\n"
    assert "ready to accept connections at" in daemon.ask("GET", "/v0/pipelines/cache/logs?follow=false").body


@pytest.mark.parametrize("name", CRASHES)
def test_each_signal_is_told_as_it_was(daemon: Daemon, name: str) -> None:
    create(daemon)
    daemon.start_pipeline("cache")
    redis(socket_of(daemon), "PING")
    os.kill(daemon.process("cache"), signal.Signals[name])
    if name == "SIGHUP":  # redis ignores it
        assert redis(socket_of(daemon), "PING") == "+PONG\r\n"
        return
    row = daemon.until("cache", lambda p: p["deployment_status"] == "Stopped")
    if name in ("SIGTERM", "SIGINT"):  # redis shuts down in order, and says so with its exit code
        assert row["deployment_error"] is None
        return
    error = row["deployment_error"]
    assert error["error_code"] == "PipelineProcessExited"
    assert error["details"]["signal_name"] == name
    assert error["details"]["inferred"] is False


def test_stop_by_force_takes_everything(daemon: Daemon) -> None:
    create(daemon)
    daemon.start_pipeline("cache")
    pid = daemon.process("cache")
    daemon.stop_pipeline("cache", force=True)
    assert not alive(pid)
    assert daemon.processes() == []


def test_sigterm_of_the_daemon_leaves_it(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    daemon.start()
    create(daemon)
    daemon.start_pipeline("cache")
    pid = daemon.process("cache")
    events = daemon.events("cache")
    for _ in range(3):
        assert daemon.terminate() == 0
        assert alive(pid)
        daemon.start()
        assert daemon.process("cache") == pid
        assert daemon.events("cache") == events
