"""A disk that is full, and stays full because somebody takes whatever becomes free: what must still be recorded is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from structlog.testing import capture_logs

from penstock import requests
from penstock.model import Author, Pipeline, ResourcesStatus
from penstock.ports import StoreUnavailable
from penstock.stores.sqlite import open_sqlite
from penstock.testing.store_contract import commit, described, detailed, new_row, toggled, wanted
from penstock.testing.virtual import ManualClock
from tests.disks import KINDS, free_bytes, hog, small_disk
from tests.stores.committer import COMMITTERS
from tests.stores.files import run_and_kill, run_sql

STOCKED = "SELECT count(*) FROM reserve"


@pytest.fixture(params=KINDS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path, request.param, 32) as mounted:
        yield mounted


def fill(disk: Path) -> None:
    """Fill it to the last byte."""
    with (disk / "ballast").open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 10, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))


async def soon(holds: Callable[[], bool]) -> bool:
    """Wait until it holds: the reserve is mended after the answers."""
    with anyio.move_on_after(5):
        while not holds():
            await anyio.sleep(0.005)
        return True
    return False


def stopped(row: Pipeline, clock: ManualClock) -> Pipeline:
    return requests.stop(row, force=True, grace_seconds=0, now=clock.now())


async def test_what_grows_is_refused_and_all_else_recorded(disk: Path, clock: ManualClock) -> None:
    path = disk / "penstock.db"
    async with open_sqlite(path, clock=clock) as store:
        rows = [await store.create(new_row(clock, f"p{number}")) for number in range(20)]
        running = [await commit(store, clock, row, wanted(row, clock)) for row in rows[:10]]
        with hog(disk), capture_logs() as logged:
            for refusal in (
                lambda: store.create(new_row(clock, "new")),
                lambda: commit(store, clock, rows[10], wanted(rows[10], clock)),
                lambda: commit(store, clock, rows[10], described(rows[10], "longer")),
            ):
                with pytest.raises(StoreUnavailable, match=f"{path}: its disk is full.*free some space"):
                    await refusal()
            await store.check()
            assert run_sql(path, STOCKED) == [(0,)]
            for row in running:
                await commit(store, clock, row, stopped(row, clock))
                assert (await store.events(row.id))[0].resources_desired == "Stopped"
            for count in range(10):  # the daemon's own
                for row in await store.pipelines():
                    await commit(store, clock, row, detailed(row, count), by=Author.DAEMON)
            for row in (await store.pipelines())[10:]:
                await store.delete(row)
            assert [line["event"] for line in logged] == ["disk full"]
        kept = await store.pipelines()
        assert len(kept) == 10
        with capture_logs() as logged:
            await store.create(new_row(clock, "new"))
            assert [line["event"] for line in logged] == ["disk has room again"]
        assert await soon(lambda: run_sql(path, STOCKED) == [(1,)])
    async with open_sqlite(path, clock=clock) as store:
        assert (await store.pipelines())[:10] == kept


async def test_the_log_starts_over_though_the_disk_stays_full(disk: Path, clock: ManualClock) -> None:
    """What is recorded is many times the log; the file of the database need not grow for it."""
    path = disk / "penstock.db"
    async with open_sqlite(path, clock=clock, retention=100) as store:
        rows = [await store.create(new_row(clock, f"p{number}")) for number in range(50)]
        for _ in range(20):  # pages that the log alone has, when the disk is filled
            rows = [await commit(store, clock, row, toggled(row, clock), by=Author.DAEMON) for row in rows]
        ((pages,),) = run_sql(path, "PRAGMA page_count")
        assert isinstance(pages, int)
        assert await soon(lambda: os.stat(path).st_size >= pages * 4096)
        with hog(disk):
            for _ in range(80):
                rows = [await commit(store, clock, row, toggled(row, clock), by=Author.DAEMON) for row in rows]
        assert await store.pipelines() == rows


async def test_the_room_is_kept_for_the_next_start(disk: Path, clock: ManualClock) -> None:
    path = disk / "penstock.db"
    async with open_sqlite(path, clock=clock) as store:
        row = await store.create(new_row(clock))
        row = await commit(store, clock, row, wanted(row, clock))
    with hog(disk):
        for _ in range(3):
            async with open_sqlite(path, clock=clock) as store:
                await store.check()
                assert await store.get(row.id) == row
                row = await commit(store, clock, row, detailed(row, row.revision), by=Author.DAEMON)
                with pytest.raises(StoreUnavailable, match="its disk is full"):
                    await store.create(new_row(clock, "new"))
    async with open_sqlite(path, clock=clock) as store:
        await store.create(new_row(clock, "new"))
        assert len(await store.pipelines()) == 2


async def test_the_room_grows_back(disk: Path, clock: ManualClock) -> None:
    path = disk / "penstock.db"
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free_bytes(disk) - (3 << 20))
    async with open_sqlite(path, clock=clock) as store:
        await store.create(new_row(clock))
        small = os.stat(f"{path}-wal").st_blocks * 512
        assert small < 3 << 20
        ballast.unlink()
        for _ in range(2):
            await store.check()
            assert await soon(lambda: os.stat(f"{path}-wal").st_blocks * 512 > 8 << 20)
            run_sql(path, "PRAGMA wal_checkpoint(TRUNCATE)")  # as a script that makes backups may do


@pytest.mark.parametrize("kind", [*KINDS, "ext4-1k"])
async def test_a_start_on_a_full_disk(tmp_path: Path, clock: ManualClock, kind: str) -> None:
    """SQLite writes to the index of its log as memory: a block that is missing there is a SIGBUS."""
    with small_disk(tmp_path, kind, 32) as disk:
        path = disk / "penstock.db"
        run_and_kill(path, COMMITTERS)
        async with open_sqlite(path, clock=clock):
            pass  # which removes the log and its index
        fill(disk)
        run_and_kill(path, 10)


async def test_what_was_set_aside_is_never_read_as_a_log(tmp_path: Path, clock: ManualClock) -> None:
    """An older database in the place of a newer one must not have the newer one's log applied to it."""
    path = tmp_path / "penstock.db"
    async with open_sqlite(path, clock=clock) as store:
        row = await store.create(new_row(clock))
    older = path.read_bytes()
    async with open_sqlite(path, clock=clock) as store:
        for _ in range(50):
            row = await commit(store, clock, row, replace(row, deployment_error=None, version=row.version + 1))
    path.write_bytes(older)
    async with open_sqlite(path, clock=clock) as store:
        found = await store.get(row.id)
        assert found is not None
        assert (found.revision, found.resources_status) == (1, ResourcesStatus.STOPPED)
