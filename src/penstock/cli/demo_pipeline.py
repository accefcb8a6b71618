"""The pipeline of ``penstock demo``: counts words of a growing file, and keeps its state in its storage directory.

Started by the daemon as a `python` program like any user's; standard library only. Its state (how far it has read, and
the counts) is replaced atomically after every batch, so that however it ends, the next run goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

BATCH_LINES = 50
NOTHING_NEW_SECONDS = 0.02


def main() -> None:
    """Read the file named by INPUT for ever."""
    state_file = Path(os.environ["PENSTOCK_STORAGE_DIR"], "state.json")
    offset, counts = 0, Counter[str]()
    if state_file.exists():
        saved = json.loads(state_file.read_text("utf-8"))
        offset = saved["offset"]
        counts.update(saved["counts"])
    print(f"counting from byte {offset}, {counts.total()} words so far", flush=True)
    with open(os.environ["INPUT"], "rb") as source:
        source.seek(offset)
        while True:
            lines = [line for line in (source.readline() for _ in range(BATCH_LINES)) if line]
            if not lines or not lines[-1].endswith(b"\n"):
                source.seek(offset)
                time.sleep(NOTHING_NEW_SECONDS)
                continue
            for line in lines:
                counts.update(line.decode("utf-8").split())
            offset = source.tell()
            aside = state_file.with_suffix(".new")
            aside.write_text(json.dumps({"offset": offset, "counts": counts}), "utf-8")
            aside.replace(state_file)
            print(f"{counts.total()} words", flush=True)


if __name__ == "__main__":
    sys.exit(main())
