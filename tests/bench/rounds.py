"""The rows that all programs share, each measured by the same lines: one part of a round for one program."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.measuring import alive, context_switches, mebibytes, percentile, processor_seconds, timed, until
from tests.bench.peers.peer import Peer, undisturbed
from tests.bench.rows import Figures

ONE = "one"
SURVIVORS = [f"n{number}" for number in range(20)]
VICTIM = SURVIVORS[0]


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured."""

    pipelines: int
    rounds: int = 3
    samples: int = 20
    """Of what is done to one, in each round."""
    idle_seconds: float = 10.0


@contextmanager
def opened(kind: Callable[..., Peer], services: list[str], *, autostart: bool = False) -> Generator[Peer]:
    """A program that does not run yet, in a directory of its own; all that it started is killed in the end."""
    with temporary() as home:
        peer = kind(home, services, autostart=autostart)
        try:
            peer.prepare()
            yield peer
        finally:
            peer.close()


@contextmanager
def temporary() -> Generator[Path]:
    """A directory that is gone afterwards; its path is short, since those of sockets must be."""
    home = Path(tempfile.mkdtemp(prefix="penstock-bench-"))
    try:
        yield home
    finally:
        with undisturbed():
            shutil.rmtree(home, ignore_errors=True)


def floors(figures: Figures, extent: Extent) -> None:
    """What the machine itself takes at the moment for what every start needs."""
    if figures.wants("floor.popen"):
        times: list[float] = []
        for _ in range(extent.samples):
            with timed(times):
                child = os.posix_spawnp("sleep", ["sleep", "60"], os.environ)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        figures.note("floor.popen", "machine", percentile(times) * 1000)
    if figures.wants("floor.fsync"):
        times = []
        with temporary() as home, (home / "file").open("wb", buffering=0) as file:
            for _ in range(extent.samples):
                with timed(times):
                    file.write(bytes(4096))
                    os.fsync(file)
        figures.note("floor.fsync", "machine", percentile(times) * 1000)


def alone(
    kind: Callable[..., Peer], figures: Figures, extent: Extent, then: Callable[[Peer], None] = lambda peer: None
) -> None:
    """One service and nothing else; `then` is called at the end."""
    with opened(kind, [ONE]) as peer:
        boots: list[float] = []
        for _ in range(min(3, extent.samples)):
            peer.end(signal.SIGTERM)
            with timed(boots):
                peer.boot()
        figures.note("alone.boot", peer.name, percentile(boots))
        figures.note("alone.rss", peer.name, mebibytes(peer.pid, "Rss"))
        if figures.wants("alone.start", "alone.stop", "alone.seen"):
            _of_one("alone", peer, figures, extent.samples)
        if figures.wants("alone.cpu"):
            _processor_time(peer, figures)
        then(peer)


def among(
    kind: Callable[..., Peer], figures: Figures, extent: Extent, then: Callable[[Peer], None] = lambda peer: None
) -> None:
    """One among many others that run. `then` is called while they do."""
    with opened(kind, [*(f"n{number}" for number in range(extent.pipelines)), ONE]) as peer:
        times: list[float] = []
        with timed(times):
            peer.boot()
        figures.note("among.boot", peer.name, times.pop())
        with timed(times):
            peer.start_all()
            _until_all(peer, "running")
        figures.note("among.start-all", peer.name, times.pop())
        if figures.wants("among.start", "among.stop", "among.seen"):
            peer.stop(ONE)
            until(lambda: peer.state(ONE) == "stopped", "stop")
            _of_one("among", peer, figures, extent.samples)
        _statuses(peer, figures)
        if figures.wants("among.idle", "among.wakes", "among.rss"):
            _idle(peer, figures, extent.idle_seconds)
        then(peer)
        if figures.wants("among.stop-all"):
            with timed(times):
                peer.stop_all()
                _until_all(peer, "stopped")
            figures.note("among.stop-all", peer.name, times.pop())


