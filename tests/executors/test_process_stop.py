"""Stopped means that no process of the deployment runs, however its processes tried to get away."""

from __future__ import annotations

import os
import resource
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path

import anyio
import pytest

from penstock.executors import ProcessExecutor, killing
from penstock.executors.procfs import holders, is_alive, mark_of
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
from tests.disks import bound, small_disk

from .world import BORN, PYTHON, ProcessWorld, world_in

DAEMONIZE = 'import os; os.closerange(0, 99); os.setsid(); os.execlp("sleep", "sleep", "1000")'
SHED = (
    "import subprocess; "
    'subprocess.Popen(["sleep", "1000"], env={"PATH": "/bin"}, start_new_session=True, close_fds=True)'
)
DAEMONIZE_TWICE = (
    "import os; os.fork() and os._exit(0); os.setsid(); os.fork() and os._exit(0); os.chdir('/'); "
    'os.closerange(0, 99); os.execle("/bin/sleep", "sleep", "1000", {})'
)
HEADLESS = (
    "import ctypes, os, threading, time; os.closerange(0, 99); "
    "threading.Thread(target=time.sleep, args=(1000,)).start(); ctypes.CDLL(None).syscall(60, 0)"
)
"""Its first thread ends, the other goes on: a zombie to look at, and alive."""
ESCAPES = {
    "child": "sleep 1000 & ",
    "many": "for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; ",
    "session": "setsid sleep 1000 & ",
    "no environment": "env -i sleep 1000 & ",
    "session without environment": "env -i setsid sleep 1000 & ",
    "closes everything": f"{' '.join(PYTHON)} '{DAEMONIZE}' & ",
    "ignores signals": "setsid sh -c 'trap \"\" TERM INT HUP; while :; do sleep 1000; done' & ",
    "orphan": "(setsid sleep 1000 &) ; ",
    "sheds everything": f"{shlex.join([*PYTHON, SHED])} & ",
    "daemon": f"{shlex.join([*PYTHON, DAEMONIZE_TWICE])} & ",
    "headless daemon": f"env -i setsid {shlex.join([*PYTHON, HEADLESS])} & ",
}
HIDDEN = {"sheds everything", "daemon", "headless daemon"}
"""Those of which neither environment, nor session, nor lock tells."""


@pytest.mark.parametrize("escape", ESCAPES)
@pytest.mark.parametrize("dead", [False, True], ids=["running", "ended"])
async def test_nothing_escapes(world: ProcessWorld, executor: ProcessExecutor, escape: str, dead: bool) -> None:
    row = world.shell(
        f"{ESCAPES[escape].replace('1000', world.lasting)} sleep 0.1; {BORN} exec sleep {0 if dead else 1000}"
    )
    await executor.perform(row, Provision())
    await until(lambda: world.begun(deployment(row)) == 1)
    await until(lambda: world.escaped() != [])
    if escape in HIDDEN:
        await until(lambda: not {*world.escaped()} & {*world.members(deployment(row))})
    lock = str(world.state_dir / "pipelines" / row.id / "storage.lock")
    escaped = {*holders(lock), *world.members(deployment(row)), *world.escaped()}
    if dead:
        sighting = await seen(executor, stopping(row), Ended)
        assert isinstance(sighting, Ended)
        assert sighting.leftovers
    async with world.open() as successor:
        await successor.perform(stopping(row), StopCompute())
        sighting = await successor.look(stopping(row))
        assert isinstance(sighting, Ended)
        assert not sighting.leftovers
    assert not [pid for pid in escaped if is_alive(pid)]
    assert not holders(lock)
    assert not world.members(deployment(row))
    assert not world.escaped()


async def test_a_child_that_sheds_its_mark_too_is_told_of_by_its_parent(
    world: ProcessWorld, executor: ProcessExecutor
) -> None:
    shed = "import resource, os; resource.setrlimit(10, (7, 7)); os.setsid(); os.closerange(0, 99); "
    sleep = f'os.execle("/bin/sleep", "sleep", "{world.lasting}", {{}})'
    row = world.shell(f"{shlex.join([*PYTHON, shed + sleep])} & {BORN} wait")
    await executor.perform(row, Provision())
    await until(lambda: world.begun(deployment(row)) == 1)
    await until(lambda: [mark_of(pid) for pid in world.escaped()] == [None])
    await executor.perform(stopping(row), StopCompute())
    assert not world.escaped()


