"""Storage as programs leave it: whatever they made, a clear gets rid of it."""

from __future__ import annotations

import os
from pathlib import Path

from penstock.executors.storage import delete


def test_a_tree_deeper_than_python_recurses(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    here = os.getcwd()
    os.chdir(root)
    try:
        for _ in range(1500):
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.chdir(here)
    delete(root)
    assert not root.exists()
