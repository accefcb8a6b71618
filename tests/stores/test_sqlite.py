"""What is SQLite's own: files, locks, full disks, sudden death. The rules of the port are in tests/contract."""

from __future__ import annotations

import os
import resource
from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from penstock import linux
from penstock.clock import SystemClock
from penstock.model import (
    Author,
    Bootstrap,
    BootstrapPolicy,
    DeploymentId,
    Fault,
    Initial,
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
from penstock.ports import StoreCorrupt, StoreLocked, StoreUnavailable
from penstock.stores import reserve, sqlite_file
from penstock.stores.sqlite import SqliteStore, open_sqlite
from penstock.testing.store_contract import commit, described, detailed, new_row, toggled, wanted
from penstock.testing.virtual import ManualClock
from tests.disks import KINDS, small_disk
from tests.stores.committer import COMMITTERS, RETENTION
from tests.stores.files import (
    commits,
    run_and_kill,
    run_sql,
    scribble,
    until_waiting,
    watched,
    write_locked,
    writer_held,
)

SCALE = int(os.environ.get("PENSTOCK_TEST_SCALE", "1"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "penstock.db"


@pytest.fixture
async def store(path: Path, clock: ManualClock) -> AsyncGenerator[SqliteStore, None]:
    async with open_sqlite(path, clock=clock, retention=3) as store:
        yield store


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux, "LOCK_RETRY_SECONDS", 0.05)


def full_row(clock: ManualClock) -> Pipeline:
    """A row with something in every column."""
    clock.advance(0.000001)
    now = clock.now()
    bootstrap = Bootstrap(BootstrapPolicy.REJECT, silent=True, concurrent=True)
    row = replace(
        new_row(clock),
        version=2,
        program_version=3,
        refresh_version=4,
        program_status=ProgramStatus.SUCCESS,
        program_error=ProgramError({"exit_code": 0}, {"stdout": "ä"}, "none"),
        program_info={"schema": [None, 1.5, 2**70]},
        resources_status=ResourcesStatus.PROVISIONED,
        resources_status_details={"pid": 1},
        resources_desired=ResourcesDesired.PROVISIONED,
        deployment_id=DeploymentId("d-1"),
        deployment_initial=Initial.STANDBY,
        bootstrap=bootstrap,
        deployment_error=Fault("Code", "text", {"log_tail": ["x"]}),
        runtime_status=RuntimeStatus.RUNNING,
        runtime_status_since=now,
        runtime_status_details={},
        runtime_desired=RuntimeDesired.PAUSED,
        runtime_desired_since=now,
        storage_status=StorageStatus.IN_USE,
        storage_status_details={"checkpoints": []},
        deployment_location="127.0.0.1:1",
        artifact="a" * 64,
        runtime_intent=RuntimeDesired.RUNNING,
        stop_mode=StopMode.GRACEFUL,
        stop_deadline=now,
        suspect_since=now,
        resume=Resume(Initial.PAUSED, bootstrap),
        details_written_at=now,
    )
    spec = Spec(
        name="p1",
        description="d",
        tags=("t", ""),
        program_code="c",
        udf_rust="r",
        udf_toml="t",
        runtime_config={"a": {"b": [1, None]}},
        program_config={"toolchain": "python"},
    )
    return replace(row, spec=spec)


async def test_every_column_comes_back(path: Path, clock: ManualClock) -> None:
    row = full_row(clock)
    unset = [each.name for each in fields(Pipeline) if getattr(row, each.name) is None]
    assert unset == ["event_at"]  # which the store sets
    async with open_sqlite(path, clock=clock) as store:
        created = await store.create(row)
        events = await store.events(row.id)
        plain = await store.create(new_row(clock, "p2"))
    async with open_sqlite(path, clock=clock) as store:
        assert await store.pipelines() == [created, plain]
        assert await store.events(row.id) == events
        assert await store.latest_event(row.id) == events[0]
        assert await store.find(row.tenant, "p1") == created
        every = {name: getattr(row, name) for name in ("program_error", "program_info", "deployment_error", "spec")}
        every["spec"] = replace(row.spec, name="p3")
        changed = await commit(store, clock, plain, replace(plain, **every), by=Author.DAEMON)
    async with open_sqlite(path, clock=clock) as store:
        assert await store.get(plain.id) == changed
        assert await store.find(plain.tenant, "p3") == changed


async def test_an_instance_id_is_made_once(path: Path, clock: ManualClock) -> None:
    async with open_sqlite(path, clock=clock) as store:
        first = store.instance_id
    async with open_sqlite(path, clock=clock) as store:
        assert store.instance_id == first
    async with open_sqlite(path.with_name("other.db"), clock=clock) as store:
        assert store.instance_id != first


async def test_nobody_else_may_read_the_file(store: SqliteStore, path: Path, clock: ManualClock) -> None:
    await store.create(new_row(clock))
    for suffix in ("", "-wal", "-shm", ".lock"):
        assert os.stat(f"{path}{suffix}").st_mode & 0o077 == 0


# --- who may open it --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("store", "impatient")
async def test_a_second_opener_is_told_who_was_first(path: Path, clock: ManualClock) -> None:
    link = path.with_name("link.db")
    link.symlink_to(path)
    for name in (path, link):
        with pytest.raises(StoreLocked, match=f"^{path}: another Penstock"):
            async with open_sqlite(name, clock=clock):
                pass


async def test_closing_leaves_one_whole_unlocked_file(path: Path, clock: ManualClock) -> None:
    async with open_sqlite(path, clock=clock) as store:
        row = await store.create(new_row(clock))
        await store.events(row.id)
    assert sorted(each.name for each in path.parent.iterdir()) == [
        "penstock.db",
        "penstock.db.lock",
        "penstock.db.reserve",
    ]
    with pytest.raises(StoreUnavailable, match="closed"):
        await commit(store, clock, row, wanted(row, clock))
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.events(row.id)
    async with open_sqlite(path, clock=clock) as store:
        assert await store.get(row.id) == row


async def test_closing_finishes_what_is_pending(path: Path, clock: ManualClock) -> None:
    async with anyio.create_task_group() as group, open_sqlite(path, clock=clock) as store:
        rows = [await store.create(new_row(clock, f"p{number}")) for number in range(30)]
        for row in rows:
            group.start_soon(commit, store, clock, row, wanted(row, clock))
        await anyio.lowlevel.checkpoint()
    async with open_sqlite(path, clock=clock) as store:
        assert [row.revision for row in await store.pipelines()] == [2] * 30


# --- how it writes ----------------------------------------------------------------------------------------------------


async def test_waiting_writes_share_a_transaction(store: SqliteStore, path: Path, clock: ManualClock) -> None:
    rows = [await store.create(new_row(clock, f"p{number}")) for number in range(50)]
    async with writer_held(store, path) as (group, seen):
        for row in rows:
            group.start_soon(commit, store, clock, row, wanted(row, clock))
        await until_waiting(store, 50)
    assert {row.revision for row in await store.pipelines()} == {2}
    assert commits(seen) == ["NORMAL", "FULL"]  # that which held it, and all the others


async def test_only_what_a_user_wrote_waits_for_the_disk(store: SqliteStore, clock: ManualClock) -> None:
    with watched(store) as seen:
        row = await store.create(new_row(clock))
        row = await commit(store, clock, row, detailed(row, 1), by=Author.DAEMON)
        row = await commit(store, clock, row, detailed(row, 2), by=Author.COMPILER)
        row = await commit(store, clock, row, wanted(row, clock), by=Author.USER)
        row = await commit(store, clock, row, detailed(row, 3), by=Author.DAEMON)
        await store.delete(row)
        await store.check()
    assert commits(seen) == ["FULL", "NORMAL", "NORMAL", "FULL", "NORMAL", "FULL", "NORMAL"]


async def test_a_user_makes_the_whole_transaction_wait(store: SqliteStore, path: Path, clock: ManualClock) -> None:
    rows = [await store.create(new_row(clock, f"p{number}")) for number in range(3)]
    await store.check()
    for authors, safety in (("daemon compiler daemon", "NORMAL"), ("daemon user compiler", "FULL")):
        async with writer_held(store, path) as (group, seen):
            for row, author in zip(await store.pipelines(), authors.split(), strict=True):
                after = detailed(row, row.revision)
                group.start_soon(partial(commit, store, clock, row, after, by=Author(author)))
            await until_waiting(store, len(rows))
        assert commits(seen, "NORMAL") == ["NORMAL", safety]


async def test_a_write_that_can_not_be_stored_hurts_no_other(path: Path, clock: ManualClock) -> None:
    async with open_sqlite(path, clock=clock) as store:
        rows = [await store.create(new_row(clock, f"p{number}")) for number in range(3)]
        bad = replace(
            described(rows[1], "\ud800"), deployment_error=Fault("C", "m")
        )  # its row, its event, not its body

        async def write_bad() -> None:
            with pytest.raises(UnicodeEncodeError):
                await commit(store, clock, rows[1], bad)

        async with writer_held(store, path) as (group, seen):
            group.start_soon(commit, store, clock, rows[0], wanted(rows[0], clock))
            group.start_soon(write_bad)
            group.start_soon(commit, store, clock, rows[2], wanted(rows[2], clock))
            await until_waiting(store, 3)
        assert len(commits(seen)) == 2
        kept = await store.pipelines()
        assert [row.revision for row in kept] == [2, 1, 2]
        numbers = sorted([event.sequence for row in rows for event in await store.events(row.id)])
        assert numbers == [1, 2, 3, 4, 5]
    async with open_sqlite(path, clock=clock) as store:
        assert await store.pipelines() == kept


async def test_a_cancelled_commit_is_not_waited_for_and_applied(
    store: SqliteStore, path: Path, clock: ManualClock
) -> None:
    row = await store.create(new_row(clock))
    with write_locked(path):
        with anyio.move_on_after(0.05) as scope:
            await commit(store, clock, row, wanted(row, clock))
        assert scope.cancelled_caught
        assert await store.get(row.id) == row
    await store.check()
    stored = await store.get(row.id)
    assert stored is not None
    assert (stored.revision, len(await store.events(row.id))) == (2, 2)


async def test_a_lower_retention_holds_from_the_next_write(path: Path, clock: ManualClock) -> None:
    async with open_sqlite(path, clock=clock) as store:
        row = await store.create(new_row(clock))
        for _ in range(9):
            row = await commit(store, clock, row, toggled(row, clock))
    async with open_sqlite(path, clock=clock, retention=3) as store:
        before = await store.events(row.id)
        assert len(before) == 10
        row = await commit(store, clock, row, toggled(row, clock))
        assert (await store.events(row.id))[1:] == before[:2]
    async with open_sqlite(path, clock=clock, retention=0) as store:
        await commit(store, clock, row, toggled(row, clock))
        assert await store.events(row.id) == []
        assert await store.latest_event(row.id) is None


async def test_new_bounds_are_obeyed_from_the_next_event(store: SqliteStore, clock: ManualClock) -> None:
    row = await store.create(new_row(clock))
    for retention, kept in ((5, [5, 4, 3, 2, 1]), (2, [6, 5])):
        store.configure(retention=retention, details_interval_seconds=0)
        while row.revision < kept[0]:
            row = await commit(store, clock, row, detailed(row, row.revision), by=Author.DAEMON)
        assert [event.sequence for event in await store.events(row.id)] == kept


# --- what it refuses to open ------------------------------------------------------------------------------------------


async def refuses(path: Path, clock: ManualClock, kind: type[Exception], *words: str) -> None:
    with pytest.raises(kind) as caught:
        async with open_sqlite(path, clock=clock):
            pass
    for word in (str(path), *words):
        assert word in str(caught.value)


async def test_a_file_of_something_else(path: Path, clock: ManualClock) -> None:
    run_sql(path, "CREATE TABLE songs (title TEXT)")
    await refuses(path, clock, StoreCorrupt, "another program")
    scribble(path, offset=0, length=100)
    await refuses(path, clock, StoreCorrupt, "file is not a database", "restore a backup")


async def test_a_damaged_file(path: Path, clock: ManualClock) -> None:
    async with open_sqlite(path, clock=clock) as store:
        for number in range(100):
            await store.create(new_row(clock, f"p{number}"))
    scribble(path, offset=4096, length=100_000)
    await refuses(path, clock, StoreCorrupt, "restore a backup")


async def test_a_directory_that_is_not_there(path: Path, clock: ManualClock) -> None:
    await refuses(path / "deep.db", clock, StoreUnavailable, "No such file or directory")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("UPDATE pipeline SET program_status = 'Nearly' WHERE name = 'p1'", ("column program_status", "'Nearly'")),
        ("UPDATE pipeline SET created_at = 'long ago' WHERE name = 'p1'", ("column created_at", "'long ago'")),
        ("UPDATE pipeline SET platform_version = CAST(x'ff41' AS TEXT)", ("column platform_version",)),
        ("UPDATE pipeline SET resume = '{}' WHERE name = 'p1'", ("column resume", "'{}'")),
        ("UPDATE pipeline_body SET runtime_config = '[1'", ("column runtime_config", "'[1'")),
        ("UPDATE pipeline_body SET tags = CAST(x'5b22ff225d' AS TEXT)", ("column tags",)),
        ("DELETE FROM pipeline_body", ("column description", "empty")),
        ("DROP TABLE pipeline_body", ("no such table",)),
        ("UPDATE event SET author = 'ghost'", ("event 1", "column author", "'ghost'")),
    ],
)
async def test_a_row_that_makes_no_sense(path: Path, clock: ManualClock, damage: str, words: tuple[str, ...]) -> None:
    async with open_sqlite(path, clock=clock) as store:
        row = await store.create(new_row(clock))
    run_sql(path, damage)
    named = () if "event" in damage or "DROP" in damage else (f"pipeline {row.id}",)
    await refuses(path, clock, StoreCorrupt, "restore a backup", *named, *words)


