"""Time that does not pass unless a test lets it: the Clock port over anyio's own, possibly jumping, clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import anyio

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class VirtualClock:
    """Wall time follows `anyio.current_time()`: on trio's MockClock, ten minutes pass in no time. Ids are counted."""

    def __init__(self) -> None:
        self._ids = 0

    def now(self) -> datetime:
        """EPOCH plus the running loop's time."""
        return EPOCH + timedelta(seconds=anyio.current_time())

    def new_id(self) -> str:
        """The next id, in the shape of a UUID v7."""
        self._ids += 1
        return str(UUID(int=0x7 << 76 | 0b10 << 62 | self._ids << 80 | self._ids))


class ManualClock:
    """Wall time that moves only by `advance`; for tests without an event loop's time."""

    def __init__(self) -> None:
        self.time = EPOCH
        self._ids = 0

    def now(self) -> datetime:
        """The time as last set."""
        return self.time

    def new_id(self) -> str:
        """The next id, in the shape of a UUID v7."""
        self._ids += 1
        return str(UUID(int=0x7 << 76 | 0b10 << 62 | self._ids << 80 | self._ids))

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.time += timedelta(seconds=seconds)
