"""Storage as programs leave it: whatever they made, a clear gets rid of it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from penstock.executors import ProcessExecutor
from penstock.executors.storage import delete
from penstock.linux import mounts_below
from penstock.model import Absent, ClearStorage, Provision, StopCompute
from penstock.ports import ExecutorError
from penstock.testing.executor_contract import clearing, stopped, stopping
from tests.disks import bound

from .world import ProcessWorld

SPOTS = {
    "a directory": "storage/data base/mounted",
    "a file": "storage/file",
    "storage itself": "storage",
    "the work directory": "deployments/{deployment}/work/mounted",
    "trash": "trash/storage-1/mounted",
}


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """What must not be lost, outside of all storage but on the same file system."""
    directory = tmp_path / "precious"
    directory.mkdir()
    (directory / "file").write_text("kept")
    return directory


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[ExitStack]:
    """What is mounted for the time of a test, wherever the test has moved it."""
    stack = ExitStack()
    try:
        yield stack
        stack.close()
    finally:
        for point in mounts_below(tmp_path):
            subprocess.run(["umount", "--lazy", point], check=True)


@pytest.mark.parametrize("spot", SPOTS)
async def test_nothing_that_is_mounted_below_is_deleted(
    world: ProcessWorld, executor: ProcessExecutor, precious: Path, mounts: ExitStack, spot: str
) -> None:
    row = world.shell('echo x >"$PENSTOCK_STORAGE_DIR/own"; exec sleep 1000')
    await executor.perform(row, Provision())
    await executor.perform(stopping(row), StopCompute())
    home = world.state_dir / "pipelines" / row.id
    mounted = home / SPOTS[spot].format(deployment=row.deployment_id)
    source = precious / "file" if spot == "a file" else precious
    mounts.enter_context(bound(source, mounted))
    for _ in range(2):
        with pytest.raises(ExecutorError) as refused:
            await executor.perform(stopped(row), ClearStorage())
        assert str(mounted) in refused.value.fault.message
        assert "umount" in refused.value.fault.message
        assert refused.value.retry
        assert (precious / "file").read_text() == "kept"
        assert await executor.look(clearing(row)) == Absent(storage_remains=True)
    await executor.forget(row.id)
    assert (precious / "file").read_text() == "kept"
    mounts.close()
    await executor.perform(stopped(row), ClearStorage())
    assert await executor.look(clearing(row)) == Absent(storage_remains=False)
    assert (precious / "file").read_text() == "kept"


def test_what_is_mounted_below(tmp_path: Path, precious: Path, mounts: ExitStack) -> None:
    odd = tmp_path / "a b\\c\tä"
    mounts.enter_context(bound(precious, odd))
    assert mounts_below(tmp_path) == [str(odd)]
    assert mounts_below(odd) == [str(odd)]
    assert mounts_below(tmp_path / "a") == []
    (tmp_path / "link").symlink_to(tmp_path)
    assert mounts_below(tmp_path / "link" / odd.name) == [str(odd)]


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
