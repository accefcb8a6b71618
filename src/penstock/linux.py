"""What the Linux kernel offers and the standard library does not: exit status by pidfd, inotify, holes in files, locks.

Called by adapters that live on this machine (process executor, log files, embedded store). Thin: each function is one
or two system calls, and its failures are OSError. Must never know what a pipeline is.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import re
import struct
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]

_PIDFD_INFO_BYTES = 64
_PIDFD_GET_INFO = 3 << 30 | _PIDFD_INFO_BYTES << 16 | 0xFF << 8 | 11
_PIDFD_INFO_EXIT = 1 << 3
_PIDFD_EXIT_CODE_OFFSET = 60

_FALLOC_KEEP_SIZE_AND_PUNCH_HOLE = 0x01 | 0x02
_FALLOC_COLLAPSE_RANGE = 0x08

IN_MODIFY = 0x002
IN_ATTRIB = 0x004
IN_CLOSE_WRITE = 0x008
IN_MOVED_TO = 0x080
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
IN_IGNORED = 0x8000
_INOTIFY_HEADER = struct.Struct("iIII")

LOCK_RETRY_SECONDS = 2.0
"""A child of a killed daemon, caught between fork and exec, still holds the daemon's locks for a moment."""


def exit_status(pidfd: int) -> int | None:
    """The wait status of a process, child of ours or not, that has ended and was reaped by its parent.

    None while it runs or waits for its parent, and on kernels that cannot tell (before 6.15).
    """
    info = bytearray(_PIDFD_INFO_BYTES)
    struct.pack_into("=Q", info, 0, _PIDFD_INFO_EXIT)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
    except OSError:
        return None
    (mask,) = struct.unpack_from("=Q", info, 0)
    if not mask & _PIDFD_INFO_EXIT:
        return None
    (status,) = struct.unpack_from("=i", info, _PIDFD_EXIT_CODE_OFFSET)
    return int(status)


def start_ticks(pid: int) -> int | None:
    """When the process began, in clock ticks since boot; with the pid it names a process for good. None = no such."""
    fields = stat_fields(pid)
    return None if fields is None else int(fields[19])


def stat_fields(pid: int) -> list[str] | None:
    """The fields of ``/proc/{pid}/stat`` after the name: 0 state, 1 ppid, 2 pgrp, 3 session; None = no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return None
    return text[text.rindex(b")") + 2 :].decode("ascii").split()


def host_id() -> str:
    """Names this boot of this machine or container: it changes when no earlier process can be alive any more."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    return f"{boot}:{start_ticks(1) or 0}"


def mounts_below(path: Path) -> list[str]:
    """Where something is mounted at a path or below it, as this process sees it: directories, and files too."""
    real = os.path.join(os.path.realpath(path.parent), path.name)
    with open("/proc/self/mountinfo", "rb") as file:
        points = [os.fsdecode(_ESCAPED.sub(_unescaped, line.split()[4])) for line in file]
    return [point for point in points if point == real or point.startswith(f"{real}/")]


_ESCAPED = re.compile(rb"\\([0-7]{3})")


def _unescaped(found: re.Match[bytes]) -> bytes:
    return bytes([int(found[1], 8)])


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give the blocks of a range back to the file system; the file keeps its size, the range reads as zeros."""
    _fallocate(fd, _FALLOC_KEEP_SIZE_AND_PUNCH_HOLE, offset, length)


def collapse_range(fd: int, offset: int, length: int) -> None:
    """Take a range of whole blocks out of a file: what follows moves to `offset`; who appends is not disturbed.

    Only ext4 and XFS can, and not up to the file's end.
    """
    _fallocate(fd, _FALLOC_COLLAPSE_RANGE, offset, length)


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(fd, mode, offset, length) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def hold_lock(path: str) -> int | None:
    """Lock the file at `path`, made if need be, for as long as the returned descriptor is open.

    Blocks for up to LOCK_RETRY_SECONDS. None = somebody else holds it.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    give_up_at = time.monotonic() + LOCK_RETRY_SECONDS
    while not try_lock(fd):
        if time.monotonic() >= give_up_at:
            os.close(fd)
            return None
        time.sleep(0.02)
    return fd


def release_lock(fd: int) -> None:
    """Give a lock of `hold_lock` back."""
    os.close(fd)


def try_lock(fd: int) -> bool:
    """Lock an open file exclusively (flock: shared with whoever inherits the descriptor); False = it is locked."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Inotify:
    """Calls back on the running asyncio loop when watched files change. Use as a context manager, on the loop.

    A callback gets the event mask and, for a watched directory, the name in it; IN_IGNORED is its last call. When the
    kernel's queue overflows every callback is called with mask 0: look for yourself.
    """

    def __init__(self) -> None:
        self._fd = -1
        self._callbacks: dict[int, Callable[[int, str], None]] = {}

    def __enter__(self) -> Self:
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        asyncio.get_running_loop().add_reader(self._fd, self._read)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)
        self._fd = -1
        self._callbacks.clear()

    def watch(self, path: str, mask: int, callback: Callable[[int, str], None]) -> int:
        """Call `callback` whenever something of `mask` happens to `path`; the answer is for `unwatch`.

        One watch per inode: a second one replaces the first. Raises OSError, FileNotFoundError among others.
        """
        watch = _libc.inotify_add_watch(self._fd, os.fsencode(path), mask)
        if watch < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
        self._callbacks[watch] = callback
        return int(watch)

    def unwatch(self, watch: int) -> None:
        """Stop watching; nothing when the watch is gone already."""
        if self._callbacks.pop(watch, None) is not None and self._fd >= 0:
            _libc.inotify_rm_watch(self._fd, watch)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, 1 << 16)
        except BlockingIOError:
            return
        offset = 0
        while offset < len(data):
            watch, mask, _, length = _INOTIFY_HEADER.unpack_from(data, offset)
            offset += _INOTIFY_HEADER.size + length
            if watch == -1:
                for callback in list(self._callbacks.values()):
                    callback(0, "")
                continue
            callback = self._callbacks.get(watch)
            if callback is not None:
                if mask & IN_IGNORED:
                    del self._callbacks[watch]
                callback(mask, os.fsdecode(data[offset - length : offset].rstrip(b"\0")))
