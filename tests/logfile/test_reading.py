"""Readers of log files: history, live lines, garbage, slow ones, many of them."""

from __future__ import annotations

import os
import random
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

import anyio
import anyio.lowlevel
import pytest

from penstock.logfile import LogFiles
from penstock.logfile.bells import File
from penstock.logfile.lines import BLOCK_BYTES, Lines
from penstock.model import PipelineId
from tests.core.rows import fresh

from .conftest import ID, append, history, until

ROW = replace(fresh(), id=ID)


@asynccontextmanager
async def following(logs: LogFiles, pipeline_id: PipelineId = ID) -> AsyncGenerator[bytearray]:
    """What a follower has got so far."""
    got = bytearray()

    async def follow() -> None:
        async with aclosing(logs.read(pipeline_id, follow=True)) as blocks:
            async for block in blocks:
                got.extend(block)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow)
        await until(lambda: b"Fresh start" in got, "the first line")
        yield got
        tasks.cancel_scope.cancel()


async def test_history_then_live(logs: LogFiles) -> None:
    path = logs.path(ID)
    append(path, b"before\n")
    async with following(logs) as got:
        assert got.endswith(b"before\n")
        append(path, b"li")
        append(path, b"ve\nunfin")
        await until(lambda: got.endswith(b"\nlive\n"), "the live line")
        append(path, b"ished\n")
        await until(lambda: got.endswith(b"\nunfinished\n"), "the line in two parts")


async def test_without_follow_it_ends(logs: LogFiles) -> None:
    append(logs.path(ID), b"one\nhalf")
    _, *lines = await history(logs)
    assert lines == [b"one\n", b"half\n"]


async def test_ends_when_forgotten(logs: LogFiles) -> None:
    append(logs.path(ID), b"half")
    got = b""
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks, aclosing(logs.read(ID, follow=True)) as blocks:
            tasks.start_soon(anyio.sleep, 0)
            async for block in blocks:
                if not got:
                    logs.forget(ID)
                    logs.forget(ID)
                got += block
    lines = got.splitlines()
    assert lines[1] == b"half"
    assert b"The pipeline was deleted; its logs end here" in lines[-1]


async def test_ends_when_the_daemon_ends(make: Callable[[], LogFiles]) -> None:
    ended = anyio.Event()

    async def follow(logs: LogFiles) -> None:
        async with aclosing(logs.read(ID, follow=True)) as blocks:
            async for _ in blocks:
                pass
        ended.set()

    async with anyio.create_task_group() as tasks:
        async with make() as logs:
            tasks.start_soon(follow, logs)
            await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(5):
            await ended.wait()


async def test_garbage_becomes_text(logs: LogFiles) -> None:
    append(logs.path(ID), b"a\0b\xffc\n\n" + "grün\n".encode() + b"cut \xe2\x82\nok\r\n\0\0\0\n")
    _, *lines = await history(logs)
    assert lines == ["ab�c\n".encode(), b"\n", "grün\n".encode(), "cut �\n".encode(), b"ok\r\n", b"\n"]


async def test_a_line_of_10_mb_is_cut(logs: LogFiles) -> None:
    path = logs.path(ID)
    async with following(logs) as got:
        for _ in range(160):
            append(path, b"x" * 65536)
        append(path, b"\nnext\n")
        await until(lambda: got.endswith(b"\nnext\n"), "the line after the long one")
    line = got.split(b"\n")[-3]
    # Some of it may have been discarded while it was read; what comes is bounded, and says what is missing.
    assert len(line) < BLOCK_BYTES + 200
    assert b"more bytes]" in line or b"discarded" in line


@pytest.mark.parametrize("seed", range(5))
def test_lines_do_not_depend_on_pieces(seed: int) -> None:
    chance = random.Random(seed)
    text = b"".join(chance.randbytes(chance.randrange(200)).replace(b"\0", b"") + b"\n" for _ in range(300))
    lines, got = Lines(), b""
    offset = 0
    while offset < len(text):
        step = chance.randrange(1, 500)
        got += lines.take(text[offset : offset + step])
        offset += step
    got += lines.rest(end=b"\n")
    assert got == b"".join(line.decode("utf-8", "replace").encode() + b"\n" for line in text.split(b"\n")[:-1])


