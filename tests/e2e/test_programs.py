"""Programs of every kind under the installed daemon: well-behaved ones, and bad ones that must hurt nobody else."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .daemon import Daemon, alive

HTTP_CONTRACT = (Path(__file__).parents[1] / "programs" / "http_contract.py").read_text("utf-8")
SLEEPER = "import time\nwhile True: time.sleep(60)\n"


def http_pipeline(daemon: Daemon, name: str = "h") -> None:
    daemon.create(name, HTTP_CONTRACT, program_config={"contract": "http"})


def misbehave(daemon: Daemon, name: str, how: dict[str, Any]) -> None:
    """Tell the program itself, past the daemon."""
    work = Path(daemon.ask("GET", f"/v0/pipelines/{name}").body["deployment_resources_status_details"]["working_dir"])
    port = (work / "port").read_text().strip()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/misbehave", json.dumps(how).encode(), method="PUT")
    with urllib.request.urlopen(request, timeout=5):
        pass


def test_contract_http_from_start_to_suspend(daemon: Daemon) -> None:
    http_pipeline(daemon)
    daemon.start_pipeline("h", initial="paused")
    assert daemon.pipeline("h")["deployment_status"] == "Paused"
    daemon.post("h", "resume")
    daemon.until("h", lambda p: p["deployment_status"] == "Running")
    assert daemon.ask("GET", "/v0/pipelines/h/stats").body["global_metrics"]["state"] == "Running"
    pid = daemon.process("h")
    daemon.kill()
    daemon.start()
    assert daemon.process("h") == pid
    assert daemon.pipeline("h")["deployment_status"] == "Running"
    row = daemon.stop_pipeline("h", force=False)
    assert row["deployment_error"] is None
    assert not alive(pid)
    seen = [(e["deployment_resources_status"], e["deployment_runtime_status"]) for e in daemon.events("h")]
    assert ("Provisioned", "Initializing") in seen
    assert ("Provisioned", "Running") in seen


def test_one_fatal_answer_is_forgiven_and_two_are_not(daemon: Daemon) -> None:
    http_pipeline(daemon)
    daemon.start_pipeline("h")
    panic = {"message": "a worker panicked", "error_code": "RuntimeError.WorkerPanic", "details": {"worker": 3}}
    misbehave(daemon, "h", {"status": [500, "application/json", json.dumps(panic)]})
    row = daemon.until("h", lambda p: p["deployment_status"] == "Stopped")
    assert row["deployment_error"] == panic
    daemon.start_pipeline("h")


def test_garbage_on_status_is_unavailable_and_recovers(daemon: Daemon) -> None:
    http_pipeline(daemon)
    daemon.start_pipeline("h")
    daemon.post("h", "pause")
    daemon.until("h", lambda p: p["deployment_status"] == "Paused")
    misbehave(daemon, "h", {"status": [200, "application/json", '{"what": "is this"}']})
    row = daemon.until("h", lambda p: p["deployment_status"] == "Unavailable")
    assert row["deployment_runtime_status_details"]["reason"]
    misbehave(daemon, "h", {})
    daemon.until("h", lambda p: p["deployment_status"] == "Paused")


BAD = {
    "exits": "import sys\nsys.exit(3)\n",
    "floods": "import sys\nwhile True: sys.stdout.write('x' * 100 + chr(10))\n",
    "never-ready": SLEEPER,
    "forks": "import os, time\nfor _ in range(50):\n    if os.fork() == 0: break\nwhile True: time.sleep(60)\n",
    "garbage": "import os\nwhile True: os.write(1, os.urandom(4096))\n",
    "hangs": HTTP_CONTRACT,
}


def test_bad_pipelines_affect_nobody_else(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon(config="[logs]\nmax_bytes = 1000000\n")
    daemon.start()
    daemon.create("good", SLEEPER)
    for name, program in BAD.items():
        contract = "http" if name in ("never-ready", "hangs") else "process"
        config = {"provisioning_timeout_secs": 2}
        daemon.create(name, program, program_config={"contract": contract}, runtime_config=config)
        daemon.post(name, "start")
    daemon.until("hangs", lambda p: p["deployment_status"] == "Running")
    os.kill(daemon.process("hangs"), signal.SIGSTOP)  # accepts connections, never answers
    times: list[float] = []
    for _ in range(10):
        began = time.monotonic()
        daemon.start_pipeline("good")
        daemon.stop_pipeline("good")
        times.append(time.monotonic() - began)
    assert sorted(times)[5] < 1.0, times
    began = time.monotonic()
    assert daemon.ask("GET", "/metrics").status == 200
    assert time.monotonic() - began < 1.0

    error = daemon.until("exits", lambda p: p["deployment_status"] == "Stopped")["deployment_error"]
    assert error["details"]["exit_code"] == 3
    error = daemon.until("never-ready", lambda p: p["deployment_status"] == "Stopped")["deployment_error"]
    assert error["error_code"] == "AutomatonProvisioningTimeout"
    daemon.until("hangs", lambda p: p["deployment_status"] == "Unavailable")
    for name in ("floods", "garbage"):
        identity = daemon.pipeline(name)["id"]
        log = daemon.state_dir / "pipelines" / identity / "logs" / "pipeline.log"
        assert log.stat().st_size > 1_000_000
        # What it takes on disk is bounded, however much was written; it may overshoot while it is trimmed.
        assert min(_blocks(log) for _ in range(20)) < 4_000_000
    for name in BAD:
        daemon.stop_pipeline(name)
    assert daemon.processes() == []


def _blocks(path: Path) -> int:
    time.sleep(0.02)
    return path.stat().st_blocks * 512


@pytest.mark.parametrize(
    ("program", "status", "told"),
    [
        ("def f(:\n    pass\n", "SqlError", "sql_compilation"),
        ("# /// script\n# dependencies = [\n# ///\n", "RustError", "rust_compilation"),
    ],
)
def test_a_program_that_is_wrong(daemon: Daemon, program: str, status: str, told: str) -> None:
    daemon.create("p", program, wait=False)
    daemon.until("p", lambda p: p["program_status"] == status)
    error = daemon.ask("GET", "/v0/pipelines/p").body["program_error"]
    assert error[told]["exit_code"] != 0
    refused = daemon.ask("POST", "/v0/pipelines/p/start")
    assert (refused.status, refused.body["error_code"]) == (400, "CannotStartWithCompilationError")


def test_a_missing_tool_is_a_system_error_that_says_so(daemon: Daemon) -> None:
    daemon.create("p", "no-such-tool --at all", wait=False, program_config={"toolchain": "command"})
    daemon.until("p", lambda p: p["program_status"] == "SystemError")
    assert "no-such-tool" in daemon.ask("GET", "/v0/pipelines/p").body["program_error"]["system_error"]


def test_a_start_while_compiling_goes_on_when_it_is_compiled(make_daemon: Callable[..., Daemon]) -> None:
    config = """
    [toolchains.slow]
    check = ["sleep", "1"]
    run = ["sleep", "1000"]
    """
    daemon = make_daemon(config=config)
    daemon.start()
    daemon.create("p", "", wait=False, program_config={"toolchain": "slow"})
    daemon.post("p", "start")
    row = daemon.pipeline("p")
    assert (row["deployment_status"], row["deployment_desired_status"]) == ("Stopped", "Running")
    daemon.kill()
    daemon.start()
    daemon.until("p", lambda p: p["deployment_status"] == "Running")


def test_a_damaged_artifact_is_built_again_before_it_runs(daemon: Daemon) -> None:
    daemon.create("p", SLEEPER)
    [program] = (daemon.state_dir / "artifacts").glob("*/program.py")
    program.write_text("raise SystemExit(1)\n")
    daemon.start_pipeline("p")
    assert program.read_text() == SLEEPER
    assert [e["program_status"] for e in daemon.events("p")].count("Success") > 1


def test_a_lost_database_row_is_named(daemon: Daemon) -> None:
    daemon.create("p", SLEEPER)
    daemon.terminate()
    database = daemon.state_dir / "penstock.db"
    database.write_bytes(b"this is no database, " * 1000)
    for beside in daemon.state_dir.glob("penstock.db-*"):
        beside.unlink()
    daemon.start(wait=False)
    assert daemon.wait() != 0
    assert str(database) in daemon.log_text()
    assert "Traceback" not in daemon.log_text()


def test_what_was_started_paused_can_be_observed(daemon: Daemon) -> None:
    daemon.create("p", SLEEPER)
    daemon.start_pipeline("p", initial="paused")
    assert daemon.ask("GET", "/v0/pipelines/p/stats").body["global_metrics"]["state"] == "Paused"
    assert "records_processed_total" in daemon.ask("GET", "/v0/pipelines/p/metrics").body
    daemon.post("p", "resume")
    daemon.until("p", lambda p: p["deployment_status"] == "Running")
    assert daemon.ask("GET", "/v0/pipelines/p/stats").status == 200


def test_what_was_told_to_stop_is_not_paused_any_more(daemon: Daemon) -> None:
    daemon.create("p", "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEPER)
    daemon.start_pipeline("p")
    time.sleep(0.3)  # until it ignores the signal; before that it just ends
    daemon.post("p", "stop", force="false")
    refused = daemon.ask("POST", "/v0/pipelines/p/pause")
    assert (refused.status, refused.body["error_code"]) == (400, "InvalidTransition")
    daemon.stop_pipeline("p", force=True)
