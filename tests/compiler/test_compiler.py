"""The compiler's scheduling, on virtual time, with a store's model and toolchains that do as they are told."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import anyio
import pytest

from penstock import program, requests
from penstock.compiler import CRASHED, RESYNC_SECONDS, SWEEP_SECONDS, Compiler
from penstock.model import Author, Bootstrap, Pipeline, PipelineId, ProgramStatus, Spec
from penstock.ports import StaleRevision, StepBroke, StepFailed, StepPassed, StepResult, StoreUnavailable
from penstock.telemetry import Metrics
from penstock.testing.fake_programs import FakeToolchains
from penstock.testing.memory_store import MemoryStore
from penstock.testing.virtual import VirtualClock

S = ProgramStatus

CHECKED = StepPassed(outcome={"exit_code": 0, "messages": []}, info={"schema": {}})
BUILT = StepPassed(outcome={"exit_code": 0, "stdout": "", "stderr": ""}, artifact="a" * 64)


@dataclass(slots=True)
class GatedToolchains(FakeToolchains):
    """Steps that wait at a gate, if there is one for `(step, text of the program)`, and come to what they were told."""

    gates: dict[tuple[str, str], anyio.Event] = field(default_factory=dict)
    results: dict[tuple[str, str], StepResult | Exception] = field(default_factory=dict)
    hooks: dict[tuple[str, str], Callable[[Pipeline], Awaitable[None]]] = field(default_factory=dict)
    """What happens meanwhile, before the step ends."""
    begun: list[tuple[str, str]] = field(default_factory=list)
    cut_off: list[tuple[str, str]] = field(default_factory=list)
    most_at_once: int = 0
    swept: list[list[str]] = field(default_factory=list)
    sweep_error: Exception | None = None
    _at_once: int = 0

    async def check(self, row: Pipeline) -> StepResult:
        return await self._step("check", row, CHECKED)

    async def build(self, row: Pipeline) -> StepResult:
        return await self._step("build", row, BUILT)

    async def sweep(self, rows: Sequence[Pipeline]) -> int:
        self.swept.append([row.spec.name for row in rows])
        if self.sweep_error is not None:
            raise self.sweep_error
        return 1

    async def _step(self, step: str, row: Pipeline, default: StepResult) -> StepResult:
        key = (step, row.spec.program_code)
        self.begun.append(key)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            gate = self.gates.get(key)
            if gate is not None:
                await gate.wait()
            if key in self.hooks:
                await self.hooks[key](row)
        except BaseException:
            self.cut_off.append(key)
            raise
        finally:
            self._at_once -= 1
        result = self.results.get(key, default)
        if isinstance(result, Exception):
            raise result
        return result


@dataclass
class House:
    """Everything around one compiler, and a user who writes programs."""

    parallel: int = 2
    clock: VirtualClock = field(default_factory=VirtualClock)
    toolchains: GatedToolchains = field(default_factory=GatedToolchains)
    metrics: Metrics = field(default_factory=lambda: Metrics("test"))
    store: MemoryStore = field(init=False)
    compiler: Compiler = field(init=False)
    changed: anyio.Event = field(default_factory=anyio.Event)

    def __post_init__(self) -> None:
        self.store = MemoryStore(self.clock)
        self.store.listen(self._on_change)
        self.new_compiler()

    def _on_change(self, _pipeline_id: PipelineId, _author: Author) -> None:
        changed, self.changed = self.changed, anyio.Event()
        changed.set()

    def new_compiler(self) -> Compiler:
        self.compiler = Compiler(
            store=self.store,
            toolchains=self.toolchains,
            clock=self.clock,
            parallel=self.parallel,
            metrics=self.metrics,
        )
        return self.compiler

    def gate(self, step: str, code: str) -> anyio.Event:
        return self.toolchains.gates.setdefault((step, code), anyio.Event())

    async def create(self, code: str, name: str | None = None) -> PipelineId:
        spec = Spec(name=name or code, program_code=code)
        made = requests.new_pipeline(PipelineId(self.clock.new_id()), spec, platform_version="1", now=self.clock.now())
        return (await self.store.create(made)).id

    async def ask(self, pipeline_id: PipelineId, change: Callable[[Pipeline, datetime], object]) -> Pipeline:
        while True:
            row = await self.row(pipeline_id)
            after = change(row, self.clock.now())
            assert isinstance(after, Pipeline), after
            with suppress(StaleRevision):
                return await self.store.commit(row, (after,), by=Author.USER, cause="asked", now=self.clock.now())

    async def edit(self, pipeline_id: PipelineId, **changes: object) -> Pipeline:
        return await self.ask(
            pipeline_id,
            lambda row, now: requests.edit(
                row, replace(row.spec, **changes), platform_version="1", bump=False, now=now
            ),
        )

    async def start(self, pipeline_id: PipelineId) -> Pipeline:
        asked = requests.StartRequest(bootstrap=Bootstrap())
        return await self.ask(pipeline_id, lambda row, now: requests.start(row, asked, now=now))

    async def delete(self, pipeline_id: PipelineId) -> None:
        while True:
            with suppress(StaleRevision):
                return await self.store.delete(await self.row(pipeline_id))

    async def row(self, pipeline_id: PipelineId) -> Pipeline:
        row = await self.store.get(pipeline_id)
        assert row is not None
        return row

    async def until(self, pipeline_id: PipelineId, *statuses: ProgramStatus, within_seconds: float = 0.0) -> Pipeline:
        """Wait for one of `statuses`; fail if more than `within_seconds` of virtual time pass."""
        with anyio.fail_after(within_seconds + 0.001):
            while True:
                changed = self.changed
                row = await self.row(pipeline_id)
                if row.program_status in statuses:
                    return row
                await changed.wait()

    async def settled(self) -> None:
        """Let everything happen that needs no time."""
        await anyio.sleep(0.0005)

    async def history(self, pipeline_id: PipelineId) -> list[str]:
        return [event.program_status.value for event in reversed(await self.store.events(pipeline_id))]


@asynccontextmanager
async def running(house: House) -> AsyncGenerator[House, None]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(house.compiler.run)
        await house.settled()
        yield house
        tasks.cancel_scope.cancel()


ALL_FIVE = ["Pending", "CompilingSql", "SqlCompiled", "CompilingRust", "Success"]


async def test_a_program_goes_all_the_way_at_once_and_every_step_is_an_event() -> None:
    async with running(House()) as house:
        p1 = await house.create("a")
        assert (await house.row(p1)).refresh_version == 1
        row = await house.until(p1, S.SUCCESS)
        assert await house.history(p1) == ALL_FIVE
        assert (row.program_version, row.refresh_version) == (1, 3)
        assert row.artifact == "a" * 64
        assert row.program_info == {"schema": {}}
        assert row.program_error.sql_compilation == {"exit_code": 0, "messages": []}
        assert row.program_error.rust_compilation == {"exit_code": 0, "stdout": "", "stderr": ""}


async def test_versions_count_as_clients_expect_over_an_edit() -> None:
    async with running(House()) as house:
        p1 = await house.create("a")
        await house.until(p1, S.SUCCESS)
        edited = await house.edit(p1, program_code="b")
        assert (edited.program_version, edited.refresh_version) == (2, 4)
        row = await house.until(p1, S.SUCCESS)
        assert (row.program_version, row.refresh_version) == (2, 6)
        assert await house.history(p1) == ALL_FIVE + ALL_FIVE


@pytest.mark.parametrize(
    ("step", "result", "status"),
    [
        ("check", StepFailed({"exit_code": 1, "messages": []}), S.SQL_ERROR),
        ("check", StepBroke("no tool"), S.SYSTEM_ERROR),
        ("build", StepFailed({"exit_code": 1, "stdout": "", "stderr": "Davy Jones"}), S.RUST_ERROR),
        ("build", StepBroke("no tool"), S.SYSTEM_ERROR),
    ],
)
async def test_what_went_wrong_is_on_the_row(step: str, result: StepResult, status: ProgramStatus) -> None:
    async with running(House()) as house:
        house.toolchains.results[step, "a"] = result
        row = await house.until(await house.create("a"), status)
        assert row.artifact is None
        error = row.program_error
        match result:
            case StepBroke(reason):
                assert error.system_error == reason
            case StepFailed(outcome):
                assert outcome == (error.sql_compilation if step == "check" else error.rust_compilation)
            case _:
                pytest.fail("not a failure")
        assert (error.sql_compilation is not None) == ((step, status) != ("check", S.SYSTEM_ERROR))
        assert row.refresh_version == (2 if step == "check" else 3)


async def test_a_program_that_failed_is_tried_again_only_after_an_edit() -> None:
    async with running(House()) as house:
        house.toolchains.results["check", "a"] = StepBroke("no tool")
        p1 = await house.create("a")
        await house.until(p1, S.SYSTEM_ERROR)
        await anyio.sleep(3 * RESYNC_SECONDS)
        assert house.toolchains.begun == [("check", "a")]
        await house.edit(p1, program_code="b")
        await house.until(p1, S.SUCCESS)


async def test_no_more_than_so_many_at_a_time() -> None:
    house = House(parallel=2)
    gates = [house.gate("check", f"c{n}") for n in range(6)]
    async with running(house):
        ids = [await house.create(f"c{n}") for n in range(6)]
        await house.settled()
        assert sorted(house.toolchains.begun) == [("check", "c0"), ("check", "c1")]
        assert (house.compiler.building, house.compiler.depth) == (2, 4)
        gates[0].set()
        await house.settled()
        # The slot is kept for the build, and then it is the next one's.
        assert house.toolchains.begun[2:] == [("build", "c0"), ("check", "c2")]
        for gate in gates:
            gate.set()
        for p in ids:
            await house.until(p, S.SUCCESS)
        assert house.toolchains.most_at_once == 2


async def test_the_oldest_first_also_after_a_restart() -> None:
    house = House(parallel=1)
    ids: list[PipelineId] = []
    for code in ("c", "a", "d", "b"):
        await anyio.sleep(1)
        ids.append(await house.create(code))
    await anyio.sleep(1)
    await house.edit(ids[0], udf_toml="x")
    async with running(house):
        for p in ids:
            await house.until(p, S.SUCCESS)
        assert [code for step, code in house.toolchains.begun if step == "check"] == ["a", "d", "b", "c"]


async def test_one_hung_build_delays_no_other() -> None:
    house = House(parallel=2)
    house.gate("build", "bad")
    async with running(house):
        bad = await house.create("bad")
        await house.until(bad, S.COMPILING_RUST)
        for n in range(5):
            await house.until(await house.create(f"good{n}"), S.SUCCESS)
        assert (await house.row(bad)).program_status is S.COMPILING_RUST


async def test_another_limit_holds_at_once_and_cuts_nothing_off() -> None:
    house = House(parallel=1)
    gates = [house.gate("check", code) for code in "abc"]
    async with running(house):
        ids = [await house.create(code) for code in "abc"]
        await house.settled()
        assert house.compiler.building == 1
        house.compiler.parallel = 3
        await house.settled()
        assert house.compiler.building == 3
        house.compiler.parallel = 1
        late = await house.create("d")
        gates[0].set()
        await house.until(ids[0], S.SUCCESS)
        assert (house.compiler.building, house.compiler.depth) == (2, 1)
        for gate in gates:
            gate.set()
        await house.until(late, S.SUCCESS)
        assert house.toolchains.cut_off == []


@pytest.mark.parametrize("step", ["check", "build"])
async def test_an_edit_cuts_the_step_off_and_its_result_is_dropped(step: str) -> None:
    async with running(House(parallel=1)) as house:
        house.gate(step, "old")
        p1 = await house.create("old")
        await house.until(p1, S.COMPILING_SQL if step == "check" else S.COMPILING_RUST)
        await house.edit(p1, program_code="new")
        row = await house.until(p1, S.SUCCESS)
        assert house.toolchains.cut_off == [(step, "old")]
        assert row.program_version == 2
        began = ALL_FIVE[:2] if step == "check" else ALL_FIVE[:4]
        assert await house.history(p1) == began + ALL_FIVE


@pytest.mark.parametrize("step", ["check", "build"])
async def test_a_result_for_an_outdated_program_is_dropped_though_nobody_told_of_the_edit(step: str) -> None:
    async with running(House()) as house:

        async def edit(row: Pipeline) -> None:
            house.store._listeners[:] = [house._on_change]
            await house.edit(row.id, program_code="new")

        house.toolchains.hooks[step, "old"] = edit
        p1 = await house.create("old")
        row = await house.until(p1, S.SUCCESS)
        assert row.program_version == 2
        assert row.spec.program_code == "new"
        began = ALL_FIVE[:2] if step == "check" else ALL_FIVE[:4]
        assert await house.history(p1) == began + ALL_FIVE
        assert house.toolchains.cut_off == []


async def test_an_edit_just_before_the_check_begins_costs_no_status_and_no_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(House()) as house:
        commit = house.store.commit

        async def edit_first(before: Pipeline, *args: Any, **kwargs: Any) -> Pipeline:
            monkeypatch.setattr(house.store, "commit", commit)
            house.store._listeners[:] = [house._on_change]  # and nobody tells of it
            await house.edit(before.id, program_code="new")
            return await commit(before, *args, **kwargs)

        monkeypatch.setattr(house.store, "commit", edit_first)
        p1 = await house.create("old")
        await house.until(p1, S.SUCCESS)
        assert house.toolchains.begun == [("check", "new"), ("build", "new")]
        assert await house.history(p1) == ALL_FIVE


@pytest.mark.parametrize("step", ["check", "build"])
async def test_a_delete_cuts_the_step_off_and_frees_the_slot(step: str) -> None:
    async with running(House(parallel=1)) as house:
        house.gate(step, "a")
        p1 = await house.create("a")
        await house.until(p1, S.COMPILING_SQL if step == "check" else S.COMPILING_RUST)
        p2 = await house.create("b")
        await house.delete(p1)
        await house.until(p2, S.SUCCESS)
        assert house.toolchains.cut_off == [(step, "a")]
        assert (house.compiler.building, house.compiler.depth) == (0, 0)


async def test_a_delete_while_it_waits_leaves_nothing() -> None:
    async with running(House(parallel=1)) as house:
        gate = house.gate("check", "a")
        p1 = await house.create("a")
        p2 = await house.create("b")
        await house.settled()
        await house.delete(p2)
        gate.set()
        await house.until(p1, S.SUCCESS)
        assert all(code == "a" for _, code in house.toolchains.begun)
        assert house.compiler.depth == 0


async def test_writes_that_leave_the_program_alone_disturb_nothing() -> None:
    """A start, a description: the row has a newer revision, the result is still good."""
    async with running(House()) as house:
        checking, building = house.gate("check", "a"), house.gate("build", "a")
        p1 = await house.create("a")
        await house.until(p1, S.COMPILING_SQL)
        await house.edit(p1, description="fine")
        await house.start(p1)
        checking.set()
        await house.until(p1, S.COMPILING_RUST)
        await house.edit(p1, tags=("x",))
        building.set()
        row = await house.until(p1, S.SUCCESS)
        assert row.spec.description == "fine"
        assert row.resources_desired.value == "Provisioned"
        assert house.toolchains.begun == [("check", "a"), ("build", "a")]
        assert house.toolchains.cut_off == []


async def test_renames_edits_and_deletes_of_many_at_once_end_well() -> None:
    async with running(House(parallel=3)) as house:
        ids = [await house.create(f"c{n}") for n in range(30)]
        async with anyio.create_task_group() as users:
            for n, p in enumerate(ids):
                if n % 3 == 0:
                    users.start_soon(house.delete, p)
                elif n % 3 == 1:
                    users.start_soon(lambda p=p, n=n: house.edit(p, program_code=f"new{n}"))
        for n, p in enumerate(ids):
            if n % 3:
                row = await house.until(p, S.SUCCESS)
                assert row.program_version == (2 if n % 3 == 1 else 1)
                assert row.refresh_version - row.program_version in (2, 3, 4)
        assert len(await house.store.pipelines()) == 20


@pytest.mark.parametrize("status", [S.PENDING, S.COMPILING_SQL, S.SQL_COMPILED, S.COMPILING_RUST])
async def test_a_restart_goes_on_where_the_daemon_died(status: ProgramStatus) -> None:
    house = House()
    reached = {
        S.PENDING: "check",
        S.COMPILING_SQL: "check",
        S.SQL_COMPILED: "build",
        S.COMPILING_RUST: "build",
    }[status]
    gate = house.gate(reached, "a")
    p1 = await house.create("a")
    if status is not S.PENDING:
        async with running(house):
            await house.until(p1, S.COMPILING_SQL if reached == "check" else S.COMPILING_RUST)
    if status is S.SQL_COMPILED:
        row = await house.row(p1)
        after = program.resumed(row, house.clock.now())
        assert after is not None
        await house.store.commit(row, (after,), by=Author.COMPILER, cause="", now=house.clock.now())
    assert (await house.row(p1)).program_status is status
    gate.set()
    house.toolchains.begun.clear()
    house.new_compiler()
    async with running(house):
        row = await house.until(p1, S.SUCCESS)
    # A check that was under way is made again from the beginning; a check that had passed is not.
    assert house.toolchains.begun == ([("check", "a")] if reached == "check" else []) + [("build", "a")]
    assert row.program_version == 1


async def test_a_restart_does_not_touch_what_is_finished() -> None:
    house = House()
    async with running(house):
        p1 = await house.create("a")
        before = await house.until(p1, S.SUCCESS)
    house.new_compiler()
    async with running(house):
        await anyio.sleep(2 * RESYNC_SECONDS)
        assert await house.row(p1) == before


async def test_a_program_that_the_daemon_sends_back_is_built_again() -> None:
    async with running(House()) as house:
        p1 = await house.create("a")
        row = await house.until(p1, S.SUCCESS)
        again = program.reset(row, house.clock.now())
        await house.store.commit(row, (again,), by=Author.DAEMON, cause="artifact missing", now=house.clock.now())
        await house.until(p1, S.SUCCESS, within_seconds=0.1)
        assert house.toolchains.begun == [("check", "a"), ("build", "a")] * 2


async def test_a_lost_wake_up_is_found_by_the_resync() -> None:
    async with running(House()) as house:
        await house.settled()
        house.compiler.on_change = lambda pipeline_id, author: None  # type: ignore[method-assign]
        house.store._listeners[:] = [house._on_change]
        p1 = await house.create("a")
        await anyio.sleep(1)
        assert (await house.row(p1)).program_status is S.PENDING
        await house.until(p1, S.SUCCESS, within_seconds=RESYNC_SECONDS)


async def test_an_idle_compiler_reads_nothing() -> None:
    async with running(House()) as house:
        await house.until(await house.create("a"), S.SUCCESS)
        await anyio.sleep(1)
        reads = 0

        def count() -> None:
            nonlocal reads
            reads += 1

        house.store.fault = count
        await anyio.sleep(RESYNC_SECONDS - 10)
        assert reads == 0


async def test_a_store_outage_loses_nothing() -> None:
    async with running(House()) as house:
        gates = [house.gate("check", "a"), house.gate("build", "b")]
        p1, p2 = await house.create("a"), await house.create("b")
        await house.until(p1, S.COMPILING_SQL)
        await house.until(p2, S.COMPILING_RUST)

        def down() -> None:
            raise StoreUnavailable("gone")

        house.store.fault = down
        for gate in gates:
            gate.set()
        await anyio.sleep(600)
        house.store.fault = None
        await house.until(p1, S.SUCCESS, within_seconds=2)
        await house.until(p2, S.SUCCESS, within_seconds=2)
        assert sorted(house.toolchains.begun) == [("build", "a"), ("build", "b"), ("check", "a"), ("check", "b")]
        await house.until(await house.create("c"), S.SUCCESS)


async def test_an_edit_during_an_outage_of_the_compiler_is_seen_after_it() -> None:
    """The listener's look at the row fails; it is not forgotten."""
    async with running(House()) as house:
        house.gate("check", "old")
        p1 = await house.create("old")
        await house.until(p1, S.COMPILING_SQL)
        await house.edit(p1, program_code="new")

        def down() -> None:
            raise StoreUnavailable("gone")

        house.store.fault = down
        await anyio.sleep(100)
        house.store.fault = None
        await house.until(p1, S.SUCCESS, within_seconds=2)