def killed(kind: type[Peer], figures: Figures) -> None:
    """The supervisor is killed, one of its services too, and the supervisor is started again."""
    with opened(kind, SURVIVORS, autostart=True) as peer:
        peer.boot()
        if not kind.autostarts:
            peer.start_all()
        _until_all(peer, "running")
        before = {service: peer.process(service) for service in SURVIVORS}
        peer.end(signal.SIGKILL)
        victim = before[VICTIM]
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        until(lambda: not alive(victim), "death")
        peer.boot()
        if kind.autostarts:
            _until_all(peer, "running")
        else:
            until(lambda: "changing" not in peer.states().values(), "rest", pause_seconds=0.05)
        figures.note("killed.obituary", peer.name, peer.obituary(VICTIM))
        known = {service: peer.process(service) for service in SURVIVORS}
        figures.note("killed.kept", peer.name, sum(known[service] == before[service] for service in SURVIVORS))
        figures.note("killed.twice", peer.name, len(set(peer.processes()) - set(known.values())))
        peer.stop_all()
        _until_all(peer, "stopped")
        figures.note("killed.left", peer.name, len(peer.processes()))


def _of_one(part: str, peer: Peer, figures: Figures, samples: int) -> None:
    """Start, stop and sudden death of one, which is stopped before and afterwards."""
    starts: list[float] = []
    stops: list[float] = []
    deaths: list[float] = []
    for _ in range(samples):
        with timed(starts):
            peer.start(ONE)
            until(lambda: peer.state(ONE) == "running", "start")
        with timed(stops):
            peer.stop(ONE)
            until(lambda: peer.state(ONE) == "stopped", "stop")
    figures.note(f"{part}.start", peer.name, percentile(starts) * 1000)
    figures.note(f"{part}.stop", peer.name, percentile(stops) * 1000)
    if not figures.wants(f"{part}.seen"):
        return
    for _ in range(samples):
        peer.start(ONE)
        until(lambda: peer.state(ONE) == "running", "start")
        process = peer.process(ONE)
        assert process is not None
        with timed(deaths):
            os.kill(process, signal.SIGKILL)
            until(lambda: peer.state(ONE) != "running", "death")
        until(lambda: peer.state(ONE) == "stopped", "rest")
    figures.note(f"{part}.seen", peer.name, percentile(deaths) * 1000)


def _processor_time(peer: Peer, figures: Figures) -> None:
    """Asks so seldom that the answers cost next to nothing."""
    cycles = 10
    used = processor_seconds(peer.pid)
    for _ in range(cycles):
        peer.start(ONE)
        until(lambda: peer.state(ONE) == "running", "start", pause_seconds=0.05)
        peer.stop(ONE)
        until(lambda: peer.state(ONE) == "stopped", "stop", pause_seconds=0.05)
    figures.note("alone.cpu", peer.name, (processor_seconds(peer.pid) - used) / cycles * 1000)


def _statuses(peer: Peer, figures: Figures) -> None:
    if figures.wants("among.status-one"):
        times: list[float] = []
        for _ in range(200):
            with timed(times):
                peer.state("n1")
        figures.note("among.status-one", peer.name, percentile(times) * 1000)
    if figures.wants("among.status-all"):
        times = []
        for _ in range(10):
            with timed(times):
                peer.states()
        figures.note("among.status-all", peer.name, percentile(times) * 1000)


def _idle(peer: Peer, figures: Figures, seconds: float) -> None:
    time.sleep(min(3.0, seconds))  # what was to be done after the starts is done
    began, used, switches = time.perf_counter(), processor_seconds(peer.pid), context_switches(peer.pid)
    time.sleep(seconds)
    passed = time.perf_counter() - began
    figures.note("among.idle", peer.name, (processor_seconds(peer.pid) - used) / passed * 100)
    figures.note("among.wakes", peer.name, (context_switches(peer.pid) - switches) / passed)
    figures.note("among.rss", peer.name, mebibytes(peer.pid, "Rss"))


def _until_all(peer: Peer, state: str) -> None:
    """The last one's state first, and only then that of all: to ask for all may cost a program much."""
    until(lambda: peer.state(peer.services[-1]) == state, f"all {state}")
    until(lambda: set(peer.states().values()) == {state}, f"all {state}", pause_seconds=0.01)
