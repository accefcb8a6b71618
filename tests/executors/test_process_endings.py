"""However a program ends, whoever watches: the end is seen at once and told truly."""

from __future__ import annotations

import os
import shutil
import signal
import time
from contextlib import aclosing
from pathlib import Path

import anyio
import pytest

from penstock.executors import ProcessExecutor
from penstock.model import (
    Ended,
    Exit,
    Pipeline,
    Provision,
    Ready,
    RuntimeDesired,
    RuntimeStatus,
    Sighting,
    SteerRuntime,
    StopCompute,
)
from penstock.testing.executor_contract import deployment, provisioned, reported, seen, stopping, until

from .world import BORN, ProcessWorld, zombies

ENDS = [
    ("exit 0", 0, None),
    ("exit 3", 3, None),
    ("exit 255", 255, None),
    ("kill -SEGV $$", None, "SIGSEGV"),
    ("kill -KILL $$", None, "SIGKILL"),
]


async def ended(executor: ProcessExecutor, row: Pipeline) -> Ended:
    sighting: Sighting = await seen(executor, row, Ended)
    assert isinstance(sighting, Ended)
    return sighting


def how(end: Exit) -> tuple[int | None, str | None, bool]:
    return end.code, end.signal_name, end.inferred


@pytest.mark.parametrize(("script", "code", "signal_name"), ENDS)
async def test_a_program_that_ends_at_once(
    world: ProcessWorld, executor: ProcessExecutor, script: str, code: int | None, signal_name: str | None
) -> None:
    row = world.shell(f"echo over; {script}")
    await executor.perform(row, Provision())
    sighting = await ended(executor, row)
    # It may be over before its claim was seen: then the recorder tells, who cannot tell a signal from a code above 128.
    assert (sighting.exit.code, sighting.exit.signal_name) == (code, signal_name)
    assert sighting.exit.pid == world.pid(row)
    assert sighting.exit.log_tail[-1] == "over"
    assert sighting.exit.ended_at is not None
    assert sighting.completed is (code == 0)
    assert sighting.fault is None


async def test_an_exact_end_is_known_to_the_next_daemon_too(world: ProcessWorld) -> None:
    row = world.shell("kill -SEGV $$")
    async with world.open() as executor:
        await executor.perform(row, Provision())
        first = await ended(executor, row)
    async with world.open() as successor:
        assert await ended(successor, row) == first


@pytest.mark.parametrize(
    ("script", "code", "signal_name", "inferred"),
    [("exit 0", 0, None, False), ("exit 7", 7, None, False), ("kill -TERM $$", None, "SIGTERM", True)],
)
async def test_an_end_while_no_daemon_ran_is_told_by_the_recorder(
    world: ProcessWorld, script: str, code: int | None, signal_name: str | None, inferred: bool
) -> None:
    go = world.home / "go"
    os.mkfifo(go)
    row = world.shell(f'read line <"{go}"; {script}')
    async with world.open() as executor:
        await executor.perform(row, Provision())
    go.write_text("\n")
    await until(lambda: not world.members(deployment(row)))
    async with world.open() as successor:
        sighting = await ended(successor, provisioned(row))
        assert how(sighting.exit) == (code, signal_name, inferred)
        assert sighting.exit.pid == world.pid(row)
        assert sighting.exit.ended_at is not None
        assert sighting.completed is (code == 0)


async def test_an_end_is_exact_though_the_recorder_was_killed(world: ProcessWorld, executor: ProcessExecutor) -> None:
    row = world.shell("sleep 1000; exit 5")
    await executor.perform(row, Provision())
    claim = world.records(row).read_claim()
    assert claim is not None
    os.kill(claim.recorder, signal.SIGKILL)
    await until(lambda: claim.recorder not in world.members(deployment(row)))
    assert isinstance(await executor.look(row), Ready)
    os.kill(world.pid(row), signal.SIGBUS)
    assert how((await ended(executor, row)).exit) == (None, "SIGBUS", False)


