"""The demo as a stranger runs it: it shows what it promises, and leaves nothing behind however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCALE = int(os.environ.get("PENSTOCK_TEST_SCALE", "1"))


def demo(home: Path, *options: str, before: str = "") -> subprocess.Popen[str]:
    """The demo, with `before` run in its process first."""
    argv = [sys.executable, "-c", f"{before}\nfrom penstock.__main__ import main\nmain()", "demo", *options]
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(home), "COLUMNS": "80"},
    )


def leftovers(home: Path) -> list[str]:
    """Processes that know of the demo's directory."""
    mark = str(home).encode()
    found: list[str] = []
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) != os.getpid():
            try:
                told = Path(f"/proc/{name}/environ").read_bytes() + Path(f"/proc/{name}/cmdline").read_bytes()
            except OSError:
                continue
            if mark in told:
                found.append(name)
    return found


def assert_nothing_left(home: Path) -> None:
    give_up_at = time.monotonic() + 5
    while left := leftovers(home):
        if time.monotonic() > give_up_at:
            for pid in left:
                os.kill(int(pid), signal.SIGKILL)
            raise AssertionError(left)
        time.sleep(0.05)
    assert list(home.iterdir()) == []


def test_it_shows_a_whole_life(tmp_path: Path) -> None:
    run = demo(tmp_path)
    printed, _ = run.communicate(timeout=60)
    assert run.returncode == 0, printed
    for shown in ("paused", "resumed", "PipelineProcessExited", "SIGKILL", "still process", "none lost, none twice"):
        assert shown in printed
    history = printed[printed.index("what it does") :].splitlines()[1:]
    assert all(len(line) <= 80 for line in history)
    lives = [line.split()[3] for line in history if line.strip()]
    assert [status for status in ("Provisioning", "Provisioned", "Stopping", "Stopped") if status not in lives] == []
    assert history[-1].split()[6] == "Cleared"
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("line", [1, 3, 9])
def test_interrupted_it_cleans_up_too(tmp_path: Path, number: int, line: int) -> None:
    run = demo(tmp_path)
    assert run.stdout is not None
    for _ in range(line):
        run.stdout.readline()
    run.send_signal(number)
    run.communicate(timeout=60)
    assert run.returncode in (130, 143)
    assert_nothing_left(tmp_path)


def test_impatience_changes_nothing(tmp_path: Path) -> None:
    run = demo(tmp_path)
    assert run.stdout is not None
    for _ in range(3):
        run.stdout.readline()
    for _ in range(5):
        run.send_signal(signal.SIGINT)
        time.sleep(0.05)
    run.communicate(timeout=60)
    assert run.returncode == 130
    assert_nothing_left(tmp_path)


def test_keep_serves_on_until_it_is_interrupted(tmp_path: Path) -> None:
    run = demo(tmp_path, "--keep")
    assert run.stdout is not None
    while "Ctrl-C ends it" not in run.stdout.readline():
        assert run.poll() is None
    [home] = tmp_path.iterdir()
    asked = [sys.executable, "-m", "penstock", "healthcheck", "--listen", f"unix:{home}/api.sock"]
    assert subprocess.run(asked, check=False).returncode == 0
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=60)
    assert_nothing_left(tmp_path)


INTERRUPTED_SPAWN = """
import os, signal, subprocess
begin = subprocess.Popen.__init__
def begin_and_be_interrupted(self, *arguments, **options):
    begin(self, *arguments, **options)
    os.kill(os.getpid(), signal.{signal})
subprocess.Popen.__init__ = begin_and_be_interrupted
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_daemon_that_is_just_begun_is_not_forgotten(tmp_path: Path, name: str, code: int) -> None:
    run = demo(tmp_path, before=INTERRUPTED_SPAWN.format(signal=name))
    printed, _ = run.communicate(timeout=60)
    assert run.returncode == code, printed
    assert "Traceback" not in printed
    assert_nothing_left(tmp_path)


@pytest.mark.timeout(300)
def test_interrupted_at_any_moment_it_leaves_nothing(tmp_path: Path) -> None:
    """Most of all in its first second: it makes its directory, and begins its daemon."""
    moments = min(5 * SCALE, 500)
    for moment in range(moments):
        run = demo(tmp_path)
        time.sleep(0.15 + 0.6 * moment / moments)  # the moment itself
        run.send_signal(signal.SIGINT)
        printed, _ = run.communicate(timeout=60)
        assert run.returncode != 0, printed
        assert_nothing_left(tmp_path)


def test_nowhere_to_print(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "penstock", "demo"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            argv,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            env={**os.environ, "TMPDIR": str(tmp_path)},
        )
    assert done.stderr == "penstock: nothing can be printed: No space left on device\n"
    assert done.returncode == 1
    assert_nothing_left(tmp_path)


def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    run = demo(tmp_path)
    assert run.stdout is not None
    run.stdout.readline()
    run.stdout.close()
    assert run.wait(60) == 1
    assert_nothing_left(tmp_path)