async def test_an_old_event_that_makes_no_sense_is_named_when_read(path: Path, clock: ManualClock) -> None:
    async with open_sqlite(path, clock=clock) as store:
        row = await store.create(new_row(clock))
        row = await commit(store, clock, row, wanted(row, clock))
    run_sql(path, "UPDATE event SET recorded_at = 'then' WHERE sequence = 1")
    async with open_sqlite(path, clock=clock) as store:
        with pytest.raises(StoreCorrupt, match=f"{path}: cannot understand event 1, column recorded_at"):
            await store.events(row.id)
        assert [event.sequence for event in await store.events(row.id, limit=1)] == [2]
        await commit(store, clock, row, toggled(row, clock))


async def test_a_newer_schema(path: Path, clock: ManualClock) -> None:
    async with open_sqlite(path, clock=clock):
        pass
    run_sql(path, "INSERT INTO migration VALUES (9999, 'to come', 'x', 'y')")
    async with open_sqlite(path, clock=clock):
        pass  # a newer Penstock was here, and left what this one understands
    run_sql(path, "UPDATE meta SET value = '2' WHERE key = 'schema_major'")
    await refuses(path, clock, StoreCorrupt, "schema_major: 2 is newer", "run the newer one")
    run_sql(path, "DELETE FROM meta WHERE key = 'schema_major'")
    await refuses(path, clock, StoreCorrupt, "schema_major")


