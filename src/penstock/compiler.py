"""The compiler: takes every program from its text to an artifact, a few at a time, oldest first.

Started by `wiring.py` in the daemon's task group. It hears of changes from the store and polls nothing; every few
minutes it goes through all rows in case it missed one. An edit or a delete cuts a build off at once, and a result for
an outdated program is dropped. Must never decide what may follow what: that is `program`'s.
"""

from __future__ import annotations

import heapq
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TypeVar

import anyio
import structlog
from anyio.abc import TaskGroup

from penstock import program
from penstock.model import PROGRAM_FAILED, Author, Pipeline, PipelineId, ProgramStatus
from penstock.ports import (
    Clock,
    NotFound,
    StaleRevision,
    StepBroke,
    StepFailed,
    StepPassed,
    StepResult,
    Store,
    StoreUnavailable,
    Toolchains,
)
from penstock.schedule import Schedule, backoff_seconds
from penstock.telemetry import Metrics

log = structlog.get_logger("penstock.compiler")

RESYNC_SECONDS = 300.0
"""How often all rows are gone through without a reason: the safety net under lost wake-ups."""

SWEEP_SECONDS = 60.0
"""Deletes have artifacts swept, but not more often than this."""

AT_ONCE = float("-inf")
"""Earlier than any time; whoever tells of a change may be outside of every task, where no clock can be read."""

OUTAGE_PAUSE_SECONDS = 1.0
"""How long to wait, at most, before the store is tried again."""

CRASHED = "The daemon failed over this program; its log says why. Change the program to have it tried again."

Value = TypeVar("Value")
Move = Callable[[Pipeline, datetime], Pipeline | None]


@dataclass(slots=True)
class _Build:
    """A program under way: how to cut it off, and for which `program_version` it is; 0 = not known yet."""

    scope: anyio.CancelScope
    program_version: int = 0


