"""The installed program as its users meet it: a real process, its own state directory, its API over a unix socket.

Every test gets its daemon from the `daemon` fixture (conftest.py), which leaves no process behind.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

READY_SECONDS = 20.0
Json = Any


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@dataclass(frozen=True)
class Reply:
    """One HTTP answer. `body` is decoded when it is JSON, else text."""

    status: int
    body: Json


class Daemon:
    """One state directory, and the daemon that runs on it at the moment, if one does."""

    def __init__(self, home: Path, *, config: str = "") -> None:
        self.home = home
        self.state_dir = home / "state"
        self.socket = str(home / "api.sock")
        self.config = home / "config.toml"
        self.config.write_text(
            f'[daemon]\nstate_dir = "{self.state_dir}"\nlog_format = "json"\n'
            f'[api]\nlisten = "unix:{self.socket}"\n{config}\n'
        )
        self.log = home / "daemon.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify_path = str(home / f"notify-{id(self)}.sock")
        self._notify.bind(self._notify_path)

    # --- its life ----------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The pid of the running daemon."""
        assert self._process is not None
        return self._process.pid

    def start(self, *, wait: bool = True, env: dict[str, str] | None = None) -> None:
        """Start it, and wait until it says that it is ready: everything that could be adopted is."""
        assert self._process is None, "it runs already"
        self._drain()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "penstock", "serve", "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "NOTIFY_SOCKET": self._notify_path, **(env or {})},
                start_new_session=True,
            )
        if wait:
            self.await_ready()

    def await_ready(self) -> None:
        """Wait for READY=1."""
        give_up_at = time.monotonic() + READY_SECONDS
        while time.monotonic() < give_up_at:
            self._notify.settimeout(0.2)
            try:
                if b"READY=1" in self._notify.recv(4096):
                    return
            except TimeoutError:
                assert self._process is not None
                assert self._process.poll() is None, self.log_text()
        raise AssertionError("not ready in time:\n" + self.log_text())

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self._end(signal.SIGKILL)

    def terminate(self) -> int:
        """SIGTERM, and wait; returns the exit code."""
        return self._end(signal.SIGTERM)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self, timeout: float = 20) -> int:
        """Wait until it has ended by itself; returns the exit code."""
        assert self._process is not None
        code = self._process.wait(timeout)
        self._process = None
        return code

    def log_text(self) -> str:
        """What it has logged, all its lives."""
        return self.log.read_text("utf-8", "replace")

    def close(self) -> None:
        """End it and everything that it started."""
        if self._process is not None:
            self.kill()
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._notify.close()

    def processes(self) -> list[int]:
        """Every process with this state directory in its environment (programs, recorders), and their children.

        A server that shows its state as its title (redis) overwrites its environment; its recorder does not.
        """
        mark = f"={self.state_dir}/".encode()
        found: list[int] = []
        parents: dict[int, int] = {}
        for name in os.listdir("/proc"):
            if not name.isdecimal():
                continue
            try:
                environ = Path(f"/proc/{name}/environ").read_bytes()
                parents[int(name)] = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if mark in environ and b"PENSTOCK_DEPLOYMENT_ID=" in environ:
                found.append(int(name))
        return found + [pid for pid, parent in parents.items() if parent in found and pid not in found]

    def _end(self, number: int) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        code = self._process.wait(30)
        self._process = None
        return code

    def _drain(self) -> None:
        self._notify.setblocking(False)
        try:
            while True:
                self._notify.recv(4096)
        except BlockingIOError:
            pass

    # --- its API -----------------------------------------------------------------------------------------------------

    def ask(self, method: str, path: str, body: Json = None, *, timeout: float = 20) -> Reply:
        """One request. Raises OSError or http.client.HTTPException when the daemon is not there, or dies meanwhile."""
        connection = _UnixConnection(self.socket, timeout)
        try:
            if body is None:
                connection.request(method, path)
            else:
                connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        if response.headers.get_content_type() == "application/json" and data:
            return Reply(response.status, json.loads(data))
        return Reply(response.status, data.decode("utf-8", "replace"))

    @contextmanager
    def stream(self, path: str, *, timeout: float = 20) -> Iterator[http.client.HTTPResponse]:
        """An answer that is read as it comes."""
        connection = _UnixConnection(self.socket, timeout)
        try:
            connection.request("GET", path)
            yield connection.getresponse()
        finally:
            connection.close()

    def create(self, name: str, program: str, *, wait: bool = True, **fields: Json) -> Json:
        """POST a pipeline; wait until its program is built."""
        reply = self.ask("POST", "/v0/pipelines", {"name": name, "program_code": program, **fields})
        assert reply.status == 201, reply
        return self.until(name, lambda p: p["program_status"] == "Success") if wait else reply.body

    def start_pipeline(self, name: str, **query: str) -> Json:
        """Start, and wait until it runs."""
        self.post(name, "start", **query)
        return self.until(name, lambda p: p["deployment_status"] in ("Running", "Paused"))

    def stop_pipeline(self, name: str, *, force: bool = True) -> Json:
        """Stop, and wait until it is stopped."""
        self.post(name, "stop", force=str(force).lower())
        return self.until(name, lambda p: p["deployment_status"] == "Stopped")

    def post(self, name: str, action: str, **query: str) -> Reply:
        """POST an action that is accepted."""
        asked = "&".join(f"{key}={value}" for key, value in query.items())
        reply = self.ask("POST", f"/v0/pipelines/{name}/{action}?{asked}")
        assert reply.status in (200, 202), reply
        return reply

    def pipeline(self, name: str) -> Json:
        """The pipeline as it is now, without program and configuration."""
        reply = self.ask("GET", f"/v0/pipelines/{name}?selector=status")
        assert reply.status == 200, reply
        return reply.body

    def events(self, name: str) -> list[Json]:
        """All events, oldest first."""
        reply = self.ask("GET", f"/v0/pipelines/{name}/events?selector=all")
        assert reply.status == 200, reply
        return list(reversed(reply.body))

    def process(self, name: str) -> int:
        """The pid of the pipeline's process."""
        reply = self.ask("GET", f"/v0/pipelines/{name}")
        return int(reply.body["deployment_resources_status_details"]["process"])

    def until(self, name: str, holds: Callable[[Json], bool], *, within_seconds: float = 20) -> Json:
        """Wait until the pipeline is as `holds` wants it."""
        give_up_at = time.monotonic() + within_seconds
        while True:
            row = self.pipeline(name)
            if holds(row):
                return row
            assert time.monotonic() < give_up_at, f"{row}\n{self.log_text()[-3000:]}"
            time.sleep(0.003)


def alive(pid: int) -> bool:
    """Tell whether the process exists and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
