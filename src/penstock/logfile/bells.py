"""What is known of one log, and how whoever waits for it is woken: the kernel tells of the next write, once.

Called by readers and by what keeps files within bounds. On the loop only. Must never read a file.
"""

from __future__ import annotations

import asyncio
import errno
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from penstock.linux import IN_MODIFY, Inotify
from penstock.logfile.numbering import Numbering
from penstock.model import PipelineId

log = structlog.get_logger("penstock.logfile")

PASS_SECONDS = 0.05
"""Looks wait for the next multiple of this, so that many files are looked at in one pass; a first look too."""

_IN_ONESHOT = 0x80000000


@dataclass(slots=True, eq=False)
class File:
    """What is known of one log."""

    pipeline_id: PipelineId
    path: str
    numbering: Numbering
    size: int = 0
    looked_at: float = -math.inf
    saved_at: float = -math.inf
    interval: float = PASS_SECONDS
    resting: bool = False
    """Quiet: not looked at before something is written to it."""
    bell: int | None = None
    ended: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def ring(self) -> None:
        """Wake whoever waits for a change."""
        self.changed.set()
        self.changed = asyncio.Event()

    def end(self) -> None:
        """There will be no more."""
        self.ended = True
        self.ring()


class Bells:
    """The kernel's promises to tell of the next write to a file: each rings once, so that a flood rings once only."""

    def __init__(self) -> None:
        self.rung: Callable[[File], None] = File.ring
        self._inotify = Inotify()
        self._said = False

    def open(self) -> None:
        """Begin, on the running loop. Raises OSError."""
        self._inotify.__enter__()

    def close(self) -> None:
        """Ring no more."""
        self._inotify.__exit__(None, None, None)

    def arm(self, file: File) -> bool:
        """Have `rung` called at the next write to `file`; False = the kernel will not, look for yourself."""
        if file.bell is not None:
            return True

        def ring(mask: int, name: str) -> None:
            if file.bell == bell:  # not the end of one that has rung
                file.bell = None
                self.rung(file)

        try:
            bell = file.bell = self._inotify.watch(file.path, IN_MODIFY | _IN_ONESHOT, ring)
        except OSError as error:
            if not self._said and error.errno not in (errno.ENOENT, errno.EBADF):
                self._said = True
                log.warning("log files cannot be watched, looking at them every second", error=str(error))
            return False
        return True

    def disarm(self, file: File) -> None:
        """Expect nothing of `file` any more."""
        if file.bell is not None:
            self._inotify.unwatch(file.bell)
            file.bell = None
