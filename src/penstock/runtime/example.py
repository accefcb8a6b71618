"""A whole pipeline: adds up sales by shop as they come in, each exactly once, and publishes the sums.

Reads a file that grows, named by the environment variable SALES: one sale a line, a shop and an amount with a blank
between them. Publishes the sums to ``sums.json`` in its storage directory. To run it under the daemon, give a pipeline
this text as its program, and

    "program_config": {"contract": "http"}, "runtime_config": {"env": {"SALES": "/path/to/sales.txt"}}

The state holds how far the file was read and what was made of it, so a checkpoint holds both or neither: whenever the
process is killed, the next one goes on from a moment at which the two agree.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from typing import TypedDict

from penstock import runtime

NOTHING_NEW_SECONDS = 0.02


class Sums(TypedDict):
    """The state: JSON gives all of it back as it was."""

    offset: int
    sums: dict[str, int]


def lines_from(path: str, offset: int) -> Iterator[tuple[int, bytes]]:
    """Each whole line of a file that grows, with the offset behind it. Never ends."""
    with open(path, "rb") as file:
        file.seek(offset)
        while True:
            line = file.readline()
            if line.endswith(b"\n"):
                offset += len(line)
                yield offset, line
            else:
                file.seek(offset)
                time.sleep(NOTHING_NEW_SECONDS)


def publish(path: str, state: Sums) -> None:
    """Replace what was published. Doing it twice does no harm: that is why a restore may."""
    with open(path + ".new", "w", encoding="utf-8") as file:
        json.dump(state, file)
    os.replace(path + ".new", path)


def main() -> None:
    """Be a pipeline."""
    with runtime.serve(checkpoint_seconds=10) as pipeline:
        state = pipeline.restore(Sums(offset=0, sums={}))
        published = os.path.join(pipeline.storage_dir or ".", "sums.json")
        bad = pipeline.counter("bad_lines_total", "Lines that are no sale.")
        shops = pipeline.gauge("shops", "Shops that have sold something.")
        for offset, line in pipeline.each(lines_from(os.environ["SALES"], state["offset"])):
            try:
                shop, amount = line.decode().split()
                state["sums"][shop] = state["sums"].get(shop, 0) + int(amount)
            except ValueError:
                bad.add()
                pipeline.errors.add(kind="line")
                print(f"no sale: {line!r}", file=sys.stderr)
            state["offset"] = offset
            shops.set(len(state["sums"]))
            publish(published, state)


if __name__ == "__main__":
    main()
