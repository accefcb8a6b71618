"""The numbers of a log's lines: 1, 2, 3, ... across runs, daemons and trimming (contract.md section 8, cursors).

A line's number is one more than the line ends before it, and files are only ever appended to: so it is enough to know
how many line ends lay before the oldest byte kept. That place, the front, is recorded in a file beside the log before
anything in front of it goes: a daemon that is killed in between leaves a little more than it says, never less. The
record is one block that is written in place, so that a full disk does not keep logs from being trimmed.

Numbers belong to an epoch. A new one begins when the host has been started again, as its last lines may be lost then;
the end of the former ones is remembered, and their cursors stay good.

Offsets here are those of all that was ever written (`State.base` is that of the file's first byte). Everything that
counts takes a lock and is for worker threads; `state`, `size` and `mark` are for the loop too.
"""

from __future__ import annotations

import json
import os
import struct
import threading
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Self, cast

import structlog

from penstock.ports import LogCursor, LogPosition

log = structlog.get_logger("penstock.logfile")

PIECE_BYTES = 1 << 18
"""What is read at once to count line ends."""

STRIDE_BYTES = 1 << 22
"""How far apart the places are that are remembered when line ends are counted."""

LEAP_BYTES = 1 << 27
"""How far the front moves at once: a long file that a daemon finds is cut in steps, others have a turn in between."""

MOST_PLACES, MOST_MARKS, MOST_EPOCHS = 1024, 1024, 16
"""Bounds of what is remembered of one log."""

MARK_SECONDS = 1.0
"""How often at most the time is noted that a growing log has reached a size."""

_RECORD_BYTES = 4096
_MARK = struct.Struct("<dq")


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a log: `lines` line ends lie before `offset`."""

    offset: int
    lines: int


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What readers on the loop go by; replaced as a whole."""

    epoch: str
    host: str
    """The boot of the host that the epoch belongs to."""
    front: Place = Place(0, 0)
    """Where what is kept begins."""
    torn: bool = False
    """Whether it begins within a line, the beginning of which is gone."""
    base: int = 0
    """How much has been taken away from the file's front, so that its offsets are smaller by that."""
    taking: tuple[int, int] | None = None
    """While something is taken away: how much, and the size of the file before that."""
    former: tuple[tuple[str, int], ...] = ()
    """Former epochs, and the offset at which each ended."""

    @property
    def discarded(self) -> int:
        """How many lines are not kept."""
        return self.front.lines + self.torn


