"""The loop around the turn, on virtual time, with a real store's model and a fake world."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace

import anyio
import pytest

from penstock import program, requests
from penstock.answers import Answer, NoAnswer
from penstock.faults import HOST_RESTARTED
from penstock.loop import RESYNC_SECONDS, Loop
from penstock.machine import Policy
from penstock.model import (
    Author,
    Bootstrap,
    DeploymentId,
    Exit,
    Fault,
    Initial,
    JsonObject,
    Pipeline,
    PipelineId,
    Provision,
    Refusal,
    ResourcesDesired,
    ResourcesStatus,
    RuntimeDesired,
    RuntimeStatus,
    Spec,
    StopCompute,
    StorageStatus,
)
from penstock.ports import ExecutorError, StaleRevision, StoreUnavailable
from penstock.reconciler import Reconciler
from penstock.telemetry import Metrics
from penstock.testing.fake_executor import FakeExecutor, FakeProcess
from penstock.testing.fake_programs import FakeLogs, FakeProbe, FakeToolchains
from penstock.testing.memory_store import MemoryStore
from penstock.testing.virtual import VirtualClock

R = ResourcesStatus


@dataclass
class House:
    """Everything around one loop, and a user who asks for things."""

    clock: VirtualClock = field(default_factory=VirtualClock)
    world: FakeExecutor = field(default_factory=FakeExecutor)
    toolchains: FakeToolchains = field(default_factory=FakeToolchains)
    probe: FakeProbe = field(default_factory=FakeProbe)
    logs: FakeLogs = field(default_factory=FakeLogs)
    metrics: Metrics = field(default_factory=lambda: Metrics("test"))
    store: MemoryStore = field(init=False)
    loop: Loop = field(init=False)
    changed: anyio.Event = field(default_factory=anyio.Event)
    """Set, and replaced, at every change of a row."""

    def __post_init__(self) -> None:
        self.store = MemoryStore(self.clock)
        self.store.listen(self._on_change)
        self.new_loop()

    def _on_change(self, _pipeline_id: PipelineId, _author: Author) -> None:
        changed, self.changed = self.changed, anyio.Event()
        changed.set()

    def new_loop(self) -> Loop:
        reconciler = Reconciler(
            store=self.store,
            executor=self.world,
            toolchains=self.toolchains,
            probe=self.probe,
            logs=self.logs,
            clock=self.clock,
            policy=Policy(),
        )
        self.loop = Loop(
            store=self.store,
            executor=self.world,
            reconciler=reconciler,
            metrics=self.metrics,
            clock=self.clock,
        )
        return self.loop

    async def create(self, name: str = "p1") -> PipelineId:
        made = requests.new_pipeline(
            PipelineId(self.clock.new_id()), Spec(name=name), platform_version="1", now=self.clock.now()
        )
        row = await self.store.create(replace(made, program_status=program.ProgramStatus.SUCCESS, artifact="a"))
        return row.id

    async def ask(self, pipeline_id: PipelineId, request: Callable[[Pipeline], Pipeline | Refusal]) -> None:
        while True:
            row = await self.row(pipeline_id)
            after = request(row)
            assert isinstance(after, Pipeline), after
            if after == row:
                return
            with suppress(StaleRevision):
                await self.store.commit(row, (after,), by=Author.USER, cause="asked", now=self.clock.now())
                return

    async def start(self, pipeline_id: PipelineId, initial: Initial = Initial.RUNNING) -> None:
        asked = requests.StartRequest(initial=initial, bootstrap=Bootstrap())
        await self.ask(pipeline_id, lambda row: requests.start(row, asked, now=self.clock.now()))

    async def stop(self, pipeline_id: PipelineId, *, force: bool = True) -> None:
        now = self.clock.now()
        await self.ask(pipeline_id, lambda row: requests.stop(row, force=force, grace_seconds=30, now=now))

    async def row(self, pipeline_id: PipelineId) -> Pipeline:
        row = await self.store.get(pipeline_id)
        assert row is not None
        return row

    async def until(
        self, pipeline_id: PipelineId, holds: Callable[[Pipeline], bool], *, within_seconds: float = 0.0
    ) -> float:
        """Wait until `holds`; return the virtual seconds it took; fail past `within_seconds`."""
        began = anyio.current_time()
        with anyio.fail_after(within_seconds + 0.001):
            while True:
                changed = self.changed
                if holds(await self.row(pipeline_id)):
                    return anyio.current_time() - began
                await changed.wait()

    async def history(self, pipeline_id: PipelineId) -> list[tuple[str, str, str | None, bool]]:
        events = await self.store.events(pipeline_id)
        return [
            (e.resources_status, e.resources_desired, e.runtime_status, e.deployment_error is not None)
            for e in reversed(events)
        ]


@asynccontextmanager
async def running(house: House) -> AsyncGenerator[House, None]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(house.loop.run)
        await house.loop.caught_up.wait()
        yield house
        tasks.cancel_scope.cancel()


def is_(status: ResourcesStatus) -> Callable[[Pipeline], bool]:
    return lambda row: row.resources_status is status


def runs(row: Pipeline) -> bool:
    return row.runtime_status is RuntimeStatus.RUNNING


async def test_a_start_and_a_stop_take_no_time_at_all() -> None:
    """Nothing on the way from a request to the process, or from an exit to the event, waits for a period."""
    async with running(House()) as house:
        p1 = await house.create()
        await house.start(p1)
        assert await house.until(p1, runs) < 0.001
        await house.stop(p1)
        assert await house.until(p1, is_(R.STOPPED)) < 0.001
        assert await house.history(p1) == [
            ("Stopped", "Stopped", None, False),
            ("Stopped", "Provisioned", None, False),
            ("Stopped", "Provisioned", None, False),
            ("Provisioning", "Provisioned", None, False),
            ("Provisioned", "Provisioned", "Initializing", False),
            ("Provisioned", "Provisioned", "Running", False),
            ("Provisioned", "Stopped", "Running", False),
            ("Stopping", "Stopped", None, False),
            ("Stopped", "Stopped", None, False),
        ]


async def test_a_death_is_an_event_at_once() -> None:
    async with running(House()) as house:
        p1 = await house.create()
        await house.start(p1)
        await house.until(p1, runs)
        [deployment] = house.world.alive(p1)
        house.world.die(deployment, Exit(pid=1, signal=11, signal_name="SIGSEGV"))
        assert await house.until(p1, is_(R.STOPPED)) < 0.001
        error = (await house.row(p1)).deployment_error
        assert error is not None
        assert error.code == "PipelineProcessExited"
        assert error.details["signal_name"] == "SIGSEGV"


async def test_an_idle_daemon_takes_no_turns_but_the_resync() -> None:
    async with running(House()) as house:
        for n in range(20):
            p = await house.create(f"p{n}")
            await house.start(p)
            await house.until(p, runs)
        before = turns_taken(house)
        await anyio.sleep(RESYNC_SECONDS - 1)
        assert turns_taken(house) == before
        await anyio.sleep(2 * RESYNC_SECONDS)
        assert turns_taken(house) >= before + 20


async def test_a_lost_wake_up_is_found_by_the_resync() -> None:
    async with running(House()) as house:
        p1 = await house.create()
        await house.start(p1)
        await house.until(p1, runs)
        [deployment] = house.world.alive(p1)
        house.world.processes[deployment].exit = Exit(pid=1, code=3)  # nobody tells
        await house.until(p1, is_(R.STOPPED), within_seconds=2 * RESYNC_SECONDS)


async def test_a_stop_interrupts_a_hung_look_and_a_hung_effect() -> None:
    async with running(House()) as house:
        p1 = await house.create()
        house.world.slow_start = True
        await house.start(p1)
        await house.until(p1, is_(R.PROVISIONING))
        await anyio.sleep(0.01)
        house.world.hung = anyio.Event()
        house.loop.wake(p1)
        await anyio.sleep(0.01)
        await house.stop(p1)
        assert await house.until(p1, is_(R.STOPPING)) < 0.001
        house.world.hung.set()
        house.world.hung = None
        await house.until(p1, is_(R.STOPPED), within_seconds=20)


async def test_one_hung_pipeline_delays_no_other() -> None:
    async with running(House()) as house:
        bad = await house.create("bad")
        await house.start(bad)
        await house.until(bad, runs)
        house.world.hung = anyio.Event()
        house.loop.wake(bad)
        await anyio.sleep(0.01)
        hung, house.world.hung = house.world.hung, None
        good = await house.create("good")
        await house.start(good)
        assert await house.until(good, runs) < 0.001
        assert house.loop.longest_turn_seconds() > 0
        hung.set()


async def test_a_look_that_takes_too_long_is_unseen_and_the_row_says_so() -> None:
    async with running(House()) as house:
        p1 = await house.create()
        await house.start(p1)
        await house.until(p1, runs)
        house.world.hung = anyio.Event()
        house.loop.wake(p1)
        await house.until(p1, lambda row: row.runtime_status is RuntimeStatus.UNAVAILABLE, within_seconds=11)
        house.world.hung.set()
        house.world.hung = None
        await house.until(p1, runs, within_seconds=30)


async def test_a_graceful_stop_waits_and_then_kills() -> None:
    async with running(House()) as house:
        p1 = await house.create()
        await house.start(p1)
        await house.until(p1, runs)
        [deployment] = house.world.alive(p1)
        house.world.processes[deployment].ignores_suspend = True
        await house.stop(p1, force=False)
        await anyio.sleep(29)
        row = await house.row(p1)
        assert row.resources_status is R.PROVISIONED
        assert row.runtime_desired is RuntimeDesired.SUSPENDED
        refused = requests.start(row, requests.StartRequest(), now=house.clock.now())
        assert isinstance(refused, Refusal)
        assert refused.code == "IllegalPipelineAction"
        await house.until(p1, is_(R.STOPPED), within_seconds=2)
        assert (await house.row(p1)).deployment_error is None


async def test_a_graceful_stop_that_cannot_be_told_is_forced_at_its_deadline() -> None:
    """However long the backoff between the attempts has become by then."""
    async with running(House()) as house:
        p1 = await house.create()
        await house.start(p1)
        await house.until(p1, runs)
        fault = Fault("PipelineInteractionUnreachable", "nobody listens")
        house.world.refusals = [ExecutorError(fault, retry=True) for _ in range(11)]
        await house.stop(p1, force=False)
        took = await house.until(p1, is_(R.STOPPING), within_seconds=60)
        assert took == pytest.approx(30, abs=0.1)


async def test_provisioning_that_fails_again_and_again_ends_at_its_deadline() -> None:
    async with running(House()) as house:
        fault = Fault("RunnerProvisionError", "no space left")
        house.world.refusals = [ExecutorError(fault, retry=True) for _ in range(12)]
        p1 = await house.create()
        await house.start(p1)
        took = await house.until(p1, is_(R.STOPPING), within_seconds=60)
        assert took == pytest.approx(20, abs=0.1)


async def test_force_cuts_a_graceful_stop_short() -> None:
    async with running(House()) as house:
        p1 = await house.create()
        await house.start(p1)
        await house.until(p1, runs)
        [deployment] = house.world.alive(p1)
        house.world.processes[deployment].ignores_suspend = True
        await house.stop(p1, force=False)
        await anyio.sleep(1)
        await house.stop(p1, force=True)
        assert await house.until(p1, is_(R.STOPPED)) < 0.001


async def test_provisioning_times_out_by_the_rows_own_stamp_across_a_restart() -> None:
    house = House()
    house.world.slow_start = True
    async with running(house):
        p1 = await house.create()
        await house.start(p1)
        await anyio.sleep(15)
    house.new_loop()
    async with running(house):
        took = await house.until(p1, is_(R.STOPPED), within_seconds=6)
        assert took > 4
        error = (await house.row(p1)).deployment_error
        assert error is not None
        assert error.code == "AutomatonProvisioningTimeout"
        assert error.details == {"timeout": {"secs": 20, "nanos": 0}}


async def test_a_restart_adopts_and_writes_nothing() -> None:
    house = House()
    async with running(house):
        p1 = await house.create()
        await house.start(p1)
        await house.until(p1, runs)
    before = await house.row(p1)
    house.new_loop()
    async with running(house):
        await anyio.sleep(10)
        assert await house.row(p1) == before
        assert sum(house.world.spawned.values()) == 1


async def test_a_reboot_starts_again_what_should_run_paused_if_it_was_paused() -> None:
    house = House()
    async with running(house):
        p1 = await house.create()
        await house.start(p1)
        await house.until(p1, runs)
        await house.ask(p1, lambda row: requests.steer(row, RuntimeDesired.PAUSED))
        await house.until(p1, lambda row: row.runtime_status is RuntimeStatus.PAUSED)
    for deployment in house.world.alive(p1):
        house.world.die(deployment, Exit(pid=1), Fault(HOST_RESTARTED, "the host went down"))
    house.new_loop()
    async with running(house):
        await house.until(p1, lambda row: row.runtime_status is RuntimeStatus.PAUSED, within_seconds=1)
        events = await house.store.events(p1)
        assert any(e.deployment_error and e.deployment_error.code == HOST_RESTARTED for e in events)


async def test_orphans_of_ours_are_discarded() -> None:
    house = House()
    house.world.processes[DeploymentId("d-x")] = FakeProcess(PipelineId("gone"), paused=False)
    async with running(house):
        with anyio.fail_after(1):
            while house.world.alive(PipelineId("gone")):
                await anyio.sleep(0.001)


async def test_a_failing_effect_backs_off_and_goes_on() -> None:
    async with running(House()) as house:
        fault = Fault("RunnerProvisionError", "no space left")
        house.world.refusals = [ExecutorError(fault, retry=True) for _ in range(6)]
        p1 = await house.create()
        await house.start(p1)
        took = await house.until(p1, runs, within_seconds=10)
        assert took > 1
        provisions = [e for p, e in house.world.performed if isinstance(e, Provision)]
        assert len(provisions) == 7


async def test_a_stop_that_cannot_kill_says_why_and_keeps_trying() -> None:
    async with running(House()) as house:
        p1 = await house.create()
        await house.start(p1)
        await house.until(p1, runs)
        fault = Fault("RunnerStopError", "it is stuck in the kernel")
        house.world.refusals = [ExecutorError(fault, retry=True) for _ in range(5)]
        await house.stop(p1)
        with_reason = {"reason": "it is stuck in the kernel"}
        await house.until(p1, lambda row: row.resources_status_details == with_reason, within_seconds=1)
        await house.until(p1, is_(R.STOPPED), within_seconds=10)
        assert sum(isinstance(e, StopCompute) for _, e in house.world.performed) == 6


async def test_clearing_is_verified() -> None:
    async with running(House()) as house:
        p1 = await house.create()
        await house.start(p1)
        await house.until(p1, runs)
        await house.stop(p1)
        await house.until(p1, is_(R.STOPPED))
        house.world.refusals = [ExecutorError(Fault("RunnerClearError", "busy"), retry=True)]
        await house.ask(p1, requests.clear)
        await house.until(p1, lambda row: bool(row.storage_status_details), within_seconds=1)
        assert (await house.row(p1)).storage_status is StorageStatus.CLEARING
        await house.until(p1, lambda row: row.storage_status is StorageStatus.CLEARED, within_seconds=1)
        assert p1 not in house.world.storage


async def test_an_outage_of_the_store_is_one_line_and_wakes_everybody(capsys: pytest.CaptureFixture[str]) -> None:
    async with running(House()) as house:
        ids = [await house.create(f"p{n}") for n in range(10)]
        for p in ids:
            await house.start(p)
            await house.until(p, runs)

        def broken() -> None:
            raise StoreUnavailable("disk on fire")

        house.store.fault = broken
        for p in ids:
            house.loop.wake(p)
            house.world.die(house.world.alive(p)[0], Exit(pid=1, code=1))
        await anyio.sleep(60)
        house.store.fault = None
        for p in ids:
            await house.until(p, is_(R.STOPPED), within_seconds=1.1)
    printed = capsys.readouterr()
    assert (printed.out + printed.err).count("store unavailable") == 1


async def test_an_http_pipeline_is_probed_and_its_answers_mean_what_the_contract_says() -> None:
    async with running(House()) as house:
        body = {
            "runtime_status": "Running",
            "runtime_desired_status": "Running",
            "runtime_status_details": {"connector_stats": {"num_errors": 0}},
            "storage_status_details": {"checkpoints": []},
        }
        house.probe.answers = [NoAnswer("refused"), Answer(200, body)]
        house.world.location = "127.0.0.1:9"
        p1 = await house.create()
        await house.start(p1)
        await house.until(p1, runs, within_seconds=1)
        assert (await house.row(p1)).storage_status_details == {"checkpoints": []}
        panic: JsonObject = {"message": "m", "error_code": "RuntimeError.WorkerPanic", "details": {}}
        house.probe.answers = [Answer(500, panic)]
        await house.until(p1, is_(R.STOPPED), within_seconds=6)
        error = (await house.row(p1)).deployment_error
        assert error is not None
        assert error.code == "RuntimeError.WorkerPanic"


async def test_fourteen_rounds_and_a_stop_right_behind_a_start_converge() -> None:
    async with running(House()) as house:
        p1 = await house.create()
        for _ in range(14):
            await house.start(p1)
            await house.stop(p1)
            await house.until(p1, lambda row: row.is_fully_stopped)
        assert not house.world.alive(p1)
        assert (await house.row(p1)).resources_desired is ResourcesDesired.STOPPED


def turns_taken(house: House) -> float:
    text = house.metrics.render("")[0].decode()
    lines = [line for line in text.splitlines() if line.startswith('penstock_reconcile_total{result="done"}')]
    return float(lines[0].split()[-1])
