"""What an operator does with pipelines, on a real daemon: declare, start, look, pause, stop, clear, delete."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.daemon import Daemon

from .conftest import BROKEN, CRASHER, STUBBORN, TICKER, Run, Spawn, environment


def wait_until(holds: Callable[[], bool], within_seconds: float = 15) -> None:
    give_up_at = time.monotonic() + within_seconds
    while not holds():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


def test_a_whole_life(run: Run, ticker_file: Path) -> None:
    """What the README shows: one program, from the file until nothing is left of it."""
    done = run("apply", "-f", str(ticker_file))
    assert (done.exit_code, done.stdout) == (0, "ticker: created\n")
    done = run("start", "ticker")
    assert done.exit_code == 0
    assert done.stdout.startswith("ticker: Running (")
    assert run("pause", "ticker").stdout.startswith("ticker: Paused (")
    header, row = run("get", "ticker").stdout.splitlines()
    assert header.split() == ["NAME", "STATUS", "WANTED", "PROGRAM", "STORAGE", "SINCE", "REMARK"]
    assert row.split()[:5] == ["ticker", "Paused", "Paused", "Success", "InUse"]
    assert run("resume", "ticker").stdout.startswith("ticker: Running (")
    assert run("stop", "ticker").stdout.startswith("ticker: Stopped (")
    assert run("clear", "ticker").stdout.startswith("ticker: Cleared (")
    assert run("delete", "--yes", "ticker").stdout == "ticker: deleted\n"
    done = run("get", "ticker")
    assert (done.exit_code, done.stdout) == (3, "")
    assert done.stderr == "penstock: ticker: there is no such pipeline (UnknownPipelineName)\n  try: penstock get\n"


class TestStart:
    def test_waits_for_the_program_to_be_built(self, run: Run, spawn: Spawn, daemon: Daemon) -> None:
        daemon.create("gated", "x", program_config={"toolchain": "slow"}, wait=False)
        starting = spawn("start", "gated")
        wait_until(lambda: daemon.pipeline("gated")["deployment_desired_status"] == "Running")
        assert starting.poll() is None
        (daemon.home / "gate").touch()
        out, err = starting.communicate(timeout=15)
        assert (starting.returncode, out.startswith("gated: Running (")) == (0, True), err
        assert "gated: program CompilingSql, resources Stopped → Provisioned, storage Cleared\n" in err
        (daemon.home / "gate").unlink()

    def test_tells_what_is_wrong_with_a_program(self, run: Run, daemon: Daemon) -> None:
        daemon.create("broken", BROKEN, wait=False)
        done = run("start", "broken")
        assert (done.exit_code, done.stdout) == (6, "")
        assert "penstock: broken: its program does not pass its check" in done.stderr
        assert "line 2, column 5: error: SyntaxError: invalid syntax" in done.stderr
        wait_until(lambda: daemon.pipeline("broken")["program_status"] == "SqlError")
        again = run("start", "broken")
        assert again.exit_code == 6
        assert "line 2, column 5: error: SyntaxError: invalid syntax" in again.stderr

    def test_tells_how_it_crashed(self, run: Run, daemon: Daemon) -> None:
        daemon.create("crasher", CRASHER)
        done = run("start", "crasher", "--steady", "30s")
        assert (done.exit_code, done.stdout) == (6, "")
        assert "penstock: crasher: The pipeline process exited with code 1." in done.stderr
        assert "details." not in done.stderr
        assert "    | about to fail\n" in done.stderr
        assert "    | ValueError: boom\n" in done.stderr
        assert "try: penstock logs crasher\n" in done.stderr
        page = run("describe", "crasher").stdout
        assert "Error of the last run: PipelineProcessExited" in page
        assert "    | ValueError: boom\n" in page
        assert "[manager]" not in page
        assert "penstock dismiss-error crasher" in page
        assert run("dismiss-error", "crasher").exit_code == 0
        assert "Error of the last run" not in run("describe", "crasher").stdout

    def test_stopped_by_somebody_else(self, spawn: Spawn, daemon: Daemon) -> None:
        daemon.create("wanted", "x", program_config={"toolchain": "slow"}, wait=False)
        starting = spawn("start", "wanted")
        wait_until(lambda: daemon.pipeline("wanted")["deployment_desired_status"] == "Running")
        daemon.post("wanted", "stop", force="true")
        _, err = starting.communicate(timeout=15)
        assert starting.returncode == 6
        assert "wanted: it was stopped, or has ended, before it was Running\n" in err

    def test_a_program_whose_work_is_done_at_once(self, run: Run, daemon: Daemon) -> None:
        daemon.create("short", "pass\n")
        done = run("start", "short")
        assert done.exit_code == 0
        assert done.stdout.startswith("short: ran, and has ended (")

    def test_one_that_fails_keeps_none_of_the_others(self, run: Run, daemon: Daemon) -> None:
        daemon.create("first", TICKER)
        daemon.create("second", TICKER)
        done = run("start", "first", "no-such", "second", "first")
        assert done.exit_code == 3
        assert [line.partition(" (")[0] for line in done.stdout.splitlines()] == ["first: Running", "second: Running"]
        assert "penstock: no-such: there is no such pipeline" in done.stderr
        assert run("start", "frist").stderr.endswith("try: first, if that is meant\n")
        done = run("start", "no-such", "--initial", "standby", "first")
        assert done.exit_code == 1
        done = run("stop", "first", "second", "--force", "-o", "name")
        assert (done.exit_code, done.stdout, done.stderr) == (0, "first\nsecond\n", "")


class TestStop:
    def test_grace_time_out_interruption_and_force(self, run: Run, spawn: Spawn, daemon: Daemon) -> None:
        daemon.create("stubborn", STUBBORN)
        daemon.start_pipeline("stubborn")
        wait_until(lambda: "up" in run("logs", "stubborn").stdout.split())
        done = run("stop", "stubborn", "--timeout", "0.3s")
        assert done.exit_code == 4
        assert "stubborn: not Stopped after 0.3" in done.stderr
        assert "waits for its process to end by itself" in done.stderr
        assert "try: penstock stop --force stubborn" in done.stderr
        waiting = spawn("stop", "stubborn")
        assert waiting.stderr is not None
        assert waiting.stderr.readline().startswith("stubborn: program Success, resources Provisioned, runtime Running")
        waiting.send_signal(signal.SIGINT)
        out, err = waiting.communicate(timeout=15)
        assert (waiting.returncode, out) == (130, "")
        assert "no longer waiting for stubborn to be Stopped; what was asked for goes on" in err
        assert daemon.pipeline("stubborn")["deployment_desired_status"] == "Suspended"
        assert run("pause", "stubborn").exit_code == 1
        assert run("stop", "--force", "stubborn").exit_code == 0

    def test_all(self, run: Run, daemon: Daemon) -> None:
        for number in range(10):
            daemon.create(f"many-{number}", TICKER, wait=False)
        names = [f"many-{number}" for number in range(10)]
        done = run("start", *names, "-o", "json")
        assert done.exit_code == 0
        assert [row["deployment_status"] for row in json.loads(done.stdout)] == ["Running"] * 10
        done = run("stop", "--all", "--force", "-o", "jsonl")
        assert done.exit_code == 0
        assert {json.loads(line)["name"] for line in done.stdout.splitlines()} >= set(names)
        done = run("stop", "--all")
        assert (done.exit_code, done.stdout, done.stderr) == (0, "", "Everything is stopped.\n")
        assert run("stop").exit_code == 2
        assert run("stop", "--all", "many-1").exit_code == 2

    def test_no_wait(self, run: Run, daemon: Daemon) -> None:
        daemon.create("soon", TICKER)
        daemon.start_pipeline("soon")
        done = run("stop", "--no-wait", "soon")
        assert done.exit_code == 0
        assert done.stdout in ("soon: asked to be Stopped\n", "soon: Stopped\n")
        daemon.until("soon", lambda row: row["deployment_status"] == "Stopped")


def test_the_daemon_may_restart_while_somebody_waits(spawn: Spawn, daemon: Daemon) -> None:
    daemon.create("patient", STUBBORN)
    daemon.start_pipeline("patient")
    waiting = spawn("stop", "patient")
    wait_until(lambda: daemon.pipeline("patient")["deployment_desired_status"] == "Suspended")
    daemon.kill()
    daemon.start()
    daemon.post("patient", "stop", force="true")
    out, err = waiting.communicate(timeout=20)
    assert (waiting.returncode, out.startswith("patient: Stopped (")) == (0, True), err


class TestDelete:
    def test_asks_only_where_somebody_is(self, run: Run, daemon: Daemon) -> None:
        daemon.create("kept", TICKER)
        done = run("delete", "kept")
        assert (done.exit_code, done.stdout) == (2, "")
        assert "nothing was deleted, since nobody can be asked" in done.stderr
        assert daemon.pipeline("kept")

    def test_needs_force_for_what_runs_or_has_storage(self, run: Run, daemon: Daemon) -> None:
        daemon.create("busy", STUBBORN)
        daemon.start_pipeline("busy")
        done = run("delete", "-y", "busy")
        assert done.exit_code == 1
        assert "DeleteRestrictedToFullyStopped" in done.stderr
        assert "try: penstock delete --force busy" in done.stderr
        done = run("delete", "-y", "--force", "busy", "-o", "json")
        assert done.exit_code == 0
        assert json.loads(done.stdout)["deleted"] is True
        assert run("get", "busy").exit_code == 3


class TestFormats:
    def test_of_results(self, run: Run, daemon: Daemon) -> None:
        daemon.create("shown", TICKER, description="Zähler", tags=["a", "b"])
        one = json.loads(run("get", "shown", "-o", "json").stdout)
        assert one == daemon.pipeline("shown")
        both = json.loads(run("get", "shown", "no-such", "-o", "json").stdout)
        assert [row["name"] for row in both] == ["shown"]
        everything = [json.loads(line) for line in run("get", "-o", "jsonl").stdout.splitlines()]
        assert "shown" in [row["name"] for row in everything]
        assert run("get", "shown", "-o", "name").stdout == "shown\n"
        wide = run("get", "shown", "-o", "wide").stdout.splitlines()[1]
        assert "a,b" in wide
        assert one["id"] in wide
        assert json.loads(run("describe", "shown", "-o", "json").stdout)["program_code"] == TICKER

    def test_of_errors(self, run: Run) -> None:
        done = run("start", "no-such", "-o", "json")
        assert (done.exit_code, done.stdout) == (3, "[]\n")
        assert json.loads(done.stderr) == {
            "message": "there is no such pipeline",
            "error_code": "UnknownPipelineName",
            "details": {"pipeline_name": "no-such"},
        }

    def test_nothing_for_a_terminal_in_a_pipe(self, run: Run) -> None:
        done = run("get")
        assert "\x1b" not in done.stdout + done.stderr

    def test_watching(self, spawn: Spawn, daemon: Daemon) -> None:
        daemon.create("watched", TICKER)
        daemon.start_pipeline("watched", initial="paused")
        watching = spawn("get", "watched", "-w", "-o", "jsonl")
        assert watching.stdout is not None
        assert json.loads(watching.stdout.readline())["deployment_status"] == "Paused"
        daemon.stop_pipeline("watched")
        assert json.loads(watching.stdout.readline())["deployment_status"] in ("Stopping", "Stopped")
        watching.send_signal(signal.SIGINT)
        assert watching.wait(15) == 130

    def test_an_array_has_an_end(self, run: Run) -> None:
        assert run("get", "-w", "-o", "json").exit_code == 2
        assert run("events", "x", "-f", "-o", "json").exit_code == 2


def test_events_show_the_axes(run: Run, daemon: Daemon) -> None:
    daemon.create("drawn", TICKER)
    daemon.start_pipeline("drawn")
    daemon.stop_pipeline("drawn")
    lines = run("events", "drawn").stdout.splitlines()
    assert lines[0].split()[:4] == ["TIME", "RESOURCES", "WANTED", "STORAGE"]
    assert "··●· Provisioned   Provisioned  ·●· InUse" in "\n".join(lines)
    assert len(lines) == 1 + len(daemon.events("drawn"))
    assert run("events", "drawn", "-n", "2").stdout.splitlines()[1:] == lines[-2:]
    assert json.loads(run("events", "drawn", "-o", "json").stdout) == daemon.events("drawn")


def test_events_are_followed_until_the_pipeline_is_deleted(spawn: Spawn, daemon: Daemon) -> None:
    daemon.create("followed", TICKER)
    following = spawn("events", "-f", "-n", "1", "-o", "jsonl", "followed")
    assert following.stdout is not None
    assert json.loads(following.stdout.readline())["program_status"] == "Success"
    daemon.start_pipeline("followed")
    seen: list[str] = []
    while seen[-1:] != ["Running"]:
        seen.append(json.loads(following.stdout.readline())["deployment_runtime_status"])
    assert seen == [None, None, None, "Initializing", "Running"]
    daemon.stop_pipeline("followed")
    daemon.post("followed", "clear")
    daemon.until("followed", lambda row: row["storage_status"] == "Cleared")
    assert daemon.ask("DELETE", "/v0/pipelines/followed").status == 200
    following.communicate(timeout=15)
    assert following.returncode == 0


def test_a_reader_that_goes_away(spawn: Spawn, daemon: Daemon) -> None:
    daemon.create("chatty", TICKER)
    daemon.start_pipeline("chatty")
    following = spawn("logs", "-f", "chatty")
    assert following.stdout is not None
    following.stdout.readline()
    following.stdout.close()
    following.stdout = None
    assert following.wait(15) == 141
    assert following.stderr is not None
    assert following.stderr.read() == ""
    daemon.stop_pipeline("chatty")


class TestCompletion:
    def test_of_names(self, run: Run, daemon: Daemon) -> None:
        daemon.create("complete-me", TICKER, wait=False)
        done = run(_PENSTOCK_COMPLETE="bash_complete", COMP_WORDS="penstock start complete", COMP_CWORD="2")
        assert done.stdout == "plain,complete-me\n"
        done = run(_PENSTOCK_COMPLETE="bash_complete", COMP_WORDS="penstock start complete-me c", COMP_CWORD="3")
        assert "complete-me" not in done.stdout

    def test_of_commands(self, run: Run) -> None:
        done = run(_PENSTOCK_COMPLETE="zsh_complete", COMP_WORDS="penstock dis", COMP_CWORD="1")
        assert done.stdout == "plain\ndismiss-error\nForget the error of the last run.\n"

    def test_says_nothing_without_a_daemon(self, run: Run) -> None:
        done = run(
            _PENSTOCK_COMPLETE="bash_complete",
            COMP_WORDS="penstock start c",
            COMP_CWORD="2",
            PENSTOCK_URL="unix:/nowhere",
        )
        assert (done.stdout.strip(), done.stderr) == ("", "")

    def test_does_not_wait_for_a_daemon_that_hangs(self, run: Run, tmp_path: Path) -> None:
        import socket

        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(str(tmp_path / "silent"))
            silent.listen()
            began = time.monotonic()
            done = run(
                _PENSTOCK_COMPLETE="bash_complete",
                COMP_WORDS="penstock start c",
                COMP_CWORD="2",
                PENSTOCK_URL=f"unix:{tmp_path}/silent",
            )
        assert time.monotonic() - began < 2
        assert (done.stdout.strip(), done.stderr) == ("", "")

    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_prints_a_script_and_how_to_load_it(self, run: Run, shell: str) -> None:
        done = run("completion", shell)
        assert done.exit_code == 0
        assert f"_PENSTOCK_COMPLETE={shell}_complete" in done.stdout
        assert f"penstock completion {shell}" in done.stdout


def test_waiting_is_gentle(run: Run, daemon: Daemon) -> None:
    """While nothing moves, a waiting command asks a few times a second, and hears mostly that nothing has changed."""
    daemon.create("gentle", STUBBORN)
    daemon.start_pipeline("gentle")
    before = _requests(daemon)
    timer = threading.Timer(2.0, lambda: daemon.post("gentle", "stop", force="true"))
    timer.start()
    assert run("stop", "gentle").exit_code == 0
    timer.join()
    assert _requests(daemon) - before < 35


def _requests(daemon: Daemon) -> int:
    text: str = daemon.ask("GET", "/metrics").body
    lines = [line for line in text.splitlines() if line.startswith("penstock_api_request_seconds_count")]
    assert lines, text[:2000]
    return int(sum(float(line.rpartition(" ")[2]) for line in lines))


@pytest.mark.parametrize(
    "command", [("get",), ("logs", "light", "--tail", "1"), ("events", "light"), ("pause", "light")]
)
def test_begins_without_what_is_heavy(daemon: Daemon, command: tuple[str, ...]) -> None:
    """Each of these would take longer to import than all that a command does."""
    if daemon.ask("GET", "/v0/pipelines/light").status == 404:
        daemon.create("light", TICKER)
    daemon.start_pipeline("light", initial="paused")
    env = {name: value for name, value in {**os.environ, **environment(daemon)}.items() if value}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "penstock", *command],
        env=env,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "penstock.cli.client" in imported
    assert not imported & {
        "rich",
        "aiohttp",
        "anyio",
        "asyncio",
        "pydantic",
        "msgspec",
        "structlog",
        "tomllib",
        "sqlite3",
    }
