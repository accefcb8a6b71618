"""Programs that use `penstock.runtime`, as processes of their own, begun as the daemon begins them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .program import Program


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Begins programs; all of them share one storage directory, and none outlives the test."""
    begun: list[Program] = []

    def begin(text: str = "", **environment: str) -> Program:
        program = Program(tmp_path, text, environment)
        begun.append(program)
        return program

    yield begin
    for program in begun:
        program.close()
