"""Processes in the event loop: each is watched by a pidfd, so that its end is noticed as it happens, child or not.

Called by the process executor, on the loop; nothing here blocks. A dead process' pidfd stays readable: its reader is
removed at once. Must never decide what an end means.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import signal
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

import anyio

from penstock import linux
from penstock.executors.procfs import zombie_status
from penstock.executors.records import Claim

RECORDER_SECONDS = 0.25
"""How long the end of a program waits for its recorder to write the exit code down; it needs about 0.2 ms."""

_WHOLE_GROUP = 1 << 2
"""PIDFD_SIGNAL_PROCESS_GROUP (Linux 6.9): the group that the process leads or led, whoever has its number now."""


class Watched:
    """One process, until it ends. Owns `pidfd`; `close` it."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.ended = asyncio.Event()
        self._callbacks: list[Callable[[], None]] = []
        asyncio.get_running_loop().add_reader(pidfd, self._end)
        self._reading = True

    @property
    def watched(self) -> bool:
        """Whether it ran when last heard of. May be asked in any thread."""
        return self._reading

    @property
    def leads_group(self) -> bool:
        """Whether there still is anybody, dead or alive, in the process group that bears its pid."""
        if self.pidfd < 0:
            return False
        try:
            signal.pidfd_send_signal(self.pidfd, 0, None, _WHOLE_GROUP)
        except OSError as error:
            return error.errno == errno.EPERM or (error.errno == errno.EINVAL and self.alive)
        return True

    @property
    def alive(self) -> bool:
        """Whether it runs, as of now."""
        if self._reading:
            poll = select.poll()
            poll.register(self.pidfd, select.POLLIN)
            if poll.poll(0):
                self._end()
        return not self.ended.is_set()

    def when_ended(self, callback: Callable[[], None]) -> None:
        """Call `callback` once it has ended: at once, if it has."""
        if self.ended.is_set():
            callback()
        else:
            self._callbacks.append(callback)

    def signal(self, number: int) -> None:
        """Signal it; nothing if it has ended."""
        if self.pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)

    def signal_group(self, number: int) -> None:
        """Signal every process of the group that it leads, also after its own end; nothing if there is none.

        One that was begun a moment ago does not lead its group yet: then it is signalled alone.
        """
        if self.pidfd < 0:
            return
        if not self._signal_group(number):
            self.signal(number)
            self._signal_group(number)  # if it has become a group meanwhile

    def _signal_group(self, number: int) -> bool:
        try:
            signal.pidfd_send_signal(self.pidfd, number, None, _WHOLE_GROUP)
        except ProcessLookupError:
            return False
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # An older kernel. While it lives, or is not reaped, nobody else can have its number.
            if not self.alive:
                return True
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)
                return True
            return False
        return True

    def close(self) -> None:
        """Stop watching. Idempotent."""
        self._stop_reading()
        self._callbacks.clear()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def _end(self) -> None:
        self._stop_reading()
        self.ended.set()
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            asyncio.get_running_loop().remove_reader(self.pidfd)


class Program:
    """The main process of a deployment and its recorder: how the one ends is often told by the other.

    `settled` is set, and `on_settled` called, once the program has ended and no more can be learnt of how; then
    `wait_status` is exact or None, and `ended_at` when it was noticed.
    """

    def __init__(
        self,
        claim: Claim,
        program: Watched | None,
        recorder: Watched | None,
        *,
        now: Callable[[], datetime],
        on_settled: Callable[[], None],
    ) -> None:
        self.claim = claim
        self.main = program
        self.recorder = recorder
        self.wait_status: int | None = None
        self.ended_at: datetime | None = None
        self.settled = asyncio.Event()
        self._now = now
        self._on_settled = on_settled
        self._patience: asyncio.TimerHandle | None = None
        if program is None:
            self._await_recorder()
        else:
            program.when_ended(self._main_ended)

    @property
    def pid(self) -> int:
        """The pid of the main process; 0 when there never was one."""
        return self.claim.pid or 0

    @property
    def alive(self) -> bool:
        """Whether the main process runs, as of now."""
        return self.main is not None and self.main.alive

    async def ending(self) -> None:
        """Wait until the end is settled; bounded, once the program has ended."""
        await self.settled.wait()

    def signal_group(self, number: int) -> None:
        """Signal the program's process group."""
        if self.main is not None:
            self.main.signal_group(number)

    def close(self) -> None:
        """Stop watching the program; its recorder is closed by whoever watches that. Idempotent."""
        if self._patience is not None:
            self._settle()
        if self.main is not None:
            self.main.close()

    def _main_ended(self) -> None:
        main = self.main
        if main is None:
            return
        self.ended_at = self._now()
        self.wait_status = zombie_status(main.pid, self.claim.start_ticks)
        if self.wait_status is None:
            self.wait_status = linux.exit_status(main.pidfd)
        if self.wait_status is not None:
            self._settle()
        else:
            self._await_recorder()

    def _await_recorder(self) -> None:
        if self.recorder is None or not self.recorder.alive:
            self._settle()
            return
        self._patience = asyncio.get_running_loop().call_later(RECORDER_SECONDS, self._settle)
        self.recorder.when_ended(self._settle)

    def _settle(self) -> None:
        if self.settled.is_set():
            return
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        if self.wait_status is None and self.main is not None and self.main.pidfd >= 0:
            self.wait_status = linux.exit_status(self.main.pidfd)
        self.settled.set()
        if self.main is not None:  # else whoever looks is told at once
            self._on_settled()


async def all_ended(processes: list[Watched], seconds: float) -> bool:
    """Wait until all have ended, for at most that long; False if some have not."""
    with anyio.move_on_after(seconds):
        for process in processes:
            await process.ended.wait()
        return True
    return all(not process.alive for process in processes)