class Compiler:
    """Owns the queue of programs and the tasks that build them."""

    def __init__(
        self, *, store: Store, toolchains: Toolchains, clock: Clock, parallel: int, metrics: Metrics | None
    ) -> None:
        self._parallel = parallel
        self._store = store
        self._toolchains = toolchains
        self._clock = clock
        self._metrics = metrics
        self._changed: Schedule[PipelineId] = Schedule()
        self._queue: list[tuple[datetime, PipelineId]] = []
        self._due: dict[PipelineId, datetime] = {}
        self._builds: dict[PipelineId, _Build] = {}
        self._crashes: dict[PipelineId, int] = {}
        self._woken = anyio.Event()
        self._deleted = anyio.Event()

    def on_change(self, pipeline_id: PipelineId, author: Author) -> None:
        """Hear of a committed change; the compiler's own are known already (`Store.listen`)."""
        if author is not Author.COMPILER:
            self._look_at(pipeline_id)

    @property
    def parallel(self) -> int:
        """How many programs are built at a time; may be set: a reload of the settings does. Cuts nothing off."""
        return self._parallel

    @parallel.setter
    def parallel(self, parallel: int) -> None:
        self._parallel = parallel
        self._woken.set()

    @property
    def depth(self) -> int:
        """How many programs wait for a slot."""
        return len(self._due)

    @property
    def building(self) -> int:
        """How many programs are being checked or built."""
        return len(self._builds)

    async def run(self) -> None:
        """Run until cancelled. Steps under way are cut off then; the next daemon takes them back."""
        self._store.listen(self.on_change)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._resync)
            await self._dispatch(tasks)

    def _look_at(self, pipeline_id: PipelineId, at: float = AT_ONCE) -> None:
        self._changed.add(pipeline_id, at)
        self._woken.set()

    async def _dispatch(self, tasks: TaskGroup) -> None:
        while True:
            self._woken = anyio.Event()
            for pipeline_id in self._changed.take(anyio.current_time()):
                await self._survives(self._look(pipeline_id), pipeline=pipeline_id)
                self._changed.done(pipeline_id)
            while len(self._builds) < self._parallel and (pipeline_id := self._next_due()) is not None:
                build = self._builds[pipeline_id] = _Build(anyio.CancelScope())
                tasks.start_soon(self._build, pipeline_id, build)
            next_at = self._changed.next_at()
            with anyio.CancelScope(deadline=float("inf") if next_at is None else next_at):
                await self._woken.wait()

    def _next_due(self) -> PipelineId | None:
        """Take the program that has waited longest out of the queue."""
        while self._queue:
            since, pipeline_id = heapq.heappop(self._queue)
            if self._due.get(pipeline_id) == since:
                del self._due[pipeline_id]
                return pipeline_id
        return None

    async def _look(self, pipeline_id: PipelineId) -> None:
        """Read a row that has changed: queue it, take back a step that nobody is at, or cut off a build."""
        row = await self._with_store(partial(self._store.get, pipeline_id))
        build = self._builds.get(pipeline_id)
        if build is not None:
            # A build that does not know its version yet begins with a commit, and that finds out.
            if row is None or build.program_version not in (0, row.program_version):
                build.scope.cancel()
            return
        if row is not None and program.resumed(row, self._clock.now()) is not None:
            row = await self._advance(row, program.resumed, "taken back")
        self._due.pop(pipeline_id, None)
        if row is None:
            self._crashes.pop(pipeline_id, None)
            self._deleted.set()
        elif program.is_due(row):
            self._due[pipeline_id] = row.program_status_since
            heapq.heappush(self._queue, (row.program_status_since, pipeline_id))

    async def _build(self, pipeline_id: PipelineId, build: _Build) -> None:
        survived = True
        with build.scope:
            survived = await self._survives(self._take_through(pipeline_id, build), pipeline=pipeline_id)
            if not survived:
                await self._survives(self._record_crash(pipeline_id, build.program_version), pipeline=pipeline_id)
        del self._builds[pipeline_id]
        if survived:
            self._crashes.pop(pipeline_id, None)
            self._look_at(pipeline_id)
        else:
            crashes = self._crashes[pipeline_id] = self._crashes.get(pipeline_id, 0) + 1
            self._look_at(pipeline_id, anyio.current_time() + backoff_seconds(crashes))

    async def _take_through(self, pipeline_id: PipelineId, build: _Build) -> None:
        """Check and build one program; stop as soon as the row has moved on."""
        row = await self._with_store(partial(self._store.get, pipeline_id))
        if row is None or not program.is_due(row):
            return
        version = build.program_version = row.program_version
        if row.program_status is ProgramStatus.PENDING:
            begun = await self._advance(row, _only(version, program.begin_check), "check begun")
            if begun is None:
                return
            checked = await self._toolchains.check(begun)
            row = await self._advance(begun, partial(_after_check, version, checked), "check ended")
        if row is None or row.program_status is not ProgramStatus.SQL_COMPILED:
            return
        begun = await self._advance(row, _only(version, program.begin_build), "build begun")
        if begun is None:
            return
        built = await self._toolchains.build(begun)
        await self._advance(begun, partial(_after_build, version, built), "build ended")

    async def _record_crash(self, pipeline_id: PipelineId, version: int) -> None:
        row = await self._with_store(partial(self._store.get, pipeline_id))
        if row is not None:
            await self._advance(row, lambda row, now: program.broke(row, version, CRASHED, now), "step crashed")

    async def _advance(self, row: Pipeline, move: Move, cause: str) -> Pipeline | None:
        """Commit `move` of the row as it is by now; None when it has moved on, or is gone, and nothing was written."""
        current: Pipeline | None = row
        while current is not None:
            now = self._clock.now()
            after = move(current, now)
            if after is None:
                return None
            commit = partial(self._store.commit, current, (after,), by=Author.COMPILER, cause=cause, now=now)
            try:
                stored = await self._with_store(commit)
            except StaleRevision:
                current = await self._with_store(partial(self._store.get, row.id))
            except NotFound:
                return None
            else:
                self._tell(current, stored, now)
                return stored
        return None

    async def _with_store(self, call: Callable[[], Awaitable[Value]]) -> Value:
        """Call the store; wait for it as long as it cannot be reached."""
        failures = 0
        while True:
            try:
                return await call()
            except StoreUnavailable as error:
                failures += 1
                if failures == 1:
                    log.warning("compiler waits for the store", error=str(error))
                await anyio.sleep(min(OUTAGE_PAUSE_SECONDS, backoff_seconds(failures)))

    async def _survives(self, work: Awaitable[object], **about: object) -> bool:
        """Do `work`, and outlive its bugs; tell whether it had none. The only place that catches them."""
        try:
            await work
        except Exception:
            log.exception("compiler step crashed", **about)
            return False
        return True

    async def _resync(self) -> None:
        while True:
            self._deleted = anyio.Event()
            await self._survives(self._go_through_all())
            await anyio.sleep(SWEEP_SECONDS)
            with anyio.move_on_after(RESYNC_SECONDS - SWEEP_SECONDS):
                await self._deleted.wait()

    async def _go_through_all(self) -> None:
        rows = await self._with_store(self._store.pipelines)
        for row in rows:
            if row.program_status is not ProgramStatus.SUCCESS and row.program_status not in PROGRAM_FAILED:
                self._look_at(row.id)
        swept = await self._toolchains.sweep(rows)
        if swept:
            log.info("artifacts swept", count=swept)

    def _tell(self, before: Pipeline, after: Pipeline, now: datetime) -> None:
        log.info(
            "program moved",
            pipeline=after.id,
            name=after.spec.name,
            before=before.program_status.value,
            after=after.program_status.value,
            program_version=after.program_version,
        )
        if self._metrics is not None:
            seconds = (now - before.program_status_since).total_seconds()
            self._metrics.program_moved(before.program_status, after.program_status, seconds)


def _only(version: int, move: Move) -> Move:
    """`move`, as long as the program is still the one that the build began with."""
    return lambda row, now: move(row, now) if row.program_version == version else None


def _after_check(version: int, result: StepResult, row: Pipeline, now: datetime) -> Pipeline | None:
    match result:
        case StepPassed(outcome=outcome, info=info):
            return program.check_passed(row, version, outcome, info, now)
        case StepFailed(outcome):
            return program.check_failed(row, version, outcome, now)
        case StepBroke(reason):
            return program.broke(row, version, reason, now)


def _after_build(version: int, result: StepResult, row: Pipeline, now: datetime) -> Pipeline | None:
    match result:
        case StepPassed(outcome=outcome, artifact=artifact):
            return program.build_passed(row, version, outcome, artifact or "", now)
        case StepFailed(outcome):
            return program.build_failed(row, version, outcome, now)
        case StepBroke(reason):
            return program.broke(row, version, reason, now)
