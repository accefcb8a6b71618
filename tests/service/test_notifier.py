"""The protocol of sd_notify(3), spoken to a real datagram socket."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from penstock.service import Notifier, watchdog


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """What systemd holds, and the value of NOTIFY_SOCKET."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@penstock-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name.replace("@", "\0", 1))
        receiver.settimeout(5)
        yield receiver, name


def lines(receiver: socket.socket) -> list[str]:
    return receiver.recv(4096).decode().split("\n")


def test_tells_the_manager(manager: tuple[socket.socket, str]) -> None:
    receiver, name = manager
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.ready("serving\non two lines")
    assert lines(receiver) == ["READY=1", "STATUS=serving on two lines"]
    notifier.status("busy")
    assert lines(receiver) == ["STATUS=busy"]
    before = time.monotonic_ns() // 1000
    notifier.reloading()
    reloading, stamp = lines(receiver)
    assert reloading == "RELOADING=1"
    assert before <= int(stamp.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
    notifier.stopping()
    assert lines(receiver) == ["STOPPING=1"]
    notifier.ping()
    assert lines(receiver) == ["WATCHDOG=1"]


def test_takes_the_variables_away() -> None:
    environ = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "PATH": "/bin"}
    Notifier(environ)
    assert environ == {"PATH": "/bin"}


def test_no_child_inherits_them() -> None:
    script = (
        "import os, subprocess; from penstock.service import Notifier; Notifier(os.environ)\n"
        "print(subprocess.run(['env'], capture_output=True, text=True).stdout)"
    )
    environ = {**os.environ, "NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}
    out = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, timeout=20)
    assert "PATH=" in out.stdout
    assert "NOTIFY_SOCKET" not in out.stdout
    assert "WATCHDOG" not in out.stdout


@pytest.mark.parametrize("name", [None, "", "relative", "vsock:2:1234", "/nowhere/at/all", "@nobody-listens-here"])
def test_without_a_manager_nothing_happens(name: str | None) -> None:
    notifier = Notifier({} if name is None else {"NOTIFY_SOCKET": name})
    notifier.ready("x")
    notifier.ping()


def test_a_manager_that_does_not_read_delays_nobody(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler, suppress(BlockingIOError):
            filler.setblocking(False)
            while True:
                filler.sendto(b"x", str(tmp_path / "notify"))
        began = time.monotonic()
        notifier.ready("x")
        assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "30000000"}, 30.0),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "soon"}, None),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "0"}, None),
        ({"NOTIFY_SOCKET": "/x"}, None),
        ({"WATCHDOG_USEC": "30000000"}, None),
    ],
)
def test_who_watches(environ: dict[str, str], seconds: float | None) -> None:
    assert Notifier(environ).watchdog_seconds == seconds


async def test_the_watchdog_is_kept_quiet_only_while_alive(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.setblocking(False)
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "40000"})
        answers = iter([True, True, True, False, False, True, False, False])
        asked: list[bool] = []
        done = anyio.Event()

        def alive() -> bool:
            answer = next(answers, None)
            if answer is None:
                done.set()
                return False
            asked.append(answer)
            return answer

        began = anyio.current_time()
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(watchdog, notifier, alive)
                await done.wait()
                tasks.cancel_scope.cancel()
        # Asked at half the interval of 40 ms.
        assert anyio.current_time() - began >= 8 * 0.02
        pings = 0
        while True:
            try:
                assert receiver.recv(100) == b"WATCHDOG=1"
            except BlockingIOError:
                break
            pings += 1
        assert pings == sum(asked) == 4


async def test_nobody_watches() -> None:
    with anyio.fail_after(5):
        await watchdog(Notifier({}), lambda: True)
