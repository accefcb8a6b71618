"""For authors of pipelines: all that a program must do to be steered and kept by the daemon, in about ten lines.

    import itertools
    from penstock import runtime

    with runtime.serve() as pipeline:
        state = pipeline.restore({"line": 0, "sum": 0})
        with open("numbers.txt") as numbers:
            for line in pipeline.each(itertools.islice(numbers, state["line"], None)):
                state["line"] += 1
                state["sum"] += int(line)

Give the pipeline ``"program_config": {"contract": "http"}``. Then it starts paused or running, pauses between two
records, takes checkpoints every minute, on request and when it is stopped, goes on from the newest after a crash, and
shows statistics and metrics. `example.py` in this package is a whole pipeline.

**The state** is one object, which `restore` returns and checkpoints hold. Keep in it how far the source has been read
*and* what was made of it: they are kept together, so that after a crash each record counts exactly once, however the
process died. What was written elsewhere since the newest checkpoint is written once more: write it so that this does
no harm (a file named for the offset, an upsert), or keep it back until `checkpoint` has returned.

**Come to rest often**: `each` does so between records, `step` wherever it is called, `waiting` while its block lasts.
Only there it pauses, takes checkpoints and ends; until the first time it is Initializing. A pipeline that ends leaves
the loop by `Suspended`, which is no Exception; ``finally`` and ``with`` work as ever. A loop that ends by itself is
done: the daemon stops the pipeline without an error. An exception that leaves the block is a failure: traceback in the
log, `deployment_error` for the user. SIGTERM and SIGINT take a last checkpoint too, and end the process with 143 and
130; a second one ends it at once.

**By hand**, ``python pipeline.py`` serves on a free port and says which; ``PENSTOCK_STORAGE_DIR`` is then where it
keeps its checkpoints. Standard library only; imports nothing else of penstock.
"""

from penstock.runtime.checkpoints import Damaged
from penstock.runtime.control import Suspended
from penstock.runtime.metrics import Counter, Gauge
from penstock.runtime.pipeline import BootstrapRejected, CheckpointError, Pipeline, serve
from penstock.runtime.rest import Rest

__all__ = [
    "BootstrapRejected",
    "CheckpointError",
    "Counter",
    "Damaged",
    "Gauge",
    "Pipeline",
    "Rest",
    "Suspended",
    "serve",
]
