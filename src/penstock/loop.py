"""The reconciler loop: gives every pipeline its turns, at once when something happened, else now and then.

Started by `wiring.py` in the daemon's task group. Wake-ups are hints: they may be lost or doubled, so the loop also
goes through all rows again every few minutes, and looks for compute that no row knows. One pipeline is never in two
turns at once; one that hangs delays nobody else. Must never touch a row: only turns do.
"""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass

import anyio
import structlog
from anyio.abc import TaskGroup

from penstock.model import Author, Pipeline, PipelineId, ResourcesDesired, StorageStatus
from penstock.ports import Clock, Executor, ExecutorError, StaleRevision, Store, StoreUnavailable
from penstock.reconciler import Reconciler, Turn
from penstock.schedule import Schedule, backoff_seconds
from penstock.telemetry import Metrics

log = structlog.get_logger("penstock.loop")

AT_ONCE = float("-inf")
"""Earlier than any time; whoever wakes may be outside of every task, where the loop's clock cannot be read."""

RESYNC_SECONDS = 300.0
"""How often all rows are gone through without a reason: the safety net under lost wake-ups."""


@dataclass(slots=True)
class _Running:
    """A turn under way: how to interrupt it, and since when it runs."""

    scope: anyio.CancelScope
    since: float


class Loop:
    """Owns the schedule and the tasks of the turns."""

    def __init__(
        self,
        *,
        store: Store,
        executor: Executor,
        reconciler: Reconciler,
        metrics: Metrics,
        clock: Clock,
        resync_seconds: float = RESYNC_SECONDS,
    ) -> None:
        self._store = store
        self._executor = executor
        self._reconciler = reconciler
        self._metrics = metrics
        self._clock = clock
        self._resync_seconds = resync_seconds
        self._schedule: Schedule[PipelineId] = Schedule()
        self._running: dict[PipelineId, _Running] = {}
        self._setbacks: dict[PipelineId, int] = {}
        self._asked: set[PipelineId] = set()
        self._first: set[PipelineId] = set()
        self._woken = anyio.Event()
        self._outage: anyio.Event | None = None
        self._tasks: TaskGroup | None = None
        self.caught_up = anyio.Event()
        """Set when every pipeline that existed at the start has had a turn: all that could be adopted is."""

    def wake(self, pipeline_id: PipelineId, author: Author | None = None) -> None:
        """Give `pipeline_id` a turn now. What a user asked for interrupts a turn that stands in its way."""
        if author is Author.USER and pipeline_id in self._running:
            self._asked.add(pipeline_id)
        self._schedule.add(pipeline_id, AT_ONCE)
        self._woken.set()

    def on_change(self, pipeline_id: PipelineId, author: Author) -> None:
        """Hear of a committed change; the daemon's own are known already (`Store.listen`)."""
        if author is not Author.DAEMON:
            self.wake(pipeline_id, author)

    @property
    def depth(self) -> int:
        """How many pipelines wait for a turn."""
        return len(self._schedule)

    @property
    def store_available(self) -> bool:
        """Whether the store could be used when it was last tried."""
        return self._outage is None

    def longest_turn_seconds(self) -> float:
        """How long the oldest turn under way has been running; 0 when there is none."""
        now = anyio.current_time()
        return max((now - turn.since for turn in self._running.values()), default=0.0)

    async def run(self) -> None:
        """Run until cancelled. Turns under way are cut off then; the next daemon repeats them."""
        self._store.listen(self.on_change)
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            tasks.start_soon(self._follow_executor)
            tasks.start_soon(self._resync)
            await self._dispatch(tasks)

    async def _dispatch(self, tasks: TaskGroup) -> None:
        while True:
            self._woken = anyio.Event()
            await self._interrupt()
            if self._outage is not None:
                await self._outage.wait()
            for pipeline_id in self._schedule.take(anyio.current_time()):
                tasks.start_soon(self._take_turn, pipeline_id)
            due = self._schedule.next_at()
            with anyio.CancelScope(deadline=float("inf") if due is None else due):
                await self._woken.wait()

    async def _interrupt(self) -> None:
        """Cut off turns whose pipeline was meanwhile told to stop; nothing else may interrupt a turn."""
        while self._asked:
            pipeline_id = self._asked.pop()
            try:
                row = await self._store.get(pipeline_id)
            except StoreUnavailable as error:
                self._begin_outage(error)
                return
            running = self._running.get(pipeline_id)
            if running is not None and (row is None or _must_stop(row)):
                running.scope.cancel()

    async def _take_turn(self, pipeline_id: PipelineId) -> None:
        began = anyio.current_time()
        turn: Turn | None = None
        result = "interrupted"
        with anyio.CancelScope() as scope:
            self._running[pipeline_id] = _Running(scope, began)
            try:
                turn = await self._reconciler.turn(pipeline_id)
                result = "gone" if not turn.exists else "retried" if turn.retry else "done"
            except StaleRevision:
                result = "stale"
            except StoreUnavailable as error:
                result = "outage"
                self._begin_outage(error)
            except Exception:
                result = "crashed"
                log.exception("turn crashed", pipeline=pipeline_id)
            finally:
                del self._running[pipeline_id]
        now = anyio.current_time()
        self._metrics.turn_taken(result, now - began)
        self._reschedule(pipeline_id, turn, result, now)
        if turn is not None:
            self._tell(pipeline_id, turn)
        if self._first and result not in ("interrupted", "outage", "stale"):
            self._first.discard(pipeline_id)
            if not self._first:
                self.caught_up.set()

    def _reschedule(self, pipeline_id: PipelineId, turn: Turn | None, result: str, now: float) -> None:
        if result == "gone":
            self._schedule.forget(pipeline_id)
            self._setbacks.pop(pipeline_id, None)
        elif result in ("interrupted", "outage"):
            self._schedule.add(pipeline_id, now)
        else:
            # An effect that had to be repeated is a setback too: nothing may spin.
            repeated = turn is not None and turn.effect is not None and not turn.rows
            setback = result in ("retried", "stale", "crashed") or repeated
            count = self._setbacks.get(pipeline_id, 0) + 1 if setback else 0
            self._setbacks[pipeline_id] = count
            if repeated and result == "done":
                self._schedule.add(pipeline_id, now + (backoff_seconds(count - 1) if count > 1 else 0.0))
            elif result == "stale" and count == 1:
                self._schedule.add(pipeline_id, now)
            elif setback:
                wait = backoff_seconds(count)
                if turn is not None and turn.retry and turn.revisit_seconds is not None:
                    wait = min(wait, turn.revisit_seconds)
                self._schedule.add(pipeline_id, now + wait)
            elif turn is not None and turn.revisit_seconds is not None:
                self._schedule.add(pipeline_id, now + turn.revisit_seconds)
            if not count:
                del self._setbacks[pipeline_id]
        self._schedule.done(pipeline_id)
        self._woken.set()

    def _tell(self, pipeline_id: PipelineId, turn: Turn) -> None:
        if turn.fault is not None:
            log.warning(
                "effect failed",
                pipeline=pipeline_id,
                effect=type(turn.effect).__name__,
                error_code=turn.fault.code,
                error=turn.fault.message,
            )
        for before, after in zip(turn.rows, turn.rows[1:], strict=False):
            self._metrics.row_moved(before, after, self._clock.now())
            if before.resources_status is not after.resources_status:
                log.info(
                    "resources moved",
                    pipeline=pipeline_id,
                    name=after.spec.name,
                    deployment=after.deployment_id or before.deployment_id,
                    before=before.resources_status.value,
                    after=after.resources_status.value,
                    desired=after.resources_desired.value,
                    cause=turn.reason,
                    error_code=None if after.deployment_error is None else after.deployment_error.code,
                )

    def _begin_outage(self, error: StoreUnavailable) -> None:
        """One line, one waiter and one wake-up for all, however many turns the outage hits."""
        if self._outage is None and self._tasks is not None:
            self._outage = anyio.Event()
            log.error("store unavailable", error=str(error))
            self._tasks.start_soon(self._await_store, self._outage)

    async def _await_store(self, outage: anyio.Event) -> None:
        failures = 0
        while True:
            try:
                await self._store.check()
            except StoreUnavailable:
                failures += 1
                await anyio.sleep(min(1.0, backoff_seconds(failures)))
            else:
                break
        log.info("store available again")
        self._outage = None
        outage.set()

    async def _follow_executor(self) -> None:
        async with aclosing(self._executor.events()) as events:
            async for pipeline_id in events:
                self.wake(pipeline_id)

    async def _resync(self) -> None:
        first = True
        while True:
            try:
                await self._go_through_all(first=first)
                await self._sweep_orphans()
                await self._sweep_remains()
            except StoreUnavailable as error:
                self._begin_outage(error)
            if self._outage is not None:
                await self._outage.wait()
                continue
            first = False
            await anyio.sleep(self._resync_seconds)

    async def _go_through_all(self, *, first: bool) -> None:
        rows = [row for row in await self._store.pipelines() if not _rests(row)]
        now = anyio.current_time()
        if first:
            self._first = {row.id for row in rows}
            if not rows:
                self.caught_up.set()
        spread = 0.0 if first else self._resync_seconds / max(1, len(rows))
        for index, row in enumerate(rows):
            self._schedule.add(row.id, now + index * spread)
        self._woken.set()

    async def _sweep_orphans(self) -> None:
        """Kill what is ours and belongs to no row. Rows are read after the survey: record comes before act."""
        found = await self._executor.survey()
        for compute in found:
            row = await self._store.get(compute.pipeline_id)
            if row is not None and row.deployment_id == compute.deployment_id:
                continue
            log.warning("orphan discarded", pipeline=compute.pipeline_id, deployment=compute.deployment_id)
            try:
                await self._executor.discard(compute)
            except ExecutorError as error:
                log.warning("orphan remains", pipeline=compute.pipeline_id, error=error.fault.message)

    async def _sweep_remains(self) -> None:
        """Have what is kept of deleted pipelines removed, by a turn. Rows are read after the survey, as above."""
        for pipeline_id in await self._executor.kept():
            if await self._store.get(pipeline_id) is None:
                self.wake(pipeline_id)


def _must_stop(row: Pipeline) -> bool:
    return row.resources_desired is ResourcesDesired.STOPPED or row.stop_mode is not None


def _rests(row: Pipeline) -> bool:
    """Nothing to look at and nothing owed."""
    return row.is_fully_stopped and row.storage_status is not StorageStatus.CLEARING and row.resume is None
