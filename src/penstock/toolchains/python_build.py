"""Make a Python script ready to run: a tool, started by the `python` toolchain on its own.

A script runs as it is. One that declares dependencies in an inline block (PEP 723) is turned away with EX_UNAVAILABLE
and the reason on stderr. Standard library only; must never execute the script.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

EX_UNAVAILABLE = 69


def inline_block(source: str) -> str | None:
    """The TOML of the script's ``# /// script`` block; None when there is none.

    Read line by line: the regular expression that PEP 723 gives takes quadratic time on hostile text.
    """
    block: list[str] | None = None
    end: int | None = None
    for line in _lines(source):
        if block is None:
            block = [] if line == "# /// script" else None
        elif line == "#" or line.startswith("# "):
            if line == "# ///":
                end = len(block)
            block.append(line[2:])
        elif end is not None:
            break
        else:
            block = None
    return None if block is None or end is None else "\n".join(block[:end])


def _lines(source: str) -> Iterator[str]:
    yield from source.replace("\r\n", "\n").split("\n")


def main(program_file: str) -> int:
    """Tell on stderr why the script cannot be made ready, if it cannot; returns the exit code."""
    block = inline_block(Path(program_file).read_text(encoding="utf-8", errors="replace"))
    if block is None:
        return 0
    try:
        declared = tomllib.loads(block)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        print(f"the script's inline block (PEP 723) is not valid TOML: {error}", file=sys.stderr)
        return 1
    if not declared.get("dependencies"):
        return 0
    print(
        "the script declares inline dependencies (PEP 723), which are not supported yet; "
        "remove the block, or define a toolchain whose build installs them",
        file=sys.stderr,
    )
    return EX_UNAVAILABLE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
