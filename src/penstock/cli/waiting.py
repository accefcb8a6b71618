"""Waits until pipelines are as they should be, and shows meanwhile how they are.

Used by commands that have asked for something. Asks gently: quickly while something moves, a few times a second when
nothing does, and mostly to hear that nothing has changed. A daemon that is away for a moment is waited for, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from types import TracebackType
from typing import Self, TypeVar

from penstock.cli import INTERRUPTED, NOT_FOUND, TIMED_OUT
from penstock.cli.client import PATIENCE_SECONDS, path_of
from penstock.cli.command import Session
from penstock.cli.failures import Failure, Json, Refused, Unreachable
from penstock.cli.output import Cell, cell, printable, width_of
from penstock.cli.wording import axes, look_of, waits_for

T = TypeVar("T")

SHORTEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.01, 0.25
AWAY_SECONDS = 60.0
"""How long a daemon may be away, while it is upgraded say, before it is given up."""

_FEW = 8
"""So many pipelines are asked for one by one, which costs next to nothing; more of them all at once."""

_DRAWN_AFTER_SECONDS = 0.3
"""What is done sooner needs no progress shown; to load what draws it takes a tenth of a second."""

_MOST_LINES = 12
_WIDE_COLUMNS = 70
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class End(Enum):
    """How waiting for a pipeline ended."""

    REACHED = auto()
    LOST = auto()
    """It will not come to be."""
    LATE = auto()
    GONE = auto()
    """The pipeline was deleted."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What is waited for. Both conditions are asked of the status form of a row."""

    what: str
    """In a word or two: Running, Stopped."""
    reached: Callable[[Json], bool]
    lost: Callable[[Json], bool] = lambda _row: False


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended for one pipeline."""

    name: str
    end: End
    row: Json
    """As it was last seen; None if it never was."""
    seconds: float

    def failure(self, goal: Goal) -> Failure:
        """What LATE and GONE mean for a command."""
        if self.end is End.GONE:
            return Failure("it was deleted meanwhile", exit_code=NOT_FOUND, code="UnknownPipelineName").of(self.name)
        status = self.row["deployment_status"] if self.row else "unknown"
        waits = waits_for(self.row) if self.row else None
        return Failure(
            f"not {goal.what} after {self.seconds:.3g} s; it goes on. It is {status}"
            + (f" and waits for {waits}" if waits else ""),
            exit_code=TIMED_OUT,
            code="WaitTimedOut",
            details={"timeout_seconds": self.seconds, "deployment_status": status},
            hint=f"penstock stop --force {self.name}" if goal.what == "Stopped" else f"penstock describe {self.name}",
        ).of(self.name)


def wait_for(session: Session, names: Sequence[str], goal: Goal, *, timeout_seconds: float) -> list[Outcome]:
    """Wait for each of `names`; returns how it ended, in their order. Raises Failure: no daemon, or interrupted."""
    began = time.monotonic()
    outcomes: dict[str, Outcome] = {}
    rows: dict[str, Json] = {}
    pause = SHORTEST_PAUSE_SECONDS
    with _Progress(session, goal) as progress:
        try:
            while len(outcomes) < len(names):
                left = began + timeout_seconds - time.monotonic()
                pending = [name for name in names if name not in outcomes]
                session.client.answer_within(left)
                seen = patiently(session, lambda names=pending: _look(session, names), within_seconds=left)
                moved = any(seen[name] is not rows.get(name) for name in pending)
                rows.update(seen)
                for name in pending:
                    end = _ended(seen[name], goal, late=time.monotonic() - began >= timeout_seconds)
                    if end is not None:
                        outcomes[name] = Outcome(name, end, seen[name], time.monotonic() - began)
                progress.show([(name, rows[name]) for name in names if name not in outcomes])
                pause = SHORTEST_PAUSE_SECONDS if moved else min(pause * 1.5, LONGEST_PAUSE_SECONDS)
                if len(outcomes) < len(names):
                    time.sleep(max(0.0, min(pause, began + timeout_seconds - time.monotonic())))
        except KeyboardInterrupt:
            raise _interrupted([name for name in names if name not in outcomes], goal) from None
        finally:
            session.client.answer_within(PATIENCE_SECONDS)
    return [outcomes[name] for name in names]


def patiently(session: Session, ask: Callable[[], T], *, within_seconds: float = AWAY_SECONDS) -> T:
    """What `ask` returns; tried again while the daemon is away, at most so long and AWAY_SECONDS. Raises Failure."""
    give_up_at = time.monotonic() + min(within_seconds, AWAY_SECONDS)
    pause, told = 0.05, False
    while True:
        try:
            return ask()
        except Failure as failure:
            away = isinstance(failure, Unreachable) or (isinstance(failure, Refused) and failure.http_status == 503)
            if not away or time.monotonic() + pause > give_up_at:
                raise
            if not told and pause > 0.5:
                session.out.note(f"{failure.message}; trying again")
                told = True
        time.sleep(pause)
        pause = min(pause * 1.5, 1.0)


def look(session: Session, name: str) -> Json:
    """The status form of a pipeline's row; None when there is none. Raises Failure."""
    try:
        return session.client.get(path_of(name), selector="status")
    except Refused as refused:
        if refused.code != "UnknownPipelineName":
            raise
        return None


