"""What the tests of the file do to it, and see of it, from outside."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import anyio
from anyio.abc import TaskGroup

from penstock.stores.sqlite import SqliteStore


def run_sql(path: Path, statement: str, *parameters: object) -> list[tuple[object, ...]]:
    """What another program does to the database, and is told."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(statement, parameters).fetchall()


@contextmanager
def write_locked(path: Path) -> Iterator[None]:
    """Another program keeps the database locked for writing."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


@contextmanager
def watched(store: SqliteStore) -> Iterator[list[str]]:
    """The statements that the writer runs."""
    seen: list[str] = []
    store._writer._connection.set_trace_callback(seen.append)
    yield seen
    store._writer._connection.set_trace_callback(None)


@asynccontextmanager
async def writer_held(store: SqliteStore, path: Path) -> AsyncIterator[tuple[TaskGroup, list[str]]]:
    """The writer hangs in a transaction with one write of the daemon's; it goes on at the end, and is waited for.

    Yields a task group for writes that shall wait behind it, and the statements that the writer runs from there.
    """
    store._writer._connection.execute("PRAGMA busy_timeout = 20000")
    with watched(store) as seen:
        async with anyio.create_task_group() as group:
            with write_locked(path):
                group.start_soon(store.check)
                await _until(lambda: "BEGIN IMMEDIATE" in seen)
                yield group, seen


async def until_waiting(store: SqliteStore, count: int) -> None:
    """Wait until `count` writes wait for a held writer."""
    await _until(lambda: store._writer._queue.qsize() == count)


async def _until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.001)


def commits(seen: list[str], safety: str = "?") -> list[str]:
    """How safe each COMMIT was: FULL or NORMAL, beginning with `safety`."""
    found = list[str]()
    for statement in seen:
        if statement.startswith("PRAGMA synchronous = "):
            safety = statement.rpartition(" ")[2]
        if statement == "COMMIT":
            found.append(safety)
    return found


def scribble(path: Path, *, offset: int, length: int) -> None:
    """Overwrite a part of the file with nonsense."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xa5" * length)


def run_and_kill(path: Path, count: int) -> list[str]:
    """Let a committer run until it has acknowledged `count` commits, then kill it; returns the lines it got out."""
    argv = [sys.executable, "-m", "tests.stores.committer", str(path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            told = [child.stdout.readline() for _ in range(count)]
        finally:
            child.kill()
        told += child.stdout.readlines()
    assert all(line.endswith("\n") for line in told), "the child died by itself"
    return told
