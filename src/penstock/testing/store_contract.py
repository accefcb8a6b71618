"""What every Store must do: one suite, run against the one in memory and against every real one.

Subclass it in a test module, with a fixture `clock` (a ManualClock) and a fixture `store` that keeps RETENTION events
and the default details interval. Must never know which store it tests.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import replace

import anyio
import anyio.lowlevel
import pytest

from penstock import program, requests
from penstock.model import (
    Author,
    MonitorEvent,
    Pipeline,
    PipelineId,
    ProgramStatus,
    ResourcesDesired,
    ResourcesStatus,
    Spec,
    StorageStatus,
    TenantId,
)
from penstock.moves import IllegalMove
from penstock.ports import NameTaken, NotFound, StaleRevision, Store, StoreError
from penstock.testing.virtual import ManualClock

RETENTION = 5
"""How many events the store under test keeps of each pipeline."""

OTHER_TENANT = TenantId("00000000-0000-0000-0000-00000000000b")


def new_row(clock: ManualClock, name: str = "p1", tenant: TenantId | None = None) -> Pipeline:
    """A pipeline that a user is about to create."""
    spec = Spec(name=name, program_code="print('é')", runtime_config={"workers": 8}, tags=("a", "b"))
    row = requests.new_pipeline(PipelineId(clock.new_id()), spec, platform_version="1", now=clock.now())
    return row if tenant is None else replace(row, tenant=tenant)


def described(row: Pipeline, description: str) -> Pipeline:
    """The row after an edit that makes no event."""
    return replace(row, spec=replace(row.spec, description=description))


def renamed(row: Pipeline, name: str) -> Pipeline:
    """The row under another name."""
    return replace(row, spec=replace(row.spec, name=name))


def detailed(row: Pipeline, count: int) -> Pipeline:
    """The row with other details, and nothing else."""
    return replace(row, resources_status_details={"count": count})


def wanted(row: Pipeline, clock: ManualClock) -> Pipeline:
    """The row after a user's start."""
    started = requests.start(row, requests.StartRequest(), now=clock.now())
    assert isinstance(started, Pipeline)
    return started


def toggled(row: Pipeline, clock: ManualClock) -> Pipeline:
    """The row after a user's start, or stop where it is wanted already: each makes one event."""
    if row.resources_desired is ResourcesDesired.STOPPED:
        return wanted(row, clock)
    return requests.stop(row, force=True, grace_seconds=0, now=clock.now())


