"""The whole http contract, asked of real processes (contract.md sections 2.7, 6.8, 7.3 and 7.4)."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from .program import ENDLESS, Program

Run = Callable[..., Program]
STATS_KEYS = json.loads((Path(__file__).parents[1] / "api" / "stats_keys.json").read_text())


@pytest.mark.parametrize(("initial", "status"), [("running", "Running"), ("paused", "Paused"), ("standby", "Standby")])
def test_it_begins_as_it_is_told(run: Run, initial: str, status: str) -> None:
    program = run(PENSTOCK_INITIAL=initial)
    program.until_status(status, status)
    code, body = program.ask("/status")
    assert code == 200
    assert set(body) == {
        "runtime_status",
        "runtime_desired_status",
        "runtime_status_details",
        "storage_status_details",
    }
    assert body["storage_status_details"] == {"checkpoints": []}


@pytest.mark.parametrize("policy", ["allow", "reject", "await_approval"])
def test_every_policy_reaches_running_with_and_without_checkpoints(run: Run, policy: str) -> None:
    for _ in range(2):
        program = run(PENSTOCK_BOOTSTRAP_POLICY=policy)
        program.until_status("Running", "Running")
        program.take_checkpoint()
        program.kill()


def test_paused_is_said_at_once_and_is_true(run: Run) -> None:
    program = run(ENDLESS)
    program.until(lambda: program.records() > 10)
    assert program.ask("/pause")[0] == 202
    assert program.status() == ("Paused", "Paused")
    records = program.records()
    assert program.ask("/pause")[0] == 202
    time.sleep(0.1)  # long enough for a hundred records
    assert program.records() == records
    assert program.ask("/start") == (202, "The pipeline was told to be Running.")
    assert program.status() == ("Running", "Running")
    program.until(lambda: program.records() > records)


def test_a_loop_that_is_busy_is_not_said_to_be_paused(run: Run) -> None:
    text = """
    import time
    from penstock import runtime

    with runtime.serve() as pipeline:
        pipeline.restore(None)
        pipeline.step()
        time.sleep(6)
        pipeline.stay()
    """
    program = run(text)
    program.until_status("Running", "Running")
    began = time.monotonic()
    assert program.ask("/pause")[0] == 202
    assert 1.9 < time.monotonic() - began < 4
    assert program.status() == ("Running", "Paused")
    program.until_status("Paused", "Paused")


def test_it_is_initializing_until_its_loop_begins(run: Run, tmp_path: Path) -> None:
    text = """
    import os, time
    from penstock import runtime

    with runtime.serve() as pipeline:
        pipeline.restore({})
        while not os.path.exists(os.environ["GO"]):
            time.sleep(0.01)
        pipeline.stay()
    """
    program = run(text, GO=str(tmp_path / "go"))
    assert program.status() == ("Initializing", "Running")
    assert program.ask("/checkpoint", "POST")[1]["error_code"] == "Initializing"
    assert program.ask("/pause")[0] == 202
    assert program.status() == ("Initializing", "Paused")
    assert program.ask("/stats")[0] == 200
    (tmp_path / "go").touch()
    program.until_status("Paused", "Paused")


def test_who_watches_the_port_file_hears_of_every_change(run: Run) -> None:
    program = run()
    port = program.port
    program.until_status("Running", "Running")
    for path, method, status in (
        ("/pause", "GET", "Paused"),
        ("/start", "GET", "Running"),
        ("/suspend", "POST", "Suspended"),
    ):
        with program.port_file.open() as before:  # open, so that no other file can be given its inode
            assert program.ask(path, method)[0] == 202
            program.until_status(status, status)
            program.until(
                lambda before=before: not os.path.samestat(os.fstat(before.fileno()), program.port_file.stat())
            )
        assert program.port == port


def test_standby_is_left_by_activation_only(run: Run) -> None:
    program = run(PENSTOCK_INITIAL="standby")
    program.until_status("Standby", "Standby")
    for path, method in (("/start", "GET"), ("/pause", "GET"), ("/suspend", "POST")):
        code, body = program.ask(path, method)
        assert (code, body["error_code"]) == (400, "InvalidTransition"), path
    code, body = program.ask("/activate?initial=standby", "POST")
    assert (code, body["error_code"]) == (400, "InvalidActivateStatus")
    assert program.ask("/activate?initial=paused", "POST")[0] == 202
    program.until_status("Paused", "Paused")
    assert program.ask("/activate?initial=running", "POST")[0] == 202
    program.until_status("Running", "Running")


@pytest.mark.parametrize("first", ["/pause", "/start"])
def test_suspend_keeps_the_state_and_is_the_end(run: Run, first: str) -> None:
    program = run(ENDLESS)
    program.until(lambda: program.records() > 10)
    program.ask(first)
    assert program.ask("/suspend", "POST")[0] == 202
    assert program.ask("/suspend", "POST")[0] == 202
    program.until_status("Suspended", "Suspended")
    for path in ("/start", "/pause"):
        code, body = program.ask(path)
        assert (code, body["error_code"], body["details"]["current"]) == (400, "InvalidTransition", "Suspended")
    assert program.ask("/checkpoint", "POST")[1]["error_code"] == "Suspended"
    state = program.state()
    assert state["next"] == program.records() > 10
    assert state["sum"] == state["next"] * (state["next"] - 1) // 2
    # The daemon ends it; until then it goes on saying so.
    assert program.process.poll() is None
    program.signal(15)
    assert program.wait() == 0


def test_stats_have_what_clients_read(run: Run) -> None:
    program = run(ENDLESS)
    program.until(lambda: program.records() > 0)
    code, body = program.ask("/stats?include_connector_errors=true")
    assert code == 200
    assert set(body) == {"global_metrics", "inputs", "outputs"}
    assert body["inputs"] == body["outputs"] == []
    figures = body["global_metrics"]
    assert set(STATS_KEYS["required"]) <= set(figures) <= set(STATS_KEYS["known"])
    assert figures["state"] == "Running"
    assert figures["rss_bytes"] > 1_000_000
    assert 0 < figures["uptime_msecs"] < 60_000
    assert abs(figures["start_time"] - time.time_ns() / 1e9) < 60
    assert figures["pipeline_complete"] is False


def test_metrics_in_both_formats_and_no_other(run: Run) -> None:
    program = run()
    program.until_status("Running", "Running")
    for path in ("/metrics", "/metrics?format=prometheus", "/metrics?"):
        code, text = program.ask(path)
        assert code == 200
        assert "# TYPE records_processed_total counter" in text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["records_processed"].samples[0].labels == {"pipeline": "id-1", "pipeline_name": 'na"me'}
    listed = program.ask("/metrics?format=json")[1]
    assert {"records_processed_total", "process_resident_memory_bytes"} <= {one["key"] for one in listed}
    assert program.ask("/metrics?format=xml")[0] == 400


def test_checkpoints_are_numbered_listed_and_those_of_an_earlier_process_are_not_ours(run: Run) -> None:
    program = run(ENDLESS)
    program.until(lambda: program.records() > 5)
    assert program.ask("/checkpoint_status")[1] == {"success": None, "failure": None}
    program.take_checkpoint()
    program.ask("/pause")
    program.take_checkpoint()
    assert program.ask("/checkpoint_status")[1] == {"success": 2, "failure": None}
    listed = program.checkpoints()
    assert [set(one) for one in listed] == [
        {"uuid", "identifier", "fingerprint", "size", "steps", "processed_records"}
    ] * 2
    assert listed[1]["processed_records"] == program.records()
    assert program.ask("/status")[1]["storage_status_details"] == {"checkpoints": listed}
    assert program.ask("/checkpoints/remote")[1] == []
    code, body = program.ask("/checkpoint_status?incarnation_uuid=018f0000-0000-7000-8000-000000000000")
    assert (code, body["error_code"], set(body["details"])) == (
        400,
        "IncarnationUuidMismatch",
        {"requested", "expected"},
    )


def test_a_checkpoint_that_cannot_be_written_is_told_and_the_pipeline_goes_on(run: Run) -> None:
    text = """
    from penstock import runtime

    with runtime.serve() as pipeline:
        state = pipeline.restore({"seen": {}})
        state["seen"][1] = "an int as a key is no JSON"
        pipeline.stay()
    """
    program = run(text)
    program.until_status("Running", "Running")
    number = program.ask("/checkpoint", "POST")[1]["checkpoint_sequence_number"]
    failure = program.until(lambda: program.ask("/checkpoint_status")[1]["failure"])
    assert failure["sequence_number"] == number
    assert "state['seen'] has the key 1" in failure["error"]
    assert time.strptime(failure["failed_at"][:19], "%Y-%m-%dT%H:%M:%S")
    assert program.ask("/status")[1]["runtime_status_details"] == {"connector_stats": {"num_errors": 1}}
    # As the last one it is a failure of the pipeline.
    assert program.ask("/suspend", "POST")[0] == 202
    code, body = program.until(lambda: (answer := program.ask("/status"))[0] == 500 and answer)
    assert (code, body["error_code"]) == (500, "CheckpointError")
    assert program.ask("/start") == (500, body)
    program.signal(15)
    assert program.wait() == 1


def test_without_storage_nothing_is_kept_and_all_else_works(run: Run) -> None:
    program = run(ENDLESS, PENSTOCK_STORAGE_DIR=None)
    program.until(lambda: program.records() > 5)
    assert program.ask("/status")[1]["storage_status_details"] is None
    assert program.ask("/checkpoint", "POST")[0] == 400
    assert program.checkpoints() == []
    assert program.ask("/suspendable")[1] == {"suspendable": False, "reasons": ["NoStorage"]}
    program.ask("/suspend", "POST")
    program.until_status("Suspended", "Suspended")


VERSIONED = """
    import os
    from penstock import runtime

    with runtime.serve() as pipeline:
        state = pipeline.restore({"made_by": os.environ["VERSION"]}, version=os.environ["VERSION"])
        print("state of", state["made_by"], flush=True)
        pipeline.stay()
