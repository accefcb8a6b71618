# /// script
# requires-python = ">=3.11"
# dependencies = ["bytewax>=0.21,<0.22", "airportsdata"]
# ///
"""Adds up the world's airports by country in a stream, bytewax within `penstock.runtime`: contract `http`.

The engine gets the next batch when all of the former one has come out at its end. In between the state is whole: how
far the file has been read, and the sums of just that. There the pipeline comes to rest, is paused and takes
checkpoints; after a crash engine and file begin where the newest one says. At the end ``airports.json`` in the storage
directory holds the sums.

It reads no further than the byte that the file GATE names, so that a test decides when it is done.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypedDict

import airportsdata
import bytewax.operators as op
from bytewax._bytewax import run_main
from bytewax.connectors.files import CSVSource
from bytewax.dataflow import Dataflow
from bytewax.inputs import StatefulSourcePartition
from bytewax.outputs import DynamicSink, StatelessSinkPartition

from penstock import runtime

AIRPORTS = Path(airportsdata.__file__).with_name("airports.csv")
BATCH, PACE = 50, timedelta(milliseconds=2)

Row = dict[str, str]
Sum = tuple[str, tuple[int, int]]


class State(TypedDict):
    """Offset in bytes; of each country, how many airports and their heights added up."""

    offset: int
    airports: int
    sums: dict[str, list[int]]


class SteeredPartition(StatefulSourcePartition[Row, None]):
    """The file, read batch by batch; comes to rest where the engine holds nothing."""

    def __init__(self, file: StatefulSourcePartition[Row, int], pipeline: runtime.Pipeline, state: State) -> None:
        self._file = file
        self._pipeline = pipeline
        self._state = state
        self._gate = Path(os.environ["GATE"])
        self._given = state["airports"]
        self.suspended: runtime.Suspended | None = None

    def next_batch(self) -> list[Row]:
        if self._state["airports"] < self._given:
            return []
        self._state["offset"] = self._file.snapshot()
        try:
            self._pipeline.step()
        except runtime.Suspended as end:  # the engine lets no exception through as it is; it ends with its source
            self.suspended = end
            raise StopIteration from None
        if self._state["offset"] >= int(self._gate.read_text()):
            return []
        rows = self._file.next_batch()
        self._given += len(rows)
        self._pipeline.records.add(len(rows))
        return rows

    def next_awake(self) -> datetime:
        return datetime.now(UTC) + PACE  # noqa: TID251 - it is a program of its own

    def snapshot(self) -> None:
        """The engine keeps nothing; the pipeline does."""

    def close(self) -> None:
        self._file.close()


class Steered(CSVSource):
    """See the partition."""

    def __init__(self, pipeline: runtime.Pipeline, state: State) -> None:
        super().__init__(AIRPORTS, BATCH)
        self._with = pipeline, state
        self.partition: SteeredPartition | None = None

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> SteeredPartition:
        offset = self._with[1]["offset"]
        print(f"reads from byte {offset}", flush=True)
        self.partition = SteeredPartition(super().build_part(step_id, for_part, offset or None), *self._with)
        return self.partition


class Results(DynamicSink[Sum], StatelessSinkPartition[Sum]):
    """Puts what the engine has worked out into the state."""

    def __init__(self, state: State) -> None:
        self._state = state

    def build(self, step_id: str, worker_index: int, worker_count: int) -> Results:
        return self

    def write_batch(self, items: list[Sum]) -> None:
        for country, (count, total) in items:
            self._state["sums"][country] = [count, total]
        self._state["airports"] += len(items)


def main() -> None:
    with runtime.serve(checkpoint_seconds=0.1) as pipeline:
        state = pipeline.restore(State(offset=0, airports=0, sums={}))
        kept = {country: (count, total) for country, (count, total) in state["sums"].items()}

        def add(so_far: tuple[int, int] | None, row: Row) -> tuple[tuple[int, int], tuple[int, int]]:
            count, total = so_far or kept.get(row["country"], (0, 0))
            after = count + 1, total + round(float(row["elevation"]))
            return after, after

        source = Steered(pipeline, state)
        flow = Dataflow("airports")
        rows = op.input("airports", flow, source)
        sums = op.stateful_map("add up", op.key_on("by country", rows, lambda row: row["country"]), add)
        op.output("results", sums, Results(state))
        run_main(flow)
        if source.partition is not None and source.partition.suspended is not None:
            raise source.partition.suspended
        published = Path(pipeline.storage_dir or ".", "airports.json")
        aside = published.with_suffix(".new")
        aside.write_text(json.dumps(state))
        aside.replace(published)


if __name__ == "__main__":
    main()
