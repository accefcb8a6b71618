"""Room on the disk that is the database's alone, so that stops and clears are still recorded when the disk is full.

Called by `sqlite_file.py` and the writer, in threads. The room is the write-ahead log itself, made far longer than it
need be: SQLite writes over what is there, and a log that cannot be moved into the database just grows on into it. Given
back to the file system, it would go to whoever filled the disk. While no daemon runs it stands beside the database
under another name. Must never touch what a log may still hold.

A log that is moved into the database starts over, and so never ends; but the database must not have to grow for that.
So its file is kept as long as it will be then, and holds a row of nothing (table `reserve`), whose pages are freed when
the disk is full.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress

RESERVE_BYTES = 12 << 20
"""The log is moved into the database at 4 MB, which leaves 8 for bad days: some 2,000 pages, 5 for a stop. The first
part of SQLite's index of the log has room for all of it, so that the index need not grow then."""

LOW_BYTES = 1 << 20
"""A disk with less free counts as full: a start needs directories, records and a log of its own."""

PAGES_BYTES = 4 << 20
"""What is kept in the database: a thousand pages, or the events of about as many stops."""

_STEP_BYTES = 256 << 10
_HEADER_BYTES = 4096
_TAIL_BYTES = 1 << 20
_PIECE_BYTES = 64 << 10
"""More than the index of the log needs: 32 KB."""


class Reserve:
    """The reserve of the database at `path`, held by the daemon that has it open."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: int | None = None

    def restore(self) -> None:
        """Before the database is opened: make what `set_aside` kept its log again. Raises OSError.

        On a full disk a little of the log is given back: SQLite makes the index of the log anew at each start, and
        where it finds no room for that, it fails, or is killed by SIGBUS.
        """
        aside, log = _aside(self._path), _log(self._path)
        if os.path.exists(aside) and os.path.lexists(log):
            os.unlink(aside)  # the log is another program's, or of a daemon that could not finish: it has its room
        elif os.path.exists(aside):
            _make_log(aside, log)
        if self.free_bytes() < _PIECE_BYTES:
            _cut(log)

    def extend(self) -> None:
        """Make the log of the open database as long as it shall be, or as the disk has room for. Never raises.

        Called by whoever writes to it; nothing if it is long enough.
        """
        log = _log(self._path)
        with suppress(OSError):
            size = os.path.getsize(log)  # another program may cut it
            if size >= RESERVE_BYTES:
                return
            wanted = min(RESERVE_BYTES, size + self.free_bytes() // 2)
            if wanted - size >= LOW_BYTES or wanted == RESERVE_BYTES:
                with _opened(log) as file:
                    os.posix_fallocate(file, size, wanted - size)

    def back(self, size: int) -> None:
        """Make the file of the open database at least `size` bytes long, if the disk has room for that. Never raises.

        SQLite allows for a longer file, and shortens it whenever all of the log has been moved into it. What is opened
        for it stays open until `release`: to close it is to lose SQLite's locks on the file.
        """
        with suppress(OSError):
            if self._file is None:
                self._file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            present = os.fstat(self._file).st_size
            if present < size:
                os.posix_fallocate(self._file, present, size + _STEP_BYTES - present)

    def release(self) -> None:
        """Close what `back` opened, after the database is closed; nothing if it is."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def set_aside(self) -> None:
        """Before the database is closed: keep the log's room when SQLite removes the log. Never raises."""
        aside = _aside(self._path)
        with suppress(OSError):
            with suppress(FileNotFoundError):
                os.unlink(aside)
            os.link(_log(self._path), aside)

    def free_bytes(self) -> int:
        """What the disk has left for users without privileges. Raises OSError."""
        found = os.statvfs(os.path.dirname(self._path))
        return found.f_bavail * found.f_frsize


def _log(path: str) -> str:
    return f"{path}-wal"


def _aside(path: str) -> str:
    return f"{path}.reserve"


@contextmanager
def _opened(path: str) -> Generator[int]:
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield file
    finally:
        os.close(file)


def _make_log(aside: str, log: str) -> None:
    """Wipe what was a log, all of which is in the database, and make it one again."""
    with _opened(aside) as file:
        size = os.fstat(file).st_size
        os.pwrite(file, bytes(min(size, _HEADER_BYTES)), 0)  # which makes the rest void
        os.pwrite(file, bytes(min(size, _TAIL_BYTES)), max(0, size - _TAIL_BYTES))  # which may be cut off
        os.fsync(file)
    os.rename(aside, log)
    _sync_directory(log)  # under its old name, the next daemon would wipe what this one commits


def _cut(log: str) -> None:
    """Return a piece of the end of the log to the file system, if nothing was ever written there."""
    with suppress(FileNotFoundError), _opened(log) as file:
        size = os.fstat(file).st_size
        if size > _PIECE_BYTES and not any(os.pread(file, _PIECE_BYTES, size - _PIECE_BYTES)):
            os.ftruncate(file, size - _PIECE_BYTES)


def _sync_directory(path: str) -> None:
    directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
