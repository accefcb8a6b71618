"""What may go wrong at a start is one line and an exit code; a bug keeps its traceback.

`penstock.wiring` is replaced by one that fails on demand: what is tested is how its failures are told.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, socket, sys, types
import anyio
from penstock import ports, settings, service
from penstock.settings import ConfigRefused, Refusal

wiring = types.ModuleType("penstock.wiring")

async def serve(settings, *, reload, notifier):
{body}

wiring.serve = serve
sys.modules["penstock.wiring"] = wiring
import penstock
penstock.wiring = wiring
from penstock.__main__ import main
sys.argv = ["penstock", "serve", *sys.argv[1:]]
main()
"""


def script(body: str) -> str:
    return SCRIPT.format(body="\n".join("    " + line for line in body.splitlines()))


def serve(body: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script(body), *arguments],
        env={"HOME": "/nonexistent", "PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        ("raise ports.StoreLocked('Another daemon runs.')", 75, "penstock: Another daemon runs."),
        ("raise ports.StoreUnavailable('disk I/O error')", 75, "penstock: disk I/O error"),
        ("raise ports.StoreCorrupt('row 3\\nis odd')", 1, "penstock: row 3 is odd"),
        ("raise ConfigRefused([Refusal('f', 'a.b', 'no')])", 78, "f: a.b: no"),
        ("open('/nonexistent/x')", 1, "penstock: No such file or directory: /nonexistent/x"),
        (
            "async with anyio.create_task_group() as tasks:\n    raise ports.StoreLocked('Another daemon runs.')",
            75,
            "penstock: Another daemon runs.",
        ),
        ("raise KeyboardInterrupt", 130, "penstock: interrupted"),
    ],
)
def test_what_may_go_wrong(body: str, code: int, text: str) -> None:
    done = serve(body)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", text + "\n")


def test_a_busy_address() -> None:
    body = (
        "import asyncio\nwith socket.create_server(('127.0.0.1', 0)) as taken:\n"
        "    await asyncio.get_running_loop().create_server(asyncio.Protocol, *taken.getsockname())"
    )
    done = serve(body)
    assert done.returncode == 1
    assert "address already in use" in done.stderr
    assert "--listen" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "body",
    [
        "raise ZeroDivisionError('ours')",
        "raise ExceptionGroup('both', [ports.StoreLocked('x'), ZeroDivisionError('ours')])",
    ],
)
def test_a_bug_is_not_hidden(body: str) -> None:
    done = serve(body)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError: ours" in done.stderr


def test_what_is_handed_on(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[events]\nretention = 3\n")
    body = f"""
print(settings.api.listen, settings.daemon.state_dir, settings.daemon.log_level, settings.events.retention)
open({str(file)!r}, "w").write("[events]\\nretention = 4\\n")
print(reload().api.listen, reload().events.retention)
open({str(file)!r}, "w").write("[events]\\nretention = 0\\n")
try:
    reload()
except ConfigRefused as refused:
    print(refused)
print(notifier.watchdog_seconds, "NOTIFY_SOCKET" in os.environ)
"""
    flags = ("--config", str(file), "--listen", "unix:/x", "--state-dir", "/s", "--log-level", "debug")
    done = serve(body, *flags, PENSTOCK_API__LISTEN="unix:/y", NOTIFY_SOCKET="/n", WATCHDOG_USEC="2000000")
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "unix:/x /s debug 3",
        "unix:/x 4",
        f"{file}: events.retention: must be at least 1, is 0",
        "2.0 False",
    ]
    assert done.returncode == 0


@pytest.mark.parametrize(("given", "meant"), [("here", "here"), (".", "."), ("a/../b", "b"), ("/s", "/s")])
def test_a_state_directory_is_found_from_where_the_command_is_given(tmp_path: Path, given: str, meant: str) -> None:
    body = "os.chdir('/')\nprint(settings.daemon.state_dir, reload().daemon.state_dir)"
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        done = serve(body, "--state-dir", given)
    finally:
        os.chdir(here)
    expected = (tmp_path / meant).resolve()
    assert (done.stdout, done.stderr) == (f"{expected} {expected}\n", "")


def test_an_empty_state_directory_is_refused() -> None:
    done = serve("print('never')", "--state-dir", "")
    told = "--state-dir: daemon.state_dir: is empty; name a directory, or leave it out for the default\n"
    assert (done.returncode, done.stdout, done.stderr) == (78, "", told)


def real_serve(state_dir: Path, listen: str) -> subprocess.CompletedProcess[str]:
    """The daemon as it is; it is expected to refuse."""
    argv = [sys.executable, "-m", "penstock", "serve", "--config", os.devnull, "--state-dir", str(state_dir)]
    return subprocess.run(
        [*argv, "--listen", listen, "--log-level", "error"], capture_output=True, text=True, timeout=30
    )


def test_where_it_can_not_listen(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    used = tmp_path / "used"
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket(socket.AF_UNIX) as answering:
        answering.bind(str(used))
        answering.listen()
        port = taken.getsockname()[1]
        advice = ": end the program that listens there, or choose another address with --listen"
        for listen, reason in (
            (f"unix:{tmp_path}/no/f", "No such file or directory"),
            (f"unix:{plain}/f", "Not a directory"),
            (f"unix:{plain}", "exists and is not a socket"),
            (f"unix:{used}", f"somebody answers on this socket{advice}"),
            ("unix:/proc/f", "No such file or directory"),
            (f"127.0.0.1:{port}", f"Address already in use{advice}"),
        ):
            done = real_serve(tmp_path / "state", listen)
            assert done.stderr == f"penstock: cannot listen on {listen}: {reason}\n"
            assert done.returncode == 1


def test_a_hangup_before_the_daemon_is_up_does_not_kill_it() -> None:
    body = "os.kill(os.getpid(), 1)\nawait anyio.sleep(0)\nprint('alive')"
    done = serve(body)
    assert (done.returncode, done.stdout) == (0, "alive\n")


def test_signals_end_it_with_success() -> None:
    body = (
        "async def on_reload():\n    print('reloaded', flush=True)\n"
        "async def follow(*, task_status):\n"
        "    print(await service.until_told_to_end(on_reload, task_status=task_status), flush=True)\n"
        "async with anyio.create_task_group() as tasks:\n"
        "    await tasks.start(follow)\n"
        "    print('up', flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script(body)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGHUP)
        assert process.stdout.readline() == "reloaded\n"
        process.terminate()
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.communicate()
