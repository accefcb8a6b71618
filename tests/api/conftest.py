"""The API over real sockets, against the contract."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from tests.api.house import House, serving


@pytest.fixture
def anyio_backend() -> str:
    """aiohttp serves on asyncio only."""
    return "asyncio"


@pytest.fixture
async def house() -> AsyncGenerator[House]:
    """A daemon that serves, with nothing in it."""
    async with serving(House()) as house:
        yield house
