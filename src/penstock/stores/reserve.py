"""Room on the disk that is the database's alone, so that stops and clears are still recorded when the disk is full.

Called by `sqlite_file.py` and the writer, in threads. The room is the write-ahead log itself, made far longer than it
need be: SQLite writes over what is there, and a log that cannot be moved into the database just grows on into it. It is
never given back to the file system, where whoever filled the disk would be quicker. While no daemon runs it stands
beside the database under another name. Must never touch a log that may hold something.
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

_HEADER_BYTES = 4096
_TAIL_BYTES = 1 << 20
_INDEX_BYTES = 32 << 10
_PIECE_BYTES = 64 << 10
"""More than the index of the log needs, which SQLite makes anew at each start."""


class Reserve:
    """The reserve of the database at `path`, held by the daemon that has it open."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._bytes = 0
        self._index: int | None = None

    def restore(self) -> None:
        """Before the database is opened: make what `set_aside` kept its log again. Raises OSError."""
        aside, log = _aside(self._path), _log(self._path)
        if not os.path.exists(aside):
            return
        if os.path.lexists(log):  # another program's, or left by a daemon that could not finish: it has its room
            os.unlink(aside)
            return
        with _opened(aside) as file:
            # All that it held is in the database. Its first page makes it a log; what was at its end may be cut off.
            size = os.fstat(file).st_size
            os.pwrite(file, bytes(min(size, _HEADER_BYTES)), 0)
            os.pwrite(file, bytes(min(size, _TAIL_BYTES)), max(0, size - _TAIL_BYTES))
            os.fsync(file)
        os.rename(aside, log)
        _sync_directory(log)  # under its old name, the next daemon would wipe what this one commits

    def give_back(self) -> bool:
        """Return a little of an unused end of the log to the file system; False = there is none. Raises OSError.

        For a database that cannot be opened otherwise, and is not open.
        """
        for name in (_aside(self._path), _log(self._path)):
            with suppress(FileNotFoundError), _opened(name) as file:
                size = os.fstat(file).st_size
                if size > _PIECE_BYTES and not any(os.pread(file, _PIECE_BYTES, size - _PIECE_BYTES)):
                    os.ftruncate(file, size - _PIECE_BYTES)
                    return True
        return False

    def secure_index(self) -> None:
        """Give the index of the log, which SQLite writes to as memory, all of its blocks. Raises OSError.

        SQLite sees to one block in each 4096 bytes; where blocks are smaller, a full disk would kill the daemon by
        SIGBUS. What is opened for it stays open until `release`: to close it is to lose SQLite's locks on the file.
        """
        self._index = os.open(f"{self._path}-shm", os.O_RDWR | os.O_CLOEXEC)
        with suppress(OSError):
            os.posix_fallocate(self._index, 0, _INDEX_BYTES)

    def release(self) -> None:
        """Close what `secure_index` opened, after the database is closed; nothing if it is."""
        if self._index is not None:
            os.close(self._index)
            self._index = None

    def extend(self) -> None:
        """Make the log of the open database as long as it shall be, or as the disk has room for. Never raises.

        Called by whoever writes to it; nothing if it is long enough.
        """
        if self._bytes >= RESERVE_BYTES:
            return
        with suppress(OSError), _opened(_log(self._path)) as file:
            self._bytes = max(self._bytes, os.fstat(file).st_size)
            wanted = min(RESERVE_BYTES, self._bytes + self.free_bytes() // 2)
            if wanted - self._bytes >= LOW_BYTES or wanted == RESERVE_BYTES > self._bytes:
                os.posix_fallocate(file, self._bytes, wanted - self._bytes)
                self._bytes = wanted

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


def _sync_directory(path: str) -> None:
    directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
