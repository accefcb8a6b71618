"""What comes of a run: the machine that it ran on, one table, one JSON file."""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.own import COMMITTERS, CONNECTIONS
from tests.bench.peers.penstock import Penstock
from tests.bench.rounds import SURVIVORS, Extent
from tests.bench.rows import ROWS, Figures, Row, Value, numbers


def machine() -> dict[str, str]:
    """What the figures depend on."""
    processor = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown"
    )
    return {
        "cores": str(len(os.sched_getaffinity(0))),
        "processor": processor,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "files in": f"{tempfile.gettempdir()} ({_file_system(tempfile.gettempdir())})",
    }


def load() -> str:
    """How much else the machine has to do: the load averages of 1, 5 and 15 minutes."""
    return " ".join(f"{average:.2f}" for average in os.getloadavg())


def shown(row: Row, value: Value) -> str:
    """A figure in its row's unit."""
    if isinstance(value, str):
        return value
    if row.unit == "/s":
        return f"{value:,.1f}" if value < 10 else f"{value:,.0f}"
    return f"{value:.0f}" if not row.unit else f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def titled(text: str, extent: Extent) -> str:
    """A row's words with the numbers of this run."""
    few = len(SURVIVORS)
    return text.format(n=f"{extent.pipelines:,}", k=few, k1=few - 1, c=CONNECTIONS, t=COMMITTERS)


def table(figures: Figures, extent: Extent, peers: Sequence[str]) -> Table:
    """Median and range over the rounds; beside each peer how many times its median penstock's is."""
    made = Table("what", "", "target")
    for name in (Penstock.name, *peers):
        made.add_column(name, justify="right")
        if name != Penstock.name:
            made.add_column("ratio", justify="right")
    part = ""
    for row in ROWS:
        cells = [_median_and_range(row, figures.of(row, Penstock.name) or figures.of(row, "machine"))]
        for name in peers:
            ratio = figures.ratio(row, Penstock.name, name)
            cells += [_median_and_range(row, figures.of(row, name)), "" if ratio is None else f"{ratio:.2f}"]
        if any(cells):
            if row.key.split(".")[0] != part:
                part = row.key.split(".")[0]
                made.add_section()
            made.add_row(titled(row.what, extent), row.unit, titled(row.target, extent), *cells)
    return made


def print_report(
    figures: Figures, extent: Extent, peers: Mapping[str, str], loads: tuple[str, str], console: Console
) -> None:
    """The machine, the table, and how to read it."""
    console.print("; ".join(f"{key} {value}" for key, value in machine().items()), highlight=False)
    console.print(f"load average at the start {loads[0]}, at the end {loads[1]}", highlight=False)
    console.print(table(figures, extent, list(peers)))
    console.print(f"Median (range) over {extent.rounds} rounds, the programs taking turns in each.", highlight=False)
    if peers:
        names = ", ".join(f"{name} {version}" for name, version in peers.items())
        console.print(
            f"{names}; a ratio is penstock's median by the peer's. Neither peer writes what it does to disk; "
            "penstock has each request on disk before it answers, which is why the floor of fsync is shown.",
            highlight=False,
        )


def write_json(path: Path, figures: Figures, extent: Extent, peers: Mapping[str, str], loads: tuple[str, str]) -> None:
    """All of it for a program to read: every round's figure too."""
    names = (Penstock.name, *peers, "machine")
    rows: list[dict[str, Any]] = []
    for row in ROWS:
        found = {name: figures.of(row, name) for name in names if figures.of(row, name)}
        if found:
            ratios = {name: ratio for name in peers if (ratio := figures.ratio(row, Penstock.name, name)) is not None}
            what, target = titled(row.what, extent), titled(row.target, extent)
            rows.append(
                {"key": row.key, "what": what, "unit": row.unit, "target": target, "rounds": found, "ratios": ratios}
            )
    report = {
        "machine": machine(),
        "load": {"start": loads[0], "end": loads[1]},
        "pipelines": extent.pipelines,
        "peers": dict(peers),
        "rows": rows,
    }
    path.write_text(json.dumps(report, indent=2) + "\n")


def _median_and_range(row: Row, values: Sequence[Value]) -> str:
    found = numbers(values)
    if len(found) < len(values):
        return ", ".join(dict.fromkeys(str(value) for value in values))
    if not found:
        return ""
    median, least, most = (shown(row, value) for value in (statistics.median(found), min(found), max(found)))
    return median if least == most else f"{median} ({least}-{most})"


def _file_system(path: str) -> str:
    """The kind of the file system that a path is on: that of the longest mount point that it lies in."""
    mounts = [line.split(" ")[1:3] for line in _lines("/proc/mounts")]
    inside = [(point, kind) for point, kind in mounts if f"{path}/".startswith(f"{point.rstrip('/')}/")]
    return max(inside, key=lambda mount: len(mount[0]))[1] if inside else "unknown"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
