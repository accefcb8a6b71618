"""The logs of pipelines on disk: one bounded file each, across all runs (contract.md section 8).

Processes append to their file themselves, so that nothing is lost while no daemon runs and nothing ever blocks them;
the executor gives them the descriptor (`path`). The daemon appends what it has to say (`note`), punches holes at the
front of files that grow too long (`run`), and reads them for whoever asks (`read`, `tail`). Offsets in a file never
move, so readers need no coordination. Must never hold a file's content in memory, nor wait for a reader.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import math
import os
import threading
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
import structlog
from anyio import to_thread

from penstock.linux import IN_MODIFY, Inotify, punch_hole
from penstock.model import Pipeline, PipelineId
from penstock.ports import Clock
from penstock.schedule import Schedule

log = structlog.get_logger("penstock.logfile")

BLOCK_BYTES = 1 << 16
"""What a reader takes from its file at once, and the longest line that it passes on whole."""

GRAIN_BYTES = 1 << 16
"""Holes end on a multiple of this: file systems free whole blocks only."""

RESCAN_SECONDS = 60.0
"""How often all files are looked at, should a notice of the kernel have been lost."""

PASS_SECONDS = 0.05
"""Looks wait for the next multiple of this, so that many files are looked at in one pass; a first look too."""

FASTEST_LOOK_SECONDS, SLOWEST_LOOK_SECONDS = 0.02, 1.0
"""A file that is being written to is looked at this often, depending on how quickly it grows."""

BREATH_SECONDS = 0.01
"""A follower that was woken a moment ago waits this long, so that it takes a flood in large pieces."""

TAIL_BYTES, TAIL_LINE_CHARACTERS = 1 << 16, 1000
"""Bounds of `tail`: its lines become part of rows and events."""

_IN_ONESHOT = 0x80000000
_NO_HOLES = frozenset({errno.EOPNOTSUPP, errno.ENOSYS})
_NAMELESS = "N/A"


class LogFiles:
    """The Logs port. `read`, `run` and `forget` belong to the loop and its context; all else works from any thread."""

    def __init__(self, *, state_dir: Path, clock: Clock, max_bytes: int) -> None:
        """`max_bytes` bounds what one log takes on disk while a daemon runs; at least 4 GRAIN_BYTES."""
        self._root = state_dir / "pipelines"
        self._clock = clock
        self._files: dict[PipelineId, _File] = {}
        self._bells = _Bells()
        self._trimmer = _Trimmer(_at_least(max_bytes), self._bells, self._truncate)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._writing = threading.Lock()

    async def __aenter__(self) -> Self:
        self._bells.open()
        self._loop = asyncio.get_running_loop()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop = None
        for file in self._files.values():
            file.end()
        self._files.clear()
        self._bells.close()

    # --- writing ----------------------------------------------------------------------------------------------------

    def path(self, pipeline_id: PipelineId) -> str:
        """The file that processes append to (O_APPEND); exists after this call. Raises OSError."""
        path = self._root / pipeline_id / "logs" / "pipeline.log"
        self._append(path, pipeline_id, b"")
        self._know(pipeline_id, path)
        return str(path)

    def note(self, row: Pipeline, level: str, message: str) -> None:
        """Append `message` as control-plane lines, one for each of its own; never raises for the world's failures."""
        lines = message.splitlines() or [""]
        text = "".join(self._line(level, line, row.id, row.spec.name) for line in lines)
        path = self._root / row.id / "logs" / "pipeline.log"
        try:
            self._append(path, row.id, text.encode("utf-8", "replace"))
        except OSError as error:
            log.warning("log line lost", pipeline=row.id, path=str(path), error=str(error))
            return
        self._know(row.id, path)

    def forget(self, pipeline_id: PipelineId) -> None:
        """End the readers of a pipeline that was deleted, with a last line. On the loop; idempotent."""
        path = self._root / pipeline_id / "logs" / "pipeline.log"
        text = self._line("INFO", "The pipeline was deleted; its logs end here", pipeline_id)
        with suppress(OSError):
            self._append(path, pipeline_id, text.encode(), create=False)
        file = self._files.pop(pipeline_id, None)
        if file is not None:
            self._trimmer.forget(file)
            file.end()

    def _append(self, path: Path, pipeline_id: PipelineId, text: bytes, *, create: bool = True) -> None:
        """Append whole lines, after a line end, after the line that every log begins with."""
        with self._writing:
            fd = _open_to_append(path, create=create)
            try:
                size = os.fstat(fd).st_size
                if size == 0:
                    text = self._line("INFO", "Fresh start of pipeline logs", pipeline_id).encode() + text
                elif text and os.pread(fd, 1, size - 1) != b"\n":
                    text = b"\n" + text
                if text:
                    os.write(fd, text)
            finally:
                os.close(fd)

    def _truncate(self, file: _File) -> None:
        """Empty a file, and say at its beginning what it has lost. For a worker thread."""
        with self._writing:
            fd = os.open(file.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
            try:
                lost_bytes = os.fstat(fd).st_size
                os.ftruncate(fd, 0)
                os.write(fd, self._discarded(lost_bytes, file.pipeline_id))
            finally:
                os.close(fd)

    def _discarded(self, count: int, pipeline_id: PipelineId) -> bytes:
        text = f"{count} bytes of prior log lines were discarded due to buffer constraints"
        return self._line("WARN", text, pipeline_id).encode()

    def _line(self, level: str, text: str, pipeline_id: PipelineId, name: str = _NAMELESS) -> str:
        stamp = self._clock.now().isoformat(timespec="microseconds").replace("+00:00", "Z")
        return f'[manager] {stamp} {level:>5} penstock: {text} pipeline-id="{pipeline_id}" pipeline-name="{name}"\n'

    # --- reading ----------------------------------------------------------------------------------------------------

    def tail(self, pipeline_id: PipelineId, lines: int) -> tuple[str, ...]:
        """The last `lines` lines, decoded, each of at most TAIL_LINE_CHARACTERS; empty when there is no log."""
        try:
            fd = os.open(self._root / pipeline_id / "logs" / "pipeline.log", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return ()
        try:
            begin = max(0, os.fstat(fd).st_size - TAIL_BYTES)
            kept = os.pread(fd, TAIL_BYTES, begin).replace(b"\0", b"").decode("utf-8", "replace").split("\n")
        finally:
            os.close(fd)
        if kept[-1] == "":
            kept.pop()
        if begin > 0 and len(kept) > 1:
            del kept[0]  # its beginning is not here
        return tuple(_shortened(line) for line in kept[-lines:]) if lines > 0 else ()

    async def read(self, pipeline_id: PipelineId, *, follow: bool) -> AsyncGenerator[bytes, None]:
        """Yield blocks of whole lines, valid UTF-8, oldest kept first; with `follow` go on until closed or forgotten.

        Without `follow` it ends with what was there when it began. What was discarded before or under a slow reader
        is told in a control-plane line. A line longer than BLOCK_BYTES is cut. Raises OSError. May be closed or
        cancelled at any time; close it, as a descriptor belongs to it.
        """
        path = self.path(pipeline_id)
        file = self._files[pipeline_id]
        lines = _Lines()
        offset = 0
        woken_at = -math.inf
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            end = math.inf if follow else os.fstat(fd).st_size
            while True:
                size = os.fstat(fd).st_size
                if size < offset:  # emptied, as holes are not to be had here
                    offset = 0
                    lines.lose()
                if offset >= min(size, end):
                    if not follow or file.ended:
                        break
                    await self._wait_for_more(file, fd, offset)
                    early = woken_at + BREATH_SECONDS - _now()
                    if early > 0:
                        await anyio.sleep(early)
                    woken_at = _now()
                    continue
                piece = await _piece(fd, offset)
                kept_from = _data_from(fd, offset) if b"\0" in piece else offset
                if kept_from > offset:
                    yield self._discarded(kept_from - offset, pipeline_id)
                    offset = kept_from
                    lines.lose()
                    continue
                offset += len(piece)
                block = lines.take(piece)
                if block:
                    yield block
            rest = lines.rest()
            if rest:
                yield rest
        finally:
            # A thread may still be reading from it, if this was cancelled; its result goes nowhere.
            os.close(fd)

    async def _wait_for_more(self, file: _File, fd: int, offset: int) -> None:
        changed = file.changed
        armed = self._bells.arm(file)
        if os.fstat(fd).st_size != offset or file.ended:
            return
        with anyio.move_on_after(RESCAN_SECONDS if armed else 1.0):
            await changed.wait()

    # --- keeping within bounds --------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep every log within `max_bytes`; runs until cancelled. Sleeps while nothing is written."""
        while True:
            await to_thread.run_sync(self._find)
            self._trimmer.look_at_all(list(self._files.values()))
            with anyio.move_on_after(RESCAN_SECONDS):
                await self._trimmer.run()

    def limit(self, max_bytes: int) -> None:
        """Keep every log within other bounds from now on. On the loop."""
        self._trimmer.max_bytes = _at_least(max_bytes)
        self._trimmer.look_at_all(list(self._files.values()))

    def _find(self) -> None:
        """Make the files known that earlier daemons left."""
        try:
            names = os.listdir(self._root)
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("log files of earlier daemons cannot be found", path=str(self._root), error=str(error))
            return
        for name in names:
            path = self._root / name / "logs" / "pipeline.log"
            if _stat(str(path)) is not None:
                self._know(PipelineId(name), path)

    def _know(self, pipeline_id: PipelineId, path: Path) -> None:
        if pipeline_id in self._files:
            return
        file = self._files.setdefault(pipeline_id, _File(pipeline_id, str(path)))
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(self._trimmer.look_at_all, (file,))


def _at_least(max_bytes: int) -> int:
    return max(max_bytes, 4 * GRAIN_BYTES)


@dataclass(slots=True, eq=False)
class _File:
    """What is known of one log."""

    pipeline_id: PipelineId
    path: str
    size: int = 0
    looked_at: float = -math.inf
    interval: float = PASS_SECONDS
    resting: bool = False
    """Quiet: not looked at before something is written to it."""
    bell: int | None = None
    ended: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def ring(self) -> None:
        """Wake whoever waits for a change."""
        self.changed.set()
        self.changed = asyncio.Event()

    def end(self) -> None:
        """There will be no more."""
        self.ended = True
        self.ring()


class _Bells:
    """The kernel's promises to tell of the next write to a file: each rings once, so that a flood rings once only."""

    def __init__(self) -> None:
        self.rung: Callable[[_File], None] = _File.ring
        self._inotify = Inotify()
        self._said = False

    def open(self) -> None:
        self._inotify.__enter__()

    def close(self) -> None:
        self._inotify.__exit__(None, None, None)

    def arm(self, file: _File) -> bool:
        """Have `rung` called at the next write to `file`; False = the kernel will not, look for yourself."""
        if file.bell is not None:
            return True

        def ring(mask: int, name: str) -> None:
            if file.bell == bell:  # not the end of one that has rung
                file.bell = None
                self.rung(file)

        try:
            bell = file.bell = self._inotify.watch(file.path, IN_MODIFY | _IN_ONESHOT, ring)
        except OSError as error:
            if not self._said and error.errno not in (errno.ENOENT, errno.EBADF):
                self._said = True
                log.warning("log files cannot be watched, looking at them every second", error=str(error))
            return False
        return True

    def disarm(self, file: _File) -> None:
        """Expect nothing of `file` any more."""
        if file.bell is not None:
            self._inotify.unwatch(file.bell)
            file.bell = None


class _Trimmer:
    """Gives the front of long files back to the file system: looks often at what grows quickly, never at what rests."""

    def __init__(self, max_bytes: int, bells: _Bells, truncate: Callable[[_File], None]) -> None:
        self.max_bytes = max_bytes
        self._bells = bells
        self._truncate = truncate
        self._schedule: Schedule[_File] = Schedule()
        self._news = asyncio.Event()
        self._asleep_until = -math.inf
        self._said = False
        bells.rung = self._rung

    def look_at_all(self, files: Iterable[_File]) -> None:
        """Look at `files` now."""
        for file in files:
            self._look_at(file, _now())

    def forget(self, file: _File) -> None:
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

    async def _look(self, file: _File) -> None:
        now = _now()
        found = _stat(file.path)
        if found is None:
            file.resting = True
            return
        grown, file.size = found.st_size - file.size, found.st_size
        elapsed, file.looked_at = max(now - file.looked_at, 1e-3), now
        used = min(found.st_blocks * 512, found.st_size)
        if used > self.max_bytes:
            await to_thread.run_sync(self._trim, file)
        elif grown <= 0 and file.interval >= SLOWEST_LOOK_SECONDS and self._bells.arm(file):
            file.resting = True
            again = _stat(file.path)
            if again is not None and again.st_size != file.size:
                self._rung(file)  # written to before the bell hung
            return
        # The quicker it grows, the sooner it is looked at again.
        speed = grown / elapsed
        allowed = max(self.max_bytes - used, self.max_bytes / 8)
        wanted = allowed / speed if speed > 0 else math.inf
        file.interval = max(FASTEST_LOOK_SECONDS, min(file.interval * 2, SLOWEST_LOOK_SECONDS, wanted))
        self._look_at(file, now + file.interval)

    def _look_at(self, file: _File, at: float) -> None:
        if file.interval >= PASS_SECONDS:
            at = math.ceil(at / PASS_SECONDS) * PASS_SECONDS
        file.resting = False
        self._schedule.add(file, at)
        if at < self._asleep_until:
            self._news.set()

    def _rung(self, file: _File) -> None:
        """Something was written to `file`."""
        file.ring()
        if file.resting:
            file.looked_at = _now()
            file.interval = PASS_SECONDS
            self._look_at(file, file.looked_at + PASS_SECONDS)

    def _trim(self, file: _File) -> None:
        """Cut `file` down to three quarters of the bound; if that fails, the next look tries again. For a thread."""
        try:
            if not self._punch(file.path) and not _has_writer(file.path):
                self._truncate(file)
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("log file cannot be trimmed", path=file.path, error=str(error))

    def _punch(self, path: str) -> bool:
        """Punch a hole at the front; False where the file system has none. Raises OSError."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            hole = (os.fstat(fd).st_size - self.max_bytes * 3 // 4) // GRAIN_BYTES * GRAIN_BYTES
            if hole > 0:
                punch_hole(fd, 0, hole)
        except OSError as error:
            if error.errno not in _NO_HOLES:
                raise
            if not self._said:
                self._said = True
                text = "the file system has no holes, long log files are emptied while no process writes to them"
                log.warning(text, path=path, error=str(error))
            return False
        finally:
            os.close(fd)
        return True


class _Lines:
    """Makes whole, clean, bounded lines of the pieces of a file."""

    def __init__(self) -> None:
        self._begun = bytearray()
        self._length = 0
        self._lost = False

    def take(self, piece: bytes) -> bytes:
        """The lines that `piece`, of at most BLOCK_BYTES, completes."""
        first, newline, others = piece.partition(b"\n")
        self._add(first)
        if not newline:
            return b""
        last = others.rfind(b"\n") + 1
        block = _clean(self._completed() + others[:last])
        self._add(others[last:])
        return block

    def lose(self) -> None:
        """What follows is not what came next: drop the line that was begun, and what comes before the next one."""
        self._begun.clear()
        self._length = 0
        self._lost = True

    def rest(self) -> bytes:
        """The line that has not ended yet, ended."""
        return _clean(self._completed()) if self._length else b""

    def _add(self, part: bytes) -> None:
        self._length += len(part)
        self._begun += part[: BLOCK_BYTES - len(self._begun)]

    def _completed(self) -> bytes:
        cut = self._length - len(self._begun)
        end = f" [cut: {cut} more bytes]\n".encode() if cut else b"\n"
        line = b"" if self._lost else bytes(self._begun) + end
        self._begun.clear()
        self._length = 0
        self._lost = False
        return line


def _clean(block: bytes) -> bytes:
    """Without NULs, and valid UTF-8."""
    if block.isascii():
        return block.replace(b"\0", b"")
    return block.replace(b"\0", b"").decode("utf-8", "replace").encode()


def _shortened(line: str) -> str:
    return line if len(line) <= TAIL_LINE_CHARACTERS else line[: TAIL_LINE_CHARACTERS - 1] + "…"


def _open_to_append(path: Path, *, create: bool) -> int:
    flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:
        if not create:
            raise
    for directory in (path.parent.parent.parent, path.parent.parent, path.parent):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.open(path, flags, 0o600)


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None


def _now() -> float:
    """The loop's time, for its callbacks too."""
    return asyncio.get_running_loop().time()


async def _piece(fd: int, offset: int) -> bytes:
    """Up to BLOCK_BYTES from `offset`: at once if they are in memory, else by a worker thread."""
    buffer = bytearray(BLOCK_BYTES)
    try:
        count = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EOPNOTSUPP):
            raise
        return await to_thread.run_sync(os.pread, fd, BLOCK_BYTES, offset)
    return bytes(memoryview(buffer)[:count])


def _data_from(fd: int, offset: int) -> int:
    """Where the file has data, at `offset` or after the hole there."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return max(offset, os.fstat(fd).st_size)


def _has_writer(path: str) -> bool:
    """Whether a process has the file open for writing, or nobody can tell: a read lease is granted only if none has."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False
