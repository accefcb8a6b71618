"""Draws the state diagrams of README and ARCHITECTURE from the tables of legal moves.

``python -m tests.core.diagrams`` rewrites them; `test_diagrams.py` fails when they are not what the tables say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from penstock import moves, program
from penstock.model import Author

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "src/penstock/ARCHITECTURE.md")
_PLACE = re.compile(r"<!-- diagram: (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def drawn(first: StrEnum, moves: Mapping[Any, frozenset[Author]]) -> str:
    """One table as a diagram; each arrow is labelled with who may make the move."""
    arrows = [f"    {before} --> {after}: {', '.join(sorted(authors))}" for (before, after), authors in moves.items()]
    return "\n".join(["```mermaid", "stateDiagram-v2", f"    [*] --> {first}", *arrows, "```"])


DIAGRAMS = {
    "resources": drawn(moves.ResourcesStatus.STOPPED, moves.RESOURCES_MOVES),
    "desired": drawn(moves.ResourcesDesired.STOPPED, moves.DESIRED_MOVES),
    "storage": drawn(moves.StorageStatus.CLEARED, moves.STORAGE_MOVES),
    "program": drawn(program.ProgramStatus.PENDING, program.MOVES),
}


def redrawn(page: str) -> str:
    """`page` with every marked diagram as the tables say."""
    return _PLACE.sub(lambda found: f"<!-- diagram: {found[1]} -->\n{DIAGRAMS[found[1]]}\n<!-- end -->", page)


if __name__ == "__main__":
    for file in PAGES:
        file.write_text(redrawn(file.read_text("utf-8")), "utf-8")
