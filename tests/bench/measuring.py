"""How times, processor and memory are measured: the same for every program under the bench."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

PAUSE_SECONDS = 0.001
"""Between two questions, for everyone: without a pause a program would be kept busy with answering."""

PATIENCE_SECONDS = 120.0
"""After this long something hangs; nothing here is that slow."""


PROCESS_CLOCK = 2
"""With the inverted process id before these three bits, a clock's id: what clock_getcpuclockid(3) makes."""


class Hangs(Exception):
    """What is measured did not come to its end."""


@contextmanager
def timed(into: list[float]) -> Generator[None]:
    """Append how long the block took, in seconds; nothing when it raises."""
    began = time.perf_counter()
    yield
    into.append(time.perf_counter() - began)


def until(holds: Callable[[], bool], what: str, *, pause_seconds: float = PAUSE_SECONDS) -> None:
    """Ask again and again until it holds. Raises Hangs."""
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        if time.monotonic() > give_up_at:
            raise Hangs(f"{what}: not within {PATIENCE_SECONDS:g} s")
        time.sleep(pause_seconds)


def percentile(values: Sequence[float], percent: int = 50) -> float:
    """The value that `percent` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def processor_seconds(pid: int) -> float:
    """Processor time of the process so far, threads that have ended included, in nanoseconds' steps."""
    return time.clock_gettime(~pid << 3 | PROCESS_CLOCK)


def context_switches(pid: int) -> int:
    """Context switches of all threads so far."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            total += sum(int(line.split()[1]) for line in (task / "status").read_text().splitlines() if "ctxt" in line)
    return total


def mebibytes(pid: int, key: str) -> float:
    """A figure of smaps_rollup (`Rss`, `Pss`)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    return 0.0


def command_lines() -> dict[int, list[bytes]]:
    """The arguments of every process that has some."""
    found: dict[int, list[bytes]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with suppress(OSError):
                arguments = Path(f"/proc/{name}/cmdline").read_bytes()
                if arguments:
                    found[int(name)] = arguments.removesuffix(b"\0").split(b"\0")
    return found


def alive(pid: int) -> bool:
    """Tell whether the process exists and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
