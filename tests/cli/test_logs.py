"""`penstock logs`: what is printed is the log, each line once, whatever becomes of connection and daemon."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.daemon import Daemon

from .conftest import TICKER, Run, Spawn
from .test_operate import wait_until

COUNTER = """\
import time
for n in range(5000):
    print("line", n, "x" * (n % 90), flush=n % 7 == 0)
time.sleep(600)
"""


class Cutter:
    """Passes connections on to a daemon, and breaks each off after so many bytes of the answer; the first ones only."""

    def __init__(self, path: Path, target: str, budgets: list[int]) -> None:
        self.cut = 0
        self._target = target
        self._budgets = budgets
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                budget = self._budgets.pop(0) if self._budgets else None
                thread = threading.Thread(target=self._pass_on, args=(client, budget))
                self._threads.append(thread)
                thread.start()

    def _pass_on(self, client: socket.socket, budget: int | None) -> None:
        with client, socket.socket(socket.AF_UNIX) as daemon, suppress(OSError):
            daemon.connect(self._target)
            client.settimeout(20)
            daemon.settimeout(20)
            daemon.sendall(client.recv(65536))
            while data := daemon.recv(1024):
                if budget is not None and len(data) >= budget:
                    client.sendall(data[:budget])
                    self.cut += 1
                    return
                client.sendall(data)
                budget = None if budget is None else budget - len(data)

    def end(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def lines(daemon: Daemon) -> str:
    """The name of a pipeline that has printed 5,000 lines, and prints no more."""
    if daemon.ask("GET", "/v0/pipelines/counter").status == 404:
        daemon.create("counter", COUNTER)
        daemon.start_pipeline("counter")
        wait_until(lambda: "line 4999 " in whole(daemon))
    return "counter"


def whole(daemon: Daemon) -> str:
    return str(daemon.ask("GET", "/v0/pipelines/counter/logs?cursor=&follow=false").body)


def test_prints_all(run: Run, daemon: Daemon, lines: str) -> None:
    done = run("logs", lines)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == whole(daemon)


def test_tail_and_since(run: Run, daemon: Daemon, lines: str) -> None:
    everything = whole(daemon).splitlines()
    assert run("logs", lines, "--tail", "3").stdout.splitlines() == everything[-3:]
    assert run("logs", lines, "--tail", "0").stdout == ""
    assert run("logs", lines, "--since", "1h").stdout.splitlines() == everything
    assert run("logs", lines, "--since", "2020-01-01T00:00:00+01:00").stdout.splitlines() == everything
    assert run("logs", lines, "--since", "yesterday").exit_code == 2
    assert run("logs", lines, "--tail", "-1").exit_code == 2
    assert run("logs", "no-such").exit_code == 3


def test_broken_connections_lose_and_double_nothing(spawn: Spawn, daemon: Daemon, lines: str, tmp_path: Path) -> None:
    cutter = Cutter(tmp_path / "cut.sock", daemon.socket, [700, 5_000, 33_333, 100_001, 0, 1])
    try:
        following = spawn("logs", "-f", lines, PENSTOCK_URL=f"unix:{tmp_path}/cut.sock")
        assert following.stdout is not None
        expected = whole(daemon).splitlines(keepends=True)
        assert [following.stdout.readline() for _ in expected] == expected
        assert cutter.cut == 6
    finally:
        cutter.end()
        following.kill()


def test_a_log_that_is_not_followed_says_when_it_breaks_off(
    run: Run, daemon: Daemon, lines: str, tmp_path: Path
) -> None:
    cutter = Cutter(tmp_path / "cut.sock", daemon.socket, [50_000])
    try:
        done = run("logs", lines, PENSTOCK_URL=f"unix:{tmp_path}/cut.sock")
    finally:
        cutter.end()
    assert done.exit_code == 1
    assert "the log broke off before its end" in done.stderr
    assert whole(daemon).startswith(done.stdout)


def test_goes_on_through_a_restart_and_ends_with_the_pipeline(spawn: Spawn, daemon: Daemon) -> None:
    daemon.create("steady", TICKER.replace('"tick", ', "").replace("0.01", "0.002"))
    daemon.start_pipeline("steady")
    following = spawn("logs", "-f", "--tail", "0", "steady")
    assert following.stdout is not None
    got = [following.stdout.readline()]
    daemon.kill()
    time.sleep(0.3)  # it prints on while no daemon runs
    daemon.start()
    while not got[-1].startswith("[manager]"):  # the new daemon says that it has adopted it
        got.append(following.stdout.readline())
    daemon.stop_pipeline("steady")
    daemon.post("steady", "clear")
    daemon.until("steady", lambda row: row["storage_status"] == "Cleared")
    assert daemon.ask("DELETE", "/v0/pipelines/steady").status == 200
    out = following.stdout.read()  # not communicate(), which would pass over what readline() has read ahead
    assert following.wait(20) == 0
    numbers = [int(line) for line in [*got, *out.splitlines()] if line.strip().isdecimal()]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert len(numbers) > 100
    assert "deleted" in out.splitlines()[-1]
