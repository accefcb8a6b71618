# /// script
# requires-python = ">=3.11"
# dependencies = ["bytewax>=0.21,<0.22", "airportsdata"]
# ///
"""Adds up the world's airports by country in a stream, with bytewax alone: contract `process`.

Each airport becomes a line of ``airports.txt`` in the storage directory: its country, how many there have been of that
country so far, and their heights added up. bytewax keeps in its own recovery store how far it has read, what it has
added up and how long the output was; after any end it goes on from there, and cuts off what was written since.

It reads no further than the byte that the file GATE names, so that a test decides when it is done.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import airportsdata
import bytewax.operators as op
from bytewax._bytewax import run_main
from bytewax.connectors.files import CSVSource, FileSink
from bytewax.dataflow import Dataflow
from bytewax.inputs import StatefulSourcePartition
from bytewax.recovery import RecoveryConfig, init_db_dir

AIRPORTS = Path(airportsdata.__file__).with_name("airports.csv")
BATCH, PACE = 50, timedelta(milliseconds=2)
EPOCH = timedelta(milliseconds=100)

Row = dict[str, str]


class GatedPartition(StatefulSourcePartition[Row, int]):
    """The file, read at a pace and no further than the gate."""

    def __init__(self, file: StatefulSourcePartition[Row, int]) -> None:
        self._file = file
        self._gate = Path(os.environ["GATE"])

    def next_batch(self) -> list[Row]:
        return self._file.next_batch() if self._file.snapshot() < int(self._gate.read_text()) else []

    def next_awake(self) -> datetime:
        return datetime.now(UTC) + PACE  # noqa: TID251 - it is a program of its own

    def snapshot(self) -> int:
        return self._file.snapshot()

    def close(self) -> None:
        self._file.close()


class Gated(CSVSource):
    """See the partition."""

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> GatedPartition:
        print(f"reads from byte {resume_state or 0}", flush=True)
        return GatedPartition(super().build_part(step_id, for_part, resume_state))


def add(so_far: tuple[int, int] | None, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
    count, total = so_far or (0, 0)
    after = count + 1, total + height
    return after, after


def main() -> None:
    storage = Path(os.environ["PENSTOCK_STORAGE_DIR"])
    recovery = storage / "recovery"
    if not recovery.exists():  # whole or not there
        new = storage / "recovery.new"
        new.mkdir(exist_ok=True)
        init_db_dir(new, 1)
        new.rename(recovery)
    flow = Dataflow("airports")
    rows = op.input("airports", flow, Gated(AIRPORTS, BATCH))
    keyed = op.map("by country", rows, lambda row: (row["country"], round(float(row["elevation"]))))
    sums = op.stateful_map("add up", keyed, add)
    lines = op.map("write down", sums, lambda it: (it[0], f"{it[0]} {it[1][0]} {it[1][1]}"))
    op.output("lines", lines, FileSink(storage / "airports.txt"))
    run_main(flow, epoch_interval=EPOCH, recovery_config=RecoveryConfig(recovery))
    print("done", flush=True)


if __name__ == "__main__":
    main()