"""


def test_a_changed_program_awaits_approval(run: Run) -> None:
    program = run(VERSIONED, VERSION="1")
    program.until_status("Running", "Running")
    program.take_checkpoint()
    program.kill()

    program = run(VERSIONED, VERSION="2")
    program.until_status("AwaitingApproval", "Running")
    details = program.ask("/status")[1]["runtime_status_details"]
    assert "'1'" in details["approval_diff"]["program_diff_error"]
    assert program.ask("/checkpoint", "POST")[1]["error_code"] == "AwaitingApproval"
    code, body = program.ask("/approve?silent_bootstrap=true&concurrent_bootstrap=true", "POST")
    assert (code, body["error_code"]) == (400, "InvalidBootstrapConfig")
    assert program.ask("/approve?silent_bootstrap=false&concurrent_bootstrap=false", "POST")[0] == 200
    assert program.status()[0] != "AwaitingApproval"
    program.until_status("Running", "Running")
    assert program.ask("/approve", "POST")[0] == 200
    assert "state of 2" in program.log
    program.kill()

    program = run(VERSIONED, VERSION="2", PENSTOCK_BOOTSTRAP_POLICY="reject")
    code, body = program.until(lambda: (answer := program.ask("/status"))[0] == 500 and answer)
    assert body["error_code"] == "InitializationError"
    program.kill()

    program = run(VERSIONED, VERSION="2", PENSTOCK_BOOTSTRAP_POLICY="allow")
    program.until_status("Running", "Running")
    assert "state of 2" in program.log


def test_one_that_awaits_approval_can_be_suspended_and_keeps_what_it_had(run: Run) -> None:
    program = run(VERSIONED, VERSION="1")
    program.until_status("Running", "Running")
    program.take_checkpoint()
    program.kill()
    program = run(VERSIONED, VERSION="2")
    program.until_status("AwaitingApproval", "Running")
    program.ask("/suspend", "POST")
    program.until_status("Suspended", "Suspended")
    assert program.state() == {"made_by": "1"}


def test_the_same_deployment_begun_again_is_what_it_was_told_to_be(run: Run) -> None:
    program = run(ENDLESS, PENSTOCK_DEPLOYMENT_ID="d1")
    program.ask("/pause")
    program.until_status("Paused", "Paused")
    program.take_checkpoint()
    program.kill()
    program = run(ENDLESS, PENSTOCK_DEPLOYMENT_ID="d1")
    program.until_status("Paused", "Paused")
    program.kill()
    program = run(ENDLESS, PENSTOCK_DEPLOYMENT_ID="d2")
    program.until_status("Running", "Running")


def test_what_it_does_not_know_it_refuses(run: Run) -> None:
    program = run()
    program.until_status("Running", "Running")
    assert program.ask("/nowhere")[1]["error_code"] == "UnknownRoute"
    assert program.ask("/suspend")[1]["error_code"] == "MethodNotAllowed"
    assert program.ask("/status", "DELETE")[0] == 405
    assert program.ask("/pause", Origin="http://evil.example")[0] == 403
    assert program.ask("/pause", **{"Sec-Fetch-Site": "cross-site"})[0] == 403
    assert program.status() == ("Running", "Running")


def test_the_arguments_of_the_reference_are_understood(run: Run, tmp_path: Path) -> None:
    text = """
    import sys
    from penstock.runtime.__main__ import main

    sys.exit(main(["--initial", "paused", "--deployment-id=d", "--bootstrap-policy", "allow", "--silent-bootstrap"]))
    """
    program = run(text)
    program.until_status("Paused", "Paused")


def test_clients_that_are_slow_silent_or_many_are_in_nobodys_way(run: Run) -> None:
    program = run()
    program.until_status("Running", "Running")
    wires = [socket.create_connection(("127.0.0.1", program.port)) for _ in range(200)]
    try:
        for number, wire in enumerate(wires):
            with suppress(OSError):  # the oldest made room
                wire.sendall((b"", b"GET /sta", b"POST /suspend HTTP/1.1\r\nContent-Length: 10\r\n\r\n")[number % 3])
        began = time.monotonic()
        for _ in range(20):
            assert program.status() == ("Running", "Running")
        assert time.monotonic() - began < 5
    finally:
        for wire in wires:
            wire.close()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /status HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"400"),
        (b"GET /status HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", b"400"),
        (b"POST /suspend HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"411"),
        (b"POST /suspend HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", b"413"),
        (b"GET /status HTTP/1.1\r\n" + b"x" * 20000, b"431"),
        (b"GET /status HTTP/1.0\r\n\r\n", b"200"),
        (b"\xff\xfe\r\n\r\n", b"400"),
    ],
)
def test_what_is_no_request_is_answered_and_harms_nobody(run: Run, sent: bytes, status: bytes) -> None:
    program = run()
    program.until_status("Running", "Running")
    with socket.create_connection(("127.0.0.1", program.port), timeout=5) as wire:
        wire.sendall(sent)
        assert wire.recv(100).split(b" ")[1] == status
    assert program.status() == ("Running", "Running")
