"""Log files with real processes that write them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing
from pathlib import Path

import anyio
import pytest

from penstock.clock import SystemClock
from penstock.logfile import LogFiles
from penstock.model import PipelineId

MB = 1 << 20
ID = PipelineId("0196f0c0-0000-7000-8000-000000000001")


@pytest.fixture
def anyio_backend() -> str:
    """inotify is read by asyncio."""
    return "asyncio"


@pytest.fixture
def make(tmp_path: Path) -> Callable[[], LogFiles]:
    """Makes log files of 1 MB in the test's directory; the second ones find what the first ones left."""
    return lambda: LogFiles(state_dir=tmp_path / "state", clock=SystemClock(), max_bytes=MB)


@pytest.fixture
async def logs(make: Callable[[], LogFiles]) -> AsyncGenerator[LogFiles]:
    """Log files that are kept within bounds."""
    async with make() as logs, anyio.create_task_group() as tasks:
        tasks.start_soon(logs.run)
        yield logs
        tasks.cancel_scope.cancel()


@pytest.fixture
def spawn() -> Generator[Callable[[str, str], subprocess.Popen[bytes]]]:
    """Runs a Python program whose output is appended to a file, as executors do; kills it at the end."""
    spawned: list[subprocess.Popen[bytes]] = []

    def start(path: str, code: str) -> subprocess.Popen[bytes]:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            command = [sys.executable, "-S", "-c", code]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=fd, stderr=fd, env={})
        finally:
            os.close(fd)
        spawned.append(process)
        return process

    yield start
    for process in spawned:
        process.kill()
        process.communicate()


async def until(condition: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    """Wait for what the world does."""
    with anyio.move_on_after(seconds):
        while not condition():
            await anyio.sleep(0.005)
        return
    raise AssertionError(f"never: {what}")


async def history(logs: LogFiles, pipeline_id: PipelineId = ID) -> list[bytes]:
    """The lines that are there now."""
    async with aclosing(logs.read(pipeline_id, follow=False)) as blocks:
        return b"".join([block async for block in blocks]).splitlines(keepends=True)


def append(path: str, data: bytes) -> None:
    """Write as a process would."""
    with open(path, "ab", buffering=0) as file:
        file.write(data)


def on_disk(path: str) -> int:
    """What the file takes."""
    return os.stat(path).st_blocks * 512
