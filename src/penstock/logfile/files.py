"""The Logs port: one bounded file per pipeline, written by its processes, followed by anybody.

Processes append to their file themselves, so that nothing is lost while no daemon runs and nothing ever blocks them;
the executor gives them the descriptor (`path`). The daemon appends what it has to say (`note`), has long files cut at
their front (`run`), and reads them for whoever asks (`position`, `read`, `tail`). `max_bytes` is kept while a daemon
runs; what is written while none does is cut when the next one finds it. Must never hold a file's content in memory,
nor wait for a reader.
"""

from __future__ import annotations

import asyncio
import errno
import math
import os
import re
import threading
from collections.abc import AsyncGenerator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
import structlog
from anyio import to_thread

from penstock.linux import host_id
from penstock.logfile.bells import Bells, File
from penstock.logfile.bounds import GRAIN_BYTES, Trimmer, stat_of
from penstock.logfile.lines import BLOCK_BYTES, Lines
from penstock.logfile.numbering import Numbering, Place, State
from penstock.model import Pipeline, PipelineId
from penstock.ports import Clock, LogCursor, LogPosition

log = structlog.get_logger("penstock.logfile")

RESCAN_SECONDS = 60.0
"""How often all files are looked at, should a notice of the kernel have been lost."""

BREATH_SECONDS = 0.01
"""A follower that was woken a moment ago waits this long, so that it takes a flood in large pieces."""

READERS_AT_ONCE = 8
"""How many readers take a block in one round of the loop, however many there are."""

LOCATING_THREADS = 4
"""How many threads at most look for where readers are to begin: hundreds come at once when a daemon has restarted."""

TAIL_BYTES, TAIL_LINE_CHARACTERS = 1 << 16, 1000
"""Bounds of `tail`: its lines become part of rows and events."""

_NAMELESS = "N/A"
_NOTED = "[manager] "
_RUN_BEGINS = re.compile(r" penstock: ---- run \S+ begins ---- ")


