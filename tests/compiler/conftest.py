"""The compiler runs on trio here: its clock jumps to the next deadline, so that hours pass in milliseconds."""

from __future__ import annotations

import pytest
import trio.testing


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}
