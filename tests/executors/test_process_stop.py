"""Stopped means that no process of the deployment runs, however its processes tried to get away."""

from __future__ import annotations

import signal
from pathlib import Path

import anyio
import pytest

from penstock.executors import ProcessExecutor, killing
from penstock.executors.procfs import holders, is_alive
from penstock.model import Absent, ClearStorage, Ended, Provision, Ready, RuntimeDesired, SteerRuntime, StopCompute
from penstock.ports import Compute, ExecutorError
from penstock.testing.executor_contract import (
    clearing,
    deployment,
    provisioned,
    reported,
    seen,
    stopped,
    stopping,
    until,
)

from .world import BORN, PYTHON, ProcessWorld, world_in

DAEMONIZE = 'import os; os.closerange(0, 99); os.setsid(); os.execlp("sleep", "sleep", "1000")'
ESCAPES = {
    "child": "sleep 1000 & ",
    "many": "for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; ",
    "session": "setsid sleep 1000 & ",
    "no environment": "env -i sleep 1000 & ",
    "session without environment": "env -i setsid sleep 1000 & ",
    "closes everything": f"{' '.join(PYTHON)} '{DAEMONIZE}' & ",
    "ignores signals": "setsid sh -c 'trap \"\" TERM INT HUP; while :; do sleep 1000; done' & ",
    "orphan": "(setsid sleep 1000 &) ; ",
}


@pytest.mark.parametrize("escape", ESCAPES)
@pytest.mark.parametrize("dead", [False, True], ids=["running", "ended"])
async def test_nothing_escapes(world: ProcessWorld, executor: ProcessExecutor, escape: str, dead: bool) -> None:
    row = world.shell(f"{ESCAPES[escape]} sleep 0.1; {BORN} exec sleep {0 if dead else 1000}")
    await executor.perform(row, Provision())
    await until(lambda: world.begun(deployment(row)) == 1)
    lock = str(world.state_dir / "pipelines" / row.id / "storage.lock")
    escaped = {*holders(lock), *world.members(deployment(row))}
    if dead:
        sighting = await seen(executor, stopping(row), Ended)
        assert isinstance(sighting, Ended)
        assert sighting.leftovers or escape == "session without environment"
    async with world.open() as successor:
        await successor.perform(stopping(row), StopCompute())
        sighting = await successor.look(stopping(row))
        assert isinstance(sighting, Ended)
        assert not sighting.leftovers
    assert not [pid for pid in escaped if is_alive(pid)]
    assert not holders(lock)
    assert not world.members(deployment(row))


async def test_the_whole_group_pauses_but_not_the_recorder(world: ProcessWorld, executor: ProcessExecutor) -> None:
    row = world.shell("sleep 1000 & sleep 1000 & " + BORN + "wait")
    await executor.perform(row, Provision())
    await until(lambda: world.begun(deployment(row)) == 1)
    await until(lambda: len(world.members(deployment(row))) == 4)
    await executor.perform(provisioned(row), SteerRuntime(RuntimeDesired.PAUSED))
    states = {pid: state(pid) for pid in world.members(deployment(row))}
    claim = world.records(row).read_claim()
    assert claim is not None
    assert states.pop(claim.recorder) == "S"
    assert set(states.values()) == {"T"}
    await executor.perform(provisioned(row), SteerRuntime(RuntimeDesired.RUNNING))
    assert "T" not in {state(pid) for pid in states}


