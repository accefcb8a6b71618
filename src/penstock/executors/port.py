"""The port file of a process that speaks contract `http`: rings when it is written.

Called by the process executor, on the loop. Until the process is ready its directory is watched, for the file to
appear; then the file alone, since what else the program writes is nobody's business. A process may write it again, with
the same port, to say that its status has changed. Must never read it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from penstock import linux
from penstock.linux import Inotify

BREATH_SECONDS = 0.05
"""It rings at once, but not again before that: a program that writes its port file all the time keeps nobody busy."""

_APPEARS = linux.IN_CLOSE_WRITE | linux.IN_MOVED_TO
_CHANGES = linux.IN_CLOSE_WRITE | linux.IN_ATTRIB | linux.IN_DELETE_SELF | linux.IN_MOVE_SELF


class PortBell:
    """Calls `ring`, from `await_file` on, until it is closed. `ring` may look too early, or in vain."""

    def __init__(self, inotify: Inotify, port_file: Path, ring: Callable[[], None]) -> None:
        self._inotify = inotify
        self._port_file = port_file
        self._ring = ring
        self._watched: Path | None = None
        self._watch: int | None = None
        self._silent_until = 0.0
        self._later: asyncio.TimerHandle | None = None

    def await_file(self) -> None:
        """Ring once there is a file. Idempotent."""
        self._listen(self._port_file.parent, _APPEARS)

    def await_change(self) -> None:
        """Ring once the file is written again or replaced. Idempotent."""
        self._listen(self._port_file, _CHANGES)

    def close(self) -> None:
        """Ring no more. Idempotent."""
        if self._later is not None:
            self._later.cancel()
            self._later = None
        self._unwatch()

    def _listen(self, path: Path, mask: int) -> None:
        if self._watched == path:
            return
        self._unwatch()

        def changed(mask: int, name: str) -> None:
            if path == self._port_file or mask & linux.IN_IGNORED:
                if mask & ~linux.IN_CLOSE_WRITE:
                    self._unwatch()  # it is another file now; the look that this brings about listens again
            elif mask and name != self._port_file.name:
                return
            self._sound()

        with suppress(OSError):  # it is not there (any more), or no more watches are: turns look again by themselves
            self._watch = self._inotify.watch(str(path), mask, changed)
            self._watched = path

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._inotify.unwatch(self._watch)
        self._watch = self._watched = None

    def _sound(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now >= self._silent_until:
            self._silent_until = now + BREATH_SECONDS
            self._ring()
        elif self._later is None:
            self._later = loop.call_at(self._silent_until, self._sound_late)

    def _sound_late(self) -> None:
        self._later = None
        self._sound()