async def test_who_bears_nothing_but_the_mark_is_surveyed(world: ProcessWorld) -> None:
    row = world.shell(f"{ESCAPES['sheds everything'].replace('1000', world.lasting)} {BORN} wait; exit")
    async with world.open() as executor:
        await executor.perform(row, Provision())
        await until(lambda: world.begun(deployment(row)) == 1)
        await until(lambda: not world.members(deployment(row)))
    async with world.open() as successor:
        assert await successor.survey() == [Compute(row.id, deployment(row))]
        await successor.discard(Compute(row.id, deployment(row)))
        assert await successor.survey() == []
    assert not world.escaped()


HOP = "hop() { [ -e %(go)s ] || exit; echo >>%(hops)s; hop & }; hop"
"""Nobody lives for longer than it takes to have a child: no list of all processes shows for sure who does."""


@pytest.mark.parametrize("dead", [False, True], ids=["running", "ended"])
async def test_who_forks_and_ends_faster_than_anybody_reads(
    world: ProcessWorld, executor: ProcessExecutor, dead: bool
) -> None:
    go, hops = world.home / "go", world.home / "hops"
    go.touch()
    hops.touch()
    hop = HOP % {"go": go, "hops": hops}
    shed = f"import os; os.setsid(); os.closerange(0, 99); os.execle('/bin/sh', 'sh', '-c', '{hop}', {{}})"
    row = world.shell(f"{shlex.join([*PYTHON, shed])} & {BORN} exec sleep {0 if dead else 1000}")
    try:
        await executor.perform(row, Provision())
        if dead:
            await seen(executor, row, Ended)
        await until(lambda: hops.stat().st_size > 20)
        await executor.perform(stopping(row), StopCompute())
        left = hops.stat().st_size
        with pytest.raises(TimeoutError):
            await until(lambda: hops.stat().st_size > left, seconds=0.1)
    finally:
        go.unlink()


async def test_more_processes_than_descriptors(world: ProcessWorld, executor: ProcessExecutor) -> None:
    row = world.shell(f"i=0; while [ $i -lt 150 ]; do setsid sleep {world.lasting} & i=$((i+1)); done; {BORN} exit")
    await executor.perform(row, Provision())
    await until(lambda: len(world.escaped()) == 150)
    await seen(executor, row, Ended)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 40, before[1]))
    try:
        with anyio.fail_after(10):
            while world.escaped():
                with suppress(ExecutorError):
                    await executor.perform(stopping(row), StopCompute())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    await executor.perform(stopping(row), StopCompute())


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


