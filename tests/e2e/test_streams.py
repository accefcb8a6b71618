"""A real stream engine over real data, through every crash, suspension and restore: no record lost or doubled.

The programs are scripts with inline dependencies (`tests/programs/stream_*.py`): bytewax, an engine of its own, and a
file of 28,000 airports that comes in a package. What they come to in the end is compared with plain Python's answer.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .daemon import Daemon, Json, alive

PROGRAMS = Path(__file__).parents[1] / "programs"
PACKAGES = ("bytewax>=0.21,<0.22", "airportsdata")
NAME = "airports"

pytestmark = pytest.mark.timeout(150)  # on a loaded machine, with the download; alone each takes some seconds


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages, downloaded once."""
    directory = tmp_path_factory.mktemp("wheels")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--retries", "1"]
    command = [*pip, "download", "--quiet", "--only-binary", ":all:", "--dest", str(directory), *PACKAGES]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if ran.returncode:
        no = pytest.fail if os.environ.get("PENSTOCK_TEST_REQUIRE_ALL") else pytest.skip
        last = ran.stderr.strip().splitlines()[-1:]
        no(f"{' and '.join(PACKAGES)} cannot be downloaded: {' '.join(last)}")
    return directory


class Stream:
    """A pipeline over the airports, and how far it may read."""

    def __init__(self, daemon: Daemon, wheels: Path) -> None:
        self.daemon = daemon
        self._gate = daemon.home / "gate"
        self._packages = {
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(wheels),
            "UV_NO_INDEX": "1",
            "UV_FIND_LINKS": str(wheels),
        }
        self.start_daemon()

    def start_daemon(self) -> None:
        self.daemon.start(env=self._packages)

    def create(self, program: str, contract: str) -> None:
        """Build it, and find its data."""
        self.daemon.create(
            NAME,
            (PROGRAMS / program).read_text("utf-8"),
            wait=False,
            program_config={"contract": contract},
            runtime_config={"env": {"GATE": str(self._gate)}},
        )
        over = ("Success", "RustError", "SystemError", "SqlError")
        row = self.daemon.until(NAME, lambda p: p["program_status"] in over, within_seconds=90)
        assert row["program_status"] == "Success", self.daemon.ask("GET", f"/v0/pipelines/{NAME}").body["program_error"]
        [data] = (self.daemon.state_dir / "environments").glob(
            "*/lib/python3.*/site-packages/airportsdata/airports.csv"
        )
        self.data = data
        self.storage = self.daemon.state_dir / "pipelines" / row["id"] / "storage"

    def airports(self) -> Iterator[tuple[str, int]]:
        """Country and height of each, as the file has them."""
        with self.data.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                yield row["country"], round(float(row["elevation"]))

    def allow(self, part: float) -> None:
        """Let it read that part of the file."""
        aside = self._gate.with_suffix(".new")
        aside.write_text(str(int(self.data.stat().st_size * part) + 1))
        aside.replace(self._gate)

    def until(self, holds: Callable[[], bool]) -> None:
        self.daemon.until(NAME, lambda _: holds(), within_seconds=30)

    def until_status(self, status: str) -> Json:
        return self.daemon.until(NAME, lambda p: p["deployment_status"] == status, within_seconds=30)

    def crash(self) -> None:
        """kill -9 the program; the daemon says so."""
        os.kill(self.daemon.process(NAME), signal.SIGKILL)
        error = self.until_status("Stopped")["deployment_error"]
        assert error["error_code"] == "PipelineProcessExited"
        assert error["details"]["signal_name"] == "SIGKILL"

    def crash_unseen(self) -> None:
        """kill -9 the program while no daemon runs; the next one knows."""
        pid = self.daemon.process(NAME)
        self.daemon.kill()
        os.kill(pid, signal.SIGKILL)
        self.start_daemon()
        error = self.until_status("Stopped")["deployment_error"]
        assert error["error_code"] == "PipelineProcessExited"
        assert error["details"]["signal_name"] == "SIGKILL"

    def lose_daemon(self) -> None:
        """kill -9 the daemon; the program does not notice."""
        pid = self.daemon.process(NAME)
        self.daemon.kill()
        assert alive(pid)
        self.start_daemon()
        assert self.daemon.process(NAME) == pid
        assert self.daemon.pipeline(NAME)["deployment_status"] == "Running"

    def suspend(self) -> Json:
        row = self.daemon.stop_pipeline(NAME, force=False)
        assert row["deployment_error"] is None
        return row

    def checkpoint(self) -> None:
        """Have it take a checkpoint now, and wait until it is on disk."""
        details = self.daemon.ask("GET", f"/v0/pipelines/{NAME}").body["deployment_resources_status_details"]
        process = "http://127.0.0.1:" + (Path(details["working_dir"]) / "port").read_text().strip()

        def ask(method: str, path: str) -> Json:
            with urllib.request.urlopen(urllib.request.Request(process + path, method=method), timeout=10) as reply:
                return json.load(reply)

        number = ask("POST", "/checkpoint")["checkpoint_sequence_number"]
        self.until(lambda: (ask("GET", "/checkpoint_status")["success"] or 0) >= number)

    def starts(self) -> list[int]:
        """The byte from which each of its lives has read."""
        log = self.daemon.ask("GET", f"/v0/pipelines/{NAME}/logs?follow=false").body
        return [int(line.rpartition(" ")[2]) for line in log.splitlines() if "reads from byte " in line]


