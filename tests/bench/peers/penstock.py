"""Penstock behind the bench's interface: its HTTP API on the unix socket, over one keep-alive connection."""

from __future__ import annotations

import json
import shlex
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.measuring import until
from tests.bench.peers.peer import Peer, State, undisturbed
from tests.bench.wire import Wire
from tests.e2e.daemon import Daemon

COMMAND = {"toolchain": "command"}
STATES: dict[str, State] = {"Running": "running", "Stopped": "stopped"}


class Penstock(Peer):
    """A daemon of the installed program. Services are pipelines of the toolchain `command`, contract `process`."""

    name = "penstock"
    autostarts = False

    def __init__(self, home: Path, services: Sequence[str], *, autostart: bool = False) -> None:
        super().__init__(home, services, autostart=autostart)
        self.daemon = Daemon(home)
        self._wire: Wire | None = None
        self._runs = False

    def prepare(self) -> None:
        if self.services:
            self.boot()
            self.create(self.services, shlex.join(self.sleep))
            self.end(signal.SIGTERM)

    def create(self, names: list[str], program: str, **config: str) -> None:
        """Make pipelines of that program, and wait until they are built."""
        for name in names:
            body = {"name": name, "program_code": program, "program_config": {**COMMAND, **config}}
            self.ok("POST", "/v0/pipelines", body)

        def built() -> bool:
            rows = self.ok("GET", "/v0/pipelines?selector=status")
            return all(row["program_status"] == "Success" for row in rows)

        until(built, "building", pause_seconds=0.02)

    def boot(self) -> None:
        self.daemon.start()
        self._runs = True
        self._wire = Wire(self.daemon.socket)
        self.ok("GET", "/v0/pipelines?selector=status")

    def end(self, number: signal.Signals) -> None:
        if self._wire is not None:
            self._wire.close()
        if not self._runs:
            return
        self._runs = False
        if number == signal.SIGKILL:
            self.daemon.kill()
        else:
            self.daemon.terminate()

    @property
    def pid(self) -> int:
        return self.daemon.pid

    def start(self, service: str) -> None:
        self.ok("POST", f"/v0/pipelines/{service}/start")

    def stop(self, service: str) -> None:
        self.ok("POST", f"/v0/pipelines/{service}/stop?force=true")

    def start_all(self) -> None:
        for service in self.services:
            self.start(service)

    def stop_all(self) -> None:
        for service in self.services:
            self.stop(service)

    def state(self, service: str) -> State:
        return _state(self.ok("GET", f"/v0/pipelines/{service}?selector=status"))

    def states(self) -> dict[str, State]:
        return {row["name"]: _state(row) for row in self.ok("GET", "/v0/pipelines?selector=status")}

    def process(self, service: str) -> int | None:
        details = self.ok("GET", f"/v0/pipelines/{service}")["deployment_resources_status_details"]
        return details["process"] if details and "process" in details else None

    def obituary(self, service: str) -> str:
        error = self.ok("GET", f"/v0/pipelines/{service}")["deployment_error"]
        if error is None:
            return "nothing"
        details = error["details"]
        return str(details["signal_name"] or f"exit code {details['exit_code']}")

    def close(self) -> None:
        with undisturbed():
            self._runs = False  # whether it does or was just starting: this ends it
            self.daemon.close()
            super().close()

    @property
    def wire(self) -> Wire:
        """The connection to the daemon that runs."""
        assert self._wire is not None
        return self._wire

    def ok(self, method: str, path: str, body: Any = None) -> Any:
        """A request that must be accepted; its answer decoded."""
        status, data = self.wire.ask(method, path, body)
        assert status < 400, (method, path, status, data[:500])
        return json.loads(data) if data else None


def _state(row: dict[str, Any]) -> State:
    return STATES.get(row["deployment_status"], "changing")
