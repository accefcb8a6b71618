"""What a program begins with, that it begins once, and what is said when it cannot begin."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from anyio import to_thread

from penstock.executors import ProcessExecutor, recorder
from penstock.executors.port import BREATH_SECONDS, PortBell
from penstock.executors.procfs import is_alive, is_stopped, mark
from penstock.executors.recorder import Launch
from penstock.linux import Inotify
from penstock.model import (
    Absent,
    DeploymentId,
    Ended,
    Failed,
    Initial,
    Pipeline,
    Provision,
    Ready,
    RuntimeStatus,
    Starting,
    SteerRuntime,
    StopCompute,
)
from penstock.model import RuntimeDesired as Desired
from penstock.ports import ExecutorError, RunPlan
from penstock.testing.executor_contract import deployment, provision, provisioned, seen, stopping, until

from .world import BORN, PYTHON, ProcessWorld

ROUNDS = 20 * int(os.environ.get("PENSTOCK_TEST_SCALE", "1"))


def printed(world: ProcessWorld, row: Pipeline) -> str:
    """All that the program of `row` has printed, below the log's own first line."""
    return Path(world.logs.path(row.id)).read_bytes().partition(b"\n")[2].decode()


async def output(world: ProcessWorld, executor: ProcessExecutor, row: Pipeline) -> list[str]:
    """What the program of `row` prints, once it has ended."""
    await executor.perform(row, Provision())
    sighting = await seen(executor, row, Ended)
    assert isinstance(sighting, Ended)
    assert sighting.exit.code == 0, sighting
    return printed(world, row).splitlines()


# --- what it gets -----------------------------------------------------------------------------------------------------


async def test_the_environment_is_clean(world: ProcessWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SECRET", "NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS", "PENSTOCK_API__KEY", "PYTHONPATH"):
        monkeypatch.setenv(name, "planted")
    monkeypatch.setenv("LC_TIME", "C.UTF-8")
    row = world.running_argv("env", "-0")
    env = {"OWN": "a\nb", "spark.master": "x y", "PENSTOCK_INSTANCE_ID": "forged", "code": "9"}
    row = replace(row, spec=replace(row.spec, runtime_config={"env": env}))
    async with world.open() as executor:
        await executor.perform(row, Provision())
        await seen(executor, row, Ended)
    text = printed(world, row)
    got = dict(word.split("=", 1) for word in text.split("\0") if word)
    records, home = world.records(row), world.state_dir / "pipelines" / row.id
    assert got.pop("LC_TIME") == "C.UTF-8"
    assert {name: value for name, value in got.items() if name.startswith("PENSTOCK_")} == {
        "PENSTOCK_INSTANCE_ID": world.instance_id,
        "PENSTOCK_PIPELINE_ID": row.id,
        "PENSTOCK_PIPELINE_NAME": row.spec.name,
        "PENSTOCK_DEPLOYMENT_ID": deployment(row),
        "PENSTOCK_INITIAL": "running",
        "PENSTOCK_STORAGE_DIR": str(home / "storage"),
        "PENSTOCK_WORK_DIR": str(records.work),
        "PENSTOCK_CONFIG_FILE": str(records.config_file),
        "PENSTOCK_PORT_FILE": str(records.port_file),
        "PENSTOCK_BIND_ADDRESS": "127.0.0.1",
        "PENSTOCK_BOOTSTRAP_POLICY": "await_approval",
    }
    assert (got["OWN"], got["spark.master"], got["code"]) == ("a\nb", "x y", "9")
    others = {name for name in got if not name.startswith("PENSTOCK_")}
    allowed = {"PATH", "HOME", "LANG", "LANGUAGE", "TZ", "USER", "LOGNAME", "SHELL", "TMPDIR", "PWD"}
    assert {name for name in others if not name.startswith("LC_")} <= allowed | {
        "OWN",
        "spark.master",
        "code",
        "BIRTHS",
    }


async def test_no_signal_is_ignored_because_the_daemon_was_begun_so(world: ProcessWorld) -> None:
    before = signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    try:
        async with world.open() as executor:
            row = world.python("print(open('/proc/self/status').read())")
            status = "\n".join(await output(world, executor, row))
    finally:
        signal.signal(signal.SIGQUIT, before)
    ignored = int(status.partition("SigIgn:")[2].split()[0], 16)
    assert not ignored & 1 << signal.SIGQUIT - 1


async def test_only_its_three_descriptors_and_the_lock(world: ProcessWorld, executor: ProcessExecutor) -> None:
    inheritable = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(inheritable, True)
    try:
        row = world.python(
            "import os\n"
            "for fd in sorted(map(int, os.listdir('/proc/self/fd'))):\n"
            "    try: print(fd, os.readlink(f'/proc/self/fd/{fd}'))\n"
            "    except OSError: pass\n"
        )
        lines = [line.split() for line in await output(world, executor, row)]
    finally:
        os.close(inheritable)
    opened = {int(fd): path for fd, path in lines}
    assert opened.pop(0) == "/dev/null"
    assert opened.pop(1) == opened.pop(2) == world.logs.path(row.id)
    assert list(opened.values()) == [str(world.state_dir / "pipelines" / row.id / "storage.lock")]


async def test_words_limits_and_session_of_its_own(world: ProcessWorld) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1000, limits[1]))
    try:
        async with world.open() as executor:
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == limits[1]
            row = world.running_argv(
                "/bin/sh",
                "-c",
                'printf "%s\\n" "$@"; ulimit -S -n; ulimit -H -n; pwd; cut -d" " -f1,5,6 /proc/$$/stat; echo $$',
                "name",
                "a b",
                "$(touch pwned)",
                "'\"`;&|",
                "",
                "{storage_dir}/x",
                "{unknown} {initial}",
                "{bind_address}",
            )
            lines = await output(world, executor, replace(row, deployment_initial=Initial.STANDBY))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    home = world.state_dir / "pipelines" / row.id
    assert lines[:7] == [
        "a b",
        "$(touch pwned)",
        "'\"`;&|",
        "",
        f"{home}/storage/x",
        "{unknown} standby",
        "127.0.0.1",
    ]
    assert lines[7:10] == ["1000", str(limits[1]), str(world.records(row).work)]
    assert lines[10] == " ".join([lines[11]] * 3)
    assert os.listdir(world.records(row).work) == []


