"""Real programs, and a state directory of their own; whatever a test starts is dead when it is over."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from penstock.clock import SystemClock
from penstock.executors import ProcessExecutor
from penstock.executors.procfs import Census, environment, is_alive, is_of, is_stopped, take_census
from penstock.executors.recorder import is_unbegun
from penstock.executors.records import Records
from penstock.linux import stat_fields
from penstock.logfile import LogFiles
from penstock.model import (
    DeploymentId,
    Pipeline,
    PipelineId,
    ResourcesDesired,
    ResourcesStatus,
    RuntimeDesired,
    StorageStatus,
)
from penstock.ports import RunPlan
from penstock.testing.executor_contract import deployment
from penstock.testing.fake_programs import FakeProbe, FakeToolchains
from tests.core.rows import corner

BORN = 'echo $$ >>"$BIRTHS/$PENSTOCK_DEPLOYMENT_ID"; '
PATIENT = 'trap "exit 3" USR1; ' + BORN + 'while :; do read -r line <>"$BIRTHS/never"; done'
"""Says that it was born, then runs until it is told to end."""

PYTHON = (sys.executable, "-S", "-E", "-c")


@dataclass
class Plans(FakeToolchains):
    """Starts what the test says."""

    plans: dict[PipelineId, RunPlan] = field(default_factory=dict)

    def plan(self, row: Pipeline) -> RunPlan:
        return self.plans[row.id]


class ProcessWorld:
    """A state directory, the programs of its pipelines, and the daemons that come and go."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.state_dir = home / "state"
        self.births = home / "births"
        self.births.mkdir(exist_ok=True)
        with suppress(FileExistsError):
            os.mkfifo(self.births / "never")
        self.clock = SystemClock()
        self.instance_id = self.clock.new_id()
        self.lasting = f"1000.{random.randrange(1 << 30)}"
        """How long what hides sleeps: by this it is found, whatever else it sheds."""
        self.toolchains = Plans()
        self.probe = FakeProbe()
        self.logs = LogFiles(state_dir=self.state_dir, clock=self.clock, max_bytes=1 << 24)

    def open(self) -> ProcessExecutor:
        return ProcessExecutor(
            state_dir=self.state_dir,
            instance_id=self.instance_id,
            toolchains=self.toolchains,
            logs=self.logs,
            probe=self.probe,
            clock=self.clock,
        )

    def provisioning(self, *, paused: bool = False) -> Pipeline:
        return self.shell(PATIENT, paused=paused)

    def shell(self, script: str, *, paused: bool = False) -> Pipeline:
        """The row of a pipeline that runs a shell script."""
        return self.running_argv("/bin/sh", "-c", script, paused=paused)

    def python(self, script: str, *, contract: str = "process") -> Pipeline:
        """The row of a pipeline that runs a Python script."""
        return self.running_argv(*PYTHON, script, contract=contract)

    def running_argv(self, *argv: str, paused: bool = False, contract: str = "process") -> Pipeline:
        """The row of a pipeline that runs that command."""
        row = corner(StorageStatus.IN_USE, ResourcesStatus.PROVISIONING, ResourcesDesired.PROVISIONED)
        intent = RuntimeDesired.PAUSED if paused else RuntimeDesired.RUNNING
        row = replace(
            row,
            id=PipelineId(self.clock.new_id()),
            deployment_id=DeploymentId(self.clock.new_id()),
            runtime_intent=intent,
        )
        self.toolchains.plans[row.id] = RunPlan(
            argv=argv,
            contract=contract,
            artifact_dir="/artifacts",
            program_file="/artifacts/program",
            env=(("BIRTHS", str(self.births)),),
        )
        return row

    def records(self, row: Pipeline) -> Records:
        return Records(self.state_dir / "pipelines" / row.id / "deployments" / deployment(row))

    def pid(self, row: Pipeline) -> int:
        """The pid of the program, by its claim."""
        claim = self.records(row).read_claim()
        assert claim is not None
        assert claim.pid is not None
        return claim.pid

    def begun(self, deployment_id: DeploymentId) -> int:
        with suppress(FileNotFoundError):
            return len((self.births / deployment_id).read_text().split())
        return 0

    def members(self, deployment_id: DeploymentId) -> list[int]:
        """Every living process that carries the deployment's id, recorders among them."""
        return [
            pid
            for compute, pids in self.census().ours.items()
            for pid in pids
            if compute.deployment_id == deployment_id
        ]

    def running(self, deployment_id: DeploymentId) -> int:
        return sum(_is_program(pid) for pid in self.members(deployment_id))

    async def end(self, deployment_id: DeploymentId) -> None:
        for pid in self.members(deployment_id):
            if _is_program(pid):
                os.kill(pid, signal.SIGUSR1)

    def census(self) -> Census:
        return take_census(self.instance_id, {})

    def kill_all(self) -> None:
        """Leave nothing behind."""
        give_up_at = time.monotonic() + 5

        def ours() -> list[int]:
            carriers = [pid for pid in _pids() if is_of(environment(pid), self.instance_id) or self._holds_a_lock(pid)]
            return [*carriers, *self.escaped()]

        while pids := ours():
            assert time.monotonic() < give_up_at, f"cannot kill {pids}"
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)

    def escaped(self) -> list[int]:
        """The living processes that sleep for `lasting`, wherever they come from."""
        found = {pid: _command_lines(pid) for pid in _pids() if is_alive(pid)}
        return [pid for pid, text in found.items() if self.lasting.encode() in text and b"BIRTHS" not in text]

    def _holds_a_lock(self, pid: int) -> bool:
        """Whatever else it hides, what was passed on to it shows where it comes from."""
        state_dir = str(self.state_dir)
        with suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                path = os.readlink(f"/proc/{pid}/fd/{name}")
                if pid != os.getpid() and path.startswith(state_dir) and "storage.lock" in path:
                    return True
        return False


@contextmanager
def world_in(home: Path) -> Iterator[ProcessWorld]:
    world = ProcessWorld(home)
    try:
        yield world
    finally:
        world.kill_all()


def zombies() -> list[int]:
    """The children of this process that nobody has reaped."""
    found = []
    for pid in _pids():
        fields = stat_fields(pid)
        if fields is not None and fields[0] == "Z" and int(fields[1]) == os.getpid():
            found.append(pid)
    return found


def _is_program(pid: int) -> bool:
    """Not a recorder, nor on its way to become a program, unless it waits to be let go."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    fields = stat_fields(pid)
    alive = fields is not None and fields[0] not in "ZX"
    return alive and (not is_unbegun(line) or is_stopped(pid))


def _command_lines(pid: int) -> bytes:
    """The words that a process was begun with, as its threads tell: the first may have ended."""
    with suppress(OSError):
        return b"".join(task.read_bytes() for task in Path(f"/proc/{pid}/task").glob("*/cmdline"))
    return b""


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]
