"""The process executor with real programs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from penstock.executors import ProcessExecutor

from .world import ProcessWorld, world_in


@pytest.fixture
def anyio_backend() -> str:
    """Real adapters need the kernel's descriptors in the event loop: asyncio only."""
    return "asyncio"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[ProcessWorld]:
    """A state directory whose processes do not outlive the test."""
    with world_in(tmp_path) as made:
        yield made


@pytest.fixture
async def executor(world: ProcessWorld) -> AsyncIterator[ProcessExecutor]:
    """A daemon's executor on it."""
    async with world.open() as opened:
        yield opened
