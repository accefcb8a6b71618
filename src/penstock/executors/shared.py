"""One answer for all who ask at the same time: what a thousand simultaneous stops would each read, is read once.

Called by the process executor, on the loop. Must never give an answer that began before it was asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Generic, TypeVar

T = TypeVar("T")


class Shared(Generic[T]):
    """Runs `read` in `threads` for whoever waits."""

    def __init__(self, threads: Executor, read: Callable[[], T]) -> None:
        self._threads = threads
        self._read = read
        self._latest: _Reading[T] | None = None

    async def get(self) -> T:
        """What `read` returns, begun after this call. Cancellable: the others still get their answer."""
        reading = self._latest
        if reading is None or reading.begun:
            reading = self._latest = _Reading(self._threads, self._read)
        return await asyncio.shield(reading.result)


class _Reading(Generic[T]):
    def __init__(self, threads: Executor, read: Callable[[], T]) -> None:
        self.begun = False
        self._read = read
        self.result = asyncio.get_running_loop().run_in_executor(threads, self._run)

    def _run(self) -> T:
        # In the thread. Whoever saw it not begun asked before it begins.
        self.begun = True
        return self._read()
