"""Kill the daemon at random moments, again and again, while somebody uses it: nothing is lost, nothing runs twice.

The moments are random in the middle of starts, stops, clears, compiles, pauses and graceful stops. The seed is printed;
PENSTOCK_TEST_SEED repeats a run, PENSTOCK_TEST_SCALE=10 makes it 200 kills.
"""

from __future__ import annotations

import http.client
import itertools
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from .daemon import Daemon, alive

KILLS_PER_SCALE = 20
LOST = (OSError, http.client.HTTPException)

BORN = """
import os, signal, sys, time
with open({births!r}, "a") as births:
    births.write(f"{{os.environ['PENSTOCK_DEPLOYMENT_ID']}} {{os.getpid()}}\\n")
"""
PATIENT = BORN + "while True: time.sleep(60)\n"
STUBBORN = BORN + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: time.sleep(60)\n"
PARENT = BORN + "\nif os.fork() == 0:\n    os.setsid()\nwhile True: time.sleep(60)\n"


@dataclass
class Known:
    """What a user knows of one pipeline: what was acknowledged, and what was seen."""

    name: str
    wanted: str = "Stopped"
    """Stopped or Provisioned, as last acknowledged."""
    unsure: bool = False
    """A request got no answer: it may have been carried out or not."""
    forced: bool = True
    pid: int | None = None
    """The process of a pipeline that has been left running."""
    events: list[dict[str, Any]] = field(default_factory=list)
    program_version: int = 1
    cleared: bool = True


class User:
    """Asks for things at random, remembers every acknowledgement."""

    def __init__(self, daemon: Daemon, chance: random.Random, births: Path) -> None:
        self.daemon = daemon
        self.chance = chance
        self.births = births
        self.pipelines: list[Known] = []

    def create(self) -> None:
        for index, program in enumerate((PATIENT, PATIENT, STUBBORN, PARENT)):
            name = f"p{index}"
            self.daemon.create(name, program.format(births=str(self.births)))
            self.pipelines.append(Known(name))

    def act(self) -> None:
        """One request; the daemon may die under it."""
        one = self.chance.choice(self.pipelines)
        action = self.chance.choices(
            ["start", "force", "graceful", "clear", "pause", "resume", "edit", "dismiss"], [8, 4, 3, 3, 2, 2, 2, 1]
        )[0]
        before = (one.wanted, one.unsure)
        if action in ("start", "force", "graceful"):
            one.unsure, one.pid = True, None
        try:
            getattr(self, f"_{action}")(one, before)
        except LOST:
            return

    def _start(self, one: Known, before: tuple[str, bool]) -> None:
        initial = self.chance.choice(["running", "running", "paused"])
        reply = self.daemon.ask("POST", f"/v0/pipelines/{one.name}/start?initial={initial}")
        if reply.status == 202:
            one.wanted, one.unsure = "Provisioned", False
        else:
            assert reply.status == 400, reply
            one.wanted, one.unsure = before

    def _force(self, one: Known, before: tuple[str, bool]) -> None:
        reply = self.daemon.ask("POST", f"/v0/pipelines/{one.name}/stop?force=true")
        assert reply.status == 202, reply
        one.wanted, one.unsure = "Stopped", False

    def _graceful(self, one: Known, before: tuple[str, bool]) -> None:
        reply = self.daemon.ask("POST", f"/v0/pipelines/{one.name}/stop?force=false")
        assert reply.status == 202, reply
        one.wanted, one.unsure = "Stopped", False

    def _clear(self, one: Known, before: tuple[str, bool]) -> None:
        assert self.daemon.ask("POST", f"/v0/pipelines/{one.name}/clear").status in (202, 400)

    def _pause(self, one: Known, before: tuple[str, bool]) -> None:
        assert self.daemon.ask("POST", f"/v0/pipelines/{one.name}/pause").status in (202, 400, 503)

    def _resume(self, one: Known, before: tuple[str, bool]) -> None:
        assert self.daemon.ask("POST", f"/v0/pipelines/{one.name}/resume").status in (202, 400, 503)

    def _edit(self, one: Known, before: tuple[str, bool]) -> None:
        """A new program while stopped: compile, and early starts."""
        code = self.chance.choice((PATIENT, PARENT)).format(births=str(self.births))
        edited = {"program_code": f"{code}\n# {self.chance.random()}\n"}
        reply = self.daemon.ask("PATCH", f"/v0/pipelines/{one.name}", edited)
        assert reply.status in (200, 400), reply

    def _dismiss(self, one: Known, before: tuple[str, bool]) -> None:
        assert self.daemon.ask("POST", f"/v0/pipelines/{one.name}/dismiss_error").status in (200, 400)

    # --- what must hold ----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Let everything settle, then compare what is with what was acknowledged and seen."""
        for one in self.pipelines:
            self._settle(one)
            self._check_events(one)
        self._check_births()
        self._check_processes()

    def _settle(self, one: Known) -> None:
        def settled(p: dict[str, Any]) -> bool:
            compiled = p["program_status"] == "Success"
            if p["storage_status"] == "Clearing" or not compiled:
                return False
            if one.unsure:
                return p["deployment_resources_status"] == p["deployment_resources_desired_status"]
            return p["deployment_resources_status"] == one.wanted == p["deployment_resources_desired_status"]

        row = self.daemon.until(one.name, settled, within_seconds=30)
        assert row["deployment_error"] is None, row
        one.wanted, one.unsure = row["deployment_resources_status"], False
        if one.wanted == "Provisioned":
            pid = self.daemon.process(one.name)
            assert alive(pid), row
            assert one.pid in (None, pid), f"{one.name} was started again: {one.pid} then {pid}"
            one.pid = pid
        else:
            one.pid = None

    def _check_events(self, one: Known) -> None:
        events = self.daemon.events(one.name)
        ids = [event["event_id"] for event in events]
        assert len(set(ids)) == len(ids)
        assert ids == sorted(ids), "events out of order"
        if len(events) < 700:  # older ones are trimmed
            assert events[: len(one.events)] == one.events, "an event was lost or changed"
        for earlier, later in itertools.pairwise(events):
            assert {**earlier, "event_id": 0, "recorded_at": 0} != {**later, "event_id": 0, "recorded_at": 0}
        one.events = events

    def _check_births(self) -> None:
        """Each deployment was begun at most once."""
        born = Counter(line.split()[0] for line in self.births.read_text().splitlines()) if self.births.exists() else {}
        assert all(count == 1 for count in born.values()), born

    def _check_processes(self) -> None:
        """Nothing of ours runs beside what the rows know."""
        running = sum(one.pid is not None for one in self.pipelines)
        give_up_at = time.monotonic() + 5
        while True:
            deployments = set()
            for pid in self.daemon.processes():
                try:
                    environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                except OSError:
                    continue
                deployments |= {entry for entry in environ if entry.startswith(b"PENSTOCK_DEPLOYMENT_ID=")}
            if len(deployments) == running:
                return
            assert time.monotonic() < give_up_at, f"{len(deployments)} deployments live, {running} are known"
            time.sleep(0.05)