async def test_its_configuration(world: ProcessWorld, executor: ProcessExecutor) -> None:
    row = world.shell('cat "$PENSTOCK_CONFIG_FILE"')
    row = replace(row, spec=replace(row.spec, runtime_config={"workers": 3}))
    config = json.loads("\n".join(await output(world, executor, row)))
    home = world.state_dir / "pipelines" / row.id
    assert config == {
        "workers": 3,
        "name": f"pipeline-{row.id}",
        "given_name": row.spec.name,
        "pipeline_id": row.id,
        "deployment_id": deployment(row),
        "storage_config": {"path": str(home / "storage"), "cache": "page_cache"},
    }
    for directory in (home / "storage", world.records(row).root, world.records(row).work):
        assert directory.stat().st_mode & 0o777 == 0o700


async def test_a_paused_start_runs_no_instruction(world: ProcessWorld, executor: ProcessExecutor) -> None:
    row = world.provisioning(paused=True)
    await executor.perform(row, Provision())
    assert is_stopped(world.pid(row))
    await anyio.sleep(0.05)
    assert world.begun(deployment(row)) == 0
    async with world.open() as successor:
        await successor.perform(provisioned(row), SteerRuntime(Desired.RUNNING))
        await until(lambda: world.begun(deployment(row)) == 1)


async def test_the_next_deployment_removes_what_is_left_of_the_last(
    world: ProcessWorld, executor: ProcessExecutor
) -> None:
    first = world.provisioning()
    await executor.perform(first, Provision())
    await executor.perform(stopping(first), StopCompute())
    second = replace(first, deployment_id=DeploymentId(world.clock.new_id()))
    await executor.perform(second, Provision())
    assert isinstance(await executor.look(second), Ready)
    await until(lambda: os.listdir(world.records(second).root.parent) == [second.deployment_id])


# --- once -------------------------------------------------------------------------------------------------------------