class LogFiles:
    """The Logs port. `position`, `read`, `run`, `limit` and `forget` belong to the loop; all else to any thread."""

    def __init__(self, *, state_dir: Path, clock: Clock, max_bytes: int) -> None:
        """`max_bytes` bounds what one log takes on disk while a daemon runs; at least 4 GRAIN_BYTES."""
        self._root = state_dir / "pipelines"
        self._clock = clock
        self._host = host_id()
        self._files: dict[PipelineId, File] = {}
        self._bells = Bells()
        self._trimmer = Trimmer(_at_least(max_bytes), clock=clock, bells=self._bells, empty=self._empty)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turns = asyncio.Semaphore(READERS_AT_ONCE)
        self._locating = anyio.CapacityLimiter(LOCATING_THREADS)
        self._writing = threading.Lock()
        self._finding = threading.Lock()

    async def __aenter__(self) -> Self:
        self._bells.open()
        self._loop = asyncio.get_running_loop()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop = None
        files = list(self._files.values())
        for file in files:
            file.end()
        self._files.clear()
        self._bells.close()
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(_save_marks, files)

    # --- writing ----------------------------------------------------------------------------------------------------

    def path(self, pipeline_id: PipelineId) -> str:
        """The file that processes append to (O_APPEND); exists after this call. Raises OSError."""
        file = self._file(pipeline_id)
        self._append(file, b"")
        return file.path

    def note(self, row: Pipeline, level: str, message: str) -> None:
        """Append `message` as control-plane lines, one for each of its own; never raises for the world's failures."""
        lines = message.splitlines() or [""]
        if row.id not in self._files:
            with suppress(OSError):
                self.path(row.id)  # what it begins with bears the earlier time
        text = "".join(self._line(level, line, row.id, row.spec.name) for line in lines)
        try:
            self._append(self._file(row.id), text.encode("utf-8", "replace"))
        except OSError as error:
            log.warning("log line lost", pipeline=row.id, error=str(error))

    def forget(self, pipeline_id: PipelineId) -> None:
        """End the readers of a pipeline that was deleted, with a last line. On the loop; idempotent."""
        text = self._line("INFO", "The pipeline was deleted; its logs end here", pipeline_id)
        with suppress(OSError):
            self._append(self._file(pipeline_id, create=False), text.encode(), create=False)
        file = self._files.pop(pipeline_id, None)
        if file is not None:
            self._trimmer.forget(file)
            file.end()

    def _append(self, file: File, text: bytes, *, create: bool = True) -> None:
        """Append whole lines, after a line end, after the line that every log begins with."""
        with self._writing:
            fd = _open_to_append(Path(file.path), create=create)
            try:
                size = os.fstat(fd).st_size
                if size == 0 and file.numbering.state.front == Place(0, 0):
                    text = self._line("INFO", "Fresh start of pipeline logs", file.pipeline_id).encode() + text
                elif size > 0 and text and os.pread(fd, 1, size - 1) != b"\n":
                    text = b"\n" + text
                if text:
                    os.write(fd, text)
            finally:
                os.close(fd)

    def _empty(self, file: File) -> None:
        """Empty a file that nobody writes to. For a worker thread. Raises OSError."""
        with self._writing:
            fd = os.open(file.path, os.O_RDWR | os.O_CLOEXEC)
            try:
                file.numbering.empty(fd, lambda: os.ftruncate(fd, 0))
            finally:
                os.close(fd)

    def _discarded(self, count: int, pipeline_id: PipelineId) -> bytes:
        text = f"{count} prior log lines were discarded due to buffer constraints"
        return self._line("WARN", text, pipeline_id).encode()

    def _line(self, level: str, text: str, pipeline_id: PipelineId, name: str = _NAMELESS) -> str:
        stamp = self._clock.now().isoformat(timespec="microseconds").replace("+00:00", "Z")
        return f'[manager] {stamp} {level:>5} penstock: {text} pipeline-id="{pipeline_id}" pipeline-name="{name}"\n'

    # --- reading ----------------------------------------------------------------------------------------------------

    def tail(self, pipeline_id: PipelineId, lines: int) -> tuple[str, ...]:
        """The last `lines` lines that the programs of the latest run have printed; empty when there are none.

        They are decoded, and at most TAIL_LINE_CHARACTERS long each. What the daemon itself has noted is left out.
        """
        try:
            fd = os.open(self._path(pipeline_id), os.O_RDONLY | os.O_CLOEXEC)
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
        noted = [index for index, line in enumerate(kept) if line.startswith(_NOTED)]
        began = max((index for index in noted if _RUN_BEGINS.search(kept[index])), default=-1)
        kept = [line for line in kept[began + 1 :] if not line.startswith(_NOTED)]
        return tuple(_shortened(line) for line in kept[-lines:]) if lines > 0 else ()

    async def position(
        self,
        pipeline_id: PipelineId,
        *,
        cursor: LogCursor | None = None,
        tail: int | None = None,
        since: datetime | None = None,
    ) -> LogPosition:
        """Where reading begins. See `ports.Logs`. Raises OSError. Reads up to all of the log, in a worker thread."""
        self.path(pipeline_id)
        numbering = self._file(pipeline_id).numbering
        if since is not None and since > self._clock.now():
            since, tail = None, 0  # nothing that is there was written after a time to come
        return await to_thread.run_sync(
            lambda: numbering.locate(cursor=cursor, tail=tail, since=since),
            abandon_on_cancel=True,
            limiter=self._locating,
        )

    async def read(
        self, pipeline_id: PipelineId, *, follow: bool, position: LogPosition | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Yield blocks of whole lines, valid UTF-8. See `ports.Logs`.

        Without `follow` it ends with what was there when it began. Without a position, what was discarded before or
        under a slow reader is told in a control-plane line. A line longer than BLOCK_BYTES is cut. Raises OSError. May
        be closed or cancelled at any time; close it, as a descriptor belongs to it.
        """
        if position is not None and pipeline_id not in self._files:
            return  # forgotten since it was told where to begin
        path = self.path(pipeline_id)
        file = self._file(pipeline_id)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            reader = _Reader(file, fd, position)
            end = math.inf if follow else reader.size()
            woken_at = -math.inf
            while True:
                missed = reader.missed()
                if missed:
                    if position is not None:
                        return
                    yield self._discarded(missed, pipeline_id)
                size = reader.size()
                if size < reader.offset:
                    await reader.settle()
                elif reader.offset < min(size, end):
                    async with self._turns:
                        block = await reader.next_block(end)
                        await asyncio.sleep(0)  # the rest of the daemon waits for this many blocks, not for them all
                    if block:
                        yield block
                elif not follow or file.ended:
                    break
                else:
                    await self._wait_for_more(file, fd, size)
                    early = woken_at + BREATH_SECONDS - _now()
                    if early > 0:
                        await anyio.sleep(early)
                    woken_at = _now()
            rest = reader.lines.rest(end=b"\n" if position is None else b"")
            if rest:
                yield rest
        finally:
            # A thread may still be reading from it, if this was cancelled; its result goes nowhere.
            os.close(fd)

    async def _wait_for_more(self, file: File, fd: int, size: int) -> None:
        changed = file.changed
        armed = self._bells.arm(file)
        if os.fstat(fd).st_size + file.numbering.state.base != size or file.ended:
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
            if stat_of(self._path(PipelineId(name))) is not None:
                try:
                    self._file(PipelineId(name), create=False)
                except OSError as error:
                    log.warning("log file cannot be read", pipeline=name, error=str(error))

    def _path(self, pipeline_id: PipelineId) -> str:
        return str(self._root / pipeline_id / "logs" / "pipeline.log")

    def _file(self, pipeline_id: PipelineId, *, create: bool = True) -> File:
        """What is known of the log, which exists then. Raises OSError."""
        file = self._files.get(pipeline_id)
        if file is not None:
            return file
        with self._finding:
            file = self._files.get(pipeline_id)
            if file is not None:
                return file
            path = self._path(pipeline_id)
            os.close(_open_to_append(Path(path), create=create))
            numbering = Numbering.load(path, host=self._host, new_id=self._clock.new_id)
            file = self._files[pipeline_id] = File(pipeline_id, path, numbering)
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(self._trimmer.look_at_all, (file,))
        return file


class _Reader:
    """How far one reader has come."""

    def __init__(self, file: File, fd: int, position: LogPosition | None) -> None:
        self.lines = Lines()
        self.offset = 0
        self._file = file
        self._fd = fd
        self._epoch: str = file.numbering.state.epoch
        self._count = 0
        """Line ends before `offset`."""
        if position is not None:
            self.offset, self._count, self._epoch = position.offset, position.seq, position.epoch
            if position.torn:
                self._count -= 1
                self.lines.jump(torn=True)

    def size(self) -> int:
        """The end of what was ever written."""
        state = self._file.numbering.state
        return os.fstat(self._fd).st_size + state.base

    def missed(self) -> int:
        """How many lines are gone that come next; goes on after them."""
        state = self._file.numbering.state
        if state.epoch != self._epoch:  # somebody else emptied the file
            self._epoch, self.offset, self._count = state.epoch, 0, 0
            self.lines.jump(torn=False)
            return 1
        if not _is_gone(state, self.offset):
            return 0
        missed = state.discarded - self._count
        self.offset, self._count = state.front.offset, state.front.lines
        self.lines.jump(torn=state.torn)
        return max(missed, 1)

    async def settle(self) -> None:
        """Find out why the file is shorter than what was read of it."""
        await to_thread.run_sync(self._file.numbering.settle, self._fd, self._epoch, self.offset)

    async def next_block(self, end: float) -> bytes:
        """The lines that the next piece of the file completes; empty also when it was taken away meanwhile."""
        state = self._file.numbering.state
        if state.taking or state.epoch != self._epoch or _is_gone(state, self.offset):
            return b""
        piece = await _piece(self._fd, self.offset - state.base)
        now = self._file.numbering.state
        if now.taking or now.base != state.base or now.epoch != state.epoch or _is_gone(now, self.offset):
            return b""  # perhaps not what was at this offset
        if self.offset + len(piece) > end:
            piece = piece[: int(end) - self.offset]
        self.offset += len(piece)
        self._count += piece.count(b"\n")
        return self.lines.take(piece)


def _is_gone(state: State, offset: int) -> bool:
    return offset < state.front.offset


def _at_least(max_bytes: int) -> int:
    return max(max_bytes, 4 * GRAIN_BYTES)


def _save_marks(files: list[File]) -> None:
    for file in files:
        file.numbering.save_marks()


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
