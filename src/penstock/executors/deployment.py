"""What the process executor knows of one deployment, and how its end reads.

Called by the process executor and its killer. Holds no decision.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

from penstock.executors.port import PortBell
from penstock.executors.records import Ending, Records
from penstock.executors.watch import Program
from penstock.model import Exit
from penstock.ports import Compute


@dataclass(eq=False, slots=True, kw_only=True)
class Deployment:
    """A deployment whose program has begun, or never will."""

    compute: Compute
    records: Records
    program: Program
    contract: str
    port_bell: PortBell
    told_to_end: bool
    restarted: bool = False
    """It ended with its host."""
    location: str | None = None
    exit: Exit | None = None
    gone: bool = False
    """After its end nothing else of the deployment was alive; nothing of it can appear any more."""


def exit_of(ending: Ending, pid: int | None) -> Exit:
    """An ending as the rest of the daemon knows it."""
    status, code = ending.wait_status, ending.shell_code
    if status is not None:
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            return Exit(pid=pid, signal=-code, signal_name=_signal_name(-code), ended_at=ending.at)
        return Exit(pid=pid, code=code, ended_at=ending.at)
    if code is not None and _signal_name(code - 128) is not None:
        number = code - 128
        return Exit(pid=pid, signal=number, signal_name=_signal_name(number), inferred=True, ended_at=ending.at)
    return Exit(pid=pid, code=code, ended_at=ending.at)


def _signal_name(number: int) -> str | None:
    try:
        return signal.Signals(number).name
    except ValueError:
        return None
