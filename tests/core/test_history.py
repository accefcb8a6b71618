"""Which monitor events a change makes: one for each snapshot in which something visible changed, and no other."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import history, requests
from penstock.model import (
    Author,
    Bootstrap,
    DeploymentId,
    Fault,
    Initial,
    MonitorEvent,
    Pipeline,
    ProgramError,
    ProgramStatus,
    ResourcesDesired,
    ResourcesStatus,
    Resume,
    RuntimeDesired,
    RuntimeStatus,
    Spec,
    StopMode,
    StorageStatus,
)
from penstock.moves import IllegalMove

from .any_rows import FAULT, any_rows
from .rows import EPOCH, corner

NOW = EPOCH + timedelta(hours=1)
INTERVAL = 600.0
PERIOD = timedelta(seconds=INTERVAL)
STOPPED, WANTED = ResourcesDesired.STOPPED, ResourcesDesired.PROVISIONED
REST = corner(StorageStatus.IN_USE, ResourcesStatus.STOPPED, STOPPED)
STARTING = corner(StorageStatus.IN_USE, ResourcesStatus.PROVISIONING, WANTED)
RUNS = corner(StorageStatus.IN_USE, ResourcesStatus.PROVISIONED, WANTED)


def record(before: Pipeline, *snapshots: Pipeline, by: Author = Author.DAEMON, **options: Any) -> history.Change:
    ids = map("e{}".format, itertools.count(1))
    how: dict[str, Any] = {"cause": "observed", "now": NOW, "details_interval_seconds": INTERVAL} | options
    return history.record(before, snapshots, by=by, new_id=lambda: next(ids), **how)


# --- which columns are visible ------------------------------------------------------------------------------------

VISIBLE: list[tuple[Pipeline, dict[str, Any], Author]] = [
    (RUNS, {"runtime_status": RuntimeStatus.PAUSED}, Author.DAEMON),
    (RUNS, {"runtime_desired": RuntimeDesired.PAUSED}, Author.DAEMON),
    (RUNS, {"resources_desired": STOPPED}, Author.USER),
    (REST, {"deployment_error": FAULT}, Author.DAEMON),
    (replace(REST, deployment_error=FAULT), {"deployment_error": None}, Author.USER),
    (replace(REST, deployment_error=FAULT), {"deployment_error": Fault("Broken", "it broke", {})}, Author.DAEMON),
    (REST, {"program_status": ProgramStatus.PENDING}, Author.USER),
    (REST, {"storage_status": StorageStatus.CLEARING}, Author.USER),
]
DETAILS: list[tuple[Pipeline, dict[str, Any]]] = [
    (STARTING, {"resources_status_details": {"pid": 7}}),
    (RUNS, {"runtime_status_details": {"reason": "x"}}),
    (RUNS, {"storage_status_details": {"checkpoints": [{"uuid": "u"}]}}),
    (RUNS, {"storage_status_details": None}),
]
INVISIBLE: dict[str, Any] = {
    "revision": 99,
    "spec": Spec(name="p2", description="d", tags=("t",), program_code="c", runtime_config={"workers": 2}),
    "version": 2,
    "program_version": 2,
    "refresh_version": 2,
    "platform_version": "2",
    "program_status_since": NOW,
    "program_error": ProgramError(system_error="x"),
    "program_info": {"schema": {}},
    "resources_status_since": NOW,
    "resources_desired_since": NOW,
    "deployment_initial": Initial.PAUSED,
    "bootstrap": Bootstrap(silent=True),
    "runtime_status_since": NOW,
    "runtime_desired_since": NOW,
    "deployment_location": "127.0.0.1:1",
    "artifact": "b",
    "runtime_intent": RuntimeDesired.PAUSED,
    "stop_mode": StopMode.GRACEFUL,
    "stop_deadline": NOW,
    "suspect_since": NOW,
    "resume": Resume(Initial.RUNNING, Bootstrap()),
    "details_written_at": NOW,
    "event_at": NOW,
}


def test_every_column_is_either_visible_or_not() -> None:
    """A new column must be put into one of the lists above."""
    shown = {field.name for field in fields(MonitorEvent)} - {"author", "cause", "event_id", "recorded_at", "sequence"}
    shown = (shown - {"pipeline_id", "tenant", "deployment_id"}) | {"id", "tenant", "created_at", "deployment_id"}
    assert shown.isdisjoint(INVISIBLE)
    assert shown | set(INVISIBLE) == {field.name for field in fields(Pipeline)}


@pytest.mark.parametrize(("before", "columns", "by"), VISIBLE, ids=lambda part: str(part)[:40])
def test_a_visible_change_is_an_event_whenever_it_happens(
    before: Pipeline, columns: dict[str, Any], by: Author
) -> None:
    just_now = replace(before, event_at=NOW)
    change = record(just_now, replace(just_now, **columns), by=by)
    [event] = change.events
    for column, value in columns.items():
        assert getattr(event, column) == value
    assert change.row.event_at == NOW


@pytest.mark.parametrize("column", INVISIBLE)
def test_an_invisible_change_is_none(column: str) -> None:
    for before in (REST, STARTING, RUNS):
        change = record(before, replace(before, **{column: INVISIBLE[column]}))
        assert change.events == ()
        assert change.row.event_at == before.event_at
        if column not in ("revision", "event_at"):
            assert getattr(change.row, column) == INVISIBLE[column]


@pytest.mark.parametrize("row", [REST, STARTING, RUNS], ids=lambda row: row.resources_status)
def test_no_heartbeats_and_no_empty_events(row: Pipeline) -> None:
    for snapshots in ((), (row,), (row, row)):
        change = record(row, *snapshots, now=NOW + timedelta(days=365))
        assert change.events == ()
        assert change.row == replace(row, revision=1)


# --- details alone --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("since", "written"),
    [
        (None, True),
        (timedelta(0), False),
        (PERIOD - timedelta(microseconds=1), False),
        (PERIOD, True),
        (PERIOD + timedelta(days=1), True),
        (timedelta(seconds=-5), False),
    ],
    ids=str,
)
@pytest.mark.parametrize(("before", "columns"), DETAILS, ids=lambda part: str(part)[:40])
def test_details_alone_make_an_event_only_now_and_then(
    before: Pipeline, columns: dict[str, Any], since: timedelta | None, *, written: bool
) -> None:
    last = None if since is None else NOW - since
    before = replace(before, event_at=last)
    change = record(before, replace(before, **columns))
    assert len(change.events) == written
    assert change.row.event_at == (NOW if written else last)
    for column, value in columns.items():
        assert getattr(change.row, column) == value, "the row itself always has the newest details"


def test_an_event_for_a_status_puts_the_next_one_for_details_off() -> None:
    paused = record(RUNS, replace(RUNS, runtime_status=RuntimeStatus.PAUSED)).row
    chatty = replace(paused, runtime_status_details={"reason": "x"})
    assert record(paused, chatty, now=NOW + timedelta(seconds=INTERVAL - 1)).events == ()
    assert len(record(paused, chatty, now=NOW + timedelta(seconds=INTERVAL)).events) == 1


def test_details_suppressed_are_not_made_up_for() -> None:
    busy = replace(RUNS, event_at=NOW)
    noted = record(busy, replace(busy, runtime_status_details={"reason": "x"})).row
    assert record(noted, noted, now=NOW + timedelta(days=1)).events == ()


# --- several snapshots, one change ----------------------------------------------------------------------------------


def test_two_snapshots_are_two_events_in_their_order() -> None:
    wanted = replace(corner(StorageStatus.CLEARED, ResourcesStatus.STOPPED, WANTED), revision=4)
    in_use = replace(wanted, storage_status=StorageStatus.IN_USE)
    started = replace(in_use, resources_status=ResourcesStatus.PROVISIONING, deployment_id=DeploymentId("d-1"))
    change = record(wanted, in_use, started, cause="start requested")
    assert [(e.event_id, e.storage_status, e.resources_status, e.deployment_id) for e in change.events] == [
        ("e1", "InUse", "Stopped", None),
        ("e2", "InUse", "Provisioning", "d-1"),
    ]
    assert {(e.recorded_at, e.cause, e.author) for e in change.events} == {(NOW, "start requested", Author.DAEMON)}
    assert change.row == replace(started, revision=5, event_at=NOW)


def test_there_and_back_again_is_two_events() -> None:
    paused = replace(RUNS, runtime_status=RuntimeStatus.PAUSED)
    assert [event.runtime_status for event in record(RUNS, paused, RUNS).events] == ["Paused", "Running"]


def test_only_the_first_of_two_details_in_one_change_is_an_event() -> None:
    one = replace(RUNS, runtime_status_details={"reason": "1"})
    two = replace(RUNS, runtime_status_details={"reason": "2"})
    change = record(RUNS, one, two)
    assert [event.runtime_status_details for event in change.events] == [{"reason": "1"}]
    assert change.row.runtime_status_details == {"reason": "2"}


def test_a_snapshot_without_news_between_two_with_is_skipped() -> None:
    unwanted = replace(RUNS, resources_desired=STOPPED)
    noted = replace(unwanted, suspect_since=NOW)
    stopping = replace(
        corner(StorageStatus.IN_USE, ResourcesStatus.STOPPING, STOPPED), storage_status_details={"checkpoints": []}
    )
    events = record(RUNS, unwanted, noted, stopping).events
    assert [(event.event_id, event.resources_status) for event in events] == [("e1", "Provisioned"), ("e2", "Stopping")]


@pytest.mark.parametrize("position", [0, 1])
def test_an_illegal_snapshot_spoils_the_whole_change(position: int) -> None:
    legal = replace(RUNS, runtime_status=RuntimeStatus.PAUSED)
    illegal = replace(RUNS, storage_status=StorageStatus.CLEARED)
    snapshots = (illegal, legal) if position == 0 else (legal, illegal)
    with pytest.raises(IllegalMove):
        record(RUNS, *snapshots)


def test_each_snapshot_must_follow_from_the_one_before() -> None:
    stopping = replace(RUNS, **{
        column: getattr(corner(StorageStatus.IN_USE, ResourcesStatus.STOPPING, STOPPED), column)
        for column in (
            "resources_status", "resources_desired", "runtime_status", "runtime_status_details", "runtime_desired",
            "deployment_initial", "bootstrap",
        )
    })  # fmt: skip
    stopped = replace(stopping, resources_status=ResourcesStatus.STOPPED, deployment_id=None)
    with pytest.raises(IllegalMove, match="resources Provisioned to Stopped"):
        record(RUNS, stopped)
    assert [event.resources_status for event in record(RUNS, stopping, stopped).events] == ["Stopping", "Stopped"]
    with pytest.raises(IllegalMove, match="resources Stopping to Provisioned"):
        record(RUNS, stopping, RUNS)


def test_the_revision_moves_by_one_whatever_the_snapshots_say() -> None:
    before = replace(RUNS, revision=7)
    change = record(before, replace(before, revision=3), replace(before, revision=0, suspect_since=NOW))
    assert change.row.revision == 8


# --- what an event shows --------------------------------------------------------------------------------------------


@given(any_rows(), st.sampled_from(Author))
def test_a_snapshot_shows_the_row_as_it_is(row: Pipeline, by: Author) -> None:
    event = history.snapshot(row, by=by, cause="why", now=NOW, event_id="e")
    own = {"event_id": "e", "sequence": 0, "pipeline_id": row.id, "recorded_at": NOW, "cause": "why", "author": by}
    for field in fields(MonitorEvent):
        expected = own[field.name] if field.name in own else getattr(row, field.name)
        assert getattr(event, field.name) == expected, field.name


def test_creation_is_the_first_event() -> None:
    row = requests.new_pipeline(REST.id, REST.spec, platform_version="1", now=NOW)
    change = history.created(row, by=Author.USER, now=NOW, new_id=lambda: "e1")
    assert change.row == replace(row, revision=1, event_at=NOW)
    [event] = change.events
    assert (event.event_id, event.cause, event.author, event.recorded_at) == ("e1", "created", Author.USER, NOW)
    assert (event.resources_status, event.storage_status) == ("Stopped", "Cleared")


# --- whatever changes -----------------------------------------------------------------------------------------------

SHOWN = (
    "resources_status", "resources_desired", "runtime_status", "runtime_desired", "deployment_error",
    "program_status", "storage_status",
)  # fmt: skip
SHOWN_DETAILS = ("resources_status_details", "runtime_status_details", "storage_status_details")


RUNNING_ROWS = st.builds(
    replace,
    st.just(RUNS),
    runtime_status=st.sampled_from([RuntimeStatus.RUNNING, RuntimeStatus.PAUSED]),
    runtime_status_details=st.sampled_from([{}, {"reason": "x"}]),
    storage_status_details=st.sampled_from([None, {"checkpoints": []}]),
    deployment_error=st.sampled_from([None, FAULT]),
    suspect_since=st.sampled_from([None, NOW]),
    event_at=st.sampled_from([None, NOW, NOW - PERIOD]),
)


@given(st.lists(RUNNING_ROWS, min_size=1, max_size=5), st.sampled_from([0.0, INTERVAL]))
def test_events_are_the_visible_changes(rows: list[Pipeline], interval: float) -> None:
    expected: list[Pipeline] = []
    last = rows[0].event_at
    for old, new in itertools.pairwise(rows):
        moved = any(getattr(old, column) != getattr(new, column) for column in SHOWN)
        noted = any(getattr(old, column) != getattr(new, column) for column in SHOWN_DETAILS)
        if moved or (noted and (last is None or NOW - last >= timedelta(seconds=interval))):
            expected.append(new)
            last = NOW
    change = record(*rows, details_interval_seconds=interval)
    assert change.row == replace(rows[-1], revision=1, event_at=last)
    assert [event.event_id for event in change.events] == [f"e{n + 1}" for n in range(len(expected))]
    for event, row in zip(change.events, expected, strict=True):
        assert all(getattr(event, column) == getattr(row, column) for column in (*SHOWN, *SHOWN_DETAILS))
