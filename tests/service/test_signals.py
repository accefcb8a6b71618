"""Signals, sent to a real process."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

SCRIPT = """
import anyio, os, signal, sys
from penstock.service import until_told_to_end

def say(*words):
    print(*words, flush=True)

async def on_reload():
    say("reload begins")
    await {reload}
    say("reload ends")

async def main():
    async with anyio.create_task_group() as tasks:
        async def wait(*, task_status):
            told = await until_told_to_end(on_reload, task_status=task_status)
            say("told", told.name)
            {after}
        await tasks.start(wait)
        say("up")

anyio.run(main)
say("over")
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    processes: list[subprocess.Popen[str]] = []

    def begin(reload: str = "anyio.sleep(0)", after: str = "pass") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT.format(reload=reload, after=after)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert said(process) == "up"
        return process

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end(start: Start, number: signal.Signals) -> None:
    process = start()
    process.send_signal(number)
    assert process.communicate(timeout=10)[0].split("\n") == [f"told {number.name}", "over", ""]
    assert process.returncode == 0


def test_hangup_reloads_and_does_not_end(start: Start) -> None:
    process = start()
    for _ in range(3):
        process.send_signal(signal.SIGHUP)
        assert said(process) == "reload begins"
        assert said(process) == "reload ends"
    process.terminate()
    assert said(process) == "told SIGTERM"
    assert process.wait(10) == 0


def test_a_reload_that_hangs_holds_up_no_end(start: Start) -> None:
    process = start(reload="anyio.sleep_forever()")
    process.send_signal(signal.SIGHUP)
    assert said(process) == "reload begins"
    process.send_signal(signal.SIGHUP)
    process.terminate()
    assert said(process) == "told SIGTERM"
    assert process.wait(10) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_ends_at_once(start: Start, number: signal.Signals) -> None:
    process = start(after="await anyio.sleep_forever()")
    process.terminate()
    assert said(process) == "told SIGTERM"
    process.send_signal(signal.SIGHUP)
    process.send_signal(number)
    assert process.wait(10) == 128 + number


def test_stacks_on_demand_even_when_the_loop_hangs(start: Start) -> None:
    process = start(reload="__import__('time').sleep(60)")
    process.send_signal(signal.SIGHUP)
    assert said(process) == "reload begins"
    process.send_signal(signal.SIGUSR2)
    assert process.stderr is not None
    assert "most recent call first" in process.stderr.readline()
    while "on_reload" not in process.stderr.readline():
        assert process.poll() is None
    assert process.poll() is None
