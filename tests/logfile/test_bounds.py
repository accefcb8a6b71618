"""A log never takes much more disk than its bound, however quickly it grows; whoever reads is told what is gone."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import subprocess
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import anyio
import pytest

from penstock.logfile import LogFiles, bells, bounds, files
from penstock.model import PipelineId

from .conftest import ID, MB, append, history, on_disk, until

SCALE = int(os.environ.get("PENSTOCK_TEST_SCALE", "1"))
DISCARDED = re.compile(rb"WARN penstock: (\d+) prior log lines were discarded due to buffer constraints")

FLOOD = """
import os, time
lines = b"".join(b"%07d %s\\n" % (n, b"x" * 90) for n in range(1000))
speed, size, written, began = {speed}, {size}, 0, time.monotonic()
while written < size:
    written += os.write(1, lines)
    early = began + written / speed - time.monotonic()
    if early > 0:
        time.sleep(early)
os.write(1, b"the end\\n")
"""


async def flood(logs: LogFiles, spawn: Callable[[str, str], subprocess.Popen[bytes]], speed: float, size: int) -> int:
    """Have a process write `size` bytes; return the most that the log took on disk meanwhile."""
    path = logs.path(ID)
    process = spawn(path, FLOOD.format(speed=speed, size=size))
    most = 0
    with anyio.fail_after(30):
        while process.poll() is None:
            most = max(most, on_disk(path))
            await anyio.sleep(0.002)
    assert process.returncode == 0
    return most


async def test_a_flood_is_bounded(logs: LogFiles, spawn: Callable[[str, str], subprocess.Popen[bytes]]) -> None:
    most = await flood(logs, spawn, speed=100 * MB, size=50 * MB * SCALE)
    path = logs.path(ID)
    print(f"100 MB/s: at most {most / MB:.1f} MB on disk, bound 1 MB")
    assert most < 30 * MB
    await until(lambda: on_disk(path) <= MB, "the log within its bound")
    first, *lines = await history(logs)
    found = DISCARDED.search(first)
    assert found is not None
    assert lines[-1] == b"the end\n"
    assert all(re.fullmatch(rb"\d{7} x{90}\n", line) for line in lines[:-1])
    assert MB // 2 < sum(map(len, lines)) <= MB
    batches = -(-50 * MB * SCALE // (1000 * 99))
    assert int(found[1]) + len(lines) == 1 + batches * 1000 + 1


async def test_a_flood_as_fast_as_it_can(logs: LogFiles, spawn: Callable[[str, str], subprocess.Popen[bytes]]) -> None:
    most = await flood(logs, spawn, speed=1e12, size=400 * MB * SCALE)
    path = logs.path(ID)
    print(f"full speed: at most {most / MB:.1f} MB on disk, bound 1 MB")
    await until(lambda: on_disk(path) <= MB, "the log within its bound")


async def test_what_no_daemon_saw_is_cut_at_the_start(make: Callable[[], LogFiles]) -> None:
    path = make().path(ID)
    append(path, b"old\n" * MB)
    async with make() as logs, anyio.create_task_group() as tasks:
        tasks.start_soon(logs.run)
        await until(lambda: on_disk(path) <= MB, "the log within its bound")
        first, *lines = await history(logs)
        assert DISCARDED.search(first)
        assert set(lines) == {b"old\n"}
        tasks.cancel_scope.cancel()


async def test_a_slow_reader_is_told_what_it_missed(
    logs: LogFiles, spawn: Callable[[str, str], subprocess.Popen[bytes]]
) -> None:
    async with aclosing(logs.read(ID, follow=True)) as blocks:
        assert b"Fresh start" in await anext(blocks)
        await flood(logs, spawn, speed=1e12, size=20 * MB)
        await until(lambda: on_disk(logs.path(ID)) <= MB, "the log within its bound")
        got = b""
        with anyio.fail_after(10):
            while not got.endswith(b"the end\n"):
                got += await anext(blocks)
    assert len(got) < 2 * MB
    lines = got.splitlines(keepends=True)
    assert any(DISCARDED.search(line) for line in lines)
    assert all(re.fullmatch(rb"\d{7} x{90}\n", line) or DISCARDED.search(line) for line in lines[:-1])


async def test_a_follower_of_a_flood_keeps_whole_lines(
    logs: LogFiles, spawn: Callable[[str, str], subprocess.Popen[bytes]]
) -> None:
    got = bytearray()
    path = logs.path(ID)
    with anyio.fail_after(20):
        async with aclosing(logs.read(ID, follow=True)) as blocks:
            spawn(path, FLOOD.format(speed=20 * MB, size=10 * MB))
            async for block in blocks:
                got += block
                if got.endswith(b"the end\n"):
                    break
    _, *lines = got.splitlines(keepends=True)
    assert all(re.fullmatch(rb"\d{7} x{90}\n", line) or DISCARDED.search(line) for line in lines[:-1])


async def test_one_endless_line(logs: LogFiles, spawn: Callable[[str, str], subprocess.Popen[bytes]]) -> None:
    path = logs.path(ID)
    process = spawn(path, "import os\nfor _ in range(200): os.write(1, b'x' * 65536)\nos.write(1, b'\\nnext\\n')")
    await until(lambda: process.poll() == 0, "the process' end")
    await until(lambda: on_disk(path) <= MB, "the log within its bound")
    first, *lines = await history(logs)
    assert DISCARDED.search(first)
    assert lines == [b"next\n"]


async def test_a_quiet_file_is_left_alone(logs: LogFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "SLOWEST_LOOK_SECONDS", 0.2)
    path = logs.path(ID)
    file = logs._files[ID]
    await until(lambda: file.resting, "rest")
    looked_at = file.looked_at
    with anyio.move_on_after(0.5):
        await anyio.sleep_forever()
    assert file.looked_at == looked_at
    append(path, b"x" * 3 * MB)
    await until(lambda: on_disk(path) <= MB, "the log within its bound", seconds=1.0)
    await until(lambda: file.resting, "rest again")


async def test_a_write_while_the_bell_is_hung(logs: LogFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "SLOWEST_LOOK_SECONDS", 0.2)
    arm, written = logs._bells.arm, []

    def late(file: bells.File) -> bool:
        if not written:
            written.append(file)
            append(path, b"x" * 3 * MB)
        return arm(file)

    monkeypatch.setattr(logs._bells, "arm", late)
    path = logs.path(ID)
    await until(lambda: bool(written), "rest")
    await until(lambda: on_disk(path) <= MB, "the log within its bound", seconds=2.0)


async def test_no_inotify_watches_left(make: Callable[[], LogFiles], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no watches left")

    monkeypatch.setattr(bells.Inotify, "watch", refuse)
    monkeypatch.setattr(bounds, "SLOWEST_LOOK_SECONDS", 0.1)
    async with make() as logs, anyio.create_task_group() as tasks:
        tasks.start_soon(logs.run)
        path = logs.path(ID)
        append(path, b"x\n" * MB)
        await until(lambda: on_disk(path) <= MB, "the log within its bound")
        async with aclosing(logs.read(ID, follow=True)) as blocks:
            async for block in blocks:
                if block.endswith(b"last\n"):
                    break
                append(path, b"last\n")
        tasks.cancel_scope.cancel()


async def test_without_holes_it_is_emptied_when_nobody_writes(
    make: Callable[[], LogFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no holes here")

    monkeypatch.setattr(bounds, "punch_hole", refuse)
    monkeypatch.setattr(bounds, "SLOWEST_LOOK_SECONDS", 0.05)
    async with make() as logs, anyio.create_task_group() as tasks:
        tasks.start_soon(logs.run)
        path = logs.path(ID)
        writer = os.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(writer, b"x\n" * MB)
            looked = logs._files[ID].looked_at
            await until(lambda: logs._files[ID].looked_at > looked + 0.2, "some looks")
            assert os.stat(path).st_size > 2 * MB
            async with aclosing(logs.read(ID, follow=True)) as blocks:
                while not (await anext(blocks)).endswith(b"x\n") or len(logs.tail(ID, 1)) != 1:
                    pass
                os.close(writer)
                writer = -1
                append(path, b"nudge\n")
                await until(lambda: os.stat(path).st_size < MB, "the log emptied")
                append(path, b"after\n")
                got = b""
                with anyio.fail_after(5):
                    while not got.endswith(b"after\n"):
                        got += await anext(blocks)
        finally:
            if writer >= 0:
                os.close(writer)
        first, *_ = await history(logs)
        assert DISCARDED.search(first)
        tasks.cancel_scope.cancel()


def test_whether_somebody_writes(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch()
    assert not bounds.has_writer(str(path))
    with path.open("ab") as file:
        assert bounds.has_writer(str(path))
        assert fcntl.fcntl(file, fcntl.F_GETLEASE) == fcntl.F_UNLCK
    assert not bounds.has_writer(str(path))


async def test_forgotten_files_are_not_looked_at(logs: LogFiles) -> None:
    ids = [PipelineId(f"p-{number}") for number in range(20)]
    for pipeline_id in ids:
        logs.path(pipeline_id)
    for pipeline_id in ids:
        logs.forget(pipeline_id)
    assert not logs._files


async def test_a_pass_that_is_cut_short_forgets_nobody(logs: LogFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "RESCAN_SECONDS", 0.05)
    ids = [PipelineId(f"p-{number}") for number in range(10)]
    trim = logs._trimmer._trim

    def slow(file: bells.File) -> None:
        time.sleep(0.06)
        trim(file)

    with monkeypatch.context() as slowed:
        slowed.setattr(logs._trimmer, "_trim", slow)
        for pipeline_id in ids:
            append(logs.path(pipeline_id), b"x\n" * MB)
        await until(lambda: on_disk(logs.path(ids[0])) <= MB, "the first pass under way")
    await until(lambda: all(on_disk(logs.path(each)) <= MB for each in ids), "each log within its bound")


async def test_no_failure_of_the_disk_ends_the_keeping(
    logs: LogFiles, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = PipelineId("gone-while-looked-at")
    arm = logs._bells.arm

    def removed(file: bells.File) -> bool:
        armed = arm(file)
        if file.pipeline_id == other:
            os.unlink(file.path)
        return armed

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "the disk is dying")

    monkeypatch.setattr(bounds, "SLOWEST_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(logs._bells, "arm", removed)
    gone = logs.path(other)
    await until(lambda: not os.path.exists(gone), "the file removed while it was looked at")
    path = logs.path(ID)
    with monkeypatch.context() as dying:
        dying.setattr(bounds, "punch_hole", broken)
        append(path, b"x\n" * MB)
        looked_at = logs._files[ID].looked_at
        await until(lambda: logs._files[ID].looked_at > looked_at + 0.2, "some looks")
    await until(lambda: on_disk(path) <= MB, "the log within its bound, now that the disk is well")
