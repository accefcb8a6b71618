"""Tells an opaque program to pause, to go on or to end, by the signals that every program knows.

Called by the process executor, on the loop. Only its parent is told when a process has stopped, so that is looked for;
everything here is bounded, may be cancelled and repeated, and raises OSError. Must never decide what a program is told.
"""

from __future__ import annotations

import signal

import anyio

from penstock.executors.procfs import is_stopped
from penstock.executors.watch import Program

STEER_SECONDS, _PAUSE_SECONDS = 1.0, 0.001
"""How long a stop of all threads may take, and between two looks for it."""

_ATTEMPT_SECONDS = 0.05
"""How long one attempt at a pause may take."""


async def pause(program: Program) -> bool:
    """Stop the program's group; False if that takes too long.

    A stop that comes while a child is between vfork and exec stops the child, and leaves its parent waiting for it, not
    stopped itself: then they are let go, and stopped again.
    """
    give_up_at = anyio.current_time() + STEER_SECONDS
    while anyio.current_time() < give_up_at:
        program.signal_group(signal.SIGSTOP)
        if await _is_soon(program, _ATTEMPT_SECONDS, stopped=True):
            return True
        program.signal_group(signal.SIGCONT)
        await anyio.sleep(_PAUSE_SECONDS)
    return False


async def go_on(program: Program) -> bool:
    """Let the program's group go on; False if that takes too long."""
    program.signal_group(signal.SIGCONT)
    return await _is_soon(program, STEER_SECONDS, stopped=False)


async def is_paused_soon(program: Program) -> bool:
    """Wait until a program that was begun stopped is so; False if that takes too long."""
    return await _is_soon(program, STEER_SECONDS, stopped=True)


def tell_to_end(program: Program) -> None:
    """Ask the program's group to end; one that is paused is let go on, so that it hears."""
    program.signal_group(signal.SIGTERM)
    if is_stopped(program.pid):
        program.signal_group(signal.SIGCONT)


async def _is_soon(program: Program, seconds: float, *, stopped: bool) -> bool:
    """Wait until the program is stopped, or goes on; False if that takes too long. An ended one is anything."""
    with anyio.move_on_after(seconds):
        while program.alive and is_stopped(program.pid) is not stopped:  # noqa: ASYNC110 - nobody tells, see above
            await anyio.sleep(_PAUSE_SECONDS)
        return True
    return False
