"""``python -m penstock.runtime``: a pipeline with nothing to do, which passes for a real one.

For trying things out, and for toolchains that only check and build. Reads the environment that every pipeline gets;
the arguments that pipeline processes of the reference get (contract.md section 7.2) say the same and go before.
"""

from __future__ import annotations

import os
import sys

from penstock.runtime.pipeline import serve

ARGUMENTS = {
    "--config-file": "PENSTOCK_CONFIG_FILE",
    "--bind-address": "PENSTOCK_BIND_ADDRESS",
    "--initial": "PENSTOCK_INITIAL",
    "--deployment-id": "PENSTOCK_DEPLOYMENT_ID",
    "--bootstrap-policy": "PENSTOCK_BOOTSTRAP_POLICY",
    "--storage-location": "PENSTOCK_STORAGE_DIR",
    "--port-file": "PENSTOCK_PORT_FILE",
    "--default-port": "PORT",
}

FLAGS = ("--silent-bootstrap", "--concurrent-bootstrap")
"""Taken, and without meaning: nothing here is ever bootstrapped."""

USAGE = "usage: python -m penstock.runtime " + " ".join(f"[{name} VALUE]" for name in ARGUMENTS)


def main(arguments: list[str]) -> int:
    """Be a pipeline until told to end; returns the exit code."""
    environ = dict(os.environ)
    given = iter(arguments)
    for argument in given:
        name, _, value = argument.partition("=")
        if name in ("-h", "--help"):
            print(__doc__, USAGE, sep="\n")
            return 0
        if name in FLAGS:
            continue
        if name not in ARGUMENTS:
            print(f"unknown argument {name}\n{USAGE}", file=sys.stderr)
            return 2
        environ[ARGUMENTS[name]] = value or next(given, "")
    with serve(port=int(environ.pop("PORT", "0")), checkpoint_seconds=None, environ=environ) as pipeline:
        pipeline.restore(None)
        pipeline.stay()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
