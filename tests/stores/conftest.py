"""The stores on real files."""

from __future__ import annotations

import pytest

from penstock.testing.virtual import ManualClock


@pytest.fixture
def anyio_backend() -> str:
    """A store on a file answers through the event loop of asyncio."""
    return "asyncio"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()