async def test_a_process_group_that_is_not_ours_is_left_alone(world: ProcessWorld, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with world_in(tmp_path / "other") as other:
        mine, theirs = world.provisioning(), other.provisioning()
        other.state_dir = world.state_dir  # even one state directory would not mix them up
        async with world.open() as executor, other.open() as neighbour:
            await executor.perform(mine, Provision())
            await neighbour.perform(theirs, Provision())
            assert await executor.survey() == [Compute(mine.id, deployment(mine))]
            assert await neighbour.survey() == [Compute(theirs.id, deployment(theirs))]
            for compute in await executor.survey():
                await executor.discard(compute)
            await executor.perform(stopping(mine), StopCompute())
            assert world.running(deployment(mine)) == 0
            assert isinstance(await neighbour.look(theirs), Ready)
            assert other.running(deployment(theirs)) == 1


async def test_an_orphan_is_discarded_though_its_directory_is_gone(world: ProcessWorld) -> None:
    row = world.provisioning()
    async with world.open() as executor:
        await executor.perform(row, Provision())
        await until(lambda: world.begun(deployment(row)) == 1)
    async with world.open() as successor:
        await successor.forget(row.id)
        assert await successor.survey() == [Compute(row.id, deployment(row))]
        await successor.discard(Compute(row.id, deployment(row)))
        assert await successor.survey() == []
        assert world.running(deployment(row)) == 0
        assert await successor.kept() == []


async def test_what_still_lives_is_named(
    world: ProcessWorld, executor: ProcessExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the right to kill it, which stands for a process that hangs in the kernel."""
    row = world.shell(f"{BORN} exec sleep 1000")
    await executor.perform(row, Provision())
    await until(lambda: world.begun(deployment(row)) == 1)
    with monkeypatch.context() as harmless:
        harmless.setattr(signal, "pidfd_send_signal", lambda *_: None)
        harmless.setattr(killing, "KILL_SECONDS", 0.3)
        with pytest.raises(ExecutorError, match=rf"{world.pid(row)} \(sleep, state S\)") as refused:
            await executor.perform(stopping(row), StopCompute())
    assert refused.value.retry
    assert refused.value.fault.code == "RunnerStopError"
    assert isinstance(await executor.look(stopping(row)), Ready)
    await executor.perform(stopping(row), StopCompute())
    assert isinstance(await executor.look(stopping(row)), Ended)


async def test_a_stop_of_all_threads_that_meets_a_fork(world: ProcessWorld, executor: ProcessExecutor) -> None:
    row = world.shell("while :; do /bin/true; done")
    await executor.perform(row, Provision())
    for _ in range(100):
        await executor.perform(provisioned(row), SteerRuntime(RuntimeDesired.PAUSED))
        assert state(world.pid(row)) == "T"
        await executor.perform(provisioned(row), SteerRuntime(RuntimeDesired.RUNNING))


async def test_two_stops_at_once(world: ProcessWorld, executor: ProcessExecutor) -> None:
    rows = [world.shell("setsid sleep 1000 & sleep 1000") for _ in range(10)]
    async with anyio.create_task_group() as tasks:
        for row in rows:
            tasks.start_soon(executor.perform, row, Provision())
    async with anyio.create_task_group() as tasks:
        for row in rows * 2:
            tasks.start_soon(executor.perform, stopping(row), StopCompute())
    assert await executor.survey() == []
    assert not any(world.members(deployment(row)) for row in rows)


async def test_storage_is_not_cleared_under_anybody(world: ProcessWorld, executor: ProcessExecutor) -> None:
    row = world.provisioning()
    await executor.perform(row, Provision())
    with pytest.raises(ExecutorError, match=str(world.pid(row))) as refused:
        await executor.perform(stopped(row), ClearStorage())
    assert refused.value.retry
    assert refused.value.fault.code == "RunnerClearError"
    assert await executor.look(clearing(row)) == Absent(storage_remains=True)
    assert await reported(executor, row) is not None


async def test_what_cannot_be_cleared_is_not_called_cleared(world: ProcessWorld, executor: ProcessExecutor) -> None:
    row = world.shell('mkdir -p "$PENSTOCK_STORAGE_DIR/deep/er"; echo 1 >"$PENSTOCK_STORAGE_DIR/deep/er/file"; exit')
    await executor.perform(row, Provision())
    await seen(executor, row, Ended)
    await executor.perform(stopping(row), StopCompute())
    home = world.state_dir / "pipelines" / row.id
    (home / "storage" / "deep").chmod(0)
    (home / "storage").rename(home / "elsewhere")
    (home / "storage").symlink_to(home / "elsewhere")
    with pytest.raises(ExecutorError, match="symbolic link"):
        await executor.perform(stopped(row), ClearStorage())
    assert await executor.look(clearing(row)) == Absent(storage_remains=True)
    (home / "storage").unlink()
    (home / "elsewhere").rename(home / "storage")
    await executor.perform(stopped(row), ClearStorage())
    assert await executor.look(clearing(row)) == Absent(storage_remains=False)
    assert not (home / "deployments").exists()


async def test_what_an_interrupted_clear_renamed_aside_remains(world: ProcessWorld, executor: ProcessExecutor) -> None:
    row = world.provisioning()
    aside = world.state_dir / "pipelines" / row.id / "trash" / "storage-1"
    aside.mkdir(parents=True)
    (aside / "file").touch()
    assert await executor.look(clearing(row)) == Absent(storage_remains=True)
    await executor.perform(stopped(row), ClearStorage())
    assert await executor.look(clearing(row)) == Absent(storage_remains=False)
    assert not aside.parent.exists()


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
