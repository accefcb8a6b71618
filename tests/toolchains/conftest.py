"""Toolchains run real tools, and so on the event loop of the daemon."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.toolchains.tool import OWNER_VARIABLE, hunt


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def alive_in(directory: Path) -> list[int]:
    """The processes that work for a tool below `directory`."""
    mark = f"{OWNER_VARIABLE}={directory}".encode()
    found: list[int] = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                environ = Path("/proc", name, "environ").read_bytes()
            except OSError:
                continue
            if mark in environ:
                found.append(int(name))
    return found


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """No test may leave a process of a tool or an open descriptor behind; none stays, whatever happens."""
    yield
    left = alive_in(tmp_path)
    hunt(lambda owner: owner.startswith(str(tmp_path)))
    assert left == []


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))
