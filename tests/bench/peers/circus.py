"""circus behind the bench's interface: its JSON commands over ZeroMQ on a unix socket.

What it calls `active` may have died until its next check; so the state of one is asked of `list`, which looks.
"""

from __future__ import annotations

import json
import shlex
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.measuring import Hangs, until
from tests.bench.peers.peer import Peer, Process, State
from tests.bench.peers.zmtp import Dealer

STATES: dict[str, State] = {"active": "running", "stopped": "stopped"}
QUICK_CHECK_SECONDS = 0.1
"""Between two looks at its processes: as quick as can be while they are few."""
DEFAULT_CHECK_SECONDS = 1.0
"""Its own default, for many: with 100 of them the quick one took 9 % of a core, and made nothing here faster."""
FEW = 20
BUSY = "already running"
"""What it says of a command while another that changes something, or a look at the processes, goes on."""


class Circus(Peer):
    """circusd of the peers' environment."""

    name = "circus"
    programs: Path
    """Where its executables are; set before any is made."""

    def __init__(self, home: Path, services: Sequence[str], *, autostart: bool = False) -> None:
        super().__init__(home, services, autostart=autostart)
        self._config = home / "circus.ini"
        self._socket = str(home / "control.sock")
        self._process = Process(home / "output")
        self._dealer: Dealer | None = None

    def prepare(self) -> None:
        lines = [
            "[circus]",
            f"endpoint = ipc://{self._socket}",
            f"pubsub_endpoint = ipc://{self.home}/events.sock",
            "statsd = false",
            "loglevel = WARNING",
            f"check_delay = {QUICK_CHECK_SECONDS if len(self.services) <= FEW else DEFAULT_CHECK_SECONDS:g}",
        ]
        for service in self.services:
            lines += [
                f"[watcher:{service}]",
                f"cmd = {shlex.join(self.sleep)}",
                f"autostart = {self.autostart}",
                "respawn = False",
                "stop_signal = SIGKILL",
                "copy_env = True",
            ]
        self._config.write_text("\n".join(lines) + "\n")

    def boot(self) -> None:
        self._process.run([self.programs / "circusd", self._config])
        until(self._answers, "circus' start")

    def end(self, number: signal.Signals) -> None:
        if self._dealer is not None:
            self._dealer.close()
            self._dealer = None
        self._process.end(number)

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self, service: str) -> None:
        self._ok("start", name=service, waiting=True)

    def stop(self, service: str) -> None:
        self._ok("stop", name=service)

    def start_all(self) -> None:
        # Its own command for all starts only what its boot would have started anyway.
        for service in self.services:
            self.start(service)

    def stop_all(self) -> None:
        self._ok("stop")

    def state(self, service: str) -> State:
        if self._ok("list", name=service)["pids"]:
            return "running"
        return "stopped" if self._ok("status", name=service)["status"] == "stopped" else "changing"

    def states(self) -> dict[str, State]:
        statuses = self._ok("status")["statuses"]
        return {name: STATES.get(status, "changing") for name, status in statuses.items()}

    def process(self, service: str) -> int | None:
        return next(iter(self._ok("list", name=service)["pids"]), None)

    def obituary(self, service: str) -> str:
        return "that it stopped" if self.state(service) == "stopped" else "nothing"

    def _ok(self, command: str, **properties: Any) -> dict[str, Any]:
        request = json.dumps({"id": command, "command": command, "properties": properties}).encode()
        answer: dict[str, Any] = {}

        def accepted() -> bool:
            nonlocal answer
            assert self._dealer is not None
            self._dealer.send(request)
            answer = json.loads(self._dealer.receive())
            return BUSY not in answer.get("reason", "")

        until(accepted, command)
        assert answer["status"] != "error", (command, properties, answer)
        return answer

    def _answers(self) -> bool:
        if self._process.ended():
            raise Hangs(f"circus ended: {self._process.log.read_text()[-500:]}")
        if self._dealer is None:
            try:
                self._dealer = Dealer(self._socket)
            except OSError:
                return False
        # It listens before it has read what it shall run.
        return len(self._ok("list")["watchers"]) >= len(self.services)
