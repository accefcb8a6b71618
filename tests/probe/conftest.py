"""The probe against real processes and sockets that misbehave."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import pytest

from penstock.probe import HttpProbe

PROGRAM = Path(__file__).parents[1] / "programs" / "http_contract.py"


@pytest.fixture
def anyio_backend() -> str:
    """aiohttp runs on asyncio only."""
    return "asyncio"


@pytest.fixture(scope="module")
def program() -> Generator[str]:
    """Where the small program listens."""
    with subprocess.Popen(
        [sys.executable, "-S", str(PROGRAM)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={}
    ) as process:
        try:
            assert process.stdout is not None
            yield f"127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


@pytest.fixture
async def probe() -> AsyncGenerator[HttpProbe]:
    """An open probe."""
    async with HttpProbe() as probe:
        yield probe
