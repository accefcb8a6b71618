"""The rows that only penstock has: what it promises beside its peers, measured on the same daemon."""

from __future__ import annotations

import os
import signal
import threading
import time
from datetime import datetime
from pathlib import Path

import anyio

from penstock import requests
from penstock.clock import SystemClock
from penstock.model import Author, Pipeline, PipelineId, ResourcesDesired, Spec
from penstock.stores.sqlite import SqliteStore, open_sqlite
from tests.bench.measuring import mebibytes, percentile, processor_seconds, timed, until
from tests.bench.peers.peer import Peer
from tests.bench.peers.penstock import Penstock
from tests.bench.rounds import Extent, temporary
from tests.bench.rows import Figures
from tests.bench.wire import Wire

PROGRAMS = Path(__file__).parents[1] / "programs"
CONNECTIONS = 4
COMMITTERS = 20
AMONG_MANY = ("own.latest", "own.unchanged", "own.pss", "own.death", "own.adopted")


def few(peer: Peer, figures: Figures, extent: Extent) -> None:
    """What is measured while nothing else runs."""
    assert isinstance(peer, Penstock)
    if figures.wants("own.spawned"):
        _spawned(peer, figures, extent.samples)
    if figures.wants("own.ready"):
        _ready(peer, figures, max(3, extent.samples // 2))


def many(peer: Peer, figures: Figures, extent: Extent) -> None:
    """What is measured while many run; afterwards they still, or again, do."""
    assert isinstance(peer, Penstock)
    if figures.wants("own.latest", "own.unchanged"):
        _reads(peer, figures, seconds=min(3.0, extent.idle_seconds))
    if figures.wants("own.pss"):
        _memory(peer, figures, extent.pipelines)
    if figures.wants("own.death"):
        _deaths(peer, figures, min(5 * extent.samples, extent.pipelines))
    if figures.wants("own.adopted"):
        peer.end(signal.SIGKILL)
        times: list[float] = []
        with timed(times):
            peer.boot()
        figures.note("own.adopted", peer.name, times[0])


def transitions(figures: Figures, seconds: float = 3.0) -> None:
    """The store alone, in this process: each commit is a row and its event."""
    if figures.wants("own.transitions"):
        with temporary() as home:
            figures.note("own.transitions", Penstock.name, anyio.run(_commit_all, home / "penstock.db", seconds))


async def _commit_all(path: Path, seconds: float) -> float:
    clock = SystemClock()
    async with open_sqlite(path, clock=clock) as store:
        rows: list[Pipeline] = []
        for number in range(COMMITTERS):
            spec = Spec(name=f"p{number}")
            row = requests.new_pipeline(PipelineId(clock.new_id()), spec, platform_version="1", now=clock.now())
            rows.append(await store.create(row))
        before = store.events_written
        began = time.perf_counter()
        async with anyio.create_task_group() as group:
            for row in rows:
                group.start_soon(_commit, store, clock, row, began + seconds)
        return (store.events_written - before) / (time.perf_counter() - began)


async def _commit(store: SqliteStore, clock: SystemClock, row: Pipeline, until_time: float) -> None:
    """A user's starts and stops: each waits until it is on disk, together with those of the others."""
    while time.perf_counter() < until_time:
        now = clock.now()
        if row.resources_desired is ResourcesDesired.PROVISIONED:
            after = requests.stop(row, force=True, grace_seconds=0, now=now)
        else:
            after = requests.start(row, requests.StartRequest(), now=now)
        assert isinstance(after, Pipeline)
        row = await store.commit(row, [after], by=Author.USER, cause="bench", now=now)


def _spawned(peer: Penstock, figures: Figures, samples: int) -> None:
    """The program itself says when it was born."""
    born = peer.home / "born"
    peer.create(["born"], f"sh -c 'echo > {born}; exec sleep 100000'")
    times: list[float] = []
    for _ in range(samples):
        born.unlink(missing_ok=True)
        peer.start("born")
        replied = time.clock_gettime(time.CLOCK_REALTIME)  # what files are stamped with
        until(lambda: peer.state("born") == "running", "start")
        until(born.exists, "birth")
        times.append(max(0.0, born.stat().st_mtime - replied))
        peer.stop("born")
        until(lambda: peer.state("born") == "stopped", "stop")
    figures.note("own.spawned-p50", peer.name, percentile(times) * 1000)
    figures.note("own.spawned-p99", peer.name, percentile(times, 99) * 1000)


def _ready(peer: Penstock, figures: Figures, samples: int) -> None:
    """From the port file's own stamp to the event's."""
    peer.create(["http"], (PROGRAMS / "http_contract.py").read_text(), toolchain="python", contract="http")
    times: list[float] = []
    for _ in range(samples):
        peer.start("http")
        until(lambda: peer.state("http") == "running", "start")
        [port] = (peer.daemon.state_dir / "pipelines").glob("*/deployments/*/**/port")
        events = peer.ok("GET", "/v0/pipelines/http/events")
        recorded = next(e["recorded_at"] for e in events if e["deployment_runtime_status"] == "Initializing")
        times.append(max(0.0, datetime.fromisoformat(recorded).timestamp() - port.stat().st_mtime))
        peer.stop("http")
        until(lambda: peer.state("http") == "stopped", "stop")
    figures.note("own.ready", peer.name, percentile(times) * 1000)


def _reads(peer: Penstock, figures: Figures, seconds: float) -> None:
    """Several clients at once, each on one connection and as fast as it can."""
    if figures.wants("own.latest"):
        used = processor_seconds(peer.pid)
        times = _hammer(peer, "/v0/pipelines/n1/events/latest", seconds, expected=200)
        figures.note("own.latest-cpu", peer.name, (processor_seconds(peer.pid) - used) / len(times) * 1000)
        figures.note("own.latest", peer.name, len(times) / seconds)
        figures.note("own.latest-p99", peer.name, percentile(times, 99) * 1000)
    if figures.wants("own.unchanged"):
        peer.wire.ask("GET", "/v0/pipelines/n1")
        known = peer.wire.etag
        assert known is not None
        used = processor_seconds(peer.pid)
        times = _hammer(peer, "/v0/pipelines/n1", seconds, known=known, expected=304)
        figures.note("own.unchanged-cpu", peer.name, (processor_seconds(peer.pid) - used) / len(times) * 1000)
        figures.note("own.unchanged", peer.name, len(times) / seconds)


def _hammer(peer: Penstock, path: str, seconds: float, *, expected: int, known: str | None = None) -> list[float]:
    times: list[list[float]] = [[] for _ in range(CONNECTIONS)]
    refused: list[int] = []

    def ask(mine: list[float]) -> None:
        wire = Wire(peer.daemon.socket)
        until_time = time.perf_counter() + seconds
        while (began := time.perf_counter()) < until_time:
            status, _ = wire.ask("GET", path, known=known)
            if status != expected:
                refused.append(status)
                break
            mine.append(time.perf_counter() - began)
        wire.close()

    threads = [threading.Thread(target=ask, args=(mine,)) for mine in times]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not refused, (path, refused)
    return [one for mine in times for one in mine]


def _memory(peer: Penstock, figures: Figures, pipelines: int) -> None:
    programs = set(peer.processes())
    beside = [pid for pid in peer.daemon.processes() if pid not in programs]
    sample = [mebibytes(pid, "Pss") for pid in beside[:50]]
    figures.note("own.pss", peer.name, sum(sample) / max(1, len(sample)) * len(beside) / pipelines)


def _deaths(peer: Penstock, figures: Figures, samples: int) -> None:
    """From kill -9 of a process to its event over the API, with all others running."""
    times: list[float] = []
    names = [f"n{number}" for number in range(samples)]
    for name in names:
        process = peer.process(name)
        assert process is not None
        path = f"/v0/pipelines/{name}/events/latest"
        with timed(times):
            os.kill(process, signal.SIGKILL)
            until(lambda: peer.ok("GET", path)["deployment_has_error"], "death")  # noqa: B023
        until(lambda: peer.state(name) == "stopped", "rest")  # noqa: B023
    for name in names:
        peer.start(name)
    until(lambda: all(peer.state(name) == "running" for name in names), "all running again")
    figures.note("own.death-p50", peer.name, percentile(times) * 1000)
    figures.note("own.death-p99", peer.name, percentile(times, 99) * 1000)
