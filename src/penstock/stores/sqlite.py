"""The Store port on one SQLite file: the default, for one daemon on one machine.

Made by `wiring.py` with `open_sqlite`. What the file holds stands in memory as well, so that most reads touch no disk;
only events are read from it, beside the writer. Must never let memory run ahead of the disk: it changes after COMMIT.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from pathlib import Path

from anyio import CancelScope, CapacityLimiter, to_thread

from penstock.model import Author, MonitorEvent, Pipeline, PipelineId, ResourcesDesired, TenantId
from penstock.ports import Clock, Listener, StoreUnavailable
from penstock.stores.columns import Value
from penstock.stores.rows import Decide, Delta, Rows
from penstock.stores.sqlite_file import OpenFile, connect, explained, fetch_events, open_file
from penstock.stores.sqlite_writer import Outcome, Write, Writer

READERS = 2
"""Connections that read events beside the writer: as many as lists are asked for at once on a small machine."""

CLOSE_TIMEOUT_SECONDS = 30.0
"""Longer than any batch on a disk that works at all."""

MAX_INTEGER = 2**63 - 1
"""The largest that SQLite knows; no sequence ever gets there."""

NO_LIMIT = -1


@asynccontextmanager
async def open_sqlite(
    path: str | Path,
    *,
    clock: Clock,
    retention: int = 720,
    details_interval_seconds: float = 600.0,
    state_dir: Path | None = None,
) -> AsyncGenerator[SqliteStore, None]:
    """Open the store in the file at `path`, made if need be, for the running asyncio loop; closed on leaving.

    `retention` events are kept of each pipeline; details alone make one at most every `details_interval_seconds`.
    `state_dir` is where the pipelines' data is: while it holds any, no other database than theirs is opened.
    Waits up to 2 s for the file to be free. Raises StoreLocked, StoreCorrupt, StoreUnavailable. On leaving, pending
    writes are finished, also under cancellation.
    """
    opening = partial(open_file, str(path), now=clock.now(), new_instance_id=clock.new_id(), state_dir=state_dir)
    file = await to_thread.run_sync(opening)
    try:
        store = SqliteStore(file, clock=clock, retention=retention, details_interval_seconds=details_interval_seconds)
        try:
            yield store
        finally:
            with CancelScope(shield=True):
                await store.close()
    finally:
        file.reserve.release()
        os.close(file.lock)


class SqliteStore:
    """A Store in one file. Made by `open_sqlite`; belongs to the loop that it was opened on."""

    def __init__(self, file: OpenFile, *, clock: Clock, retention: int, details_interval_seconds: float) -> None:
        self._path = file.path
        self._instance_id = file.instance_id
        self._clock = clock
        self._retention = retention
        self._details_interval_seconds = details_interval_seconds
        self._loop = asyncio.get_running_loop()
        self._rows = Rows(file.rows)
        self._latest = {event.pipeline_id: event for event in file.latest}
        self.events_written = 0
        """How many events were recorded since the store was opened."""
        self._listeners: list[Listener] = []
        self._closed = False
        self._presence = file.presence
        self._idle_readers: list[sqlite3.Connection] = []
        self._readers = CapacityLimiter(READERS)
        self._writer = Writer(
            path=file.path,
            connection=file.connection,
            reserve=file.reserve,
            presence=file.presence,
            rows=Rows(file.rows),
            retention=retention,
            announce=self._announce,
        )
        self._writer.start()

    @property
    def instance_id(self) -> str:
        """A UUID made once per file."""
        return self._instance_id

    async def create(self, row: Pipeline, *, by: Author = Author.USER) -> Pipeline:
        """Add a new pipeline and its first event. Raises NameTaken; StaleRevision if the id exists."""
        new_id = self._new_ids(1)
        creation = partial(Rows.creation, row=row, by=by, new_id=new_id)
        written = await self._write(creation, by=by, durable=True, grows=by is Author.USER)
        return written.after or row

    async def get(self, pipeline_id: PipelineId) -> Pipeline | None:
        """The row as last committed; None when there is no such pipeline. Touches no disk."""
        return self._rows.get(pipeline_id)

    async def find(self, tenant: TenantId, name: str) -> Pipeline | None:
        """The tenant's pipeline of that name; None when there is none. Touches no disk."""
        return self._rows.find(tenant, name)

    async def pipelines(self, tenant: TenantId | None = None) -> list[Pipeline]:
        """All pipelines, or those of one tenant, oldest first. Touches no disk."""
        return self._rows.list(tenant)

    async def commit(
        self, before: Pipeline, rows: Sequence[Pipeline], *, by: Author, cause: str, now: datetime
    ) -> Pipeline:
        """Record `rows` and their events. Raises NotFound, StaleRevision, moves.IllegalMove, NameTaken.

        Returns once it is on disk. When cancelled, it is not waited for any more, and applied all the same.
        """
        decide = partial(
            Rows.change,
            before=before,
            snapshots=rows,
            by=by,
            cause=cause,
            now=now,
            new_id=self._new_ids(len(rows)),
            details_interval_seconds=self._details_interval_seconds,
        )
        user = by is Author.USER
        written = await self._write(decide, by=by, durable=user, grows=user and _takes_on_more(before, rows[-1]))
        return written.after or before

    async def delete(self, before: Pipeline) -> None:
        """Remove the pipeline and its events. Raises NotFound, StaleRevision."""
        await self._write(lambda rows: rows.removal(before), by=Author.USER, durable=True)

    async def events(self, pipeline_id: PipelineId, *, after: int = 0, limit: int | None = None) -> list[MonitorEvent]:
        """The retained events with a sequence above `after`, newest first; the newest `limit` of them."""
        most = NO_LIMIT if limit is None else min(limit, MAX_INTEGER)
        return await self._read("events", id=pipeline_id, after=min(after, MAX_INTEGER), limit=most)

    async def event(self, pipeline_id: PipelineId, event_id: str) -> MonitorEvent | None:
        """One event of that pipeline; None when unknown or trimmed."""
        found = await self._read("event", id=pipeline_id, event_id=event_id)
        return found[0] if found else None

    async def latest_event(self, pipeline_id: PipelineId) -> MonitorEvent | None:
        """The newest event; None when nothing is retained. Touches no disk."""
        return self._latest.get(pipeline_id)

    def listen(self, listener: Listener) -> None:
        """Have `listener` called on the loop after every create, commit and delete, in the order of the commits."""
        self._listeners.append(listener)

    def configure(self, *, retention: int, details_interval_seconds: float) -> None:
        """Obey new settings from now on; a pipeline's surplus events go with its next one."""
        self._retention = self._writer.retention = retention
        self._details_interval_seconds = details_interval_seconds

    async def check(self) -> None:
        """Raise StoreUnavailable unless the file is still there and can be read and written: it is, a few bytes."""
        await self._write(lambda rows: Delta(None, None), by=Author.DAEMON, durable=False)
        await self._read("event", id="", event_id="")

    async def close(self) -> None:
        """Finish what is pending and close the file; once. Raises StoreUnavailable if the disk hangs."""
        self._closed = True
        finished = await to_thread.run_sync(self._writer.stop, CLOSE_TIMEOUT_SECONDS)
        while self._idle_readers:
            self._idle_readers.pop().close()
        if not finished:
            raise StoreUnavailable(f"{self._path}: writing hangs for more than {CLOSE_TIMEOUT_SECONDS:g} s; gave up")

    def _new_ids(self, count: int) -> Callable[[], str]:
        """Ids for the writer's thread, made here: a Clock need not be safe for threads."""
        return iter([self._clock.new_id() for _ in range(count)]).__next__

    async def _write(self, decide: Decide, *, by: Author, durable: bool, grows: bool = False) -> Delta:
        self._refuse_if_closed()
        answer: asyncio.Future[Delta] = self._loop.create_future()
        self._writer.submit(Write(decide=decide, by=by, durable=durable, grows=grows, answer=answer))
        return await answer

    def _announce(self, outcomes: list[Outcome]) -> None:
        """Called by the writer's thread."""
        self._loop.call_soon_threadsafe(self._settle, outcomes)

    def _settle(self, outcomes: list[Outcome]) -> None:
        written = [(outcome.write, outcome.result) for outcome in outcomes if isinstance(outcome.result, Delta)]
        for _, delta in written:
            self._remember(delta)
        for outcome in outcomes:
            answer, result = outcome.write.answer, outcome.result
            if answer.done():  # who waited was cancelled
                continue
            if isinstance(result, Delta):
                answer.set_result(result)
            else:
                answer.set_exception(result)
        for write, delta in written:
            changed = delta.after or delta.before
            if changed is not None:
                for listener in self._listeners:
                    listener(changed.id, write.by)

    def _remember(self, delta: Delta) -> None:
        self._rows.apply(delta)
        self.events_written += len(delta.events)
        if delta.events and self._retention:
            self._latest[delta.events[-1].pipeline_id] = delta.events[-1]
        elif delta.before is not None and (delta.events or delta.after is None):
            self._latest.pop(delta.before.id, None)

    async def _read(self, statement: str, **parameters: Value) -> list[MonitorEvent]:
        self._refuse_if_closed()
        return await to_thread.run_sync(partial(self._fetch, statement, parameters), limiter=self._readers)

    def _fetch(self, statement: str, parameters: Mapping[str, Value]) -> list[MonitorEvent]:
        """Runs in a thread, of which there are READERS at most."""
        self._presence.check()
        with explained(self._path):
            connection = self._idle_readers.pop() if self._idle_readers else connect(self._path, reading=True)
            try:
                return fetch_events(connection, self._path, statement, **parameters)
            finally:
                if self._closed:
                    connection.close()
                else:
                    self._idle_readers.append(connection)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise StoreUnavailable(f"{self._path}: the store is closed")


def _takes_on_more(before: Pipeline, after: Pipeline) -> bool:
    """Tell whether a user wants what a full disk has no room for: another program or configuration, or a start."""
    started = before.resources_desired is ResourcesDesired.STOPPED is not after.resources_desired
    return started or after.spec != before.spec
