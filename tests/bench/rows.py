"""The rows of the table: what is measured, in which unit, and what design section 10 wants of it on two cores."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Value = float | str
"""A measure, or words where there is nothing to measure."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row; its key begins with the part of the bench that measures it. `{n}` is the number of pipelines."""

    key: str
    what: str
    unit: str
    target: str = ""
    compared: bool = True
    """Whether a ratio says something."""


ROWS = (
    Row("floor.popen", "floor: posix_spawn of one `sleep`", "ms"),
    Row("floor.fsync", "floor: append 4 KiB to a file, and fsync", "ms"),
    Row("alone.boot", "start-up, one defined, until it answers", "s", "< 0.7"),
    Row("alone.start", "start 1: request -> status says running", "ms", "< 10"),
    Row("alone.stop", "stop 1 (force): request -> status says stopped", "ms", "< 10"),
    Row("alone.seen", "kill -9 of the process -> status says so", "ms"),
    Row("alone.cpu", "supervisor's processor time for a start and a stop", "ms"),
    Row("alone.rss", "memory (RSS), none running", "MiB"),
    Row("among.boot", "start-up with {n} defined, none running", "s"),
    Row("among.start-all", "start {n} -> all running", "s", "< 5 (1,000)"),
    Row("among.start", "start 1 among {n} running", "ms", "< 10"),
    Row("among.stop", "stop 1 (force) among {n} running", "ms", "< 10"),
    Row("among.seen", "kill -9 -> status says so, among {n} running", "ms", "< 5"),
    Row("among.status-one", "status of one of {n}", "ms", "< 0.5"),
    Row("among.status-all", "status of all {n}", "ms", "< 15 (1,000)"),
    Row("among.idle", "idle with {n} running: share of a core", "%", "< 0.5"),
    Row("among.wakes", "... context switches per second", "/s"),
    Row("among.rss", "... memory (RSS)", "MiB", "< 80"),
    Row("among.stop-all", "stop {n} (force) -> all stopped", "s", "< 3 (1,000)"),
    Row("killed.kept", "kill -9 of the supervisor of {k}, start again: kept, one killed meanwhile", "", "{k1}", False),
    Row("killed.twice", "... running beside those that it knows (duplicates)", "", "0", False),
    Row("killed.left", "... left after a stop of all (orphans)", "", "0", False),
    Row("killed.obituary", "... what it knows of the one killed meanwhile", "", "SIGKILL", False),
    Row("own.spawned-p50", "reply to /start -> program runs, p50", "ms", "< 5"),
    Row("own.spawned-p99", "... p99", "ms", "< 20"),
    Row("own.ready", "process ready (http) -> Provisioned recorded", "ms", "< 10"),
    Row("own.death-p50", "process dies -> event visible, {n} running, p50", "ms", "< 5"),
    Row("own.death-p99", "... p99", "ms", "< 20"),
    Row("own.latest", "GET latest event, {c} keep-alive connections", "/s", "> 4,000"),
    Row("own.latest-p99", "... p99", "ms", "< 10"),
    Row("own.latest-cpu", "... daemon's processor time for one", "ms"),
    Row("own.unchanged", "GET with If-None-Match -> 304, {c} connections", "/s", "> 6,000"),
    Row("own.unchanged-cpu", "... daemon's processor time for one", "ms"),
    Row("own.pss", "PSS per pipeline beside the program", "MiB", "< 0.3"),
    Row("own.adopted", "kill -9, start again with {n} running -> READY", "s", "< 2"),
    Row("own.transitions", "durable transitions (row + event), {t} committers", "/s", "> 3,000"),
)


@dataclass
class Figures:
    """What was measured: of each row and program, one value a round. `tell` is called with each as it comes."""

    tell: Callable[[Row, str, Value], None] = lambda row, who, value: None
    only: Sequence[str] = ()
    """Beginnings of the keys that are wanted; none = all."""
    values: dict[tuple[str, str], list[Value]] = field(default_factory=dict)

    def wants(self, *keys: str) -> bool:
        """Tell whether one of the rows, or of the rows whose keys begin so, shall be measured."""
        begins = tuple(self.only)
        return not begins or any(row.key.startswith(begins) for row in ROWS for key in keys if row.key.startswith(key))

    def note(self, key: str, who: str, value: Value) -> None:
        """Add a round's figure, if it is wanted."""
        if self.wants(key):
            [row] = [row for row in ROWS if row.key == key]
            self.values.setdefault((key, who), []).append(value)
            self.tell(row, who, value)

    def of(self, row: Row, who: str) -> list[Value]:
        """The figures so far."""
        return self.values.get((row.key, who), [])

    def ratio(self, row: Row, who: str, other: str) -> float | None:
        """How many times the median of `other` that of `who` is; None where that says nothing."""
        mine, theirs = numbers(self.of(row, who)), numbers(self.of(row, other))
        if not row.compared or not mine or not theirs or statistics.median(theirs) == 0:
            return None
        return statistics.median(mine) / statistics.median(theirs)


def numbers(values: Sequence[Value]) -> list[float]:
    """Those of them that are measures."""
    return [value for value in values if not isinstance(value, str)]
