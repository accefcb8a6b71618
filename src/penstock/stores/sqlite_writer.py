"""The one thread that writes to a SQLite file: it takes all waiting writes as one transaction.

Owned by `SqliteStore`. Each write has a savepoint of its own, so that one which fails hurts no other; each is answered
only after the COMMIT, all by one call, in commit order. Must never touch the event loop but through that call.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from threading import Thread

import structlog

from penstock.model import Author, MonitorEvent, PipelineId
from penstock.ports import StoreUnavailable
from penstock.stores import columns
from penstock.stores.columns import Columns
from penstock.stores.reserve import LOW_BYTES, Reserve
from penstock.stores.rows import Decide, Delta, Rows
from penstock.stores.sqlite_file import Presence, corrupt, execute, explain, fetch, fill_reserve

log = structlog.get_logger("penstock.store")

BATCH_LIMIT = 500
"""Most writes that share a transaction: the first of them waits for the last, some 100 us each."""

MEND_SECONDS = 0.25
"""How long after a write the reserve is mended: quicker than most disks are filled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """A write that waits for its turn.

    `durable` = it must survive the loss of power before it is answered. `grows` = it takes on something new, which a
    full disk has no room for.
    """

    decide: Decide
    by: Author
    durable: bool
    grows: bool
    answer: asyncio.Future[Delta]
    """The loop's; the writer only carries it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a write: on disk as `result`, its events with their sequences; or not at all, and why."""

    write: Write
    result: Delta | Exception


