"""The compiler with real tools, and the loop beside it: from the text of a program to a pipeline that runs."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import anyio

from penstock import requests
from penstock.clock import SystemClock
from penstock.compiler import Compiler
from penstock.loop import Loop
from penstock.machine import Policy
from penstock.model import (
    Author,
    Bootstrap,
    Pipeline,
    PipelineId,
    ProgramStatus,
    ResourcesStatus,
    RuntimeStatus,
    Spec,
)
from penstock.ports import StaleRevision
from penstock.reconciler import Reconciler
from penstock.telemetry import Metrics
from penstock.testing.fake_executor import FakeExecutor
from penstock.testing.fake_programs import FakeLogs, FakeProbe
from penstock.testing.memory_store import MemoryStore
from penstock.toolchains import BUILT_IN, LocalToolchains, Toolchain
from tests.toolchains.conftest import alive_in

S = ProgramStatus
SLOW = ("{python}", "-I", "-S", "-c", "import time; time.sleep(600)")


@dataclass
class House:
    """A compiler with real toolchains, a loop with a fake world, and a user."""

    state_dir: Path
    own: dict[str, Toolchain] = field(default_factory=dict)
    clock: SystemClock = field(default_factory=SystemClock)
    world: FakeExecutor = field(default_factory=FakeExecutor)
    store: MemoryStore = field(init=False)
    toolchains: LocalToolchains = field(init=False)
    changed: anyio.Event = field(default_factory=anyio.Event)

    def __post_init__(self) -> None:
        self.store = MemoryStore(self.clock)
        self.store.listen(self._on_change)
        self.toolchains = LocalToolchains(
            toolchains={**BUILT_IN, **self.own}, default="python", state_dir=self.state_dir
        )

    def _on_change(self, _pipeline_id: PipelineId, _author: Author) -> None:
        changed, self.changed = self.changed, anyio.Event()
        changed.set()

    async def create(self, code: str, name: str = "p1", **config: object) -> PipelineId:
        spec = Spec(name=name, program_code=code, program_config=config)  # type: ignore[arg-type]
        made = requests.new_pipeline(PipelineId(self.clock.new_id()), spec, platform_version="1", now=self.clock.now())
        return (await self.store.create(made)).id

    async def ask(self, pipeline_id: PipelineId, change: Callable[[Pipeline, datetime], object]) -> None:
        while True:
            row = await self.row(pipeline_id)
            after = change(row, self.clock.now())
            assert isinstance(after, Pipeline), after
            with suppress(StaleRevision):
                await self.store.commit(row, (after,), by=Author.USER, cause="asked", now=self.clock.now())
                return

    async def edit(self, pipeline_id: PipelineId, **changes: object) -> None:
        def edited(row: Pipeline, now: datetime) -> object:
            spec = replace(row.spec, **changes)  # type: ignore[arg-type]
            return requests.edit(row, spec, platform_version="1", bump=False, now=now)

        await self.ask(pipeline_id, edited)

    async def start(self, pipeline_id: PipelineId) -> None:
        asked = requests.StartRequest(bootstrap=Bootstrap())
        await self.ask(pipeline_id, lambda row, now: requests.start(row, asked, now=now))

    async def stop(self, pipeline_id: PipelineId) -> None:
        await self.ask(pipeline_id, lambda row, now: requests.stop(row, force=True, grace_seconds=1, now=now))

    async def row(self, pipeline_id: PipelineId) -> Pipeline:
        row = await self.store.get(pipeline_id)
        assert row is not None
        return row

    async def until(self, pipeline_id: PipelineId, holds: Callable[[Pipeline], bool]) -> Pipeline:
        with anyio.fail_after(15):
            while True:
                changed = self.changed
                row = await self.row(pipeline_id)
                if holds(row):
                    return row
                await changed.wait()

    async def history(self, pipeline_id: PipelineId) -> list[str]:
        return [event.program_status.value for event in reversed(await self.store.events(pipeline_id))]


@asynccontextmanager
async def running(house: House) -> AsyncGenerator[House, None]:
    metrics = Metrics("test")
    compiler = Compiler(store=house.store, toolchains=house.toolchains, clock=house.clock, parallel=2, metrics=metrics)
    reconciler = Reconciler(
        store=house.store,
        executor=house.world,
        toolchains=house.toolchains,
        probe=FakeProbe(),
        logs=FakeLogs(),
        clock=house.clock,
        policy=Policy(),
    )
    loop = Loop(store=house.store, executor=house.world, reconciler=reconciler, metrics=metrics, clock=house.clock)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(compiler.run)
        tasks.start_soon(loop.run)
        await loop.caught_up.wait()
        yield house
        tasks.cancel_scope.cancel()


def is_(*statuses: ProgramStatus) -> Callable[[Pipeline], bool]:
    return lambda row: row.program_status in statuses


def runs(row: Pipeline) -> bool:
    return row.runtime_status is RuntimeStatus.RUNNING


ALL_FIVE = ["Pending", "CompilingSql", "SqlCompiled", "CompilingRust", "Success"]


async def test_scripts_become_artifacts_or_errors(tmp_path: Path) -> None:
    async with running(House(tmp_path)) as house:
        began = time.monotonic()
        good = await house.create("print('hello')\n")
        row = await house.until(good, is_(S.SUCCESS))
        assert time.monotonic() - began < 5
        assert await house.history(good) == ALL_FIVE
        assert row.refresh_version == 3
        bad = await house.create("print(", "p2")
        row = await house.until(bad, is_(S.SQL_ERROR))
        assert row.program_error.sql_compilation is not None
        assert row.artifact is None
        await house.edit(bad, program_code="print()")
        assert (await house.until(bad, is_(S.SUCCESS))).program_version == 2
        missing = await house.create("no-such-program", "p3", toolchain="command")
        row = await house.until(missing, is_(S.SYSTEM_ERROR))
        assert "no-such-program" in (row.program_error.system_error or "")


async def test_an_edit_and_a_delete_kill_the_tool(tmp_path: Path) -> None:
    own = {"check": Toolchain(name="check", check=SLOW), "build": Toolchain(name="build", build=SLOW)}
    async with running(House(tmp_path, own)) as house:
        for step, status in (("check", S.COMPILING_SQL), ("build", S.COMPILING_RUST)):
            p = await house.create("", step, toolchain=step)
            await house.until(p, is_(status))
            await house.edit(p, program_config={"toolchain": "python"})
            await house.until(p, is_(S.SUCCESS))
            assert alive_in(tmp_path) == []
            gone = await house.create("", f"{step}-gone", toolchain=step)
            await house.until(gone, is_(status))
            with anyio.fail_after(10):
                while not alive_in(tmp_path):
                    await anyio.sleep(0.01)
                await house.store.delete(await house.row(gone))
                while alive_in(tmp_path):
                    await anyio.sleep(0.01)


async def test_a_daemon_that_ends_leaves_no_tool_and_the_next_goes_on(tmp_path: Path) -> None:
    house = House(tmp_path, {"own": Toolchain(name="own", build=SLOW)})
    async with running(house):
        p1 = await house.create("", toolchain="own")
        await house.until(p1, is_(S.COMPILING_RUST))
        with anyio.fail_after(10):
            while not alive_in(tmp_path):
                await anyio.sleep(0.01)
    assert alive_in(tmp_path) == []
    assert (await house.row(p1)).program_status is S.COMPILING_RUST
    house.toolchains.toolchains = {"own": Toolchain(name="own")}
    house.store._listeners[:] = [house._on_change]
    async with running(house):
        await house.until(p1, is_(S.SUCCESS))
    assert await house.history(p1) == [*ALL_FIVE[:4], "SqlCompiled", *ALL_FIVE[3:]]


async def test_an_early_start_runs_as_soon_as_the_program_is_built(tmp_path: Path) -> None:
    async with running(House(tmp_path)) as house:
        p1 = await house.create("")
        await house.start(p1)
        await house.until(p1, runs)


async def test_an_early_start_of_a_wrong_program_is_refused_and_the_error_stays_readable(tmp_path: Path) -> None:
    async with running(House(tmp_path)) as house:
        p1 = await house.create("(")
        await house.start(p1)
        row = await house.until(p1, lambda row: row.is_fully_stopped and row.deployment_error is not None)
        assert row.program_error.sql_compilation is not None
        await house.stop(p1)
        assert (await house.row(p1)).program_status is S.SQL_ERROR


async def test_what_was_damaged_is_built_again_before_it_starts(tmp_path: Path) -> None:
    async with running(House(tmp_path)) as house:
        p1 = await house.create("print('hello')\n")
        row = await house.until(p1, is_(S.SUCCESS))
        script = tmp_path / "artifacts" / str(row.artifact) / "program.py"
        script.write_bytes(b"print('owned')\n")
        await house.start(p1)
        row = await house.until(p1, runs)
        assert script.read_bytes() == b"print('hello')\n"
        assert row.resources_status is ResourcesStatus.PROVISIONED
        built = [status for status in await house.history(p1) if status == "CompilingRust"]
        assert len(built) == 2
