"""The API over real sockets, against the contract."""

from __future__ import annotations

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """aiohttp serves on asyncio only."""
    return "asyncio"