class Writer:
    """Runs from `start` until `stop`; owns `connection`, and closes it in the end.

    `announce` is called by the writer's thread after each transaction, with the outcomes in their order.
    """

    def __init__(
        self,
        *,
        path: str,
        connection: sqlite3.Connection,
        reserve: Reserve,
        presence: Presence,
        rows: Rows,
        retention: int,
        announce: Callable[[list[Outcome]], None],
    ) -> None:
        self._path = path
        self._connection = connection
        self._reserve = reserve
        self._disk_full = False
        self._stocked = True
        """Whether the reserve may hold pages."""
        self._unmended = False
        self._mended_at = time.monotonic()
        self._presence = presence
        self._lost = False
        self._broken: StoreUnavailable | None = None
        """Why what is on disk may not be what is in memory; for good."""
        self._rows = rows
        self.retention = retention
        """May be replaced at any time; each pipeline follows at its next event."""
        self._announce = announce
        self._queue: SimpleQueue[Write | None] = SimpleQueue()
        self._applied: list[Delta] = []
        self._kept: dict[PipelineId, int] = {}
        """How many events there are of a pipeline. Set last of all, so that a write undone alone leaves it true."""
        self._power_safe: bool | None = None
        self._thread = Thread(target=self._run, name="sqlite-writer", daemon=True)

    def start(self) -> None:
        """Begin to take writes."""
        self._thread.start()

    def submit(self, write: Write) -> None:
        """Queue `write`; returns at once. Never after `stop`."""
        self._queue.put(write)

    def stop(self, timeout_seconds: float) -> bool:
        """Finish what is queued and close the file; blocks. False = it is still not done after `timeout_seconds`."""
        self._queue.put(None)
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        more = True
        while more:
            batch, more = self._take()
            if batch and self._is_disk_full():
                self._spend_reserve()
                self._announce(self._refuse_growth(batch))
            elif batch:
                self._announce(self._commit(batch))
                self._unmended = True
            self._mend_reserve()
        with closing(self._connection), suppress(sqlite3.Error, StoreUnavailable):
            self._presence.check()
            self._reserve.set_aside()
            # What it cannot move into the file stays safe in the log beside it.
            self._connection.execute("PRAGMA wal_checkpoint(FULL)")

    def _take(self) -> tuple[list[Write], bool]:
        """Wait for a write; take it and all behind it, none when it is time to mend. False = there will be no more."""
        batch: list[Write] = []
        try:
            write = self._queue.get(timeout=MEND_SECONDS if self._unmended else None)
            while write is not None:
                batch.append(write)
                if len(batch) == BATCH_LIMIT:
                    return batch, True
                write = self._queue.get_nowait()
        except Empty:
            return batch, True
        return batch, False

    def _is_disk_full(self) -> bool:
        """Tell whether the disk is as good as full. Logs when that changes."""
        try:
            free = self._reserve.free_bytes()
        except OSError:
            return False  # the commit tells better
        full = free < (2 * LOW_BYTES if self._disk_full else LOW_BYTES)
        if full and not self._disk_full:
            log.error("disk full", path=self._path, free_bytes=free)
        elif self._disk_full and not full:
            log.info("disk has room again", path=self._path, free_bytes=free)
        self._disk_full = full
        return full

    def _spend_reserve(self) -> None:
        if self._stocked:
            with suppress(sqlite3.Error):
                execute(self._connection, "spend_reserve", {})
                self._stocked = False

    def _mend_reserve(self) -> None:
        """Make good what writes have used of the reserve; soon after them, since it costs a tenth of one."""
        now = time.monotonic()
        if self._unmended and not self._disk_full and not self._lost and now - self._mended_at >= MEND_SECONDS:
            self._stocked = fill_reserve(self._connection, self._reserve, stocked=self._stocked)
            self._unmended = False
            self._mended_at = now

    def _refuse_growth(self, batch: list[Write]) -> list[Outcome]:
        """Commit what a full disk must not prevent, and refuse the rest."""
        text = (
            f"{self._path}: its disk is full, and takes on nothing new; free some space on it. Pipelines can still be "
            "stopped, cleared and deleted"
        )
        refused = [Outcome(write, StoreUnavailable(text)) for write in batch if write.grows]
        others = [write for write in batch if not write.grows]
        return (self._commit(others) if others else []) + refused

    def _commit(self, batch: list[Write]) -> list[Outcome]:
        self._applied = []
        try:
            if self._broken is not None:
                raise self._broken
            self._roll_back()
            self._guard_against_power_loss(any(write.durable for write in batch))
            self._connection.execute("BEGIN IMMEDIATE")
            outcomes = [Outcome(write, self._attempt(write)) for write in batch]
            self._refuse_lost_files()
            self._connection.execute("COMMIT")
            self._refuse_lost_files(committed=True)
        except (sqlite3.Error, StoreUnavailable) as error:
            self._kept.clear()
            for delta in reversed(self._applied):
                self._rows.apply(Delta(delta.after, delta.before))
            with suppress(sqlite3.Error):  # the next transaction begins with another try
                self._roll_back()
            return [Outcome(write, self._meaning(error)) for write in batch]
        return outcomes

    def _refuse_lost_files(self, *, committed: bool = False) -> None:
        """Raise StoreUnavailable if what is written goes to files that nobody will find. Logs when that changes."""
        try:
            self._presence.check()
        except StoreUnavailable as error:
            if committed:
                # Should the files come back, this commit may be in them, and memory behind.
                self._broken = StoreUnavailable(f"{error}. It was so in the midst of a commit: only a restart helps")
            if not self._lost:
                log.error("store lost", error=str(error))
            self._lost = True
            raise
        if self._lost:
            log.info("store found again", path=self._path)
        self._lost = False

    def _attempt(self, write: Write) -> Delta | Exception:
        """Do one write inside the transaction. Raises what none of the transaction's writes can survive."""
        self._connection.execute("SAVEPOINT one_write")
        try:
            stored = self._store(write.decide(self._rows))
        except Exception as error:  # carried to whom it belongs; the thread outlives anybody's bug
            meaning = self._meaning(error)
            if isinstance(meaning, StoreUnavailable):
                raise
            self._connection.execute("ROLLBACK TO one_write")
            self._connection.execute("RELEASE one_write")
            return meaning
        self._connection.execute("RELEASE one_write")
        self._rows.apply(stored)
        self._applied.append(stored)
        return stored

    def _meaning(self, error: Exception) -> Exception:
        """`error` as the port tells it, anew for each who gets it; itself when it is a bug of ours."""
        if isinstance(error, StoreUnavailable):
            return StoreUnavailable(str(error))
        meaning = explain(self._path, error) if isinstance(error, sqlite3.Error) else None
        if meaning is None:
            return error
        meaning.__cause__ = error
        return meaning

    def _store(self, delta: Delta) -> Delta:
        before, after = delta.before, delta.after
        if after is None:
            if before is None:
                self._change_one("touch", {})
            else:
                self._kept.pop(before.id, None)
                self._change_one("delete_pipeline", {"id": before.id, "before": before.revision})
            return delta
        if before is None:
            self._change_one("insert_pipeline", columns.of_pipeline(after))
            self._change_one("insert_body", columns.of_body(after))
        else:
            self._change_one("update_pipeline", {**columns.of_pipeline(after), "before": before.revision})
            if before.spec.name != after.spec.name:
                self._change_one("rename_pipeline", {"id": after.id, "name": after.spec.name})
            if not columns.same_body(before, after):
                self._change_one("update_body", columns.of_body(after))
        if not delta.events:
            return delta
        events = tuple(self._insert_event(event) for event in delta.events)
        self._trim(after.id, len(events))
        return replace(delta, events=events)

    def _trim(self, pipeline_id: PipelineId, added: int) -> None:
        """Remove the oldest events that `added` ones make too many. Counting each time would cost most of a write."""
        retention = self.retention  # once: the loop may replace it meanwhile
        kept = self._kept.get(pipeline_id)
        if kept is None:
            (counted,) = fetch(self._connection, "count_events", id=pipeline_id)
            kept = int(counted["kept"] or 0)
        else:
            kept += added
        if kept > retention:
            execute(self._connection, "trim_events", {"id": pipeline_id, "excess": kept - retention})
            kept = retention
        self._kept[pipeline_id] = kept

    def _insert_event(self, event: MonitorEvent) -> MonitorEvent:
        cursor = execute(self._connection, "insert_event", columns.of_event(event))
        return replace(event, sequence=cursor.lastrowid or 0)

    def _change_one(self, statement: str, parameters: Columns) -> None:
        """Run a statement that changes exactly one row; another number means that somebody else wrote."""
        if execute(self._connection, statement, parameters).rowcount != 1:
            raise corrupt(
                self._path,
                f"pipeline {parameters.get('id')} is not on disk as it was last written: another program changed it",
            )

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _guard_against_power_loss(self, wanted: bool) -> None:
        if wanted is not self._power_safe:
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if wanted else 'NORMAL'}")
            self._power_safe = wanted
