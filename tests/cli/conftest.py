"""A daemon for each module of tests, and the commands run against it: in this process, or as a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from penstock.cli import penstock
from tests.e2e.daemon import Daemon

TICKER = """\
import itertools, time
for n in itertools.count():
    print("tick", n, flush=True)
    time.sleep(0.01)
"""
STUBBORN = """\
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(600)
"""
CRASHER = """\
import sys, time
print("about to fail", flush=True)
time.sleep(0.2)
raise ValueError("boom")
"""
BROKEN = "x = 1\ny = = 2\n"

CONFIG = """
[runner]
stop_grace_seconds = 30
[toolchains.slow]
check = ["/bin/sh", "-c", "while [ -e {program_file} ] && ! [ -e $GATE ]; do sleep 0.02; done"]
run = ["sleep", "600"]
env = { GATE = "%s" }
"""

Run = Callable[..., Result]
Spawn = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that is ready. Toolchain `slow` checks for ever, until the file `gate` is there."""
    home = tmp_path_factory.mktemp("cli")
    made = Daemon(home, config=CONFIG % (home / "gate"))
    try:
        made.start()
        yield made
    finally:
        made.close()


def environment(daemon: Daemon | None) -> dict[str, str | None]:
    """What the commands see: nothing of ours but where the daemon is."""
    ours = {name: None for name in os.environ if name.startswith(("PENSTOCK_", "FELDERA_", "NO_COLOR"))}
    url = {} if daemon is None else {"PENSTOCK_URL": f"unix:{daemon.socket}"}
    return {**ours, "HOME": "/nonexistent", "XDG_CONFIG_HOME": None, "TERM": "xterm-256color", **url}


@pytest.fixture
def run(daemon: Daemon) -> Run:
    """Run a command in this process."""

    def invoke(*arguments: str, text: str | None = None, **environ: str) -> Result:
        env = {**environment(daemon), **environ}
        result = CliRunner().invoke(penstock, arguments, input=text, env=env, prog_name="penstock")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


@pytest.fixture
def spawn(daemon: Daemon) -> Iterator[Spawn]:
    """Begin a command as a process of its own, with pipes."""
    begun: list[subprocess.Popen[str]] = []

    def begin(*arguments: str, **environ: str) -> subprocess.Popen[str]:
        env = {name: value for name, value in {**os.environ, **environment(daemon), **environ}.items() if value}
        process = subprocess.Popen(
            [sys.executable, "-m", "penstock", *arguments],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        begun.append(process)
        return process

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


@pytest.fixture
def ticker_file(tmp_path: Path) -> Path:
    """A program that ticks."""
    file = tmp_path / "ticker.py"
    file.write_text(TICKER)
    return file