async def test_a_migration_that_was_changed_afterwards(path: Path, clock: ManualClock) -> None:
    async with open_sqlite(path, clock=clock):
        pass
    run_sql(path, "UPDATE migration SET checksum = 'abc' WHERE number = 1")
    await refuses(
        path, clock, StoreCorrupt, "table migration, step 1", "abc", "run the Penstock that made the database"
    )


async def test_a_migration_is_taken_wholly_or_not_at_all(
    path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    from penstock.stores import sqlite_file, statements

    real = statements.migrations("sqlite")
    broken = statements.Migration(2, "broken", "CREATE TABLE more (x);\nCREATE TABLE pipeline (y);", "z")
    monkeypatch.setattr(sqlite_file, "migrations", lambda _: (*real, broken))
    await refuses(path, clock, StoreCorrupt, "table pipeline already exists")
    assert run_sql(path, "SELECT name FROM sqlite_schema") == []
    monkeypatch.undo()
    async with open_sqlite(path, clock=clock) as store:
        await store.create(new_row(clock))


# --- what goes wrong meanwhile ----------------------------------------------------------------------------------------


async def test_a_row_that_another_program_changed(store: SqliteStore, path: Path, clock: ManualClock) -> None:
    row, other = [await store.create(new_row(clock, name)) for name in ("p1", "p2")]
    run_sql(path, "UPDATE pipeline SET revision = 7 WHERE id = ?", row.id)
    with pytest.raises(StoreCorrupt, match=f"{path}: pipeline {row.id} is not on disk as it was last written"):
        await commit(store, clock, row, wanted(row, clock))
    await commit(store, clock, other, wanted(other, clock))


async def fails_then_recovers(
    store: SqliteStore, clock: ManualClock, trouble: AbstractContextManager[None], word: str
) -> None:
    """Many writes at once under `trouble` change nothing; when it is over, the same ones work.

    With a retention of 3, to count an event that was rolled back is to lose one.
    """
    rows = [await store.create(new_row(clock, f"p{number}")) for number in range(20)]
    big = {"log_tail": ["x" * 100_000]}

    async def write(row: Pipeline) -> None:
        with pytest.raises(StoreUnavailable, match=word):
            await commit(store, clock, row, replace(row, deployment_error=Fault("C", "m", big)), by=Author.DAEMON)

    with trouble:
        for _ in range(2):
            async with anyio.create_task_group() as group:
                for row in rows:
                    group.start_soon(write, row)
                    group.start_soon(write, row)  # were the first stored, this were stale
        assert await store.pipelines() == rows
        assert [len(await store.events(row.id)) for row in rows] == [1] * 20
    for row in rows:
        assert (await commit(store, clock, row, wanted(row, clock))).revision == 2
    await store.check()
    numbers = sorted([event.sequence for row in rows for event in await store.events(row.id)])
    assert numbers == list(range(1, 41))


async def test_no_room_in_the_database(store: SqliteStore, clock: ManualClock) -> None:
    @contextmanager
    def trouble() -> Iterator[None]:
        (pages,) = store._writer._connection.execute("PRAGMA page_count").fetchone()
        store._writer._connection.execute(f"PRAGMA max_page_count = {pages}")
        yield
        store._writer._connection.execute("PRAGMA max_page_count = 1000000")

    await fails_then_recovers(store, clock, trouble(), "full.*free some space")


async def test_a_disk_that_refuses_to_write(store: SqliteStore, path: Path, clock: ManualClock) -> None:
    """The kernel refuses when the log is to be written: at COMMIT, when all seemed well."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    @contextmanager
    def trouble() -> Iterator[None]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))  # which it has long passed
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    await fails_then_recovers(store, clock, trouble(), "disk I/O error.*look at its disk")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_full_disk_without_a_reserve(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(reserve, "RESERVE_BYTES", 0)
    monkeypatch.setattr(sqlite_file, "PAGES_BYTES", 1 << 40)
    with small_disk(tmp_path, kind, 24) as disk:
        await full_disk(disk, clock)


async def full_disk(disk: Path, clock: ManualClock) -> None:
    ballast = disk / "ballast"

    @contextmanager
    def trouble() -> Iterator[None]:
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        yield
        ballast.unlink()

    async with open_sqlite(disk / "penstock.db", clock=clock, retention=3) as store:
        await fails_then_recovers(store, clock, trouble(), "full.*free some space")

        async def check_often() -> None:
            for _ in range(1000):  # until the room that the log still has is used up
                await store.check()

        with trouble(), pytest.raises(StoreUnavailable, match="full"):
            await check_often()
        await store.check()


async def test_locked_by_another_program(store: SqliteStore, path: Path, clock: ManualClock) -> None:
    store._writer._connection.execute("PRAGMA busy_timeout = 20")
    row = await store.create(new_row(clock))
    with write_locked(path):
        with pytest.raises(StoreUnavailable, match=f"{path}: database is locked.*another program"):
            await commit(store, clock, row, wanted(row, clock))
        with pytest.raises(StoreUnavailable):
            await store.check()
        assert len(await store.events(row.id)) == 1
    assert (await commit(store, clock, row, wanted(row, clock))).revision == 2


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_file_that_went_away_is_no_store(
    store: SqliteStore, path: Path, clock: ManualClock, replaced: bool
) -> None:
    await store.check()
    aside = path.with_name("aside.db")
    os.rename(path, aside)
    if replaced:
        os.close(os.open(path, os.O_CREAT))
    with pytest.raises(StoreUnavailable, match=str(path)):
        await store.check()
    os.rename(aside, path)
    await store.check()


# --- sudden death -----------------------------------------------------------------------------------------------------


async def test_what_was_acknowledged_survives_a_kill(path: Path) -> None:
    acknowledged: dict[str, int] = {}
    for _ in range(3 * SCALE):
        for line in run_and_kill(path, 1000):
            pipeline_id, revision = line.split()
            acknowledged[pipeline_id] = int(revision)
        async with open_sqlite(path, clock=SystemClock(), retention=RETENTION) as store:
            rows = await store.pipelines()
            assert len(rows) == COMMITTERS
            numbers: list[int] = []
            for row in rows:
                assert row.revision >= acknowledged.get(row.id, 1)
                events = await store.events(row.id)
                assert len(events) == row.revision  # one by its creation, one by each commit
                assert events[0] == await store.latest_event(row.id)
                assert events[0].resources_desired is row.resources_desired
                numbers += [event.sequence for event in events]
            assert sorted(numbers) == list(range(1, len(numbers) + 1))
