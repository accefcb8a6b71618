"""One SQLite file: open it, bring its schema up to date, read what it holds, and tell its failures apart.

Called by `sqlite.py` and its writer, off the event loop: everything here blocks. Must never mend a file by itself.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from penstock import linux
from penstock.model import MonitorEvent, Pipeline
from penstock.ports import StoreCorrupt, StoreError, StoreLocked, StoreUnavailable
from penstock.stores import columns
from penstock.stores.belonging import Belonging
from penstock.stores.columns import Columns, Value
from penstock.stores.reserve import PAGES_BYTES, Reserve
from penstock.stores.statements import Statement, migrations, statements

SCHEMA_MAJOR = 1
"""A database with a higher one was made by a Penstock whose data this one would misread."""

BUSY_TIMEOUT_SECONDS = 2.0
"""How long a statement waits for another program (a backup, a person) to let go of the database."""

WAL_LIMIT_BYTES = 64 << 20
"""A write-ahead log that grew beyond this, under a long backup say, is cut back at the next checkpoint."""

SQL: Mapping[str, Statement] = statements("sqlite")

_ADVICE: Mapping[int, str] = {
    sqlite3.SQLITE_BUSY: "another program keeps it locked; close that one",
    sqlite3.SQLITE_LOCKED: "another program keeps it locked; close that one",
    sqlite3.SQLITE_FULL: "free some space on its disk",
    sqlite3.SQLITE_IOERR: "look at its disk, and at what the kernel says of it",
    sqlite3.SQLITE_READONLY: "make the file, its directory and its file system writable",
    sqlite3.SQLITE_CANTOPEN: "make its directory exist and accessible",
    sqlite3.SQLITE_PERM: "make it accessible",
    sqlite3.SQLITE_AUTH: "make it accessible",
    sqlite3.SQLITE_NOMEM: "memory is short",
    sqlite3.SQLITE_PROTOCOL: "another program keeps it locked; close that one",
    sqlite3.SQLITE_INTERRUPT: "it was interrupted",
}
"""What passes, and how a person can help it pass; by primary result code."""

_NO_ROOM = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE})
"""The disk is full; the second when the index of the log, which SQLite makes anew at each start, is to be made."""

OPEN_ATTEMPTS = 20
"""How often a full disk is given a little of the reserve to open the database with: somebody else may be quicker."""

_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_ERROR})
"""What does not pass. SQLITE_ERROR is a schema that is not ours any more: the statements themselves are tested."""

_MEND = "Stop Penstock, keep a copy of the file and its -wal, then restore a backup or mend it with the sqlite3 program"


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file that is locked, up to date and understood. Who takes it closes `connection`, `reserve`, `lock`."""

    path: str
    """With symbolic links followed: one file has one lock, whatever it is called."""
    presence: Presence
    lock: int
    """A descriptor."""
    connection: sqlite3.Connection
    reserve: Reserve
    instance_id: str
    rows: list[Pipeline]
    latest: list[MonitorEvent]


def corrupt(path: str, what: str) -> StoreCorrupt:
    """The error that tells a person which file, what of it, and what to do."""
    return StoreCorrupt(f"{path}: {what}. {_MEND}.")


def explain(path: str, error: sqlite3.Error) -> StoreError | None:
    """What `error` means to users of the port; None when it is no failure of the world."""
    code = getattr(error, "sqlite_errorcode", None)
    if not isinstance(code, int):
        return None
    primary = code & 0xFF
    if primary in _ADVICE:
        advice = _ADVICE[sqlite3.SQLITE_FULL if code in _NO_ROOM else primary]
        return StoreUnavailable(f"{path}: {error} ({error.sqlite_errorname}): {advice}")
    if primary in _DAMAGE:
        return corrupt(path, f"{error} ({error.sqlite_errorname})")
    return None


@contextmanager
def explained(path: str) -> Generator[None]:
    """Raise sqlite3's errors as those of the port, and name the file in what `columns` says of its content."""
    try:
        yield
    except sqlite3.Error as error:
        meaning = explain(path, error)
        if meaning is None:
            raise
        raise meaning from error
    except OSError as error:
        raise StoreUnavailable(f"{path}: {error}") from error