@pytest.mark.parametrize("step", ["check", "build"])
async def test_a_bug_in_a_toolchain_is_a_system_error_and_the_compiler_goes_on(step: str) -> None:
    async with running(House(parallel=1)) as house:
        house.toolchains.results[step, "a"] = RuntimeError("oops")
        p1, p2 = await house.create("a"), await house.create("b")
        row = await house.until(p1, S.SYSTEM_ERROR)
        assert row.program_error.system_error == CRASHED
        await house.until(p2, S.SUCCESS)
        await anyio.sleep(3 * RESYNC_SECONDS)
        assert [key for key in house.toolchains.begun if key[1] == "a"][-1] == (step, "a")
        assert house.toolchains.begun.count((step, "a")) == 1


async def test_a_bug_in_the_sweep_does_not_stop_the_compiler() -> None:
    house = House()
    house.toolchains.sweep_error = RuntimeError("oops")
    async with running(house):
        await house.until(await house.create("a"), S.SUCCESS)
        await anyio.sleep(2 * RESYNC_SECONDS)
        assert len(house.toolchains.swept) > 2


async def test_artifacts_are_swept_at_the_start_and_after_deletes_but_not_for_each() -> None:
    house = House()
    ids = [await house.create(f"c{n}") for n in range(10)]
    async with running(house):
        assert len(house.toolchains.swept) == 1
        for p in ids:
            await house.until(p, S.SUCCESS)
        for p in ids[:9]:
            await house.delete(p)
        await anyio.sleep(SWEEP_SECONDS + 1)
        assert house.toolchains.swept[1:] == [["c9"]]


async def test_steps_are_measured() -> None:
    async with running(House()) as house:
        gate = house.gate("check", "a")
        p1 = await house.create("a")
        await house.until(p1, S.COMPILING_SQL)
        await anyio.sleep(7)
        gate.set()
        await house.until(p1, S.SUCCESS)
        name = "penstock_program_step_seconds_sum"
        seconds = house.metrics.registry.get_sample_value(name, {"step": "check", "result": "passed"})
        assert seconds == pytest.approx(7, abs=0.01)
