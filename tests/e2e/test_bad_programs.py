"""Programs that lie, flood and refuse, all of them at once, beside a good one that must not notice.

One daemon has them all, for as long as this module lasts. What each did is told by its own status, fault, events and
log; when the module is done, the good pipeline has run throughout, and the API has answered.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pytest

from .daemon import Daemon, Json, alive

PROGRAMS = Path(__file__).parents[1] / "programs"
LIAR = (PROGRAMS / "liar.py").read_text("utf-8")
GOOD = (PROGRAMS / "http_contract.py").read_text("utf-8")
HTTP = {"contract": "http"}
BETWEEN = b"\n----\n"

CONFIG = """
[runner]
stop_grace_seconds = 1
[logs]
max_bytes = 1000000
"""


def answer(body: object, status: int = 200, *, headers: str = "") -> bytes:
    """A raw HTTP answer; `body` is sent as it is when it is bytes, else as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status} Status\r\nContent-Type: application/json\r\n{headers}Content-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


def status(runtime: object, desired: object, details: object = None, **more: object) -> bytes:
    """What a good program answers to /status, with bad values in it."""
    said = {"runtime_status": runtime, "runtime_desired_status": desired, "runtime_status_details": details, **more}
    return answer(said)


RUNNING = status("Running", "Running")

LIES: dict[str, tuple[bytes, str]] = {
    "wrong types": (status(7, []), "no valid runtime_status"),
    "unknown status": (status("Flying", "Running"), "no valid runtime_status"),
    "no details": (answer({"runtime_status": "Running", "runtime_desired_status": "Running"}), "no runtime_status_det"),
    "a list": (answer([1, 2]), "neither an object nor a string"),
    "a word": (answer("Marvellous"), "unknown status 'Marvellous'"),
    "garbage checkpoints": (status("Running", "Running", storage_status_details=[1]), "storage_status_details"),
    "huge": (answer("x" * 2_000_000), "longer than 1000000 bytes"),
    "endless": (b"endless", "longer than 1000000 bytes"),
    "deep": (answer(b"[" * 500_000), "is not JSON"),
    "no text": (answer(b'"\xff\xfe"'), "is not JSON"),
    "half a character": (answer(b'"\\ud800"'), "is not JSON"),
    "no number": (answer(b'{"runtime_status": NaN}'), "is not JSON"),
    "empty": (answer(b""), "is not JSON"),
    "redirects": (answer(b"moved", 302, headers="Location: /elsewhere\r\n"), "HTTP status 302, is not JSON"),
    "no http": (b"SSH-2.0-OpenSSH_9.9\r\n", ""),
    "no answer": (b"", "disconnected"),
    "huge head": (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1_000_000 + b"\r\n\r\n", ""),
    "cut short": (RUNNING[:-5], ""),
    "hangs": (b"hang", "no complete answer within 5 s"),
    "drips": (b"drip", "no complete answer within 5 s"),
    "busy": (answer(b"{}", 503), "503 without an error body"),
}
"""What is answered to /status, and what `reason` says of it while the pipeline is Unavailable."""

FATAL: dict[str, tuple[bytes, str, str]] = {
    "terminated": (answer("Terminated"), "PipelineInteractionInvalidResponse", "says that it has terminated"),
    "500": (answer({"oh": "no"}, 500), "PipelineInteractionInvalidResponse", "HTTP status 500 without an error body"),
    "302": (answer({}, 302, headers="Location: /elsewhere\r\n"), "PipelineInteractionInvalidResponse", "status 302"),
    "panic": (answer({"message": "oh", "error_code": "Panic", "details": [7]}, 500), "Panic", "oh"),
}
"""What is answered to /status for good, and the fault that it becomes."""

PORT_FILES: dict[str, tuple[str, str]] = {
    "words": ("I would rather not say", "holds b'I would rather not say'"),
    "too high": ("65536", "holds b'65536'"),
    "zero": ("0", "holds b'0'"),
    "negative": ("-1", "holds b'-1'"),
    "two": ("80 81", "holds b'80 81'"),
    "huge": ("huge", "longer than 32 bytes"),
    "endless": ("endless", "is no regular file"),
    "directory": ("directory", "is no regular file"),
    "fifo": ("fifo", "is no regular file"),
}
"""What is put where the port file must be, and what the fault says of it."""


