"""When each pipeline's next turn is due: a keyed delay queue, and how long to back off.

Called by the loop. Pure data: time is an argument (seconds of any monotonic clock).
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

BACKOFF_FIRST_SECONDS = 0.05
BACKOFF_LONGEST_SECONDS = 30.0


class Schedule(Generic[Key]):
    """Each key at most once, at the earliest time asked for; a key that was taken is not due again until `done`.

    A key added while it is taken becomes due after `done`: wake-ups are never lost, and never doubled.
    """

    def __init__(self) -> None:
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._taken: dict[Key, float | None] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._due)

    def add(self, key: Key, at: float) -> None:
        """Make `key` due at `at`, or earlier if it already is."""
        if key in self._taken:
            waiting = self._taken[key]
            self._taken[key] = at if waiting is None else min(at, waiting)
            return
        known = self._due.get(key)
        if known is not None and known <= at:
            return
        self._due[key] = at
        self._count += 1
        heapq.heappush(self._heap, (at, self._count, key))

    def take(self, now: float) -> list[Key]:
        """Take every key that is due, oldest first."""
        keys: list[Key] = []
        while self._heap and self._heap[0][0] <= now:
            at, _, key = heapq.heappop(self._heap)
            if self._due.get(key) != at:
                continue
            del self._due[key]
            self._taken[key] = None
            keys.append(key)
        return keys

    def done(self, key: Key) -> None:
        """Give a taken key back; it is due again if it was added meanwhile."""
        at = self._taken.pop(key, None)
        if at is not None:
            self.add(key, at)

    def forget(self, key: Key) -> None:
        """Drop a key that is waiting; one that is taken is only kept from coming back."""
        self._due.pop(key, None)
        if key in self._taken:
            self._taken[key] = None

    def is_taken(self, key: Key) -> bool:
        """Tell whether `key` was taken and not given back."""
        return key in self._taken

    def next_at(self) -> float | None:
        """When the next key is due; None when nothing waits."""
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None


def backoff_seconds(failures: int) -> float:
    """How long to wait after `failures` (1 or more) failures in a row: doubling, bounded."""
    return min(BACKOFF_LONGEST_SECONDS, BACKOFF_FIRST_SECONDS * 2.0 ** min(max(failures, 1) - 1, 20))