class Presence:
    """The files of an open database: whether they are still where they were, so that what is written to them lasts."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._inodes = {name: _inode(name) for name in (path, f"{path}-wal")}

    def check(self) -> None:
        """Raise StoreUnavailable if a file was removed or replaced since; takes a few microseconds."""
        for name, inode in self._inodes.items():
            try:
                found = _inode(name)
            except FileNotFoundError:
                found = None
            except OSError as error:
                raise StoreUnavailable(f"{name}: {error.strerror}; nothing is written until it is there") from error
            if found != inode:
                done = "removed" if found is None else "replaced by another file"
                text = f"{name}: was {done} while it was open, so nothing that is written would last"
                raise StoreUnavailable(f"{text}; put it back, or restore a backup and restart Penstock")


def _inode(name: str) -> tuple[int, int]:
    found = os.stat(name)
    return (found.st_dev, found.st_ino)


def open_file(path: str, *, now: datetime, new_instance_id: str, state_dir: Path | None) -> OpenFile:
    """Lock the file at `path`, made if need be, migrate it and read all rows.

    Waits up to linux.LOCK_RETRY_SECONDS for the lock. `new_instance_id` becomes that of a new file, which is refused
    if `state_dir` holds pipelines. Raises StoreLocked, StoreUnavailable, StoreCorrupt; then nothing stays open.
    """
    path = os.path.realpath(path)
    with ExitStack() as undo, explained(path):
        lock = linux.hold_lock(f"{path}.lock")
        if lock is None:
            raise StoreLocked(
                f"{path}: another Penstock uses this file (it holds {path}.lock). Stop it, or name another file."
            )
        undo.callback(os.close, lock)
        belonging = Belonging(state_dir)

        def refuse_stranger(instance_id: str | None) -> None:
            objection = belonging.objection(instance_id)
            if objection is not None:
                raise StoreCorrupt(f"{path}: {objection}.")

        if not os.path.exists(path) or os.path.getsize(path) == 0:
            refuse_stranger(None)
        # Programs' environments stand in it: nobody else's to read. SQLite gives -wal and -shm the same mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        reserve = Reserve(path)
        undo.callback(reserve.release)
        connection = undo.enter_context(closing(_open(path, reserve, refuse_stranger)))
        _migrate(connection, path, now)
        instance_id = _instance_id(connection, new_instance_id)
        belonging.record(instance_id)
        fill_reserve(connection, reserve, stocked=False)
        rows = _fetch_rows(connection, path)
        latest = fetch_events(connection, path, "latest_events")
        file = OpenFile(path, Presence(path), lock, connection, reserve, instance_id, rows, latest)
        undo.pop_all()
        return file


def connect(path: str, *, reading: bool = False) -> sqlite3.Connection:
    """A connection that may be handed from thread to thread; `reading` = it cannot write. Raises sqlite3.Error.

    Makes no file: one that was taken away must not come back empty.
    """
    connection = sqlite3.connect(
        f"{Path(path).as_uri()}?mode=rw",
        uri=True,
        timeout=BUSY_TIMEOUT_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    # Bytes that are not UTF-8 arrive as lone surrogates, which `columns` refuses by row and column.
    connection.text_factory = _decode_text
    if reading:
        connection.execute("PRAGMA query_only = ON")
    return connection


def execute(connection: sqlite3.Connection, statement: str, values: Mapping[str, Value]) -> sqlite3.Cursor:
    """Run a named statement. Raises sqlite3.Error."""
    named = SQL[statement]
    return connection.execute(named.text, named.bind(values))


def fetch(connection: sqlite3.Connection, statement: str, **parameters: Value) -> list[Columns]:
    """The rows that a named statement finds. Raises sqlite3.Error."""
    cursor = execute(connection, statement, parameters)
    names = [description[0] for description in cursor.description]
    return [dict(zip(names, found, strict=True)) for found in cursor]


def fetch_events(connection: sqlite3.Connection, path: str, statement: str, **parameters: Value) -> list[MonitorEvent]:
    """The events that a named statement finds. Raises sqlite3.Error, StoreCorrupt."""
    found = fetch(connection, statement, **parameters)
    with _located(path):
        return [columns.to_event(event) for event in found]


def fill_reserve(connection: sqlite3.Connection, reserve: Reserve, *, stocked: bool) -> bool:
    """See to it that the reserve is whole, as far as the disk has room. Between transactions, after each.

    `stocked` and the answer: whether it is known to hold pages. Never raises: it is tried again.
    """
    with suppress(sqlite3.Error, OSError):
        reserve.extend()
        if not stocked:
            (found,) = fetch(connection, "reserve")
            stocked = bool(found["stocked"])
        if not stocked and reserve.free_bytes() > 2 * PAGES_BYTES:
            execute(connection, "stock_reserve", {"bytes": PAGES_BYTES})
            stocked = True
        ((pages,), (size,)) = (connection.execute(f"PRAGMA page_{what}").fetchone() for what in ("count", "size"))
        reserve.back(pages * size)
    return stocked


def _fetch_rows(connection: sqlite3.Connection, path: str) -> list[Pipeline]:
    found = fetch(connection, "pipelines")
    with _located(path):
        return [columns.to_pipeline(row) for row in found]


@contextmanager
def _located(path: str) -> Generator[None]:
    try:
        yield
    except StoreCorrupt as error:
        raise corrupt(path, f"cannot understand {error}") from error


def _decode_text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _open(path: str, reserve: Reserve, refuse_stranger: Callable[[str | None], None]) -> sqlite3.Connection:
    """Connect and begin to read, on a full disk too. Raises sqlite3.Error, OSError, StoreUnavailable, StoreCorrupt.

    `refuse_stranger` is told the instance id, None for that of a new database, before anything is written.
    """
    for attempt in range(OPEN_ATTEMPTS):
        reserve.restore()
        with ExitStack() as undo:
            connection = undo.enter_context(closing(connect(path)))
            try:
                refuse_stranger(_known_instance_id(connection))
                _prepare(connection, path)
                fetch(connection, "tables")  # makes the log and its index
            except sqlite3.Error as error:
                if attempt + 1 == OPEN_ATTEMPTS or error.sqlite_errorcode not in _NO_ROOM:
                    raise
                reserve.set_aside()  # closing removes an empty log
            else:
                undo.pop_all()
                return connection
    raise AssertionError("the last attempt returns or raises")


def _prepare(connection: sqlite3.Connection, path: str) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StoreUnavailable(f"{path}: its file system allows no write-ahead log; put it on a local disk")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT_BYTES}")


def _migrate(connection: sqlite3.Connection, path: str, now: datetime) -> None:
    """Take the steps that are missing, all or none. A newer Penstock's are let be, unless it said otherwise."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        tables = {found["name"] for found in fetch(connection, "tables")}
        if not tables:
            execute(connection, "create_migration", {})
        elif not {"meta", "migration"} <= tables:
            raise corrupt(path, "it is a database of another program, or its tables meta and migration are lost")
        else:
            _refuse_newer(connection, path)
        taken = {found["number"]: found["checksum"] for found in fetch(connection, "migrations")}
        for step in migrations("sqlite"):
            checksum = taken.get(step.number)
            if checksum is None:
                for statement in _split(step.text):
                    connection.execute(statement)
                stamp = now.isoformat(timespec="microseconds")
                execute(
                    connection,
                    "insert_migration",
                    {"number": step.number, "name": step.name, "checksum": step.checksum, "applied_at": stamp},
                )
            elif checksum != step.checksum:
                raise corrupt(
                    path,
                    f"table migration, step {step.number} ({step.name}) was another when this database took it "
                    f"(checksum {checksum}, now {step.checksum}); run the Penstock that made the database",
                )
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _refuse_newer(connection: sqlite3.Connection, path: str) -> None:
    found = fetch(connection, "meta", key="schema_major")
    major = str(found[0]["value"]) if found else ""
    if not major.isdecimal():
        raise corrupt(path, f"table meta, row schema_major: {major!r} is no number")
    if int(major) > SCHEMA_MAJOR:
        raise corrupt(
            path,
            f"table meta, row schema_major: {major} is newer than the {SCHEMA_MAJOR} that this Penstock knows; run the "
            "newer one, or restore the backup made before it",
        )


def _split(script: str) -> Iterator[str]:
    """The statements of a script, one at a time: sqlite3's own way to run many commits first."""
    statement = ""
    for piece in script.split(";"):
        statement += piece + ";"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _known_instance_id(connection: sqlite3.Connection) -> str | None:
    """What the database holds as its instance id; None for an empty one; empty when `_migrate` has to judge it."""
    tables = {found["name"] for found in fetch(connection, "tables")}
    if not tables:
        return None
    found = fetch(connection, "meta", key="instance_id") if "meta" in tables else []
    return str(found[0]["value"]) if found else ""


def _instance_id(connection: sqlite3.Connection, new_instance_id: str) -> str:
    execute(connection, "put_meta", {"key": "instance_id", "value": new_instance_id})
    return str(fetch(connection, "meta", key="instance_id")[0]["value"])
