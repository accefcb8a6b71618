"""Pipelines of authors under the installed daemon, from start to suspension, through kills of both."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.daemon import Daemon, Json, alive

HTTP = {"contract": "http"}
EXAMPLE = (Path(__file__).parents[2] / "src" / "penstock" / "runtime" / "example.py").read_text("utf-8")
IDLE = """
[toolchains.idle]
run = ["{python}", "-m", "penstock.runtime", "--initial", "{initial}"]
contract = "http"
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(tmp_path, config=IDLE)
    try:
        made.start()
        yield made
    finally:
        made.close()


def ask(daemon: Daemon, path: str, method: str = "GET") -> Json:
    """Of the process itself, through the daemon where that passes it on."""
    reply = daemon.ask(method, f"/v0/pipelines/p/{path}")
    assert reply.status in (200, 202), reply
    return reply.body


def records(daemon: Daemon) -> int:
    return int(ask(daemon, "stats")["global_metrics"]["total_processed_records"])


def until(daemon: Daemon, holds: Callable[[], bool]) -> None:
    daemon.until("p", lambda _: holds())


def storage(daemon: Daemon) -> Path:
    return daemon.state_dir / "pipelines" / daemon.pipeline("p")["id"] / "storage"


def published(daemon: Daemon) -> Json:
    path = storage(daemon) / "sums.json"
    return json.loads(path.read_text()) if path.exists() else {"offset": 0, "sums": {}}


def test_the_example_counts_each_sale_once_whatever_dies(daemon: Daemon, tmp_path: Path) -> None:
    sales, expected, written = tmp_path / "sales.txt", {"north": 0, "south": 0}, 0
    sales.touch()

    def sell(number: int) -> None:
        nonlocal written
        with sales.open("a") as file:
            for n in range(number):
                shop = ("north", "south")[n % 2]
                file.write(f"{shop} {n}\n")
                expected[shop] += n
                written += 1

    config = {"env": {"SALES": str(sales)}, "fault_tolerance": {"checkpoint_interval_secs": 1}}
    daemon.create("p", EXAMPLE, program_config=HTTP, runtime_config=config)

    daemon.start_pipeline("p", initial="paused")
    sell(100)
    assert records(daemon) == 0
    assert daemon.pipeline("p")["storage_status_details"] == {"checkpoints": []}
    daemon.post("p", "resume")
    until(daemon, lambda: records(daemon) == 100)
    assert published(daemon)["sums"] == expected

    daemon.post("p", "pause")
    daemon.until("p", lambda p: p["deployment_status"] == "Paused")
    sell(50)
    pid = daemon.process("p")
    daemon.kill()
    daemon.start()
    assert daemon.process("p") == pid
    assert daemon.pipeline("p")["deployment_status"] == "Paused"
    assert records(daemon) == 100

    daemon.post("p", "resume")
    until(daemon, lambda: records(daemon) == 150)
    until(daemon, lambda: newest_records(daemon) == 150)
    sell(10)
    until(daemon, lambda: records(daemon) >= 151)
    os.kill(pid, signal.SIGKILL)
    row = daemon.until("p", lambda p: p["deployment_status"] == "Stopped")
    assert row["deployment_error"]["details"]["signal_name"] == "SIGKILL"

    sell(40)
    daemon.start_pipeline("p")
    until(daemon, lambda: records(daemon) == written)
    assert published(daemon)["sums"] == expected

    pid = daemon.process("p")
    daemon.post("p", "stop", force="false")
    daemon.kill()
    sell(10)
    daemon.start()
    row = daemon.until("p", lambda p: p["deployment_status"] == "Stopped")
    assert row["deployment_error"] is None
    assert not alive(pid)

    daemon.start_pipeline("p")
    until(daemon, lambda: records(daemon) == written)
    row = daemon.stop_pipeline("p", force=False)
    assert row["deployment_error"] is None
    newest = row["storage_status_details"]["checkpoints"][-1]
    assert newest["processed_records"] == written
    assert published(daemon) == {"offset": sales.stat().st_size, "sums": expected}
    assert "bad_lines" not in daemon.ask("GET", "/v0/pipelines/p/logs?follow=false").body


def newest_records(daemon: Daemon) -> int:
    """Of the newest checkpoint on disk."""
    files = sorted((storage(daemon) / "checkpoints").glob("*.checkpoint"))
    return int(json.loads(files[-1].read_bytes().split(b"\n")[1])["processed_records"]) if files else 0


def test_an_idle_pipeline_passes_for_a_real_one(daemon: Daemon) -> None:
    daemon.create("p", "CREATE TABLE t (x INT);", program_config={"toolchain": "idle"})
    daemon.start_pipeline("p")
    assert daemon.pipeline("p")["storage_status_details"] == {"checkpoints": []}
    daemon.post("p", "pause")
    daemon.until("p", lambda p: p["deployment_status"] == "Paused")
    stats = ask(daemon, "stats")
    assert stats["global_metrics"]["state"] == "Paused"
    assert "# TYPE records_processed_total counter" in ask(daemon, "metrics")
    assert "records_processed_total" in {one["key"] for one in ask(daemon, "metrics?format=json")}
    daemon.post("p", "resume")
    daemon.until("p", lambda p: p["deployment_status"] == "Running")
    row = daemon.stop_pipeline("p", force=False)
    assert row["deployment_error"] is None
    seen = [
        (e["deployment_runtime_status"], e["deployment_runtime_desired_status"])
        for e in daemon.events("p")
        if e["deployment_resources_status"] == "Provisioned"
    ]
    mixed = {("Running", "Paused"), ("Paused", "Running")}
    assert not mixed & set(seen)


def test_a_failure_of_an_author_is_the_error_of_the_pipeline(daemon: Daemon) -> None:
    text = """
from penstock import runtime

with runtime.serve() as pipeline:
    for record in pipeline.each(range(10)):
        print(1 // (5 - record))
"""
    daemon.create("p", text, program_config=HTTP)
    daemon.post("p", "start")
    row = daemon.until("p", lambda p: p["deployment_status"] == "Stopped" and p["deployment_error"])
    assert row["deployment_error"]["error_code"] == "RuntimeError.WorkerPanic"
    assert "ZeroDivisionError" in row["deployment_error"]["message"]
    assert "print(1 // (5 - record))" in daemon.ask("GET", "/v0/pipelines/p/logs?follow=false").body


def test_one_that_is_done_is_stopped_without_an_error(daemon: Daemon) -> None:
    text = """
from penstock import runtime

with runtime.serve() as pipeline:
    state = pipeline.restore({"n": 0})
    for record in pipeline.each(range(10)):
        state["n"] += record
"""
    daemon.create("p", text, program_config=HTTP)
    daemon.post("p", "start")
    row = daemon.until("p", lambda p: p["storage_status"] == "InUse" and p["deployment_status"] == "Stopped")
    assert row["deployment_error"] is None
    assert row["storage_status_details"]["checkpoints"][0]["processed_records"] == 10
