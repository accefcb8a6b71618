"""The Store port in memory: what every other store must behave like.

Used by tests of whatever needs a store, and as the model that real stores are compared with. Runs on any anyio
back-end. Must never be quicker to please than a real store: every method yields to the scheduler before it answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime

from anyio.lowlevel import checkpoint

from penstock import history
from penstock.model import Author, MonitorEvent, Pipeline, PipelineId, TenantId
from penstock.ports import Clock, Listener, NameTaken, NotFound, StaleRevision


class MemoryStore:
    """A Store without a disk. `fault`, if set, is called first by every method and may raise StoreUnavailable."""

    def __init__(self, clock: Clock, *, details_interval_seconds: float = 600.0, retention: int = 720) -> None:
        self.fault: Callable[[], None] | None = None
        self._clock = clock
        self._details_interval_seconds = details_interval_seconds
        self._retention = retention
        self._instance_id = clock.new_id()
        self._rows: dict[PipelineId, Pipeline] = {}
        self._events: dict[PipelineId, list[MonitorEvent]] = {}
        self._sequence = 0
        self._listeners: list[Listener] = []

    @property
    def instance_id(self) -> str:
        """A UUID made once per store."""
        return self._instance_id

    async def create(self, row: Pipeline, *, by: Author = Author.USER) -> Pipeline:
        """Add a new pipeline and its first event. Raises NameTaken; StaleRevision if the id exists."""
        await self._ready()
        if row.id in self._rows:
            raise StaleRevision(f"pipeline {row.id} exists already")
        self._claim_name(row)
        change = history.created(row, by=by, now=row.created_at, new_id=self._clock.new_id)
        return self._keep(change, by)

    async def get(self, pipeline_id: PipelineId) -> Pipeline | None:
        """The row as last committed; None when there is no such pipeline."""
        await self._ready()
        return self._rows.get(pipeline_id)

    async def find(self, tenant: TenantId, name: str) -> Pipeline | None:
        """The tenant's pipeline of that name; None when there is none."""
        await self._ready()
        return self._named(tenant, name)

    async def pipelines(self, tenant: TenantId | None = None) -> list[Pipeline]:
        """All pipelines, or those of one tenant, oldest first."""
        await self._ready()
        rows = (row for row in self._rows.values() if tenant is None or row.tenant == tenant)
        return sorted(rows, key=lambda row: (row.created_at, row.id))

    async def commit(
        self, before: Pipeline, rows: Sequence[Pipeline], *, by: Author, cause: str, now: datetime
    ) -> Pipeline:
        """Record `rows` and their events. Raises NotFound, StaleRevision, moves.IllegalMove, NameTaken."""
        await self._ready()
        current = self._current(before)
        change = history.record(
            current,
            rows,
            by=by,
            cause=cause,
            now=now,
            new_id=self._clock.new_id,
            details_interval_seconds=self._details_interval_seconds,
        )
        self._claim_name(change.row)
        return self._keep(change, by)

    async def delete(self, before: Pipeline) -> None:
        """Remove the pipeline and its events. Raises NotFound, StaleRevision."""
        await self._ready()
        self._current(before)
        del self._rows[before.id]
        self._events.pop(before.id, None)
        self._tell(before.id, Author.USER)

    async def events(self, pipeline_id: PipelineId, *, after: int = 0, limit: int | None = None) -> list[MonitorEvent]:
        """The retained events with a sequence above `after`, newest first; the newest `limit` of them."""
        await self._ready()
        kept = reversed(self._events.get(pipeline_id, []))
        return [event for event in kept if event.sequence > after][:limit]

    async def event(self, pipeline_id: PipelineId, event_id: str) -> MonitorEvent | None:
        """One event of that pipeline; None when unknown or trimmed."""
        await self._ready()
        return next((event for event in self._events.get(pipeline_id, []) if event.event_id == event_id), None)

    async def latest_event(self, pipeline_id: PipelineId) -> MonitorEvent | None:
        """The newest event; None when nothing is retained."""
        await self._ready()
        kept = self._events.get(pipeline_id)
        return kept[-1] if kept else None

    def listen(self, listener: Listener) -> None:
        """Have `listener` called after every create, commit and delete."""
        self._listeners.append(listener)

    async def check(self) -> None:
        """Raise what `fault` raises."""
        await self._ready()

    async def _ready(self) -> None:
        await checkpoint()
        if self.fault is not None:
            self.fault()

    def _named(self, tenant: TenantId, name: str) -> Pipeline | None:
        same = (row for row in self._rows.values() if row.tenant == tenant and row.spec.name == name)
        return next(same, None)

    def _claim_name(self, row: Pipeline) -> None:
        owner = self._named(row.tenant, row.spec.name)
        if owner is not None and owner.id != row.id:
            raise NameTaken(f"there is another pipeline named {row.spec.name!r}")

    def _current(self, before: Pipeline) -> Pipeline:
        current = self._rows.get(before.id)
        if current is None:
            raise NotFound(f"there is no pipeline {before.id} (any more)")
        if current.revision != before.revision:
            raise StaleRevision(f"pipeline {before.id} is at revision {current.revision}, not {before.revision}")
        return current

    def _keep(self, change: history.Change, by: Author) -> Pipeline:
        row = change.row
        kept = self._events.setdefault(row.id, [])
        for event in change.events:
            self._sequence += 1
            kept.append(replace(event, sequence=self._sequence))
        del kept[: max(0, len(kept) - self._retention)]
        self._rows[row.id] = row
        self._tell(row.id, by)
        return row

    def _tell(self, pipeline_id: PipelineId, by: Author) -> None:
        for listener in self._listeners:
            listener(pipeline_id, by)