FLAPS: dict[str, tuple[bytes, ...]] = {
    "running and paused": (RUNNING, status("Paused", "Paused")),
    "on its way": (status("Initializing", "Running"), status("Running", "Paused")),
    "never as told": (status("Paused", "Paused"), status("Running", "Paused")),
    "gone and back": (RUNNING, b"", status("Paused", "Standby")),
}
"""What is answered to /status in turn."""


@dataclass
class Watch:
    """Looks at the good pipeline all the time, from a thread of its own."""

    daemon: Daemon
    took_seconds: list[float] = field(default_factory=list[float])
    wrong: list[Json] = field(default_factory=list[Json])

    def __post_init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(0.05):
            began = time.monotonic()
            row = self.daemon.pipeline("good")
            self.took_seconds.append(time.monotonic() - began)
            if row["deployment_status"] != "Running" or row["deployment_error"] is not None:
                self.wrong.append(row)

    def close(self) -> None:
        self._over.set()
        self._thread.join()


class Company:
    """A daemon, the good pipeline, and bad ones."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        daemon.create("good", GOOD, program_config=HTTP)
        daemon.start_pipeline("good")
        self.pid = daemon.process("good")
        self.events = daemon.events("good")
        self.watch = Watch(daemon)

    def begin(self, name: str, program: str = LIAR, *, timeout: float = 60, contract: str = "http", **env: str) -> None:
        """Create and start a pipeline; do not wait."""
        config = {"env": env, "provisioning_timeout_secs": timeout}
        self.daemon.create(name, program, wait=False, program_config={"contract": contract}, runtime_config=config)
        self.daemon.post(name, "start")

    def until(self, name: str, wanted: str) -> Json:
        return self.daemon.until(name, lambda p: p["deployment_status"] == wanted, within_seconds=40)

    def until_ended(self, name: str) -> Json:
        """Wait until it has been started and has stopped."""
        return self.daemon.until(
            name, lambda p: p["deployment_status"] == "Stopped" and p["storage_status"] == "InUse", within_seconds=40
        )

    def storage(self, name: str) -> Path:
        return self.daemon.state_dir / "pipelines" / self.daemon.pipeline(name)["id"] / "storage"

    def lie(self, name: str, *answers: bytes) -> None:
        """Have these be its answers to /status from now on, in turn."""
        aside = self.storage(name) / "answers.new"
        aside.write_bytes(BETWEEN.join(answers))
        aside.replace(self.storage(name) / "answers")

    def path(self, name: str) -> list[str]:
        """The statuses that its events tell of."""
        told: list[str] = []
        for event in self.daemon.events(name):
            one = event["deployment_runtime_status"] or event["deployment_resources_status"]
            if not told or told[-1] != one:
                told.append(one)
        return told

    def log(self, name: str) -> str:
        return self.daemon.ask("GET", f"/v0/pipelines/{name}/logs?follow=false").body


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Company]:
    daemon = Daemon(tmp_path_factory.mktemp("d"), config=CONFIG)
    made = None
    try:
        daemon.start()
        made = Company(daemon)
        yield made
    finally:
        if made is not None:
            made.watch.close()
        daemon.close()


def named(kind: str, name: str) -> str:
    return f"{kind}-{name.replace(' ', '-')}"


@pytest.fixture(scope="module")
def liars(company: Company) -> Company:
    """All that lie on /status, running; then they begin to lie, all at once."""
    lies = {named("lie", name): lie for name, (lie, _) in LIES.items()}
    lies |= {named("fatal", name): lie for name, (lie, _, _) in FATAL.items()}
    answers = {name: (lie,) for name, lie in lies.items()}
    answers |= {named("flaps", name): flap for name, flap in FLAPS.items()}
    for name in answers:
        company.begin(name)
    for name in answers:
        company.until(name, "Running")
    for name, given in answers.items():
        company.lie(name, *given)
    return company


@pytest.fixture(scope="module")
def ports(company: Company) -> Company:
    """All that are wrong about their port, on their way."""
    for name, (text, _) in PORT_FILES.items():
        company.begin(named("port", name), timeout=6, PORT_FILE=text)
    company.begin("nobody", PORT_FILE="1")
    return company


# --- /status --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIES)
def test_who_lies_on_status_is_unavailable_and_told_why(liars: Company, name: str) -> None:
    pipeline = named("lie", name)
    row = liars.until(pipeline, "Unavailable")
    assert LIES[name][1] in row["deployment_runtime_status_details"]["reason"]
    assert 0 < len(row["deployment_runtime_status_details"]["reason"]) < 500
    assert row["deployment_error"] is None, "what hangs today may answer tomorrow"
    assert not (liars.storage(pipeline) / "followed").exists()
    assert liars.path(pipeline)[-2:] == ["Running", "Unavailable"]

    (liars.storage(pipeline) / "answers").unlink()
    liars.until(pipeline, "Running")
    liars.daemon.stop_pipeline(pipeline)


@pytest.mark.parametrize("name", FATAL)
def test_who_says_twice_that_all_is_over_is_stopped(liars: Company, name: str) -> None:
    pipeline = named("fatal", name)
    _, code, text = FATAL[name]
    error = liars.until_ended(pipeline)["deployment_error"]
    assert error["error_code"] == code
    assert text in error["message"]
    assert not (liars.storage(pipeline) / "followed").exists()
    assert liars.path(pipeline)[-3:] == ["Running", "Stopping", "Stopped"]
    told = [event["deployment_error"] for event in liars.daemon.events(pipeline)[-2:]]
    assert told == [error, error]


def test_who_claims_to_be_suspended_is_stopped_and_gone(company: Company) -> None:
    company.begin("claims")
    company.until("claims", "Running")
    pid = company.daemon.process("claims")
    company.lie("claims", status("Suspended", "Running"))
    row = company.until_ended("claims")
    assert row["deployment_error"] is None
    assert not alive(pid)
    assert company.path("claims")[-3:] == ["Running", "Stopping", "Stopped"]


@pytest.mark.parametrize("name", FLAPS)
def test_who_flaps_is_asked_no_more_often_for_it(liars: Company, name: str) -> None:
    pipeline = named("flaps", name)
    liars.daemon.until(pipeline, lambda _: len(liars.daemon.events(pipeline)) >= 14, within_seconds=40)
    told = [datetime.fromisoformat(event["recorded_at"]) for event in liars.daemon.events(pipeline)]
    seconds = (told[-1] - told[-4]).total_seconds()
    assert seconds > 0.4, f"3 events in {seconds} s: that would push everything else out of the history"
    liars.daemon.stop_pipeline(pipeline)


def test_garbage_for_checkpoints_is_shown_and_harms_nothing(company: Company) -> None:
    company.begin("checkpoints")
    company.until("checkpoints", "Running")
    garbage = {"checkpoints": "yes", "n": 10**30, "\u0000": "\u0000", "deep": json.loads("[" * 200 + "]" * 200)}
    company.lie("checkpoints", status("Paused", "Running", storage_status_details=garbage))
    row = company.until("checkpoints", "Paused")
    assert row["storage_status_details"]["checkpoints"] == "yes"
    assert company.daemon.events("checkpoints")[-1]["storage_status_details"]["n"] == 10**30
    assert company.daemon.stop_pipeline("checkpoints")["storage_status_details"]["checkpoints"] == "yes"
    company.daemon.post("checkpoints", "clear")
    company.daemon.until("checkpoints", lambda p: p["storage_status"] == "Cleared")


# --- the port file --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PORT_FILES)
def test_a_port_file_that_is_none_is_a_fault_that_says_so(ports: Company, name: str) -> None:
    pipeline = named("port", name)
    error = ports.until_ended(pipeline)["deployment_error"]
    assert error["error_code"] == "RunnerProvisionError"
    assert PORT_FILES[name][1] in error["message"]
    assert "/work/port " in error["message"], "which file"
    assert ports.path(pipeline) == ["Stopped", "Provisioning", "Stopping", "Stopped"]


def test_a_late_port_file_is_waited_for(company: Company) -> None:
    company.begin("late", PORT_FILE="late 1.5")
    company.until("late", "Running")
    assert company.path("late")[:3] == ["Stopped", "Provisioning", "Initializing"]
    company.daemon.stop_pipeline("late")


def test_one_that_comes_too_late_is_too_late(company: Company) -> None:
    company.begin("too-late", timeout=2, PORT_FILE="late 60")
    row = company.daemon.until("too-late", lambda p: p["deployment_status"] == "Provisioning")
    error = company.until_ended("too-late")["deployment_error"]
    assert row["deployment_error"] is None
    assert error["error_code"] == "AutomatonProvisioningTimeout"
    assert "not ready within 2 s" in error["message"]
    assert error["details"]["timeout"] == {"secs": 2, "nanos": 0}
    assert company.path("too-late") == ["Stopped", "Provisioning", "Stopping", "Stopped"]


def test_a_port_where_nobody_listens(ports: Company) -> None:
    company = ports
    company.daemon.until("nobody", lambda p: "reason" in (p["deployment_runtime_status_details"] or {}))
    row = company.daemon.until("nobody", lambda p: "127.0.0.1:1" in p["deployment_runtime_status_details"]["reason"])
    assert row["deployment_status"] == "Initializing", "for as long as it may take to begin"
    company.daemon.stop_pipeline("nobody")


def test_one_that_is_written_over_and_over(company: Company) -> None:
    company.begin("over", PORT_FILE="over and over")
    company.until("over", "Running")
    events = len(company.daemon.events("over"))
    company.daemon.post("over", "pause")
    company.until("over", "Paused")
    assert len(company.daemon.events("over")) <= events + 2
    company.daemon.stop_pipeline("over")


@pytest.mark.parametrize("told", ["told", "silent"])
def test_one_that_moves_to_another_port(company: Company, told: str) -> None:
    name = f"moves-{told}"
    company.begin(name)
    company.until(name, "Running")
    pid = company.daemon.process(name)
    (company.storage(name) / "move").write_text(told)
    row = company.until(name, "Unavailable")
    assert "Cannot connect" in row["deployment_runtime_status_details"]["reason"]
    if told == "told":
        company.until(name, "Running")
        assert company.path(name)[-3:] == ["Running", "Unavailable", "Running"]
        company.daemon.post(name, "pause")
        company.until(name, "Paused")
    assert company.daemon.process(name) == pid
    company.daemon.stop_pipeline(name, force=False)


# --- the end --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["never", "refuse", "hang", "hang on status"])
def test_who_does_not_suspend_is_stopped_all_the_same(company: Company, how: str) -> None:
    name = named("suspend", how)
    company.begin(name, SUSPEND=how.removesuffix(" on status"))
    company.until(name, "Running")
    if how == "hang on status":
        company.lie(name, b"hang")
    pid, began = company.daemon.process(name), time.monotonic()
    row = company.daemon.stop_pipeline(name, force=False)
    took = time.monotonic() - began
    assert row["deployment_error"] is None
    assert not alive(pid)
    assert took < 5, "a second of grace, and what a busy machine adds"
    if how != "refuse":
        assert took >= 1, "it had its second of grace"
    assert company.path(name)[-2:] == ["Stopping", "Stopped"]


# --- what it prints -------------------------------------------------------------------------------------------------

FLOODS = {
    "one line of 10 MB": "print('x' * 10_000_000, flush=True)",
    "100 MB of binary": "data = os.urandom(1 << 20)\nfor _ in range(100): os.write(1, data)",
    "100 MB of NULs": "for _ in range(100): os.write(1, bytes(1 << 20))",
    "10 million lines": "for _ in range(100): os.write(1, b'x\\n' * 100_000)",
}


@pytest.mark.parametrize("name", FLOODS)
def test_whatever_is_printed_is_bounded_and_tells_how_it_ended(company: Company, name: str) -> None:
    pipeline = named("flood", name)
    program = f"import os, sys\n{FLOODS[name]}\nprint('the last line', flush=True)\nsys.exit(7)\n"
    company.begin(pipeline, program, contract="process")
    error = company.until_ended(pipeline)["deployment_error"]
    assert error["error_code"] == "PipelineProcessExited"
    assert error["details"]["exit_code"] == 7
    assert error["details"]["log_tail"][-1].endswith("the last line")
    assert len(json.dumps(error)) < 200_000
    file = company.storage(pipeline).parent / "logs" / "pipeline.log"
    company.daemon.until(pipeline, lambda _: file.stat().st_blocks * 512 < 2_000_000)  # it is trimmed beside
    log = company.log(pipeline)
    assert len(log.encode()) < 3 * 2_000_000, "a byte that is no text is shown as three"
    assert "exited with code 7" in log
    assert company.path(pipeline)[-2:] == ["Stopping", "Stopped"]


# --- nothing else suffers -------------------------------------------------------------------------------------------


def test_the_good_one_has_not_noticed(liars: Company, ports: Company) -> None:
    company, daemon = liars, liars.daemon
    company.watch.close()
    assert company.watch.wrong == []
    assert daemon.process("good") == company.pid
    assert daemon.events("good") == company.events
    took = sorted(company.watch.took_seconds)
    assert took[len(took) // 2] < 0.5, took[-10:]
    assert took[-1] < 5, took[-10:]
    assert '"level": "error"' not in daemon.log_text(), "what others do wrong is no mistake of the daemon"