def _look(session: Session, names: Sequence[str]) -> dict[str, Json]:
    if len(names) <= _FEW:
        return {name: look(session, name) for name in names}
    known = {row["name"]: row for row in session.client.get("/v0/pipelines", selector="status")}
    return {name: known.get(name) for name in names}


def _ended(row: Json, goal: Goal, *, late: bool) -> End | None:
    if row is None:
        return End.GONE
    if goal.reached(row):
        return End.REACHED
    if goal.lost(row):
        return End.LOST
    return End.LATE if late else None


def _interrupted(names: Sequence[str], goal: Goal) -> Failure:
    which = names[0] if len(names) == 1 else f"{len(names)} pipelines"
    return Failure(
        f"no longer waiting for {which} to be {goal.what}; what was asked for goes on",
        exit_code=INTERRUPTED,
        code="Interrupted",
        hint=f"penstock get {' '.join(names)}" if len(names) <= _FEW else "penstock get",
    )


class _Progress:
    """Shows how pipelines are: on a terminal lines that are drawn again, elsewhere a line for each change."""

    def __init__(self, session: Session, goal: Goal) -> None:
        self._out = session.out
        self._goal = goal
        self._began = time.monotonic()
        self._end: Callable[[], None] | None = None
        self._pending: Sequence[tuple[str, Json]] = ()
        self._said: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._end is not None:
            self._end()

    def show(self, pending: Sequence[tuple[str, Json]]) -> None:
        """Show the pipelines that are still waited for, and their rows."""
        self._pending = pending
        if not self._out.is_live:
            self._say_changes()
        elif self._end is None and pending and time.monotonic() - self._began > _DRAWN_AFTER_SECONDS:
            from penstock.cli.live import draw

            self._end = draw(self._lines)

    def _say_changes(self) -> None:
        for name, row in self._pending:
            text = ", ".join(f"{axis} {status}" for axis, status in axes(row).items())
            if self._said.get(name) != text:
                self._said[name] = text
                self._out.note(f"{name}: {text}")

    def _lines(self, columns: int) -> list[Cell]:
        pending = self._pending
        lines = [self._line(name, row, columns) for name, row in pending[:_MOST_LINES]]
        if len(pending) > _MOST_LINES:
            lines.append(cell(f"  and {len(pending) - _MOST_LINES} more", "dim"))
        return lines

    def _line(self, name: str, row: Json, columns: int) -> Cell:
        elapsed = time.monotonic() - self._began
        spinner = _SPINNER[int(elapsed * 8) % len(_SPINNER)]
        begin = ((f"{spinner} ", "calm"), (name, "bold"), (f" {elapsed:.0f}s ", "dim"))
        if columns < _WIDE_COLUMNS:
            return (*begin, (row["deployment_status"], look_of(row)), (f" → {self._goal.what}", ""))
        waits = waits_for(row)
        end = [(f"  waits for {printable(waits)}", "dim")] if waits else []
        named = [piece for axis, status in axes(row).items() for piece in ((f" {axis} ", "dim"), (status, ""))]
        if sum(width_of(text) for text, _ in (*begin, *named, *end)) <= columns:
            return (*begin, *named, *end)
        return (*begin, (" ", ""), (" · ".join(axes(row).values()), ""), *end)
