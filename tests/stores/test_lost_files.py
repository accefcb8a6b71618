"""Files that are taken away: while the store is open nothing is acknowledged, and later nothing is taken for new."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from penstock.ports import StoreCorrupt, StoreUnavailable
from penstock.stores.sqlite import SqliteStore, open_sqlite
from penstock.testing.store_contract import commit, described, new_row, wanted
from penstock.testing.virtual import ManualClock
from tests.stores.files import run_sql


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    made = tmp_path / "state"
    made.mkdir()
    return made


@pytest.fixture
def path(state_dir: Path) -> Path:
    return state_dir / "penstock.db"


@pytest.fixture
async def store(path: Path, clock: ManualClock) -> AsyncGenerator[SqliteStore, None]:
    async with open_sqlite(path, clock=clock) as store:
        yield store


def content(path: Path) -> bytes | None:
    """What the file holds; None when there is none."""
    return path.read_bytes() if path.exists() else None


def move(source: Path, target: Path) -> None:
    source.rename(target)


# --- while it is open -------------------------------------------------------------------------------------------------


def remove(path: Path) -> None:
    path.unlink()


def remove_log(path: Path) -> None:
    Path(f"{path}-wal").unlink()


def remove_directory(path: Path) -> None:
    shutil.rmtree(path.parent)


def replace_by_nothing(path: Path) -> None:
    path.unlink()
    path.touch()


def replace_by_copy(path: Path) -> None:
    copy = path.with_name("copy")
    shutil.copy(path, copy)
    copy.rename(path)


@pytest.mark.parametrize("harm", [remove, remove_log, remove_directory, replace_by_nothing, replace_by_copy])
async def test_nothing_is_acknowledged_that_will_not_last(
    store: SqliteStore, path: Path, clock: ManualClock, harm: Callable[[Path], None]
) -> None:
    row = await store.create(new_row(clock))
    harm(path)
    gone = content(path) is None
    with capture_logs() as logged:
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match=f"^{path}.*(removed|replaced).*restart Penstock"):
                await commit(store, clock, row, wanted(row, clock))
            with pytest.raises(StoreUnavailable, match=str(path)):
                await store.create(new_row(clock, "p2"))
            with pytest.raises(StoreUnavailable, match=str(path)):
                await store.delete(row)
            with pytest.raises(StoreUnavailable, match=str(path)):
                await store.check()
    assert [line["event"] for line in logged] == ["store lost"]
    assert await store.pipelines() == [row]
    if harm is not remove_log:
        with pytest.raises(StoreUnavailable, match=str(path)):
            await store.events(row.id)
    assert (content(path) is None) is gone  # nobody made an empty one in its place


async def test_what_is_put_back_is_used_again(store: SqliteStore, path: Path, clock: ManualClock) -> None:
    row = await store.create(new_row(clock))
    aside = path.with_name("aside")
    with capture_logs() as logged:
        for _ in range(2):
            move(path, aside)
            with pytest.raises(StoreUnavailable, match="removed"):
                await commit(store, clock, row, wanted(row, clock))
            move(aside, path)
            row = await commit(store, clock, row, described(row, f"{row.revision}"))
    assert [line["event"] for line in logged] == ["store lost", "store found again"] * 2
    assert len(await store.events(row.id)) == 1


async def test_what_was_lost_in_the_midst_of_a_commit_stays_so(path: Path, state_dir: Path, clock: ManualClock) -> None:
    """It may or may not be on disk, so that what is in memory may not be what is on disk."""
    aside = path.with_name("aside")

    def take_away(statement: str) -> None:
        if statement == "COMMIT":
            path.rename(aside)

    async with open_sqlite(path, clock=clock) as store:
        row = await store.create(new_row(clock))
        store._writer._connection.set_trace_callback(take_away)
        with pytest.raises(StoreUnavailable, match="removed"):
            await commit(store, clock, row, wanted(row, clock))
        store._writer._connection.set_trace_callback(None)
        move(aside, path)
        assert await store.get(row.id) == row
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="restart Penstock"):
                await commit(store, clock, row, wanted(row, clock))
    async with open_sqlite(path, clock=clock) as store:
        found = await store.get(row.id)
        assert found is not None
        assert await commit(store, clock, found, described(found, "again"))


# --- when it is opened ------------------------------------------------------------------------------------------------


async def opened(path: Path, state_dir: Path, clock: ManualClock) -> str:
    """Open and close it; the instance id."""
    async with open_sqlite(path, clock=clock, state_dir=state_dir) as store:
        return store.instance_id


def keep_something(state_dir: Path, name: str = "0190-a") -> Path:
    directory = state_dir / "pipelines" / name / "storage"
    directory.mkdir(parents=True)
    return directory


def truncate(path: Path) -> None:
    os.truncate(path, 0)


def empty_database(path: Path) -> None:
    path.unlink()
    run_sql(path, "PRAGMA user_version = 1")


def empty_wal_database(path: Path) -> None:
    path.unlink()
    run_sql(path, "PRAGMA journal_mode = WAL")


@pytest.mark.parametrize("harm", [remove, truncate, empty_database, empty_wal_database])
async def test_a_lost_database_is_not_taken_for_a_new_one(
    path: Path, state_dir: Path, clock: ManualClock, harm: Callable[[Path], None]
) -> None:
    await opened(path, state_dir, clock)
    keep_something(state_dir)
    keep_something(state_dir, "0190-b")
    harm(path)
    before = content(path)
    for _ in range(2):
        with pytest.raises(StoreCorrupt) as refusal:
            await opened(path, state_dir, clock)
        told = str(refusal.value)
        for word in (str(path), f"{state_dir}/pipelines", "2 pipelines", "0190-a", "0190-b", "backup", "move"):
            assert word in told
    assert content(path) == before
    move(state_dir / "pipelines", state_dir / "kept")
    await opened(path, state_dir, clock)


async def test_a_database_from_elsewhere_is_noticed(
    path: Path, state_dir: Path, tmp_path: Path, clock: ManualClock
) -> None:
    own = await opened(path, state_dir, clock)
    other = tmp_path / "other"
    other.mkdir()
    foreign = await opened(other / "penstock.db", other, clock)
    move(path, state_dir / "mine.db")
    shutil.copy(other / "penstock.db", path)
    kept = keep_something(state_dir)
    with pytest.raises(StoreCorrupt, match=f"{path}.*{foreign}.*1 pipeline .*{own}"):
        await opened(path, state_dir, clock)
    shutil.copy(state_dir / "mine.db", path)
    assert await opened(path, state_dir, clock) == own
    shutil.rmtree(kept.parent)
    shutil.copy(other / "penstock.db", path)
    assert await opened(path, state_dir, clock) == foreign  # there is nothing that could be lost
    keep_something(state_dir)
    assert await opened(path, state_dir, clock) == foreign


async def test_a_first_start_that_was_cut_off_is_no_loss(path: Path, state_dir: Path, clock: ManualClock) -> None:
    (state_dir / "pipelines" / "0190-a").mkdir(parents=True)
    run_sql(path, "SELECT 1")  # makes the file, with nothing in it
    first = await opened(path, state_dir, clock)
    keep_something(state_dir, "0190-b")
    instance = state_dir / "instance"
    assert instance.read_text() == f"{first}\n"
    for damage in (instance.unlink, lambda: instance.write_text("")):
        damage()
        assert await opened(path, state_dir, clock) == first
        assert instance.read_text() == f"{first}\n"
    assert [name for name in os.listdir(state_dir) if name.startswith("instance")] == ["instance"]
