"""supervisord behind the bench's interface: XML-RPC over its unix socket, on one keep-alive connection.

`startsecs=0`, since its default has every start take a second; `minfds` as high as it needs for its pipes. A stop
kills, as everywhere here: what it calls running may not have been exec'd yet, and would lose a SIGTERM for 10 s.
"""

from __future__ import annotations

import http.client
import os
import shlex
import signal
import socket
import xmlrpc.client
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.measuring import Hangs, until
from tests.bench.peers.peer import Peer, Process, State

STATES: dict[str, State] = {"RUNNING": "running", "STOPPED": "stopped", "EXITED": "stopped"}
FILES_EACH = 4
"""Three pipes' ends, and one to spare."""


class Supervisord(Peer):
    """supervisord of the peers' environment."""

    name = "supervisord"
    programs: Path
    """Where its executables are; set before any is made."""

    def __init__(self, home: Path, services: Sequence[str], *, autostart: bool = False) -> None:
        super().__init__(home, services, autostart=autostart)
        self._config = home / "supervisord.conf"
        self._socket = str(home / "rpc.sock")
        self._process = Process(home / "output")
        self._proxy: Any = None

    def prepare(self) -> None:
        lines = [
            "[supervisord]",
            "nodaemon = true",
            f"directory = {self.home}",
            f"logfile = {self.home}/log",
            f"pidfile = {self.home}/pid",
            f"childlogdir = {self.home}",
            "loglevel = warn",
            f"minfds = {256 + FILES_EACH * len(self.services)}",
            *(["user = root"] if os.geteuid() == 0 else []),  # else it warns that it runs as root
            "[unix_http_server]",
            f"file = {self._socket}",
            "[rpcinterface:supervisor]",
            "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface",
        ]
        for service in self.services:
            lines += [
                f"[program:{service}]",
                f"command = {shlex.join(self.sleep)}",
                f"autostart = {str(self.autostart).lower()}",
                "autorestart = false",
                "startsecs = 0",
                "stopsignal = KILL",
                "stdout_logfile = NONE",
                "stderr_logfile = NONE",
            ]
        self._config.write_text("\n".join(lines) + "\n")

    def boot(self) -> None:
        self._process.run([self.programs / "supervisord", "--configuration", self._config])
        self._proxy = xmlrpc.client.ServerProxy("http://localhost", transport=_UnixTransport(self._socket))
        until(self._answers, "supervisord's start")

    def end(self, number: signal.Signals) -> None:
        if self._proxy is not None:
            self._proxy("close")()
            self._proxy = None
        self._process.end(number)

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self, service: str) -> None:
        self._proxy.supervisor.startProcess(service, False)

    def stop(self, service: str) -> None:
        self._proxy.supervisor.stopProcess(service, False)

    def start_all(self) -> None:
        self._proxy.supervisor.startAllProcesses(False)

    def stop_all(self) -> None:
        self._proxy.supervisor.stopAllProcesses(False)

    def state(self, service: str) -> State:
        return _state(self._proxy.supervisor.getProcessInfo(service))

    def states(self) -> dict[str, State]:
        return {info["name"]: _state(info) for info in self._proxy.supervisor.getAllProcessInfo()}

    def process(self, service: str) -> int | None:
        return self._proxy.supervisor.getProcessInfo(service)["pid"] or None

    def obituary(self, service: str) -> str:
        info = self._proxy.supervisor.getProcessInfo(service)
        return f"exit status {info['exitstatus']}" if info["statename"] == "EXITED" else "nothing"

    def _answers(self) -> bool:
        if self._process.ended():
            raise Hangs(f"supervisord ended: {self._process.log.read_text()[-500:]}")
        try:
            return self._proxy.supervisor.getState()["statename"] == "RUNNING"
        except (OSError, http.client.HTTPException):
            return False


def _state(info: dict[str, Any]) -> State:
    return STATES.get(info["statename"], "changing")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class _UnixTransport(xmlrpc.client.Transport):
    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._kept: _UnixConnection | None = None

    def make_connection(self, host: Any) -> _UnixConnection:
        if self._kept is None:
            self._kept = _UnixConnection(self._path)
        return self._kept

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None
