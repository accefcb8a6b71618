"""Wall time and new ids: the only place that asks the system for either."""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime
from uuid import UUID


class SystemClock:
    """The Clock of the running daemon."""

    def __init__(self) -> None:
        self._last = 0

    def now(self) -> datetime:
        """The time, aware, UTC."""
        return datetime.now(UTC)  # noqa: TID251 - this is the place

    def new_id(self) -> str:
        """A new UUID v7 (RFC 9562): milliseconds, a counter that keeps ids of one process in order, chance."""
        stamp = (time.time_ns() // 1_000_000) << 12
        self._last = max(self._last + 1, stamp)
        milliseconds, counter = self._last >> 12, self._last & 0xFFF
        value = (milliseconds & (2**48 - 1)) << 80 | 0x7 << 76 | counter << 64
        return str(UUID(int=value | 0b10 << 62 | secrets.randbits(62)))
