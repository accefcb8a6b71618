"""Which monitor events a change of a row makes.

Called by every store inside `commit` and `create`, so that no store can record an illegal move or forget an event.
Pure. An event is written iff one of its visible fields changed; details alone make one only now and then
(design section 6).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from penstock.model import Author, MonitorEvent, Pipeline
from penstock.moves import check_move


@dataclass(frozen=True, slots=True)
class Change:
    """What a store shall write: the row as it ends up, and the events on the way, oldest first."""

    row: Pipeline
    events: tuple[MonitorEvent, ...]


def record(
    before: Pipeline,
    snapshots: Sequence[Pipeline],
    *,
    by: Author,
    cause: str,
    now: datetime,
    new_id: Callable[[], str],
    details_interval_seconds: float,
) -> Change:
    """Turn `before` and the snapshots that follow it into one change; the revision moves by one.

    Raises moves.IllegalMove if `by` may not make one of the moves.
    """
    events: list[MonitorEvent] = []
    previous = before
    event_at = before.event_at
    interval = timedelta(seconds=details_interval_seconds)
    for row in snapshots:
        check_move(previous, row, by)
        moved = _statuses(row) != _statuses(previous)
        rested = event_at is None or now - event_at >= interval
        if moved or (rested and _details(row) != _details(previous)):
            events.append(snapshot(row, by=by, cause=cause, now=now, event_id=new_id()))
            event_at = now
        previous = row
    return Change(replace(previous, revision=before.revision + 1, event_at=event_at), tuple(events))


def created(row: Pipeline, *, by: Author, now: datetime, new_id: Callable[[], str]) -> Change:
    """The change that brings a new pipeline into being: its row, and its first event."""
    event = snapshot(row, by=by, cause="created", now=now, event_id=new_id())
    return Change(replace(row, revision=1, event_at=now), (event,))


def snapshot(row: Pipeline, *, by: Author, cause: str, now: datetime, event_id: str) -> MonitorEvent:
    """The monitor event that shows `row` as it is."""
    return MonitorEvent(
        event_id=event_id,
        pipeline_id=row.id,
        tenant=row.tenant,
        recorded_at=now,
        cause=cause,
        author=by,
        deployment_id=row.deployment_id,
        resources_status=row.resources_status,
        resources_status_details=row.resources_status_details,
        resources_desired=row.resources_desired,
        runtime_status=row.runtime_status,
        runtime_status_details=row.runtime_status_details,
        runtime_desired=row.runtime_desired,
        deployment_error=row.deployment_error,
        program_status=row.program_status,
        storage_status=row.storage_status,
        storage_status_details=row.storage_status_details,
    )


def _statuses(row: Pipeline) -> tuple[object, ...]:
    return (
        row.resources_status,
        row.resources_desired,
        row.runtime_status,
        row.runtime_desired,
        row.deployment_error,
        row.program_status,
        row.storage_status,
    )


def _details(row: Pipeline) -> tuple[object, ...]:
    return (row.resources_status_details, row.runtime_status_details, row.storage_status_details)
