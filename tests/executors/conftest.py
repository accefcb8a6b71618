"""The contract suites of `penstock.testing`, each run against the fake and every real implementation of its port."""

from __future__ import annotations

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """Real adapters need the kernel's descriptors in the event loop: asyncio only."""
    return "asyncio"