@pytest.mark.timeout(1200)
def test_kills_at_random_moments(make_daemon: Callable[..., Daemon], scale: int, tmp_path: Path) -> None:
    seed = int(os.environ.get("PENSTOCK_TEST_SEED", time.time_ns() % 1_000_000))
    print(f"PENSTOCK_TEST_SEED={seed}")
    chance = random.Random(seed)
    daemon = make_daemon(config="[runner]\nstop_grace_seconds = 1.0\n")
    daemon.start()
    user = User(daemon, chance, tmp_path / "births")
    user.create()
    kills = 0
    while kills < KILLS_PER_SCALE * scale:
        for _ in range(chance.randint(1, 5)):
            user.act()
        time.sleep(chance.choice([0, 0, 0.001, 0.003, 0.01, 0.03, 0.1]))
        if chance.random() < 0.2:
            daemon.terminate()
        else:
            daemon.kill()
        kills += 1
        # Now and then it is killed again while it starts and adopts.
        if chance.random() < 0.2:
            daemon.start(wait=False)
            time.sleep(chance.random() * 0.8)
            daemon.kill()
            kills += 1
        daemon.start()
        user.check()
    print(f"{kills} kills, seed {seed}")


def test_a_death_is_noticed_at_once_after_adoption(daemon: Daemon) -> None:
    """Also by the third daemon in a row."""
    daemon.create("p", "import time\nwhile True: time.sleep(60)\n")
    for _ in range(3):
        daemon.start_pipeline("p")
        pid = daemon.process("p")
        for _ in range(2):
            daemon.kill()
            daemon.start()
        assert daemon.process("p") == pid
        began = time.monotonic()
        os.kill(pid, signal.SIGSEGV)
        row = daemon.until("p", lambda p: p["deployment_status"] == "Stopped", within_seconds=5)
        assert time.monotonic() - began < 1
        details = row["deployment_error"]["details"]
        assert (details["signal_name"], details["inferred"]) == ("SIGSEGV", False)


@pytest.mark.parametrize(
    ("ending", "evidence"),
    [
        ("sys.exit(7)", {"exit_code": 7, "signal": None}),
        ("os.kill(os.getpid(), signal.SIGSEGV)", {"exit_code": None, "signal_name": "SIGSEGV"}),
        ("os.kill(os.getpid(), signal.SIGKILL)", {"exit_code": None, "signal_name": "SIGKILL"}),
    ],
)
def test_who_died_while_no_daemon_ran_still_shows_how(daemon: Daemon, ending: str, evidence: dict[str, object]) -> None:
    go = daemon.home / "go"
    program = (
        "import os, signal, sys, time\nprint('last words', flush=True)\n"
        f"while not os.path.exists({str(go)!r}): time.sleep(0.01)\n{ending}\n"
    )
    daemon.create("p", program)
    daemon.start_pipeline("p")
    pid = daemon.process("p")
    daemon.kill()
    go.touch()
    while alive(pid):
        time.sleep(0.01)
    daemon.start()
    row = daemon.until("p", lambda p: p["deployment_status"] == "Stopped")
    error = row["deployment_error"]
    assert error["error_code"] == "PipelineProcessExited"
    assert evidence.items() <= error["details"].items()
    assert error["details"]["pid"] == pid
    assert any("last words" in line for line in error["details"]["log_tail"])


def test_two_daemons_leave_each_others_pipelines_alone(make_daemon: Callable[..., Daemon]) -> None:
    one, two = make_daemon(), make_daemon()
    for daemon in (one, two):
        daemon.start()
        daemon.create("p", "import time\nwhile True: time.sleep(60)\n")
        daemon.start_pipeline("p")
    pid = two.process("p")
    one.stop_pipeline("p")
    one.kill()
    one.start()
    assert alive(pid)
    assert two.process("p") == pid
    assert one.processes() == []


def test_a_second_daemon_on_one_state_directory_refuses(make_daemon: Callable[..., Daemon]) -> None:
    first = make_daemon()
    first.start()
    second = make_daemon(home=first.home)
    second.start(wait=False)
    assert second.wait() == 75
    assert str(first.state_dir) in second.log_text()
    assert first.ask("GET", "/healthz").body == {"status": "healthy"}