class StoreContract:
    """The suite. Each method is one rule of the port."""

    async def test_a_created_pipeline_is_there_with_its_first_event(self, store: Store, clock: ManualClock) -> None:
        row = new_row(clock)
        created = await store.create(row)
        assert created == replace(row, revision=1, event_at=clock.now())
        assert await store.get(row.id) == created
        assert await store.find(row.tenant, "p1") == created
        assert await store.pipelines() == [created]
        (event,) = await store.events(row.id)
        assert (event.cause, event.author, event.recorded_at) == ("created", Author.USER, clock.now())
        assert event.sequence > 0
        assert await store.latest_event(row.id) == event
        assert await store.event(row.id, event.event_id) == event

    async def test_what_is_not_there_is_none(self, store: Store, clock: ManualClock) -> None:
        row = await store.create(new_row(clock))
        nobody = PipelineId(clock.new_id())
        assert await store.get(nobody) is None
        assert await store.find(row.tenant, "P1") is None
        assert await store.find(OTHER_TENANT, "p1") is None
        assert await store.events(nobody) == []
        assert await store.latest_event(nobody) is None
        assert await store.event(row.id, clock.new_id()) is None

    async def test_a_name_belongs_to_one_pipeline_of_a_tenant(self, store: Store, clock: ManualClock) -> None:
        first = await store.create(new_row(clock))
        second = new_row(clock)
        assert await refused(store.create(second)) is NameTaken
        assert await store.get(second.id) is None
        assert await store.find(first.tenant, "p1") == first
        await store.create(new_row(clock, tenant=OTHER_TENANT))

    async def test_an_id_is_used_once(self, store: Store, clock: ManualClock) -> None:
        first = await store.create(new_row(clock))
        assert await refused(store.create(renamed(first, "p2"))) is StaleRevision
        assert await store.pipelines() == [first]

    async def test_a_commit_moves_the_revision_by_one(self, store: Store, clock: ManualClock) -> None:
        row = await store.create(new_row(clock))
        clock.advance(1)
        after = await commit(store, clock, row, wanted(row, clock))
        assert after == replace(wanted(row, clock), revision=2, event_at=clock.now())
        assert await store.get(row.id) == after
        assert await store.find(row.tenant, "p1") == after

    async def test_each_snapshot_makes_its_event_in_order(self, store: Store, clock: ManualClock) -> None:
        row = await store.create(new_row(clock))
        want = wanted(row, clock)
        after = await store.commit(row, [want, toggled(want, clock)], by=Author.USER, cause="both", now=clock.now())
        assert after.revision == 2
        newest, older, created = await store.events(row.id)
        assert [event.resources_desired for event in (older, newest)] == ["Provisioned", "Stopped"]
        assert created.sequence < older.sequence < newest.sequence
        assert created.event_id < older.event_id < newest.event_id
        assert (older.cause, newest.cause) == ("both", "both")
        assert older.recorded_at == newest.recorded_at == clock.now()

    async def test_an_event_shows_cause_author_and_deployment(self, store: Store, clock: ManualClock) -> None:
        row = await store.create(new_row(clock))
        begun = program.begin_check(row, clock.now())
        assert begun is not None
        await store.commit(row, [begun], by=Author.COMPILER, cause="check begun", now=clock.now())
        event = await store.latest_event(row.id)
        assert event is not None
        assert (event.cause, event.author, event.deployment_id) == ("check begun", Author.COMPILER, None)
        assert event.program_status is ProgramStatus.COMPILING_SQL

    async def test_a_stale_revision_changes_nothing(self, store: Store, clock: ManualClock) -> None:
        row = await store.create(new_row(clock))
        newer = await commit(store, clock, row, described(row, "newer"))
        assert await refused(commit(store, clock, row, wanted(row, clock))) is StaleRevision
        assert await refused(store.delete(row)) is StaleRevision
        assert await store.get(row.id) == newer
        assert len(await store.events(row.id)) == 1

    async def test_what_was_deleted_can_not_be_written(self, store: Store, clock: ManualClock) -> None:
        row = await store.create(new_row(clock))
        await store.delete(row)
        assert await refused(commit(store, clock, row, wanted(row, clock))) is NotFound
        assert await refused(store.delete(row)) is NotFound

    async def test_an_illegal_move_changes_nothing_and_hurts_nobody(self, store: Store, clock: ManualClock) -> None:
        row = await store.create(new_row(clock))
        leap = replace(row, storage_status=StorageStatus.IN_USE, resources_status=ResourcesStatus.STOPPING)
        with pytest.raises(IllegalMove):
            await store.commit(row, [leap], by=Author.USER, cause="leap", now=clock.now())
        assert await store.get(row.id) == row
        assert len(await store.events(row.id)) == 1
        assert (await commit(store, clock, row, wanted(row, clock))).revision == 2

    async def test_a_rename_frees_the_old_name(self, store: Store, clock: ManualClock) -> None:
        row = await store.create(new_row(clock))
        after = await commit(store, clock, row, renamed(row, "p2"))
        assert await store.find(row.tenant, "p1") is None
        assert await store.find(row.tenant, "p2") == after
        second = await store.create(new_row(clock))
        assert await refused(commit(store, clock, second, renamed(second, "p2"))) is NameTaken
        assert await store.find(row.tenant, "p1") == second

    async def test_a_deleted_pipeline_leaves_nothing(self, store: Store, clock: ManualClock) -> None:
        row = await store.create(new_row(clock))
        (event,) = await store.events(row.id)
        await store.delete(row)
        assert await store.get(row.id) is None
        assert await store.find(row.tenant, "p1") is None
        assert await store.pipelines() == []
        assert await store.events(row.id) == []
        assert await store.event(row.id, event.event_id) is None
        assert await store.latest_event(row.id) is None
        again = await store.create(new_row(clock))
        (later,) = await store.events(again.id)
        assert later.sequence > event.sequence  # never used twice

    async def test_events_are_listed_newest_first_from_a_cursor(self, store: Store, clock: ManualClock) -> None:
        row = await store.create(new_row(clock))
        other = await store.create(new_row(clock, "p2"))
        for _ in range(3):
            row = await commit(store, clock, row, toggled(row, clock))
            other = await commit(store, clock, other, toggled(other, clock))
        events = await store.events(row.id)
        assert [event.pipeline_id for event in events] == [row.id] * 4
        assert sequences(events) == sorted(sequences(events), reverse=True)
        assert await store.events(row.id, limit=2) == events[:2]
        assert await store.events(row.id, limit=0) == []
        assert await store.events(row.id, after=events[2].sequence) == events[:2]
        assert await store.events(row.id, after=events[3].sequence, limit=1) == events[:1]
        assert await store.events(row.id, after=2**70, limit=2**70) == []
        assert await store.event(row.id, events[1].event_id) == events[1]
        assert await store.event(other.id, events[1].event_id) is None

    async def test_only_the_newest_events_are_kept(self, store: Store, clock: ManualClock) -> None:
        row = await store.create(new_row(clock))
        other = await store.create(new_row(clock, "p2"))
        (first,) = await store.events(row.id)
        seen: list[MonitorEvent] = []
        for _ in range(RETENTION + 3):
            row = await commit(store, clock, row, toggled(row, clock))
            latest = await store.latest_event(row.id)
            assert latest is not None
            seen.insert(0, latest)
            assert await store.events(row.id) == [*seen, first][:RETENTION]
        assert await store.event(row.id, first.event_id) is None
        assert len(await store.events(other.id)) == 1

    async def test_more_snapshots_than_are_kept(self, store: Store, clock: ManualClock) -> None:
        row = await store.create(new_row(clock))
        snapshots = [row]
        for _ in range(RETENTION + 2):
            snapshots.append(toggled(snapshots[-1], clock))
        await store.commit(row, snapshots[1:], by=Author.USER, cause="many", now=clock.now())
        events = await store.events(row.id)
        assert len(events) == RETENTION
        assert await store.latest_event(row.id) == events[0]

    async def test_details_alone_make_an_event_now_and_then(self, store: Store, clock: ManualClock) -> None:
        row = await store.create(new_row(clock))
        clock.advance(599)
        row = await commit(store, clock, row, detailed(row, 1), by=Author.DAEMON)
        assert len(await store.events(row.id)) == 1
        clock.advance(1)
        row = await commit(store, clock, row, detailed(row, 2), by=Author.DAEMON)
        row = await commit(store, clock, row, detailed(row, 3), by=Author.DAEMON)
        assert len(await store.events(row.id)) == 2
        stored = await store.get(row.id)
        assert stored is not None
        assert stored.resources_status_details == {"count": 3}

    async def test_what_no_client_sees_makes_no_event(self, store: Store, clock: ManualClock) -> None:
        row = await store.create(new_row(clock))
        after = await commit(store, clock, row, described(row, "other"))
        assert (await store.get(row.id)) == after
        assert len(await store.events(row.id)) == 1

    async def test_pipelines_come_in_the_order_of_their_creation(self, store: Store, clock: ManualClock) -> None:
        names: list[str] = []
        for name, seconds in (("b", 0), ("a", 10), ("earlier", -20), ("last", 30)):
            clock.advance(seconds)
            await store.create(new_row(clock, name))
            names.append(name)
        await store.create(new_row(clock, "theirs", OTHER_TENANT))
        assert [row.spec.name for row in await store.pipelines()] == ["earlier", "b", "a", "last", "theirs"]
        assert [row.spec.name for row in await store.pipelines(OTHER_TENANT)] == ["theirs"]
        first = (await store.pipelines())[0]
        await commit(store, clock, first, described(first, "touched"))
        assert (await store.pipelines())[0].id == first.id

    async def test_listeners_hear_of_what_is_visible(self, store: Store, clock: ManualClock) -> None:
        heard: list[tuple[PipelineId, Author]] = []
        all_heard = anyio.Event()

        def listener(pipeline_id: PipelineId, by: Author) -> None:
            heard.append((pipeline_id, by))
            if len(heard) == 3:
                all_heard.set()

        store.listen(listener)
        row = await store.create(new_row(clock))
        row = await commit(store, clock, row, detailed(row, 1), by=Author.DAEMON)
        await refused(store.delete(replace(row, revision=99)))
        await store.delete(row)
        with anyio.fail_after(5):
            await all_heard.wait()
        assert heard == [(row.id, Author.USER), (row.id, Author.DAEMON), (row.id, Author.USER)]

    async def test_of_two_writers_one_wins(self, store: Store, clock: ManualClock) -> None:
        row = await store.create(new_row(clock))
        results: list[type[StoreError] | None] = []

        async def write(count: int) -> None:
            results.append(await refused(commit(store, clock, row, detailed(row, count), by=Author.DAEMON)))

        async with anyio.create_task_group() as group:
            for count in range(10):
                group.start_soon(write, count)
        assert sorted(results, key=str) == [StaleRevision] * 9 + [None]
        stored = await store.get(row.id)
        assert stored is not None
        assert stored.revision == 2

    async def test_many_writers_do_not_mind_each_other(self, store: Store, clock: ManualClock) -> None:
        rows = [await store.create(new_row(clock, f"p{number}")) for number in range(20)]

        async def write(row: Pipeline) -> None:
            for _ in range(4):
                row = await commit(store, clock, row, toggled(row, clock))
                assert await store.get(row.id) == row
                await refused(commit(store, clock, replace(row, revision=0), row))

        async with anyio.create_task_group() as group:
            for row in rows:
                group.start_soon(write, row)
        events = [event for row in rows for event in await store.events(row.id)]
        assert sorted(sequences(events)) == list(range(1, 101))  # 20 x (1 creation + 4): no gap, none twice

    async def test_a_cancelled_commit_is_whole_or_not_at_all(self, store: Store, clock: ManualClock) -> None:
        rows = [await store.create(new_row(clock, f"p{number}")) for number in range(10)]
        async with anyio.create_task_group() as group:
            for row in rows:
                want = wanted(row, clock)
                group.start_soon(commit, store, clock, row, want, toggled(want, clock))
            await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        await store.check()  # whatever was begun is over
        for row in rows:
            stored = await store.get(row.id)
            assert stored is not None
            assert (stored.revision, len(await store.events(row.id))) in ((1, 1), (2, 3))

    async def test_it_has_one_instance_id_and_is_well(self, store: Store) -> None:
        await store.check()
        assert len(store.instance_id) == 36
        assert store.instance_id == store.instance_id


async def commit(
    store: Store, clock: ManualClock, before: Pipeline, *rows: Pipeline, by: Author = Author.USER
) -> Pipeline:
    """Commit with a cause and a time that do not matter."""
    return await store.commit(before, rows, by=by, cause="test", now=clock.now())


async def refused(call: Awaitable[object]) -> type[StoreError] | None:
    """The kind of StoreError that `call` raises; None when it works."""
    try:
        await call
    except StoreError as error:
        return type(error)
    return None


def sequences(events: Sequence[MonitorEvent]) -> list[int]:
    """Their numbers, in the given order."""
    return [event.sequence for event in events]
