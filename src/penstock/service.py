"""How a daemon behaves towards whoever started it: systemd's notifications and watchdog, and signals.

Made by the command line, used by `wiring.py`. Everything is best effort: without systemd nothing happens, and a
notification that cannot be delivered is dropped. Must never know what the daemon does.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import suppress

import anyio
import structlog
from anyio.abc import TaskStatus
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

log = structlog.get_logger()

_SEND_TIMEOUT_SECONDS = 0.1
"""A service manager that does not read must not hold the event loop up for longer."""


class Notifier:
    """Tells the service manager of the daemon's state, by the protocol of sd_notify(3)."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        """Take the service manager's variables out of `environ`, so that no pipeline inherits them."""
        path = environ.pop("NOTIFY_SOCKET", "")
        usec = environ.pop("WATCHDOG_USEC", "")
        pid = environ.pop("WATCHDOG_PID", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path if path.startswith("/") else None
        mine = pid in ("", str(os.getpid()))
        wanted = self._address is not None and mine and usec.isdecimal() and int(usec) > 0
        self.watchdog_seconds = int(usec) / 1e6 if wanted else None
        """How often at least `ping` must be called; None = nobody watches."""

    def ready(self, status: str) -> None:
        """Say that the start, or a reload, is complete."""
        self._send("READY=1", _status(status))

    def status(self, status: str) -> None:
        """Show one line in ``systemctl status``."""
        self._send(_status(status))

    def reloading(self) -> None:
        """Say that a reload has begun; `ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """Say that the daemon is about to end."""
        self._send("STOPPING=1")

    def ping(self) -> None:
        """Keep the watchdog quiet for `watchdog_seconds`."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                out.settimeout(_SEND_TIMEOUT_SECONDS)
                out.sendto("\n".join(lines).encode(errors="replace"), self._address)
        except OSError as error:
            log.debug("notification not delivered", error=str(error))


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())


async def watchdog(notifier: Notifier, alive: Callable[[], bool]) -> None:
    """Ping at half the interval that the service manager asks for, as long as `alive` says so; then it will bark.

    Runs until cancelled; returns at once when nobody watches.
    """
    if notifier.watchdog_seconds is None:
        return
    was_alive = True
    while True:
        is_alive = alive()
        if is_alive:
            notifier.ping()
        elif was_alive:
            log.error("not alive, the watchdog gets no more pings")
        was_alive = is_alive
        await anyio.sleep(notifier.watchdog_seconds / 2)


async def until_told_to_end(
    on_reload: Callable[[], Awaitable[None]], *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> signal.Signals:
    """Wait for SIGTERM or SIGINT and return which it was. From then on the next one ends the process at once.

    SIGHUP calls `on_reload`, one call at a time; a signal to end does not wait for it. SIGUSR2 writes the stacks of all
    threads to stderr, even when the event loop hangs. Main thread only. `task_status` tells when signals are received.
    """
    faulthandler.register(signal.SIGUSR2, file=sys.stderr, all_threads=True)
    wanted, reloads = anyio.create_memory_object_stream[None](1)
    with wanted, anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_reload, reloads, on_reload)
            task_status.started()
            told = await _told_to_end(signals, wanted)
            tasks.cancel_scope.cancel()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, _end_now)
    shrug_off_hangup()
    return told  # pyright: ignore[reportPossiblyUnboundVariable] - the group swallows no exception but its own cancellation


def shrug_off_hangup() -> None:
    """Have SIGHUP do nothing while it cannot be followed. A program that is started gets its default back, which it
    would not if the signal were ignored."""

    def nothing(number: int, frame: object) -> None:
        pass

    signal.signal(signal.SIGHUP, nothing)


def _end_now(number: int, frame: object) -> None:
    os._exit(128 + number)


async def _told_to_end(signals: AsyncIterator[signal.Signals], wanted: MemoryObjectSendStream[None]) -> signal.Signals:
    async for told in signals:
        if told is not signal.SIGHUP:
            return told
        # A reload that has not begun yet will read what this one was sent for.
        with suppress(anyio.WouldBlock):
            wanted.send_nowait(None)
    raise AssertionError("the receiver of signals never ends by itself")


async def _reload(reloads: MemoryObjectReceiveStream[None], on_reload: Callable[[], Awaitable[None]]) -> None:
    with reloads:
        async for _ in reloads:
            await on_reload()