async def test_nobody_can_tell_how_it_ended(world: ProcessWorld) -> None:
    row = world.shell(f"{BORN} exec sleep 1000")
    async with world.open() as executor:
        await executor.perform(row, Provision())
        await until(lambda: world.begun(deployment(row)) == 1)
    for pid in sorted(world.members(deployment(row))):
        os.kill(pid, signal.SIGKILL)
    await until(lambda: not os.path.exists(f"/proc/{world.pid(row)}"))  # as long as it is there, the kernel tells
    async with world.open() as successor:
        sighting = await ended(successor, provisioned(row))
        assert how(sighting.exit) == (None, None, False)
        assert not sighting.completed
        assert not sighting.leftovers


async def test_a_recorder_that_is_stopped_delays_the_truth_only_a_moment(
    world: ProcessWorld, executor: ProcessExecutor
) -> None:
    row = world.shell("sleep 1000")
    await executor.perform(row, Provision())
    claim = world.records(row).read_claim()
    assert claim is not None
    os.kill(claim.recorder, signal.SIGSTOP)
    os.kill(world.pid(row), signal.SIGKILL)
    with anyio.fail_after(5):
        sighting = await ended(executor, row)
        assert how(sighting.exit) == (None, "SIGKILL", False)
        await executor.perform(stopping(row), StopCompute())
    assert not world.members(deployment(row))


async def test_it_dies_while_paused(world: ProcessWorld, executor: ProcessExecutor) -> None:
    row = world.shell("sleep 1000")
    async with aclosing(executor.events()) as events:
        await executor.perform(row, Provision())
        await executor.perform(provisioned(row), SteerRuntime(RuntimeDesired.PAUSED))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(to_kill, world.pid(row))
            with anyio.fail_after(5):
                assert await anext(events) == row.id
    assert how((await ended(executor, row)).exit) == (None, "SIGKILL", False)


async def to_kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


async def test_it_ignores_that_it_is_told_to_end(world: ProcessWorld, executor: ProcessExecutor) -> None:
    row = world.shell(f"trap '' TERM; {BORN} while :; do sleep 1000; done")
    await executor.perform(row, Provision())
    await until(lambda: world.begun(deployment(row)) == 1)
    await executor.perform(provisioned(row), SteerRuntime(RuntimeDesired.SUSPENDED))
    assert await reported(executor, provisioned(row)) == (RuntimeStatus.RUNNING, RuntimeDesired.SUSPENDED)
    async with world.open() as successor:
        assert await reported(successor, provisioned(row)) == (RuntimeStatus.RUNNING, RuntimeDesired.SUSPENDED)
    await executor.perform(stopping(row), StopCompute())
    assert not world.members(deployment(row))


async def test_exit_0_after_it_was_told_to_end_is_not_completion(
    world: ProcessWorld, executor: ProcessExecutor
) -> None:
    row = world.shell(f"trap 'exit 0' TERM; {BORN} while :; do sleep 0.01; done")
    await executor.perform(row, Provision())
    await until(lambda: world.begun(deployment(row)) == 1)
    await executor.perform(provisioned(row), SteerRuntime(RuntimeDesired.SUSPENDED))
    sighting = await ended(executor, provisioned(row))
    assert sighting.exit.code == 0
    assert not sighting.completed


@pytest.mark.parametrize(
    "script",
    [
        "exec >/dev/null 2>&1 <&-; sleep 1000",
        "exec >&- 2>&-; sleep 1000",
        "head -c 100000 /dev/urandom; sleep 1000",
        "printf '\\377\\376\\0\\n'; sleep 1000",
        "yes",
    ],
)
async def test_whatever_it_does_to_its_output(world: ProcessWorld, executor: ProcessExecutor, script: str) -> None:
    row = world.shell(script)
    await executor.perform(row, Provision())
    assert isinstance(await executor.look(row), Ready)
    await executor.perform(stopping(row), StopCompute())
    assert how((await ended(executor, stopping(row))).exit) == (None, "SIGKILL", False)
    assert not world.members(deployment(row))