@pytest.fixture
def stream(make_daemon: Callable[..., Daemon], wheels: Path) -> Stream:
    return Stream(make_daemon(), wheels)


def moved(daemon: Daemon) -> list[tuple[str, str | None]]:
    """Each status of the resources that was recorded, and the code of the error that stood beside it."""
    told: list[tuple[str, str | None]] = []
    for event in daemon.events(NAME):
        error = event["deployment_error"]
        one = (event["deployment_resources_status"], error and error["error_code"])
        if not told or told[-1] != one:
            told.append(one)
    return told


RUN: list[tuple[str, str | None]] = [("Provisioning", None), ("Provisioned", None)]
ENDED: list[tuple[str, str | None]] = [("Stopping", None), ("Stopped", None)]
CRASHED: list[tuple[str, str | None]] = [
    ("Stopping", "PipelineProcessExited"),
    ("Stopped", "PipelineProcessExited"),
    ("Stopped", None),  # the next start dismisses the error
]


def test_an_engine_with_a_recovery_store_of_its_own(stream: Stream) -> None:
    stream.create("stream_recovery.py", "process")
    expected: list[str] = []
    sums: dict[str, tuple[int, int]] = {}
    for country, height in stream.airports():
        count, total = sums.get(country, (0, 0))
        sums[country] = count + 1, total + height
        expected.append(f"{country} {count + 1} {total + height}")
    daemon, output, every = stream.daemon, stream.storage / "airports.txt", len(expected)

    def written() -> int:
        return output.read_bytes().count(b"\n") if output.exists() else 0

    def until_written(part: float) -> None:
        stream.until(lambda: written() >= part * every)

    stream.allow(0.2)
    daemon.start_pipeline(NAME, initial="paused")
    assert written() == 0
    daemon.post(NAME, "resume")
    until_written(0.1)
    daemon.post(NAME, "pause")
    stream.until_status("Paused")
    paused_at = written()
    daemon.post(NAME, "resume")
    stream.until_status("Running")
    until_written(0.15)
    assert written() > paused_at
    stream.crash()

    stream.allow(0.4)
    daemon.start_pipeline(NAME)
    until_written(0.3)
    stream.suspend()

    stream.allow(0.6)
    daemon.start_pipeline(NAME)
    until_written(0.45)
    stream.lose_daemon()
    until_written(0.55)
    stream.crash_unseen()

    stream.allow(1)
    daemon.start_pipeline(NAME)
    row = stream.until_status("Stopped")
    assert row["deployment_error"] is None
    assert sorted(output.read_text().splitlines()) == sorted(expected)
    starts = stream.starts()
    assert len(starts) == 4
    assert starts == sorted(starts)
    assert starts[-1] > 0.3 * stream.data.stat().st_size, "what had been read was not read again"
    assert moved(daemon) == [("Stopped", None), *RUN, *CRASHED, *RUN, *ENDED, *RUN, *CRASHED, *RUN, *ENDED]

    # Done is done: started once more it finds nothing to add.
    daemon.post(NAME, "start")
    stream.until(lambda: len(stream.starts()) == 5)
    stream.until_status("Stopped")
    assert sorted(output.read_text().splitlines()) == sorted(expected)


def test_an_engine_steered_and_kept_by_the_library_for_authors(stream: Stream) -> None:
    stream.create("stream_runtime.py", "http")
    expected: dict[str, list[int]] = {}
    every = 0
    for country, height in stream.airports():
        count, total = expected.get(country, (0, 0))
        expected[country] = [count + 1, total + height]
        every += 1
    daemon, published = stream.daemon, stream.storage / "airports.json"

    def read() -> int:
        reply = daemon.ask("GET", f"/v0/pipelines/{NAME}/stats")
        assert reply.status == 200, reply
        return reply.body["global_metrics"]["total_processed_records"]

    def until_read(part: float) -> None:
        stream.until(lambda: read() >= part * every)

    stream.allow(0.2)
    daemon.start_pipeline(NAME, initial="paused")
    assert read() == 0
    daemon.post(NAME, "resume")
    until_read(0.1)
    daemon.post(NAME, "pause")
    stream.until_status("Paused")
    paused_at = read()
    stream.checkpoint()
    assert read() == paused_at
    daemon.post(NAME, "resume")
    stream.until_status("Running")
    until_read(0.15)
    stream.crash()

    stream.allow(0.4)
    daemon.start_pipeline(NAME)
    assert read() >= paused_at, "the checkpoint that was asked for is where it begins, or a later one"
    until_read(0.3)
    row = stream.suspend()
    kept = row["storage_status_details"]["checkpoints"][-1]["processed_records"]

    stream.allow(0.6)
    daemon.start_pipeline(NAME)
    assert read() >= kept >= 0.3 * every, "a suspended pipeline goes on where it was"
    until_read(0.45)
    stream.lose_daemon()
    until_read(0.55)
    stream.crash_unseen()

    assert not published.exists()
    stream.allow(1)
    daemon.start_pipeline(NAME)
    row = stream.until_status("Stopped")
    assert row["deployment_error"] is None
    state = json.loads(published.read_text())
    assert state["sums"] == expected
    assert state["airports"] == every
    assert row["storage_status_details"]["checkpoints"][-1]["processed_records"] == every
    assert len(stream.starts()) == 4
    assert moved(daemon) == [("Stopped", None), *RUN, *CRASHED, *RUN, *ENDED, *RUN, *CRASHED, *RUN, *ENDED]