async def test_two_daemons_at_once_begin_one_copy(world: ProcessWorld) -> None:
    async with world.open() as one, world.open() as other:
        for _ in range(ROUNDS):
            row = world.provisioning()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(provision, one, row)
                tasks.start_soon(provision, other, row)
            await until(lambda row=row: world.begun(deployment(row)) == 1)
            await one.perform(stopping(row), StopCompute())
            await other.perform(stopping(row), StopCompute())
            assert not world.members(deployment(row))
            assert world.begun(deployment(row)) == 1


def launch(world: ProcessWorld, row: Pipeline) -> Launch:
    """What the executor would begin, but for the lock: so that nothing but the claim prevents a second copy."""
    world.records(row).make()
    env = {
        "PENSTOCK_INSTANCE_ID": world.instance_id,
        "PENSTOCK_PIPELINE_ID": row.id,
        "PENSTOCK_DEPLOYMENT_ID": deployment(row),
        "BIRTHS": str(world.births),
        "PATH": os.environ["PATH"],
    }
    return Launch(
        directory=world.records(row).root,
        argv=world.toolchains.plans[row.id].argv,
        env=env,
        output=os.open(os.devnull, os.O_WRONLY),
        descriptors=(),
        soft_nofile="1024",
        stopped=False,
        mark=mark(world.instance_id, deployment(row)),
        setsid="/usr/bin/setsid",
    )


async def test_the_claim_alone_prevents_a_second_copy(world: ProcessWorld, executor: ProcessExecutor) -> None:
    for _ in range(ROUNDS):
        row = world.shell(BORN + "exit 7")
        begun = launch(world, row)
        shells = [recorder.spawn(begun) for _ in range(4)]
        os.close(begun.output)
        codes = [await to_thread.run_sync(shell.wait, 10) for shell in shells]
        assert sorted(codes) == [7, recorder.LOST, recorder.LOST, recorder.LOST]
        assert world.begun(deployment(row)) == 1
        # Who lost the race has not written its own code down as the program's.
        sighting = await executor.look(row)
        assert isinstance(sighting, Ended)
        assert sighting.exit.code == 7


async def test_a_spawn_that_lands_after_a_stop_begins_nothing(world: ProcessWorld, executor: ProcessExecutor) -> None:
    row = world.provisioning()
    begun = launch(world, row)
    assert isinstance(await executor.look(row), Absent)
    await executor.perform(stopping(row), StopCompute())
    late = recorder.spawn(begun)
    os.close(begun.output)
    assert await to_thread.run_sync(late.wait, 10) == recorder.LOST
    assert world.begun(deployment(row)) == 0
    assert isinstance(await executor.look(stopping(row)), Ended)