async def test_of_many_that_still_live_some_are_named(
    world: ProcessWorld, executor: ProcessExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = world.shell(f"for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep {world.lasting} & done; {BORN} wait")
    await executor.perform(row, Provision())
    await until(lambda: world.begun(deployment(row)) == 1 and len(world.escaped()) == 12)
    with monkeypatch.context() as harmless:
        harmless.setattr(signal, "pidfd_send_signal", lambda *_: None)
        harmless.setattr(killing, "KILL_SECONDS", 0.2)
        with pytest.raises(ExecutorError, match=r"state S\) and 4 more\.") as refused:
            await executor.perform(stopping(row), StopCompute())
    assert refused.value.fault.message.count("state S") == 10
    await executor.perform(stopping(row), StopCompute())
    assert not world.escaped()


async def test_who_became_another_user_is_named_with_that_user(
    world: ProcessWorld, executor: ProcessExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a program that was begun by sudo(8); that it may not be signalled is what is staged here."""
    if os.geteuid() != 0:
        if os.environ.get("PENSTOCK_TEST_REQUIRE_ALL"):
            pytest.fail("only root may become another user")
        pytest.skip("only root may become another user")
    nobody = 65534
    become = f"import os; os.setsid(); os.setresuid({nobody}, {nobody}, {nobody}); "
    sleep = f'os.execle("/bin/sleep", "sleep", "{world.lasting}", {{}})'
    row = world.shell(f"{shlex.join([*PYTHON, become + sleep])} & {BORN} wait")
    await executor.perform(row, Provision())
    await until(lambda: world.begun(deployment(row)) == 1)
    await until(lambda: [os.stat(f"/proc/{pid}").st_uid for pid in world.escaped()] == [nobody])
    [pid] = world.escaped()
    to_kill = signal.pidfd_send_signal

    def refuse(pidfd: int, *rest: int) -> None:
        if f"Pid:\t{pid}\n" in Path(f"/proc/self/fdinfo/{pidfd}").read_text():
            raise PermissionError
        to_kill(pidfd, *rest)

    with monkeypatch.context() as denied:
        denied.setattr(signal, "pidfd_send_signal", refuse)
        denied.setattr(killing, "KILL_SECONDS", 0.3)
        with pytest.raises(ExecutorError, match=rf"{pid} \(sleep, state S, of user {nobody}\)") as refused:
            await executor.perform(stopping(row), StopCompute())
    assert refused.value.retry
    sighting = await executor.look(stopping(row))
    assert isinstance(sighting, Ended)
    assert sighting.leftovers
    await executor.perform(stopping(row), StopCompute())
    assert not world.escaped()


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


@pytest.mark.parametrize("adopted", [False, True])
@pytest.mark.parametrize("forced", [False, True])
async def test_a_program_that_deleted_its_own_directories_is_stopped(
    world: ProcessWorld, executor: ProcessExecutor, adopted: bool, forced: bool
) -> None:
    go = world.home / "go"
    os.mkfifo(go)
    script = f"read -r line <'{go}'; rm -rf '{world.state_dir}/pipelines'; {BORN} while :; do sleep 0.01; done"
    row = world.shell(f"trap 'exit 0' TERM; {script}")
    await executor.perform(row, Provision())
    go.write_text("\n")
    await until(lambda: world.begun(deployment(row)) == 1)
    async with world.open() as successor:
        stopper = successor if adopted else executor
        if forced:
            await stopper.perform(stopping(row), StopCompute())
        else:
            assert isinstance(await stopper.look(provisioned(row)), Ready)
            await stopper.perform(provisioned(row), SteerRuntime(RuntimeDesired.SUSPENDED))
        sighting = await seen(stopper, provisioned(row), Ended)
        assert isinstance(sighting, Ended)
        assert not sighting.completed
        if not forced:
            assert sighting.exit.code == 0
        elif not adopted:  # else whoever was never looked at is killed without a record of who it was
            assert sighting.exit.signal == signal.SIGKILL
        await stopper.perform(stopping(row), StopCompute())
        assert not world.members(deployment(row))


@pytest.fixture(params=["full", "read-only"])
def unwritable(request: pytest.FixtureRequest, world: ProcessWorld, tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Makes the disk of the state directory one that takes nothing any more."""
    with small_disk(tmp_path, "tmpfs", 1) as disk, ExitStack() as mounts:
        world.state_dir.mkdir(exist_ok=True)
        place = world.state_dir / "pipelines"
        place.symlink_to(disk)
        subprocess.run(["mount", "-o", "remount,size=1m,nr_inodes=400", str(disk)], check=True)

        def spoil() -> None:
            if request.param == "read-only":
                frozen = tmp_path / "frozen"
                mounts.enter_context(bound(disk, frozen))
                subprocess.run(["mount", "-o", "remount,bind,ro", str(frozen)], check=True)
                place.unlink()
                place.symlink_to(frozen)
            else:
                for content in (b"x" * 4096, b""):  # neither for what is in a file, nor for its name
                    with suppress(OSError):
                        for number in count():
                            (disk / f"{len(content)}-{number}").write_bytes(content)

        yield spoil


@pytest.mark.parametrize("adopted", [False, True])
@pytest.mark.parametrize("forced", [False, True])
async def test_a_stop_needs_no_disk(
    world: ProcessWorld, executor: ProcessExecutor, unwritable: Callable[[], None], adopted: bool, forced: bool
) -> None:
    row = world.shell(f"trap 'exit 5' TERM; {BORN} while :; do sleep 0.01; done")
    await executor.perform(row, Provision())
    await until(lambda: world.begun(deployment(row)) == 1)
    unwritable()
    async with world.open() as successor:
        stopper = successor if adopted else executor
        if not forced:
            await stopper.perform(provisioned(row), SteerRuntime(RuntimeDesired.SUSPENDED))
            await seen(stopper, provisioned(row), Ended)
        await stopper.perform(stopping(row), StopCompute())
        assert not world.members(deployment(row))
        sighting = await stopper.look(stopping(row))
        assert isinstance(sighting, Ended)
        assert not sighting.leftovers
        assert (sighting.exit.code, sighting.exit.signal) == ((None, signal.SIGKILL) if forced else (5, None))


async def test_what_never_began_is_stopped_without_a_disk(
    world: ProcessWorld, executor: ProcessExecutor, unwritable: Callable[[], None]
) -> None:
    row = world.provisioning()
    unwritable()
    with pytest.raises(ExecutorError):
        await executor.perform(row, Provision())
    await executor.perform(stopping(row), StopCompute())
    sighting = await executor.look(stopping(row))
    assert isinstance(sighting, Ended)
    assert not sighting.leftovers
    await executor.perform(row, Provision())
    assert not world.members(deployment(row))


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
