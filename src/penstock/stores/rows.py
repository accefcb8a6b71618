"""The rows in memory, and what a write makes of them: the checks that every store owes, without a database.

Called by a store that is the only writer of its database, so that its copy is the truth. Must never do I/O: a store
decides here, then records on disk, then applies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from penstock import history
from penstock.model import Author, MonitorEvent, Pipeline, PipelineId, TenantId
from penstock.ports import NameTaken, NotFound, StaleRevision


@dataclass(frozen=True, slots=True)
class Delta:
    """What a write changes. `before` None = a new row; `after` None = removed; both None = nothing."""

    before: Pipeline | None
    after: Pipeline | None
    events: tuple[MonitorEvent, ...] = ()


Decide = Callable[["Rows"], Delta]
"""Makes a write out of the rows as they stand when its turn has come; raises what the Store port tells."""


class Rows:
    """All rows by id and by name, oldest first. Not safe for threads: each has its own."""

    def __init__(self, rows: Iterable[Pipeline] = ()) -> None:
        self._by_id = {row.id: row for row in sorted(rows, key=_age)}
        self._by_name = {(row.tenant, row.spec.name): row.id for row in self._by_id.values()}

    def get(self, pipeline_id: PipelineId) -> Pipeline | None:
        """The row; None when there is none."""
        return self._by_id.get(pipeline_id)

    def find(self, tenant: TenantId, name: str) -> Pipeline | None:
        """The tenant's row of that name; None when there is none."""
        found = self._by_name.get((tenant, name))
        return None if found is None else self._by_id[found]

    def list(self, tenant: TenantId | None) -> list[Pipeline]:
        """All rows, or those of one tenant, by creation."""
        return [row for row in self._by_id.values() if tenant is None or row.tenant == tenant]

    def apply(self, delta: Delta) -> None:
        """Make the change; with `before` and `after` swapped it is undone."""
        before, after = delta.before, delta.after
        if before is not None:
            del self._by_name[before.tenant, before.spec.name]
            if after is None:
                del self._by_id[before.id]
        if after is not None:
            newest = next(reversed(self._by_id.values()), None)
            early = before is None and newest is not None and _age(after) < _age(newest)
            self._by_id[after.id] = after
            self._by_name[after.tenant, after.spec.name] = after.id
            if early:  # the clock was set back
                self._by_id = {row.id: row for row in sorted(self._by_id.values(), key=_age)}

    def creation(self, row: Pipeline, *, by: Author, new_id: Callable[[], str]) -> Delta:
        """Decide about a new row. Raises StaleRevision if the id exists, NameTaken."""
        if row.id in self._by_id:
            raise StaleRevision(f"pipeline {row.id} exists already")
        self._claim_name(row)
        change = history.created(row, by=by, now=row.created_at, new_id=new_id)
        return Delta(None, change.row, change.events)

    def change(
        self,
        before: Pipeline,
        snapshots: Sequence[Pipeline],
        *,
        by: Author,
        cause: str,
        now: datetime,
        new_id: Callable[[], str],
        details_interval_seconds: float,
    ) -> Delta:
        """Decide about a row's next snapshots. Raises NotFound, StaleRevision, moves.IllegalMove, NameTaken."""
        current = self._current(before)
        change = history.record(
            current,
            snapshots,
            by=by,
            cause=cause,
            now=now,
            new_id=new_id,
            details_interval_seconds=details_interval_seconds,
        )
        self._claim_name(change.row)
        return Delta(current, change.row, change.events)

    def removal(self, before: Pipeline) -> Delta:
        """Decide about a row's end. Raises NotFound, StaleRevision."""
        return Delta(self._current(before), None)

    def _current(self, before: Pipeline) -> Pipeline:
        current = self._by_id.get(before.id)
        if current is None:
            raise NotFound(f"there is no pipeline {before.id} (any more)")
        if current.revision != before.revision:
            raise StaleRevision(f"pipeline {before.id} is at revision {current.revision}, not {before.revision}")
        return current

    def _claim_name(self, row: Pipeline) -> None:
        if self._by_name.get((row.tenant, row.spec.name), row.id) != row.id:
            raise NameTaken(f"there is another pipeline named {row.spec.name!r}")


def _age(row: Pipeline) -> tuple[datetime, str]:
    return (row.created_at, row.id)