class Numbering:
    """See the module. One per log and daemon."""

    def __init__(self, path: str, state: State, marks: list[tuple[float, int]], new_id: Callable[[], str]) -> None:
        self.state = state
        self._path = path
        self._new_id = new_id
        self._places: list[Place] = []
        self._marks = marks
        self._marking = threading.Lock()
        self.unsaved = False
        """Whether there are times that are not on disk."""
        self._counting = threading.Lock()
        self._seen = 0

    @classmethod
    def load(cls, path: str, *, host: str, new_id: Callable[[], str]) -> Self:
        """The numbering of the log at `path`, which exists; a new one if it has none yet. Raises OSError."""
        with _opened(path) as fd:
            size = os.fstat(fd).st_size
            state = _recorded(path)
            if state is not None and state.taking is not None:
                length, before = state.taking
                taken = length if size < before else 0
                state = replace(state, base=state.base + taken, taking=None)
            if state is None or state.base + size < state.front.offset:
                kept_from = _data_from(fd, 0)
                state = State(epoch=new_id(), host=host, front=Place(kept_from, 0), torn=kept_from > 0)
                marks: list[tuple[float, int]] = []
                _begin(path, state)
            else:
                marks = _noted_marks(path, state.base + size)
                if state.host != host:
                    former = (*state.former, (state.epoch, state.base + size))[-MOST_EPOCHS:]
                    state = replace(state, epoch=new_id(), host=host, former=former)
                    _begin(path, state)
        return cls(path, state, marks, new_id)

    # --- where is what ----------------------------------------------------------------------------------------------

    def locate(
        self, *, cursor: LogCursor | None = None, tail: int | None = None, since: datetime | None = None
    ) -> LogPosition:
        """The latest of the places that are asked for, or the oldest line kept. Blocks; raises OSError."""
        with self._counting, _opened(self._path) as fd:
            size = self._settled(fd)
            state = self.state
            asked = 0
            if cursor is not None:
                asked = self._lines_read(fd, cursor, size)
            if tail is not None:
                asked = max(asked, self._place_at(fd, size).lines - tail)
            if since is not None:
                asked = max(asked, self._lines_before(fd, since, size))
            seq = max(asked, state.discarded)
            torn = state.torn and seq == state.discarded
            offset = state.front.offset if seq == state.discarded else self._after_line(fd, seq, size).offset
            return LogPosition(epoch=state.epoch, seq=seq, gap=seq - asked, offset=offset, torn=torn)

    def _lines_read(self, fd: int, cursor: LogCursor, size: int) -> int:
        ends = {**dict(self.state.former), self.state.epoch: size}
        end = ends.get(cursor.epoch)
        if end is None:
            return 0
        return min(cursor.seq, self._place_at(fd, end).lines)

    def _lines_before(self, fd: int, since: datetime, size: int) -> int:
        moment = since.timestamp()
        with self._marking:
            index = bisect_right(self._marks, moment, key=lambda mark: mark[0])
            offset = self._marks[index - 1][1] if index else 0
        return self._place_at(fd, min(offset, size)).lines if offset > self.state.front.offset else 0

    def _place_at(self, fd: int, offset: int) -> Place:
        """The place of `offset`; the front, if it lies before that."""
        index = bisect_right(self._places, offset, key=lambda place: place.offset)
        place = self._places[index - 1] if index else self.state.front
        for counted, _ in self._count(fd, place, offset):
            place = counted
        return place

    def _after_line(self, fd: int, lines: int, size: int) -> Place:
        """The place right after the line end number `lines`, which lies behind the front; `size` if there is none."""
        index = bisect_left(self._places, lines, key=lambda place: place.lines)
        begin = self._places[index - 1] if index else self.state.front
        for place, piece in self._count(fd, begin, size):
            if place.lines >= lines:
                ends = piece.count(b"\n")
                wanted = lines - (place.lines - ends)
                return Place(place.offset - len(piece) + _after_end(piece, wanted), lines)
        return Place(size, lines)

    def _count(self, fd: int, begin: Place, end: int) -> Iterator[tuple[Place, bytes]]:
        """Each piece from `begin` to `end`, with the place where it ends."""
        place = begin
        while place.offset < end:
            wanted = min(PIECE_BYTES, end - place.offset)
            piece = os.pread(fd, wanted, place.offset - self.state.base)
            if not piece:
                return
            place = Place(place.offset + len(piece), place.lines + piece.count(b"\n"))
            last = self._places[-1] if self._places else self.state.front
            if place.offset >= last.offset + STRIDE_BYTES:
                self._places.append(place)
                if len(self._places) > MOST_PLACES:
                    del self._places[::2]
            yield place, piece

    # --- what is no longer kept -------------------------------------------------------------------------------------

    def advance(self, fd: int, target: int) -> bool:
        """Record that what lies before the file's offset `target` is not kept, but for the line that lies across it.

        Raises OSError. False = that is still to do for a part of it: a call goes LEAP_BYTES far.
        """
        with self._counting:
            size = self._settled(fd)
            state = self.state
            target += state.base
            goal = min(target, state.front.offset + LEAP_BYTES)
            if goal <= state.front.offset:
                return True
            place, torn = self._place_at(fd, goal - 1), True
            for each, piece in self._count(fd, place, min(size, goal + LEAP_BYTES)):
                if each.lines > place.lines:
                    end = each.offset - len(piece) + piece.index(b"\n") + 1
                    place, torn = Place(end, place.lines + 1), False
                    break
            if torn:
                place = self._place_at(fd, goal)
            self._become(replace(state, front=place, torn=torn))
            return goal >= target

    def take(self, fd: int, length: int, do: Callable[[], None]) -> None:
        """Have `do` take `length` bytes, which are not kept, away from the file's beginning. Raises OSError."""
        with self._counting:
            state = self.state
            self._become(replace(state, taking=(length, os.fstat(fd).st_size)))
            try:
                do()
            except OSError:
                self._become(state)
                raise
            self._become(replace(state, base=state.base + length))

    def empty(self, fd: int, do: Callable[[], None]) -> None:
        """Have `do` empty the file. Raises OSError."""
        with self._counting:
            size = self._settled(fd)
            end = self._place_at(fd, size)
            length = size - self.state.base
            torn = length > 0 and os.pread(fd, 1, length - 1) != b"\n"
            self._become(replace(self.state, front=end, torn=torn))
        self.take(fd, length, do)

    def _become(self, state: State) -> None:
        _record(self._path, state)
        self.state = state
        gone = bisect_right(self._places, state.front.offset, key=lambda place: place.offset)
        del self._places[:gone]
        with self._marking:
            # The last one before the front stays: it tells when that was written.
            passed = bisect_right(self._marks, state.front.offset, key=lambda mark: mark[1])
            if passed > 1:
                del self._marks[: passed - 1]

    def settle(self, fd: int, epoch: str, reached: int) -> None:
        """Begin anew if the file is shorter than it was in `epoch`: somebody emptied it. Blocks; raises OSError."""
        with self._counting:
            if self.state.epoch == epoch:
                self._seen = max(self._seen, reached)
                self._settled(fd)

    def _settled(self, fd: int) -> int:
        size = os.fstat(fd).st_size + self.state.base
        if size < max(self._seen, self.state.front.offset):
            log.warning("log file was emptied by somebody else, its lines are numbered anew", path=self._path)
            self._places.clear()
            with self._marking:
                self._marks.clear()
            size -= self.state.base
            self._become(State(epoch=self._new_id(), host=self.state.host))
        self._seen = size
        return size

    # --- when it was written ----------------------------------------------------------------------------------------

    def mark(self, now: datetime, size: int, *, resting: bool) -> None:
        """Note that the file had `size` bytes a moment before `now`. What is noted too often is left out."""
        moment, offset = now.timestamp(), size + self.state.base
        with self._marking:
            while self._marks and (self._marks[-1][0] > moment or self._marks[-1][1] > offset):
                self._marks.pop()  # the clock was set back
            last, reached = self._marks[-1] if self._marks else (0.0, -1)
            if reached != offset and (resting or moment - last >= MARK_SECONDS):
                self._marks.append((moment, offset))
                self.unsaved = True
                if len(self._marks) > MOST_MARKS:
                    del self._marks[: MOST_MARKS // 2 : 2]  # the older, the coarser

    def save_marks(self) -> None:
        """Keep the times for later daemons, if there are new ones; best effort. Blocks."""
        with self._marking:
            if not self.unsaved:
                return
            self.unsaved = False
            content = b"".join(_MARK.pack(*mark) for mark in self._marks)
        path = _beside(self._path, "times")
        with suppress(OSError):
            fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(content)
            os.replace(f"{path}.new", path)


def _after_end(piece: bytes, number: int) -> int:
    """The index after the line end `number`, counted from 1, of `piece`."""
    low, high = 0, len(piece)
    while high - low > 1:
        middle = (low + high) // 2
        ends = piece.count(b"\n", low, middle)
        if ends >= number:
            high = middle
        else:
            low, number = middle, number - ends
    return high


# --- on disk --------------------------------------------------------------------------------------------------------


def _beside(path: str, what: str) -> str:
    return f"{path.removesuffix('.log')}.{what}"


@contextmanager
def _opened(path: str) -> Generator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _record(path: str, state: State) -> None:
    content = json.dumps(
        {
            "epoch": state.epoch,
            "host": state.host,
            "front": [state.front.offset, state.front.lines],
            "torn": state.torn,
            "base": state.base,
            "taking": state.taking,
            "former": state.former,
        }
    ).encode()
    line = b"%08x %s" % (zlib.crc32(content), content)
    fd = os.open(_beside(path, "numbers"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(fd, line.ljust(_RECORD_BYTES - 1) + b"\n", 0)
    finally:
        os.close(fd)


def _begin(path: str, state: State) -> None:
    """Record a new epoch; where that cannot be, it lasts as long as this daemon, or until something is trimmed."""
    try:
        _record(path, state)
    except OSError as error:
        log.warning("the numbers of a log cannot be recorded", path=path, error=str(error))


def _recorded(path: str) -> State | None:
    """What was recorded; None when that is nothing, or not whole."""
    try:
        with open(_beside(path, "numbers"), "rb") as file:
            checksum, _, padded = file.read(_RECORD_BYTES).partition(b" ")
    except FileNotFoundError:
        return None
    content = padded.rstrip()
    if checksum != b"%08x" % zlib.crc32(content):
        log.warning("the numbers of a log are damaged, its lines are numbered anew", path=path)
        return None
    found = json.loads(content)
    return State(
        epoch=found["epoch"],
        host=found["host"],
        front=Place(*found["front"]),
        torn=found["torn"],
        base=found["base"],
        taking=None if found["taking"] is None else cast("tuple[int, int]", tuple(found["taking"])),
        former=tuple((epoch, end) for epoch, end in found["former"]),
    )


def _noted_marks(path: str, size: int) -> list[tuple[float, int]]:
    try:
        with open(_beside(path, "times"), "rb") as file:
            content = file.read(MOST_MARKS * _MARK.size)
    except OSError:
        return []
    whole = len(content) // _MARK.size * _MARK.size
    return [(moment, offset) for moment, offset in _MARK.iter_unpack(content[:whole]) if offset <= size]


def _data_from(fd: int, offset: int) -> int:
    """Where the file has data, at `offset` or after the hole there."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError:
        return max(offset, os.fstat(fd).st_size)
