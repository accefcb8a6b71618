"""What the daemon tells of itself: its metrics, in a registry of its own, and how its log events look.

Called by the loop and the API (counters), by `wiring.py` (gauges computed when scraped) and at start
(`set_up_logging`). Label values are bounded and exist from the start; the series of a pipeline go with it. Must never
be asked by the core.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from typing import TextIO, cast

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from structlog.typing import EventDict, WrappedLogger

from penstock.model import (
    Pipeline,
    ProgramStatus,
    ResourcesDesired,
    ResourcesStatus,
    RuntimeStatus,
    StorageStatus,
)

TURN_RESULTS = ("done", "retried", "stale", "gone", "outage", "interrupted", "crashed")
DEPLOYMENT_STATUSES = (
    *(s.value for s in ResourcesStatus if s is not ResourcesStatus.PROVISIONED),
    *(s.value for s in RuntimeStatus),
)
"""Every combined status (contract.md section 1.2)."""

PROGRAM_STEPS = {
    (ProgramStatus.COMPILING_SQL, ProgramStatus.SQL_COMPILED): ("check", "passed"),
    (ProgramStatus.COMPILING_SQL, ProgramStatus.SQL_ERROR): ("check", "failed"),
    (ProgramStatus.COMPILING_SQL, ProgramStatus.SYSTEM_ERROR): ("check", "broke"),
    (ProgramStatus.COMPILING_RUST, ProgramStatus.SUCCESS): ("build", "passed"),
    (ProgramStatus.COMPILING_RUST, ProgramStatus.RUST_ERROR): ("build", "failed"),
    (ProgramStatus.COMPILING_RUST, ProgramStatus.SYSTEM_ERROR): ("build", "broke"),
}
"""The moves of a program that end a step: which step, and what it came to."""

MAX_PIPELINES = 1000
"""Per-pipeline series are left out beyond this many pipelines; the aggregates stay."""

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SLOW = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Metrics:
    """The daemon's counters and histograms; gauges are computed from `rows` and `gauges` when scraped."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._turns = Counter("penstock_reconcile", "Turns taken, by result.", ["result"], registry=self.registry)
        for result in TURN_RESULTS:
            self._turns.labels(result)
        self._turn_seconds = Histogram(
            "penstock_reconcile_seconds", "How long a turn took.", buckets=_FAST, registry=self.registry
        )
        self._moves = Counter(
            "penstock_transitions",
            "Recorded moves of the resources status.",
            ["from", "to"],
            registry=self.registry,
        )
        for source, target in (
            ("Stopped", "Provisioning"),
            ("Provisioning", "Provisioned"),
            ("Provisioning", "Stopping"),
            ("Provisioned", "Stopping"),
            ("Stopping", "Stopped"),
        ):
            self._moves.labels(source, target)
        self._faults = Counter("penstock_faults", "Deployments that ended with an error.", registry=self.registry)
        self._convergence = Histogram(
            "penstock_convergence_seconds",
            "From what a user asked for to the resources status that was wanted.",
            ["desired"],
            buckets=_SLOW,
            registry=self.registry,
        )
        for desired in ResourcesDesired:
            self._convergence.labels(desired.value)
        self._program_steps = Histogram(
            "penstock_program_step_seconds",
            "How long checks and builds of programs took.",
            ["step", "result"],
            buckets=_SLOW,
            registry=self.registry,
        )
        for step, result in PROGRAM_STEPS.values():
            self._program_steps.labels(step, result)
        self._requests = Histogram(
            "penstock_api_request_seconds",
            "How long API requests took, streams left out.",
            ["method", "route", "code"],
            buckets=_FAST,
            registry=self.registry,
        )
        self._version = version

    def turn_taken(self, result: str, seconds: float) -> None:
        """Count a turn; `result` is one of TURN_RESULTS."""
        self._turns.labels(result).inc()
        self._turn_seconds.observe(seconds)

    def row_moved(self, before: Pipeline, after: Pipeline, now: datetime) -> None:
        """Count what changed between two snapshots of a row."""
        if before.resources_status is after.resources_status:
            return
        self._moves.labels(before.resources_status.value, after.resources_status.value).inc()
        if after.resources_status.value == after.resources_desired.value:
            waited = (now - after.resources_desired_since).total_seconds()
            self._convergence.labels(after.resources_desired.value).observe(max(0.0, waited))
        if after.resources_status is ResourcesStatus.STOPPING and after.deployment_error is not None:
            self._faults.inc()

    def program_moved(self, before: ProgramStatus, after: ProgramStatus, seconds: float) -> None:
        """Observe a step of a program that ended after `seconds`; other moves are not counted."""
        ended = PROGRAM_STEPS.get((before, after))
        if ended is not None:
            self._program_steps.labels(*ended).observe(max(0.0, seconds))

    def request_served(self, method: str, route: str, code: int, seconds: float) -> None:
        """Count an API request; `route` is the template, never the path."""
        self._requests.labels(method, route, str(code)).observe(seconds)

    def watch(self, rows: Callable[[], Sequence[Pipeline]], gauges: Callable[[], dict[str, tuple[str, float]]]) -> None:
        """Compute figures at scrape time: `rows` are all pipelines, `gauges` maps a name to its help and value.

        A name that ends in ``_total`` is a counter's.
        """
        self.registry.register(_Pipelines(self._version, rows, gauges))

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition and its content type. Takes tens of ms with many pipelines: call it off the event loop."""
        encoder, content_type = choose_encoder(accept)
        return encoder(self.registry), content_type


class _Pipelines(Collector):
    def __init__(
        self,
        version: str,
        rows: Callable[[], Sequence[Pipeline]],
        gauges: Callable[[], dict[str, tuple[str, float]]],
    ) -> None:
        self._version = version
        self._rows = rows
        self._gauges = gauges

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        info = GaugeMetricFamily("penstock_build_info", "The running version.", labels=["version"])
        info.add_metric([self._version], 1.0)
        yield info
        for name, (text, value) in self._gauges().items():
            kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            yield kind(name, text, value=value)
        rows = self._rows()
        yield _counted(rows)
        yield _storage(rows)
        if len(rows) <= MAX_PIPELINES:
            yield from _each(rows)


def _counted(rows: Sequence[Pipeline]) -> Metric:
    family = GaugeMetricFamily(
        "penstock_pipelines", "Pipelines by status and desired status.", labels=["status", "desired"]
    )
    counts = {(s, d.value): 0 for s in DEPLOYMENT_STATUSES for d in ResourcesDesired}
    for row in rows:
        counts[row.deployment_status, row.resources_desired.value] += 1
    for (status, desired), count in counts.items():
        family.add_metric([status, desired], count)
    return family


def _storage(rows: Sequence[Pipeline]) -> Metric:
    family = GaugeMetricFamily("penstock_pipelines_storage", "Pipelines by storage status.", labels=["storage"])
    for storage in StorageStatus:
        family.add_metric([storage.value], sum(row.storage_status is storage for row in rows))
    return family


def _each(rows: Sequence[Pipeline]) -> Iterator[Metric]:
    labels = ["pipeline", "pipeline_name"]
    status = GaugeMetricFamily(
        "penstock_pipeline_status",
        "1 for the status that a pipeline has, 0 for all others.",
        labels=[*labels, "status"],
    )
    since = GaugeMetricFamily(
        "penstock_pipeline_status_since_timestamp_seconds", "Since when it has its resources status.", labels=labels
    )
    wanted = GaugeMetricFamily("penstock_pipeline_desired", "1 where a pipeline is wanted Provisioned.", labels=labels)
    error = GaugeMetricFamily("penstock_pipeline_has_error", "1 where deployment_error is set.", labels=labels)
    for row in rows:
        who = [row.id, row.spec.name]
        current = row.deployment_status
        for name in DEPLOYMENT_STATUSES:
            status.add_metric([*who, name], 1.0 if name == current else 0.0)
        since.add_metric(who, row.resources_status_since.timestamp())
        wanted.add_metric(who, 1.0 if row.resources_desired is ResourcesDesired.PROVISIONED else 0.0)
        error.add_metric(who, 0.0 if row.deployment_error is None else 1.0)
    yield from (status, since, wanted, error)


# --- log events -----------------------------------------------------------------------------------------------------


_TRACEBACKS = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)  # they hold programs, and what is secret in them
)


class _Unfailing:
    """A stream whose disk may be full, or whose reader gone: what cannot be written is lost, and no task for it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def set_up_logging(log_format: str, level: str, stream: TextIO = sys.stderr) -> None:
    """Set structlog up: `log_format` text, json, or auto (text on a terminal); `level` debug to error."""
    text = log_format == "text" or (log_format == "auto" and stream.isatty())
    renderer: Callable[[WrappedLogger, str, EventDict], str | bytes] = (
        structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback)
        if text
        else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="timestamp"),
            structlog.processors.StackInfoRenderer(),
            *([] if text else [_TRACEBACKS]),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _Unfailing(stream))),
        cache_logger_on_first_use=False,
    )
