"""Counters and gauges, and how they are shown: in Prometheus' text format and as JSON (conformance.md RT2).

Used by `pipeline.py`; the counters are its author's. Every metric is listed from the moment it is made, at zero.
"""

from __future__ import annotations

import os
import threading
import time

TYPE_CHECKING = False  # as typing's, whose import would take a quarter of the time that ours takes
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeVar

    M = TypeVar("M", bound="Metric")

Labels = tuple[tuple[str, str], ...]


class Metric:
    """A number, or one for each combination of labels. Safe to use from any thread."""

    kind = ""

    def __init__(self, name: str, text: str) -> None:
        if not name.isascii() or not name.isidentifier():
            raise ValueError(f"{name!r} cannot name a metric; use letters, digits and underscores")
        self.name = name
        self.text = text
        self._values: dict[Labels, float] = {(): 0}
        self._lock = threading.Lock()

    @property
    def value(self) -> float:
        """The sum over all labels."""
        with self._lock:
            return sum(self._values.values())

    def samples(self) -> list[tuple[Labels, float]]:
        """Each combination of labels that was used, and its number."""
        with self._lock:
            return list(self._values.items())

    def _key(self, labels: dict[str, str]) -> Labels:
        """Call with the lock held. The number without labels goes when the first one with labels comes."""
        if self._values.get(()) == 0:
            del self._values[()]
        return tuple(sorted((name, str(value)) for name, value in labels.items()))


class Counter(Metric):
    """A number that only grows while the process lives."""

    kind = "counter"

    def add(self, amount: float = 1, **labels: str) -> None:
        """Count `amount` more. Labels with many different values make many numbers: name kinds, not records."""
        if amount < 0:
            raise ValueError(f"{self.name} is a counter, it cannot shrink by {-amount}; use a gauge")
        with self._lock:
            key = self._key(labels) if labels else ()
            self._values[key] = self._values.get(key, 0) + amount


class Gauge(Metric):
    """A number that goes up and down."""

    kind = "gauge"

    def set(self, value: float, **labels: str) -> None:
        """Show `value` from now on."""
        with self._lock:
            self._values[self._key(labels) if labels else ()] = value


class Metrics:
    """All metrics of the process: its author's, and those that every process has."""

    def __init__(self, labels: dict[str, str]) -> None:
        self._labels = labels
        """On every sample: whose it is."""
        self._metrics: dict[str, Metric] = {}
        self._lock = threading.Lock()
        self.records = self.counter("records_processed_total", "Records processed, those before a restore included.")
        self.errors = self.counter("errors_total", "Errors that the pipeline went on after.")
        self.checkpoints = self.counter("checkpoints_total", "Checkpoints written.")
        self.failed_checkpoints = self.counter("checkpoint_failures_total", "Checkpoints that could not be written.")
        self.checkpoint_seconds = self.gauge("checkpoint_duration_seconds", "How long the last checkpoint took.")
        self.checkpoint_bytes = self.gauge("checkpoint_size_bytes", "How large the last checkpoint is.")

    def counter(self, name: str, text: str) -> Counter:
        """The counter of that name, made now if there is none; its name ends in ``_total``."""
        return self._metric(name if name.endswith("_total") else f"{name}_total", text, Counter)

    def gauge(self, name: str, text: str) -> Gauge:
        """The gauge of that name, made now if there is none."""
        return self._metric(name, text, Gauge)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        lines: list[str] = []
        for name, kind, text, samples in self._families():
            lines += [f"# HELP {name} {_escaped(text)}", f"# TYPE {name} {kind}"]
            for labels, value in samples:
                named = ",".join(f'{key}="{_escaped(word, quoted=True)}"' for key, word in labels.items())
                lines.append(f"{name}{{{named}}} {value}" if named else f"{name} {value}")
        return ("\n".join(lines) + "\n").encode()

    def listed(self) -> list[dict[str, object]]:
        """As JSON."""
        return [
            {"key": name, "type": kind, "description": text, "labels": labels, "value": value}
            for name, kind, text, samples in self._families()
            for labels, value in samples
        ]

    def _metric(self, name: str, text: str, kind: type[M]) -> M:
        with self._lock:
            made = self._metrics.setdefault(name, kind(name, text))
        if not isinstance(made, kind):
            raise ValueError(f"{name} is a {made.kind} already")
        return made

    def _families(self) -> Iterator[tuple[str, str, str, list[tuple[dict[str, str], float]]]]:
        with self._lock:
            metrics = list(self._metrics.values())
        for metric in metrics:
            yield (
                metric.name,
                metric.kind,
                metric.text,
                [({**self._labels, **dict(labels)}, value) for labels, value in metric.samples()],
            )
        for name, kind, text, value in _of_the_process():
            yield name, kind, text, [(self._labels, value)]


def rss_bytes() -> int:
    """Resident memory of this process."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def started_at() -> float:
    """When this process began, in seconds since the epoch."""
    with open("/proc/self/stat", "rb") as file:
        ticks = int(file.read().rpartition(b")")[2].split()[19])
    since_boot = ticks / os.sysconf("SC_CLK_TCK")
    return time.time_ns() / 1e9 - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot)


_STARTED_AT = started_at()


def uptime_seconds() -> float:
    """How long this process has run."""
    return max(0.0, time.time_ns() / 1e9 - _STARTED_AT)


def _of_the_process() -> list[tuple[str, str, str, float]]:
    return [
        ("process_cpu_seconds_total", "counter", "CPU time, in seconds.", time.process_time()),
        ("process_resident_memory_bytes", "gauge", "Resident memory, in bytes.", rss_bytes()),
        ("process_open_fds", "gauge", "Open files.", len(os.listdir("/proc/self/fd")) - 1),
        ("process_threads", "gauge", "Threads.", len(os.listdir("/proc/self/task"))),
        ("process_start_time_seconds", "gauge", "When it began, since the epoch.", _STARTED_AT),
    ]


def _escaped(text: str, *, quoted: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quoted else text
