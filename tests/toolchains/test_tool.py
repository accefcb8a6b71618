"""One tool: its output, its end, and that nothing of it is left, however it ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import anyio
import pytest

from penstock.toolchains.tool import KEPT_BYTES, Ended, Output, ToolBroke, hunt, run_tool
from tests.toolchains.conftest import alive_in, open_files

ENV = {"PATH": os.environ["PATH"]}

FAMILY = """
import os, subprocess, sys, time
code = "import os, time; open(os.environ['AT'] + '/%s', 'w').close(); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", code % "child"])
subprocess.Popen([sys.executable, "-c", code % "hidden"], start_new_session=True, stdout=subprocess.DEVNULL)
while not (os.path.exists(os.environ['AT'] + '/child') and os.path.exists(os.environ['AT'] + '/hidden')):
    time.sleep(0.01)
open(os.environ['AT'] + '/all', 'w').close()
"""
"""A tool with a child in its group, and one that has moved into a session of its own."""


async def python(code: str, directory: Path, timeout_seconds: float = 20.0) -> Ended:
    return await run_tool(
        [sys.executable, "-I", "-S", "-c", code],
        directory=str(directory),
        env={**ENV, "AT": str(directory)},
        timeout_seconds=timeout_seconds,
    )


async def appears(path: Path) -> None:
    with anyio.fail_after(20):
        while not os.path.exists(path):  # noqa: ASYNC240 - of no account here
            await anyio.sleep(0.01)


async def test_a_tool_ends_with_its_code_and_what_it_printed(tmp_path: Path) -> None:
    ended = await python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)", tmp_path)
    assert ended == Ended(3, "out\n", "err\n")


async def test_a_signal_is_a_negative_code(tmp_path: Path) -> None:
    assert (await python("import os; os.kill(os.getpid(), 11)", tmp_path)).exit_code == -signal.SIGSEGV


async def test_what_a_tool_gets_is_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    code = (
        "import os, sys; print(sorted(os.environ)); print(repr(sys.stdin.read())); print(os.getcwd());"
        "print(os.getsid(0) == os.getpid()); print(sorted(os.listdir('/proc/self/fd')))"
    )
    lines = (await python(code, tmp_path)).stdout.splitlines()
    assert set(eval(lines[0])) - {"LC_CTYPE"} == {"AT", "PATH", "PENSTOCK_BUILD_DIR"}
    assert lines[1:4] == ["''", str(tmp_path), "True"]
    assert len(eval(lines[4])) == 4  # and the one that lists them


async def test_a_tool_that_is_missing_is_named_with_what_to_do(tmp_path: Path) -> None:
    for argv in (["no-such-tool", "x"], [str(tmp_path)], ["x\0y"]):
        with pytest.raises(ToolBroke, match=r"cannot be started: .* Install it"):
            await run_tool(argv, directory=str(tmp_path), env=ENV, timeout_seconds=5)


async def test_a_time_out_kills_the_whole_family(tmp_path: Path) -> None:
    files = open_files()
    began = time.monotonic()
    with pytest.raises(ToolBroke, match=r"python.*took longer than 2\.5 s and was stopped"):
        await python(FAMILY + "time.sleep(600)", tmp_path, timeout_seconds=2.5)
    assert time.monotonic() - began < 8
    assert (tmp_path / "all").exists()
    assert alive_in(tmp_path) == []
    assert open_files() == files


async def test_a_cancellation_kills_the_whole_family(tmp_path: Path) -> None:
    files = open_files()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(python, FAMILY + "time.sleep(600)", tmp_path)
        await appears(tmp_path / "all")
        assert len(alive_in(tmp_path)) == 3
        tasks.cancel_scope.cancel()
    assert alive_in(tmp_path) == []
    assert open_files() == files


async def test_a_cancellation_at_any_moment_leaves_nothing(tmp_path: Path) -> None:
    files = open_files()
    for n in range(40):
        with anyio.move_on_after(n * 0.0007):
            await python("import time; time.sleep(600)", tmp_path)
    assert alive_in(tmp_path) == []
    assert open_files() == files


async def test_a_tool_that_ends_leaves_no_child_behind_nor_waits_for_one(tmp_path: Path) -> None:
    """The child in its group has the output open, the hidden one has not; neither may outlive the tool for long."""
    began = time.monotonic()
    ended = await python(FAMILY + "print('done')", tmp_path)
    assert ended.stdout == "done\n"
    assert time.monotonic() - began < 10
    # What hides without the output costs a look at every process: that is left to the sweep.
    hunt(lambda owner: owner == str(tmp_path))
    assert alive_in(tmp_path) == []


async def test_a_silent_child_in_the_background_goes_with_its_tool(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys; sleep = [sys.executable, '-c', 'import time; time.sleep(600)']; "
        "subprocess.Popen(sleep, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)"
    )
    assert (await python(code, tmp_path)).exit_code == 0
    with anyio.fail_after(5):
        while alive_in(tmp_path):  # the kill is sent; init reaps it
            await anyio.sleep(0.01)


async def test_what_holds_the_output_open_from_a_session_of_its_own_is_hunted_down(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys; sleep = [sys.executable, '-c', 'import time; time.sleep(600)']; "
        "subprocess.Popen(sleep, start_new_session=True); print('done')"
    )
    began = time.monotonic()
    assert (await python(code, tmp_path)).stdout == "done\n"
    assert time.monotonic() - began < 8
    assert alive_in(tmp_path) == []


async def test_a_tool_that_ignores_signals_and_closes_its_output_is_killed(tmp_path: Path) -> None:
    code = (
        "import os, signal, time; signal.signal(15, signal.SIG_IGN); signal.signal(2, signal.SIG_IGN); "
        "os.close(1); os.close(2); time.sleep(600)"
    )
    with pytest.raises(ToolBroke, match="took longer"):
        await python(code, tmp_path, timeout_seconds=0.5)


async def test_a_flood_of_output_blocks_neither_the_tool_nor_the_loop(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "os.write(1, b'first line\\n'); os.write(2, b'err\\n')\n"
        "for _ in range(400): os.write(1, b'x' * 65536); os.write(2, b'y' * 65536)\n"
        "os.write(1, b'last line\\n')\n"
    )
    slowest = 0.0

    async def beat() -> None:
        nonlocal slowest
        while True:
            before = time.monotonic()
            await anyio.sleep(0.005)
            slowest = max(slowest, time.monotonic() - before)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(beat)
        ended = await python(code, tmp_path)
        tasks.cancel_scope.cancel()
    assert ended.exit_code == 0
    assert ended.stdout.startswith("first line\nxxx")
    assert ended.stdout.endswith("xxx\nlast line\n") or ended.stdout.endswith("xlast line\n")
    assert len(ended.stdout) < KEPT_BYTES + 100
    assert "bytes left out" in ended.stderr
    assert slowest < 0.5


async def test_no_thread_waits_for_a_tool(tmp_path: Path) -> None:
    """Twelve tools at once: only the few threads of the pool that starts them."""
    await python("", tmp_path)
    before = threading.active_count()
    async with anyio.create_task_group() as tasks:
        for _ in range(12):
            tasks.start_soon(python, "import time; time.sleep(600)", tmp_path)
        with anyio.fail_after(20):
            while len(alive_in(tmp_path)) < 12:
                await anyio.sleep(0.02)
        names = [thread.name for thread in threading.enumerate() if "waitpid" in thread.name]
        tasks.cancel_scope.cancel()
    assert names == []
    assert threading.active_count() <= before + 12


def test_output_keeps_the_beginning_and_the_end_whatever_the_pieces() -> None:
    data = b"".join(b"%d\n" % n for n in range(200_000))
    for size in (1000, 65_536, 10_000_000):
        output = Output()
        for at in range(0, len(data), size):
            output.add(data[at : at + size])
        text = output.text()
        half = KEPT_BYTES // 2
        between = f"\n[{len(data) - 2 * half} bytes left out]\n"
        assert text == data[:half].decode() + between + data[-half:].decode()


def test_output_that_fits_is_whole_and_readable() -> None:
    output = Output()
    output.add(b"a\0b\xff")
    assert output.text() == "a\ufffdb\ufffd"
    exact = Output()
    exact.add(b"x" * KEPT_BYTES)
    assert exact.text() == "x" * KEPT_BYTES
