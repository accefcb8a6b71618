"""Measures an installed daemon and prints the table of design section 10: ``python -m tests.bench [--pipelines 1000]``.

Figures are printed, never asserted: machines are noisy. Each row says what it counts; the peers' figures stand in the
design. Pipelines are `sleep`, contract `process`, unless a row says otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.e2e.daemon import Daemon

from .wire import Wire

PROGRAMS = Path(__file__).parents[1] / "programs"
COMMAND = {"toolchain": "command"}
SLEEP = "sleep 100000"


class Bench:
    """One daemon, and the rows measured on it so far."""

    def __init__(self, home: Path, pipelines: int) -> None:
        self.daemon = Daemon(home)
        self.pipelines = pipelines
        self.rows: list[tuple[str, str, str]] = []
        self.wire: Wire | None = None

    def row(self, what: str, target: str, figure: str) -> None:
        """Note, and show at once, one figure."""
        self.rows.append((what, target, figure))
        print(f"{what}: {figure} (target {target})", flush=True)

    def connect(self) -> None:
        """A fresh connection, after a daemon's restart."""
        self.hang_up()
        self.wire = Wire(self.daemon.socket)

    def hang_up(self) -> None:
        """Close the connection, if there is one."""
        if self.wire is not None:
            self.wire.close()
            self.wire = None

    def ok(self, method: str, path: str, body: Any = None) -> Any:
        """A request that must be accepted."""
        status, data = self.raw(method, path, body)
        assert status < 400, (method, path, status, data[:500])
        return json.loads(data) if data else None

    def raw(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """A request, undecoded."""
        assert self.wire is not None
        return self.wire.ask(method, path, body)

    def until(self, name: str, status: str, key: str = "deployment_status") -> None:
        """Wait, asking every millisecond, as the peers were asked: without a pause it would be kept busy answering."""
        while self.ok("GET", f"/v0/pipelines/{name}?selector=status")[key] != status:
            time.sleep(0.001)

    def until_all(self, status: str, key: str = "deployment_status", prefix: str = "n") -> None:
        """Wait until all of the many have the status, asking for the list every few milliseconds."""
        while True:
            rows = self.ok("GET", "/v0/pipelines?selector=status")
            if all(row[key] == status for row in rows if row["name"].startswith(prefix)):
                return
            time.sleep(0.02)

    # --- one pipeline ------------------------------------------------------------------------------------------------

    def empty_start(self) -> None:
        times: list[float] = []
        for _ in range(5):
            with timed(times):
                self.daemon.start()
            self.daemon.terminate()
        self.row("start-up to READY, empty", "< 0.7 s", f"{statistics.median(times):.2f} s")
        self.daemon.start()
        self.connect()

    def one(self) -> None:
        body = {"name": "one", "program_code": SLEEP, "program_config": COMMAND}
        self.ok("POST", "/v0/pipelines", body)
        self.until("one", "Success", "program_status")
        starts: list[float] = []
        stops: list[float] = []
        for _ in range(30):
            with timed(starts):
                self.ok("POST", "/v0/pipelines/one/start")
                self.until("one", "Running")
            time.sleep(0.02)
            with timed(stops):
                self.ok("POST", "/v0/pipelines/one/stop?force=true")
                self.until("one", "Stopped")
        self.row("start of 1: request -> status says Running, p50", "< 10 ms", ms(starts))
        self.row("stop of 1 (force), p50", "< 10 ms", ms(stops))

    def spawned(self) -> None:
        """The program itself says when it was born."""
        born = self.daemon.home / "born"
        program = f"sh -c 'echo > {born}; exec sleep 100000'"
        self.ok("POST", "/v0/pipelines", {"name": "born", "program_code": program, "program_config": COMMAND})
        self.until("born", "Success", "program_status")
        times: list[float] = []
        for _ in range(30):
            born.unlink(missing_ok=True)
            self.ok("POST", "/v0/pipelines/born/start")
            replied = time.clock_gettime(time.CLOCK_REALTIME)  # what files are stamped with
            self.until("born", "Running")
            while not born.exists():
                pass
            times.append(max(0.0, born.stat().st_mtime - replied))
            self.ok("POST", "/v0/pipelines/born/stop?force=true")
            self.until("born", "Stopped")
        self.row("reply to /start -> program runs, p50 / p99", "< 5 / 20 ms", f"{ms(times)} / {ms(times, 99)}")

    def http_ready(self) -> None:
        """From the port file's own stamp to the event's."""
        code = (PROGRAMS / "http_contract.py").read_text()
        config = {"toolchain": "python", "contract": "http"}
        self.ok("POST", "/v0/pipelines", {"name": "http", "program_code": code, "program_config": config})
        self.until("http", "Success", "program_status")
        times: list[float] = []
        for _ in range(10):
            self.ok("POST", "/v0/pipelines/http/start")
            self.until("http", "Running")
            [port] = (self.daemon.state_dir / "pipelines").glob("*/deployments/*/**/port")
            written = port.stat().st_mtime
            for event in self.ok("GET", "/v0/pipelines/http/events"):
                if event["deployment_runtime_status"] == "Initializing":
                    times.append(max(0.0, stamp(event["recorded_at"]) - written))
                    break
            self.ok("POST", "/v0/pipelines/http/stop?force=true")
            self.until("http", "Stopped")
        self.row("process ready (http) -> Provisioned recorded, p50", "< 10 ms", ms(times))

    # --- many --------------------------------------------------------------------------------------------------------

    def many(self) -> None:
        names = [f"n{index}" for index in range(self.pipelines)]
        began = time.perf_counter()
        for name in names:
            self.ok("POST", "/v0/pipelines", {"name": name, "program_code": SLEEP, "program_config": COMMAND})
        self.until_all("Success", "program_status")
        self.row(f"create and build {len(names)}", "-", f"{time.perf_counter() - began:.2f} s")
        times: list[float] = []
        with timed(times):
            for name in names:
                self.ok("POST", f"/v0/pipelines/{name}/start")
            self.until_all("Running")
        self.row(f"{len(names)} by {len(names)} requests -> all running", "< 5 s (1,000)", f"{times[0]:.2f} s")

    def deaths(self) -> None:
        """From kill -9 of a process to its event over the API, with all others running."""
        times: list[float] = []
        for index in range(min(100, self.pipelines)):
            name = f"n{index}"
            pid = self.ok("GET", f"/v0/pipelines/{name}")["deployment_resources_status_details"]["process"]
            began = time.perf_counter()
            os.kill(pid, signal.SIGKILL)
            while not self.ok("GET", f"/v0/pipelines/{name}/events/latest")["deployment_has_error"]:
                time.sleep(0.001)
            times.append(time.perf_counter() - began)
            self.until(name, "Stopped")
        for index in range(min(100, self.pipelines)):
            self.ok("POST", f"/v0/pipelines/n{index}/start")
        self.until_all("Running")
        what = f"process dies -> event visible, {self.pipelines} running, p50 / p99"
        self.row(what, "< 5 / 20 ms", f"{ms(times)} / {ms(times, 99)}")

    def reads(self) -> None:
        lists: list[float] = []
        ones: list[float] = []
        for _ in range(30):
            with timed(lists):
                self.raw("GET", "/v0/pipelines?selector=status")
        for _ in range(300):
            with timed(ones):
                self.raw("GET", "/v0/pipelines/n1?selector=status")
        self.row(f"status of all {self.pipelines} / of one, p50", "< 15 / 0.5 ms", f"{ms(lists)} / {ms(ones)}")

    def latest_event(self) -> None:
        """Four keep-alive connections at once."""
        seconds, connections = 3.0, 4
        times: list[list[float]] = [[] for _ in range(connections)]

        def hammer(mine: list[float]) -> None:
            wire = Wire(self.daemon.socket)
            until = time.perf_counter() + seconds
            while (began := time.perf_counter()) < until:
                wire.ask("GET", "/v0/pipelines/n1/events/latest")
                mine.append(time.perf_counter() - began)
            wire.close()

        threads = [threading.Thread(target=hammer, args=(mine,)) for mine in times]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        together = [one for mine in times for one in mine]
        figure = f"{len(together) / seconds:,.0f}/s, p99 {ms(together, 99)}"
        self.row("GET latest event, 4 keep-alive connections", "> 4,000/s, p99 < 10 ms", figure)

    def idle(self) -> None:
        seconds = 20.0
        time.sleep(3)
        pid = self.daemon.pid
        ticks, switches = processor_ticks(pid), context_switches(pid)
        time.sleep(seconds)
        used = (processor_ticks(pid) - ticks) / os.sysconf("SC_CLK_TCK") / seconds * 100
        self.row(f"{self.pipelines} running, idle: daemon's share of a core", "< 0.5 %", f"{used:.2f} %")
        per_second = (context_switches(pid) - switches) / seconds
        self.row("... context switches", "-", f"{per_second:.1f}/s")
        self.row("... daemon's memory (RSS)", "< 80 MB", f"{memory(pid, 'Rss') / 1024:.0f} MB")
        recorders = [p for p in self.daemon.processes() if Path(f"/proc/{p}/comm").read_text().strip() != "sleep"]
        sample = [memory(p, "Pss") for p in recorders[:50]]
        beside = sum(sample) / len(sample) * len(recorders) / self.pipelines
        self.row("... PSS per pipeline beside the program", "< 0.3 MB", f"{beside / 1024:.2f} MB")

    def restart(self) -> None:
        times: list[float] = []
        for _ in range(3):
            self.daemon.kill()
            with timed(times):
                self.daemon.start()
        self.connect()
        figure = f"{statistics.median(times):.2f} s"
        self.row(f"restart with {self.pipelines} running -> all adopted, READY", "< 2 s", figure)

    def stop_many(self) -> None:
        times: list[float] = []
        with timed(times):
            for index in range(self.pipelines):
                self.ok("POST", f"/v0/pipelines/n{index}/stop?force=true")
            self.until_all("Stopped")
        self.row(f"stop of {self.pipelines} (force)", "< 3 s (1,000)", f"{times[0]:.2f} s")


@contextmanager
def timed(into: list[float]) -> Iterator[None]:
    """Append how long the block took, in seconds."""
    began = time.perf_counter()
    yield
    into.append(time.perf_counter() - began)


def ms(times: list[float], percentile: int = 50) -> str:
    """A percentile in milliseconds."""
    ordered = sorted(times)
    return f"{1000 * ordered[min(len(ordered) - 1, len(ordered) * percentile // 100)]:.2f} ms"


def stamp(text: str) -> float:
    """Seconds since the epoch of an API timestamp."""
    return datetime.fromisoformat(text).timestamp()


def processor_ticks(pid: int) -> int:
    """Processor time so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def context_switches(pid: int) -> int:
    """Context switches of all threads so far."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += sum(int(line.split()[1]) for line in (task / "status").read_text().splitlines() if "ctxt" in line)
    return total


def memory(pid: int, key: str) -> int:
    """A figure of smaps_rollup, in KiB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    return 0


def run(pipelines: int) -> list[tuple[str, str, str]]:
    """Measure everything on one daemon; leaves nothing behind."""
    home = Path(tempfile.mkdtemp(prefix="penstock-bench-"))
    bench = Bench(home, pipelines)
    steps: list[Callable[[], None]] = [
        bench.empty_start,
        bench.one,
        bench.spawned,
        bench.http_ready,
        bench.many,
        bench.reads,
        bench.latest_event,
        bench.idle,
        bench.deaths,
        bench.restart,
        bench.stop_many,
    ]
    try:
        for step in steps:
            step()
    finally:
        bench.hang_up()
        bench.daemon.close()
        shutil.rmtree(home, ignore_errors=True)
    return bench.rows


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(prog="python -m tests.bench")
    options.add_argument("--pipelines", type=int, default=1000)
    rows = run(options.parse_args().pipelines)
    table = Table("what", "target", "measured")
    for row in rows:
        table.add_row(*row)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
