"""Measures an installed daemon, and with `--peers` supervisord and circus beside it, and prints one table.

``python -m tests.bench [--pipelines 1000] [--rounds 3] [--peers] [--only KEY,...] [--json FILE]``. Rows and targets are
in `rows.py`; figures are printed, never asserted: machines are noisy. Services are `sleep`. In each round the programs
take turns, each part on a fresh supervisor; all that is started is killed in the end, also when interrupted.
"""

from __future__ import annotations

import argparse
import signal
import sys
import xmlrpc.client
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from tests.bench import own, report
from tests.bench.measuring import Hangs
from tests.bench.peers.circus import Circus
from tests.bench.peers.installing import CannotInstall, install_peers
from tests.bench.peers.peer import Peer
from tests.bench.peers.penstock import Penstock
from tests.bench.peers.supervisord import Supervisord
from tests.bench.rounds import Extent, alone, among, floors, killed
from tests.bench.rows import ROWS, Figures, Row, Value

INTERRUPTED = 130


def measure(kinds: Sequence[type[Peer]], figures: Figures, extent: Extent) -> None:
    """All rounds; leaves no process and no file behind, however it ends."""
    for _ in range(extent.rounds):
        floors(figures, extent)
        for kind in kinds:
            ours = kind is Penstock
            then = partial(own.few, figures=figures, extent=extent) if ours else _nothing
            if figures.wants("alone") or (ours and figures.wants("own.spawned", "own.ready")):
                _try(kind, lambda: alone(kind, figures, extent, then))  # noqa: B023
        for kind in kinds:
            ours = kind is Penstock
            then = partial(own.many, figures=figures, extent=extent) if ours else _nothing
            if figures.wants("among") or (ours and figures.wants(*own.AMONG_MANY)):
                _try(kind, lambda: among(kind, figures, extent, then))  # noqa: B023
        for kind in kinds:
            if figures.wants("killed"):
                _try(kind, lambda: killed(kind, figures))  # noqa: B023
        if Penstock in kinds:
            own.transitions(figures)


def _nothing(peer: Peer) -> None:
    pass


def _try(kind: type[Peer], part: Callable[[], None]) -> None:
    """One program that hangs or refuses leaves its rows empty; the others go on."""
    try:
        part()
    except (Hangs, OSError, AssertionError, xmlrpc.client.Error) as error:
        print(f"{kind.name}: {error!r}", file=sys.stderr, flush=True)


def main() -> int:
    """Measure, print, write; returns the exit code."""
    options = argparse.ArgumentParser(prog="python -m tests.bench", description="The table of speed and memory.")
    options.add_argument("--pipelines", type=int, default=1000, help="how many are many")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--peers", action="store_true", help="supervisord and circus too; installed if need be")
    options.add_argument(
        "--only", default="", metavar="KEY,...", help="the rows whose keys begin so; --keys lists them"
    )
    options.add_argument("--keys", action="store_true", help="list the rows, and do nothing")
    options.add_argument("--json", type=Path, metavar="FILE", help="write every round's figures there")
    given = options.parse_args()
    if given.pipelines < 2 or given.rounds < 1:
        options.error("--pipelines is at least 2, --rounds at least 1")
    extent = Extent(given.pipelines, given.rounds)
    if given.keys:
        for row in ROWS:
            print(f"{row.key:20} {report.titled(row.what, extent)}")
        return 0
    only = tuple(key for key in given.only.split(",") if key)
    if unknown := [key for key in only if not any(row.key.startswith(key) for row in ROWS)]:
        options.error(f"--only: no row is called {', '.join(unknown)}; see --keys")

    kinds: list[type[Peer]] = [Penstock]
    versions: dict[str, str] = {}
    if given.peers:
        try:
            versions = install_peers()
            kinds += [Supervisord, Circus]
        except CannotInstall as error:
            print(f"The peers cannot be installed, so penstock is measured alone: {error}", file=sys.stderr)

    def tell(row: Row, who: str, value: Value) -> None:
        print(f"{who:12} {row.key:20} {report.shown(row, value)} {row.unit}".rstrip(), flush=True)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    figures = Figures(tell=tell, only=only)
    before, code = report.load(), 0
    try:
        measure(kinds, figures, extent)
    except KeyboardInterrupt:
        print("Interrupted; this is what was measured until then.", file=sys.stderr)
        code = INTERRUPTED
    loads = (before, report.load())
    report.print_report(figures, extent, versions, loads, Console(width=None if sys.stdout.isatty() else 200))
    if given.json is not None:
        report.write_json(given.json, figures, extent, versions, loads)
    return code


if __name__ == "__main__":
    sys.exit(main())