def test_the_longest_whole_line() -> None:
    lines = Lines()
    assert lines.take(b"x" * BLOCK_BYTES) == b""
    assert lines.take(b"\n") == b"x" * BLOCK_BYTES + b"\n"
    assert lines.take(b"x" * BLOCK_BYTES) == b""
    assert lines.take(b"yy\nz\n") == b"x" * BLOCK_BYTES + b" [cut: 2 more bytes]\nz\n"
    lines.jump(torn=True)
    assert lines.take(b"rest of a line") == b""
    assert lines.take(b"\nwhole\n") == b"whole\n"


async def test_two_hundred_abandoned_readers_cost_nothing(logs: LogFiles) -> None:
    logs.path(ID)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(200):
        async with aclosing(logs.read(ID, follow=True)) as blocks:
            async for block in blocks:
                assert b"Fresh start" in block
                break
    assert len(os.listdir("/proc/self/fd")) == before


async def test_three_hundred_readers_at_once(logs: LogFiles) -> None:
    got = [0] * 300
    size = 2_000

    async def follow(number: int) -> None:
        async with aclosing(logs.read(ID, follow=True)) as blocks:
            async for block in blocks:
                got[number] += block.count(b"\n")
                if got[number] > size:
                    return

    path = logs.path(ID)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            for number in range(len(got)):
                tasks.start_soon(follow, number)
            for _ in range(size // 10):
                append(path, b"".join(b"line\n" for _ in range(10)))
                await anyio.lowlevel.checkpoint()
    assert got == [size + 1] * len(got)


async def test_readers_of_one_do_not_wake_those_of_another(logs: LogFiles) -> None:
    other = PipelineId("0196f0c0-0000-7000-8000-000000000002")
    async with following(logs) as got, following(logs, other) as others:
        append(logs.path(other), b"for the other\n")
        await until(lambda: others.endswith(b"for the other\n"), "the other's line")
        assert b"other" not in got


async def test_latency(logs: LogFiles, record_property: Callable[[str, object], None]) -> None:
    path = logs.path(ID)
    written, came = 0.0, anyio.Event()
    latencies: list[float] = []

    async def follow() -> None:
        async with aclosing(logs.read(ID, follow=True)) as blocks:
            async for block in blocks:
                if block.endswith(b"tick\n"):
                    latencies.append(time.perf_counter() - written)
                    came.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow)
        await anyio.wait_all_tasks_blocked()
        for _ in range(50):
            await anyio.sleep(0.012)  # lines that come alone, not a flood
            came = anyio.Event()
            written = time.perf_counter()
            append(path, b"tick\n")
            with anyio.fail_after(5):
                await came.wait()
        tasks.cancel_scope.cancel()
    middle = sorted(latencies)[len(latencies) // 2]
    print(f"follow latency: p50 {middle * 1e3:.2f} ms, max {max(latencies) * 1e3:.2f} ms")
    assert middle < 0.05


async def test_a_line_that_comes_while_the_bell_is_hung(logs: LogFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    path = logs.path(ID)
    arm, written = logs._bells.arm, []

    def late(file: File) -> bool:
        if not written:
            written.append(file)
            append(path, b"just before\n")
        return arm(file)

    async with following(logs) as got:
        monkeypatch.setattr(logs._bells, "arm", late)
        append(path, b"wakes it\n")
        await until(lambda: got.endswith(b"just before\n"), "the line that no bell told of")


async def test_many_notes(logs: LogFiles) -> None:
    async with following(logs) as got:
        for number in range(500):
            logs.note(ROW, "INFO", f"note {number}")
        await until(lambda: b"note 499 " in got, "the last note")
    assert got.count(b"penstock: note ") == 500