async def test_a_spawn_under_way_is_neither_absent_nor_lost(
    world: ProcessWorld, executor: ProcessExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its daemon was killed, and its shell has been stopped before it came to the claim."""
    row = world.provisioning()
    begun = launch(world, row)
    monkeypatch.setattr(recorder, "SCRIPT", "kill -STOP $$\n" + recorder.SCRIPT)
    shell = recorder.spawn(begun)
    os.close(begun.output)
    await until(lambda: any(is_stopped(pid) for pid in world.members(deployment(row))))
    assert isinstance(await executor.look(row), Starting)
    await executor.perform(stopping(row), StopCompute())
    assert not world.members(deployment(row))
    sighting = await executor.look(stopping(row))
    assert isinstance(sighting, Ended)
    assert not sighting.leftovers
    await until(lambda: not is_alive(shell.pid))
    assert world.begun(deployment(row)) == 0


# --- not at all -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("no-such-tool", "x"), "no-such-tool"),
        (("/no/such/program",), "does not exist"),
        (("/etc/passwd",), r"chmod \+x"),
        ((), "empty"),
        (("sh", "a\0b"), "null byte"),
        (("/bin/true", "x" * (1 << 18)), "word 2 of its command has 262144 bytes"),
    ],
)
async def test_what_cannot_be_begun(
    world: ProcessWorld, executor: ProcessExecutor, argv: tuple[str, ...], says: str
) -> None:
    row = world.running_argv(*argv)
    with pytest.raises(ExecutorError, match=says) as refused:
        await executor.perform(row, Provision())
    assert not refused.value.retry
    assert refused.value.fault.code == "RunnerProvisionError"
    assert isinstance(await executor.look(row), Absent)
    assert await executor.survey() == []


LONGEST = 32 * resource.getpagesize() - 1


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("name", ["HUGE", "huge.value", None])
async def test_the_longest_string_that_a_process_may_have(
    world: ProcessWorld, executor: ProcessExecutor, name: str | None, fits: bool
) -> None:
    size = LONGEST if fits else LONGEST + 1
    if name is None:
        row = world.running_argv("/bin/true", "x", "y" * size)
        flaw = rf"word 3 of its command has {LONGEST + 1} bytes; the longest that Linux takes has {LONGEST}"
    else:
        row = world.running_argv("/bin/true")
        env = {"SMALL": "x", name: "ä" + "y" * (size - len(name) - 3)}
        row = replace(row, spec=replace(row.spec, runtime_config={"env": env}))
        flaw = rf"its variable {name} has {LONGEST + 1} bytes; the longest that Linux takes has {LONGEST}"
    if fits:
        await executor.perform(row, Provision())
        assert await ended_with(executor, row) == 0
        return
    with pytest.raises(ExecutorError, match=flaw) as refused:
        await executor.perform(row, Provision())
    assert not refused.value.retry
    assert refused.value.fault.code == "RunnerProvisionError"
    assert isinstance(await executor.look(row), Absent)


@pytest.mark.parametrize("odd", ["", "."])
async def test_more_than_a_process_may_begin_with(world: ProcessWorld, executor: ProcessExecutor, odd: str) -> None:
    row = world.running_argv("/bin/true")
    begun = 0
    refusal = None
    while refusal is None:
        env = {f"V{odd}{number}": "x" * 100_000 for number in range(begun + 1)}
        row = replace(world.running_argv("/bin/true"), spec=replace(row.spec, runtime_config={"env": env}))
        try:
            await executor.perform(row, Provision())
        except ExecutorError as error:
            refusal = error
        else:
            assert await ended_with(executor, row) == 0
            begun += 1
            assert begun < 200
    assert begun > 5
    assert not refusal.retry
    assert "bytes of words and environment" in refusal.fault.message
    assert f"its variable V{odd}{begun} with 1000" in refusal.fault.message


async def ended_with(executor: ProcessExecutor, row: Pipeline) -> int | None:
    sighting = await seen(executor, row, Ended)
    assert isinstance(sighting, Ended)
    return sighting.exit.code


async def test_a_contract_that_nobody_speaks(world: ProcessWorld, executor: ProcessExecutor) -> None:
    row = world.running_argv("/bin/true", contract="carrier pigeon")
    with pytest.raises(ExecutorError, match="carrier pigeon") as refused:
        await executor.perform(row, Provision())
    assert not refused.value.retry


@contextmanager
def holding(lock: Path) -> Iterator[int]:
    """Have another process hold a lock; its pid."""
    script = (
        "import fcntl, sys, time; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); "
        "print('held', flush=True); time.sleep(1000)"
    )
    with subprocess.Popen([*PYTHON, script, str(lock)], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            yield holder.pid
        finally:
            holder.kill()


async def test_storage_in_use_is_not_given_to_a_second_program(world: ProcessWorld, executor: ProcessExecutor) -> None:
    row = world.provisioning()
    home = world.state_dir / "pipelines" / row.id
    home.mkdir(parents=True)
    with holding(home / "storage.lock") as holder:
        with pytest.raises(ExecutorError, match=rf"{holder} \(python") as refused:
            await executor.perform(row, Provision())
        assert refused.value.retry
        assert isinstance(await executor.look(row), Absent)
    await provision(executor, row)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=64", "tmpfs", disk], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("only root may mount a small file system")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk])


def fill(file: Path) -> None:
    """Write until nothing more can be written."""
    with file.open("wb", buffering=0) as opened, suppress(OSError):
        while True:
            opened.write(b"x" * 4096)


async def test_a_full_disk(world: ProcessWorld, executor: ProcessExecutor, small_disk: Path) -> None:
    (world.state_dir).mkdir(exist_ok=True)
    (world.state_dir / "pipelines").symlink_to(small_disk)
    row = world.shell(BORN + "exec sleep 1000")
    filler = small_disk / "filler"
    fill(filler)
    with pytest.raises(ExecutorError, match="No space left") as refused:
        await executor.perform(row, Provision())
    assert refused.value.retry
    assert isinstance(await executor.look(row), Absent)
    assert world.begun(deployment(row)) == 0
    filler.unlink()
    await executor.perform(row, Provision())
    await until(lambda: world.begun(deployment(row)) == 1)
    # Full again while it runs: a stop needs no disk.
    fill(filler)
    await executor.perform(stopping(row), StopCompute())
    assert not world.members(deployment(row))
    sighting = await executor.look(stopping(row))
    assert isinstance(sighting, Ended)
    assert sighting.exit.signal == 9


async def test_a_claim_that_cannot_be_filled_in_is_tried_again(
    world: ProcessWorld, executor: ProcessExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = world.provisioning()
    full = recorder.SCRIPT.replace('>>"$0/claim"', ">>/dev/full")
    with monkeypatch.context() as patched:
        patched.setattr(recorder, "SCRIPT", full)
        with pytest.raises(ExecutorError, match="is the disk full") as refused:
            await executor.perform(row, Provision())
    assert refused.value.retry
    assert isinstance(await executor.look(row), Absent)
    await executor.perform(row, Provision())
    await until(lambda: world.begun(deployment(row)) == 1)


# --- contract http ----------------------------------------------------------------------------------------------------

SERVE = """
import os, time
def write(text, how="rename"):
    path = os.environ["PENSTOCK_PORT_FILE"]
    aside = path + ".tmp" if how == "rename" else path
    with open(aside, "wb") as file: file.write(text)
    if how == "rename": os.rename(aside, path)
"""


async def test_a_port_file_makes_it_ready_and_wakes_the_turn(world: ProcessWorld, executor: ProcessExecutor) -> None:
    go = world.home / "go"
    os.mkfifo(go)
    row = world.python(SERVE + f"open({str(go)!r}).read()\nwrite(b'4711\\n')\ntime.sleep(1000)", contract="http")
    events = executor.events()
    await executor.perform(row, Provision())
    assert isinstance(await executor.look(row), Starting)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(to_thread.run_sync, go.write_text, "go")
        with anyio.fail_after(5):
            assert await anext(events) == row.id
    await events.aclose()
    ready = await executor.look(row)
    assert isinstance(ready, Ready)
    assert (ready.location, ready.report) == ("127.0.0.1:4711", None)
    row = replace(provisioned(row), deployment_location=ready.location)
    await executor.perform(row, SteerRuntime(Desired.PAUSED))
    assert world.probe.steered == [Desired.PAUSED]
    world.records(row).port_file.unlink()
    async with world.open() as successor:
        assert await successor.look(row) == ready


async def test_a_port_file_that_is_written_again_wakes_the_turn(world: ProcessWorld, executor: ProcessExecutor) -> None:
    row = world.python(SERVE + "write(b'4711\\n')\ntime.sleep(1000)", contract="http")
    await executor.perform(row, Provision())
    ready = await seen(executor, row, Ready)
    row = replace(provisioned(row), deployment_location="127.0.0.1:4711")
    port_file = world.records(row).port_file

    def rename() -> None:
        aside = port_file.with_suffix(".new")
        aside.write_text("4711\n")
        aside.rename(port_file)

    async with world.open() as successor:  # which has adopted it
        for one in (executor, successor):
            assert await one.look(row) == ready
            events = one.events()
            waiting = asyncio.ensure_future(anext(events))
            await anyio.lowlevel.checkpoint()
            for write in (rename, rename, lambda: port_file.write_text("4711\n")):
                write()
                with anyio.fail_after(5):
                    assert await waiting == row.id
                waiting = asyncio.ensure_future(anext(events))
                assert await one.look(row) == ready  # listens again
            (port_file.parent / "other").write_text("of no interest")
            await asyncio.wait([waiting], timeout=0.2)
            assert not waiting.done()
            waiting.cancel()
            with suppress(asyncio.CancelledError):
                await waiting
            await events.aclose()


async def test_a_port_file_that_is_written_all_the_time_keeps_nobody_busy(tmp_path: Path) -> None:
    port_file = tmp_path / "port"
    rung: list[float] = []
    with Inotify() as inotify:
        bell = PortBell(inotify, port_file, lambda: rung.append(anyio.current_time()))
        bell.await_file()
        give_up_at = anyio.current_time() + 0.5
        while anyio.current_time() < give_up_at:
            port_file.write_text("4711")
            bell.await_change()
            await anyio.sleep(0.001)
        port_file.write_text("4712")
        await until(lambda: rung[-1] >= give_up_at)  # the last is heard as well
        bell.close()
    assert len(rung) >= 3
    assert all(later - earlier > BREATH_SECONDS * 0.8 for earlier, later in pairwise(rung))


async def test_a_process_that_is_silent_may_have_moved_to_another_port(
    world: ProcessWorld, executor: ProcessExecutor
) -> None:
    row = world.python(SERVE + "write(b'4711\\n')\ntime.sleep(1000)", contract="http")
    await executor.perform(row, Provision())
    ready = await seen(executor, row, Ready)
    assert isinstance(ready, Ready)
    row = replace(provisioned(row), deployment_location=ready.location)
    silent = replace(row, runtime_status=RuntimeStatus.UNAVAILABLE)
    port_file = world.records(row).port_file
    for text, location in (("4712\n", "127.0.0.1:4712"), ("garbage", "127.0.0.1:4712"), (None, "127.0.0.1:4712")):
        if text is None:
            port_file.unlink()
        else:
            port_file.write_text(text)
        seen_silent = await executor.look(silent)
        assert isinstance(seen_silent, Ready)
        assert seen_silent.location == location
    port_file.write_text("4713")
    assert await executor.look(row) == seen_silent, "one that answers is not looked up"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"garbage\n", "garbage"),
        (b"0\n", "b'0"),
        (b"65536\n", "65536"),
        (b"-1\n", "-1"),
        (b"\xff\xfe", "xff"),
        (b"1" * 100_000, "longer than"),
    ],
)
async def test_a_port_file_with_anything_else_is_a_fault(
    world: ProcessWorld, executor: ProcessExecutor, text: bytes, says: str
) -> None:
    row = world.python(
        SERVE + f"write({text[:1]!r} * {len(text)} if {len(set(text)) == 1} else {text[:99]!r})\ntime.sleep(1000)",
        contract="http",
    )
    await executor.perform(row, Provision())
    sighting = await seen(executor, row, Failed)
    assert isinstance(sighting, Failed)
    assert sighting.fault.code == "RunnerProvisionError"
    assert says in sighting.fault.message
    assert "port file" in sighting.fault.message


async def test_a_port_file_that_is_still_empty_is_waited_for(world: ProcessWorld, executor: ProcessExecutor) -> None:
    row = world.python("import time; time.sleep(1000)", contract="http")
    await executor.perform(row, Provision())
    port_file = world.records(row).port_file
    port_file.touch()
    assert isinstance(await executor.look(row), Starting)
    port_file.write_text("4711")
    ready = await executor.look(row)
    assert isinstance(ready, Ready)
    assert ready.location == "127.0.0.1:4711"


async def test_a_contract_http_program_that_ends_has_not_completed(
    world: ProcessWorld, executor: ProcessExecutor
) -> None:
    row = world.running_argv("/bin/true", contract="http")
    await executor.perform(row, Provision())
    sighting = await seen(executor, row, Ended)
    assert isinstance(sighting, Ended)
    assert sighting.exit.code == 0
    assert not sighting.completed


async def test_the_plan_of_a_toolchain(world: ProcessWorld, executor: ProcessExecutor) -> None:
    row = world.shell("exit")
    plan = RunPlan(
        argv=("/bin/echo", "{program_file}", "{artifact_dir}", "$OWN"),
        contract="process",
        artifact_dir="/a",
        program_file="/a/p",
    )
    world.toolchains.plans[row.id] = plan
    assert await output(world, executor, row) == ["/a/p /a $OWN"]