@pytest.mark.parametrize("what", ["work", "deployment", "storage", "pipeline"])
async def test_directories_vanish_under_it(world: ProcessWorld, executor: ProcessExecutor, what: str) -> None:
    row = world.shell(BORN + "while :; do sleep 1000; done")
    await executor.perform(row, Provision())
    await until(lambda: world.begun(deployment(row)) == 1)
    pid = world.pid(row)
    records = world.records(row)
    root = records.root.parent.parent
    shutil.rmtree(
        {"work": records.work, "deployment": records.root, "storage": root / "storage", "pipeline": root}[what]
    )
    ready = await executor.look(row)
    assert isinstance(ready, Ready)
    assert ready.details is not None
    assert ready.details["process"] == pid
    async with world.open() as successor:
        assert await successor.look(row) == ready
        await successor.perform(row, Provision())
        assert world.begun(deployment(row)) == 1
    os.kill(pid, signal.SIGSEGV)
    assert how((await ended(executor, provisioned(row))).exit) == (None, "SIGSEGV", False)
    await executor.perform(stopping(row), StopCompute())
    assert not world.members(deployment(row))
    assert not (await ended(executor, stopping(row))).leftovers


async def test_lost_records_do_not_hide_a_program_from_its_stop(world: ProcessWorld) -> None:
    row = world.shell(BORN + "setsid sleep 1000 & while :; do sleep 1000; done")
    async with world.open() as executor:
        await executor.perform(row, Provision())
        await until(lambda: world.begun(deployment(row)) == 1)
    shutil.rmtree(world.state_dir)
    async with world.open() as successor:
        await successor.perform(stopping(row), StopCompute())
        assert not world.members(deployment(row))
        assert isinstance(await successor.look(stopping(row)), Ended)


async def test_no_zombie_and_no_descriptor_is_left(world: ProcessWorld, executor: ProcessExecutor) -> None:
    async def once() -> None:
        row = world.shell("exit 1")
        await executor.perform(row, Provision())
        await ended(executor, row)
        await executor.perform(stopping(row), StopCompute())
        await ended(executor, stopping(row))

    await once()
    before, older = len(os.listdir("/proc/self/fd")), set(zombies())
    for _ in range(20):
        await once()
    await until(lambda: set(zombies()) <= older)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_program_that_cannot_be_executed_after_all(world: ProcessWorld, executor: ProcessExecutor) -> None:
    broken = world.home / "broken"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    row = world.running_argv(str(broken))
    await executor.perform(row, Provision())
    sighting = await ended(executor, row)
    assert sighting.exit.code == 127
    assert "No such file" in sighting.exit.log_tail[-1]
    assert str(broken) in sighting.exit.log_tail[-1]


async def test_usage(world: ProcessWorld, executor: ProcessExecutor, tmp_path: Path) -> None:
    row = world.shell("head -c 100000 /dev/zero >$PENSTOCK_STORAGE_DIR/data; sync; sleep 1000 & " + BORN + "wait")
    assert await executor.usage(row) is None
    await executor.perform(row, Provision())
    await until(lambda: world.begun(deployment(row)) == 1)
    usage = await executor.usage(row)
    assert usage is not None
    assert usage.processes == usage.threads == 2
    assert usage.rss_bytes > 100_000
    assert usage.open_files >= 6
    assert abs((world.clock.now() - usage.started_at).total_seconds()) < 30
    assert usage.storage_bytes is not None
    assert 100_000 <= usage.storage_bytes <= 200_000
    await executor.perform(stopping(row), StopCompute())
    assert await executor.usage(row) is None


async def test_the_dead_keep_nobody_busy(world: ProcessWorld, executor: ProcessExecutor) -> None:
    """A dead process' descriptor stays readable for ever."""
    row = world.shell("exit 1")
    await executor.perform(row, Provision())
    await ended(executor, row)
    before = time.process_time()
    await anyio.sleep(0.3)
    assert time.process_time() - before < 0.1
