"""Keeps log files within bounds: gives the front of long ones back to the file system.

Run by `files.py`. Looks often at what grows quickly, never at what rests. What is to go is recorded as gone first
(`numbering.py`). Must never disturb a program that writes: its descriptor stays good, its writes go to the end.

Holes leave a file's offsets as they are, so that these only grow; ext4 ends files at 16 TiB, which 100 MB/s reach in
two days. So from SHIFT_BYTES on the hole itself is taken out of the file (ext4 and XFS can). XFS, Btrfs and tmpfs end
files at 8 EiB or so: 2,900 years at 100 MB/s. Where a file system has no holes at all, a long file is emptied once no
process has it open for writing; a program that begins to write at that very moment may lose its first lines.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import math
import os
import signal
from collections.abc import Callable, Iterable

import anyio
import structlog
from anyio import to_thread

from penstock.linux import collapse_range, punch_hole
from penstock.logfile.bells import PASS_SECONDS, Bells, File
from penstock.ports import Clock
from penstock.schedule import Schedule

log = structlog.get_logger("penstock.logfile")

GRAIN_BYTES = 1 << 16
"""Holes end on a multiple of this: file systems free whole blocks only."""

SHIFT_BYTES = 1 << 40
"""A hole of this length is taken out of its file."""

FAR_BYTES = 1 << 36

FASTEST_LOOK_SECONDS, SLOWEST_LOOK_SECONDS = 0.02, 1.0
"""A file that is being written to is looked at this often, depending on how quickly it grows."""

SAVE_SECONDS = 60.0
"""How often the times at which a log was written are saved: a daemon that is killed loses those since."""

_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


class Trimmer:
    """See the module. On the loop, but for what says otherwise."""

    def __init__(self, max_bytes: int, *, clock: Clock, bells: Bells, empty: Callable[[File], None]) -> None:
        self.max_bytes = max_bytes
        self._clock = clock
        self._bells = bells
        self._empty = empty
        self._schedule: Schedule[File] = Schedule()
        self._news = asyncio.Event()
        self._asleep_until = -math.inf
        self._thread = anyio.CapacityLimiter(1)
        """A thread of its own: a file that grows quickly does not wait for the work of others."""
        self._has_holes: bool | None = None
        self._rigid = False
        bells.rung = self._rung

    def look_at_all(self, files: Iterable[File]) -> None:
        """Look at `files` now."""
        for file in files:
            self._look_at(file, _now())

    def forget(self, file: File) -> None:
        """Never look at `file` again."""
        self._schedule.forget(file)
        self._bells.disarm(file)

    async def run(self) -> None:
        """Look at each file when its time has come; runs until cancelled."""
        while True:
            due = self._schedule.take(_now())
            for file in due:
                self._schedule.done(file)  # all at once: a cancelled pass leaves none that cannot be added again
            for file in due:
                await self._look(file)
            next_at = self._schedule.next_at()
            self._news = asyncio.Event()
            self._asleep_until = math.inf if next_at is None else next_at
            with anyio.move_on_after(max(0.0, self._asleep_until - _now())):
                await self._news.wait()
            self._asleep_until = -math.inf

    async def _look(self, file: File) -> None:
        found = stat_of(file.path)
        now = _now()
        if found is None:
            file.resting = True
            return
        grown, file.size = found.st_size - file.size, found.st_size
        elapsed, file.looked_at = max(now - file.looked_at, 1e-3), now
        used = min(found.st_blocks * 512, found.st_size)
        quiet = grown <= 0 and file.interval >= SLOWEST_LOOK_SECONDS
        await self._mark(file, now, resting=quiet)
        if used > self.max_bytes:
            if await to_thread.run_sync(self._trim, file, limiter=self._thread):
                self._look_at(file, now)
                return
        elif quiet and self._bells.arm(file):
            file.resting = True
            again = stat_of(file.path)
            if again is not None and again.st_size != file.size:
                self._rung(file)  # written to before the bell hung
            return
        # The quicker it grows, the sooner it is looked at again.
        speed = grown / elapsed
        allowed = max(self.max_bytes - used, self.max_bytes / 8)
        wanted = allowed / speed if speed > 0 else math.inf
        file.interval = max(FASTEST_LOOK_SECONDS, min(file.interval * 2, SLOWEST_LOOK_SECONDS, wanted))
        self._look_at(file, now + file.interval)

    async def _mark(self, file: File, now: float, *, resting: bool) -> None:
        file.numbering.mark(self._clock.now(), file.size, resting=resting)
        if file.saved_at == -math.inf:
            file.saved_at = now
        elif file.numbering.unsaved and now >= file.saved_at + SAVE_SECONDS:
            file.saved_at = now
            await to_thread.run_sync(file.numbering.save_marks, limiter=self._thread)

    def _look_at(self, file: File, at: float) -> None:
        if file.interval >= PASS_SECONDS:
            at = math.ceil(at / PASS_SECONDS) * PASS_SECONDS
        file.resting = False
        self._schedule.add(file, at)
        if at < self._asleep_until:
            self._news.set()

    def _rung(self, file: File) -> None:
        """Something was written to `file`."""
        file.ring()
        if file.resting:
            file.looked_at = _now()
            file.interval = PASS_SECONDS
            self._look_at(file, file.looked_at + PASS_SECONDS)

    # --- in worker threads ------------------------------------------------------------------------------------------

    def _trim(self, file: File) -> bool:
        """Cut `file` down to three quarters of the bound; True = call again at once; if it fails, at the next look."""
        try:
            fd = os.open(file.path, os.O_RDWR | os.O_CLOEXEC)
            try:
                if self._may_punch(fd, file.path):
                    more = self._punch(file, fd)
                    self._shift(file, fd)
                    return more
            finally:
                os.close(fd)
            if not has_writer(file.path):
                self._empty(file)
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("log file cannot be trimmed", path=file.path, error=str(error))
        return False

    def _may_punch(self, fd: int, path: str) -> bool:
        """Tell whether the file system has holes, by one so far behind the end that no writer gets there meanwhile."""
        if self._has_holes is None:
            try:
                punch_hole(fd, os.fstat(fd).st_size + FAR_BYTES, GRAIN_BYTES)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                text = "the file system has no holes, long log files are emptied while no process writes to them"
                log.warning(text, path=path, error=str(error))
                self._has_holes = False
            else:
                self._has_holes = True
        return self._has_holes

    def _punch(self, file: File, fd: int) -> bool:
        more = not file.numbering.advance(fd, os.fstat(fd).st_size - self.max_bytes * 3 // 4)
        hole = _hole(file)
        if hole > 0:
            punch_hole(fd, 0, hole)
        return more

    def _shift(self, file: File, fd: int) -> None:
        hole, size = _hole(file), os.fstat(fd).st_size
        if self._rigid or hole < SHIFT_BYTES or size > 2 * hole:
            return
        try:
            file.numbering.take(fd, hole, lambda: collapse_range(fd, 0, hole))
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            self._rigid = True
            log.info("holes stay in log files, whose offsets only grow", path=file.path, error=str(error))


def _hole(file: File) -> int:
    """How long a hole at the front may be."""
    state = file.numbering.state
    return (state.front.offset - state.base) // GRAIN_BYTES * GRAIN_BYTES


def has_writer(path: str) -> bool:
    """Whether a process has the file open for writing, or nobody can tell: a read lease is granted only if none has."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Whoever opens it while the lease lasts has a signal sent to us: one that is ignored, not SIGIO, which kills.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def stat_of(path: str) -> os.stat_result | None:
    """The file's state; None when it cannot be had."""
    try:
        return os.stat(path)
    except OSError:
        return None


def _now() -> float:
    """The loop's time, for its callbacks too."""
    return asyncio.get_running_loop().time()
