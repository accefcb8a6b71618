"""What the records of an earlier daemon say is believed only as far as the kernel agrees."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from penstock import linux
from penstock.executors.procfs import is_alive
from penstock.faults import HOST_RESTARTED
from penstock.model import Absent, ClearStorage, Ended, Pipeline, Provision, Ready, StopCompute, Unseen
from penstock.testing.executor_contract import clearing, deployment, provisioned, stopped, stopping, until

from .world import BORN, ProcessWorld


@pytest.fixture
def stranger() -> object:
    """A process that has nothing to do with us."""
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


def forge(world: ProcessWorld, row: Pipeline, claim: bytes, *, host: str | None = None) -> None:
    """Leave records as an earlier daemon might have."""
    records = world.records(row)
    records.make()
    records.write_origin(host=host or linux.host_id(), contract="process", config={})
    records.claim_file.write_bytes(claim)


def claim_of(pid: int, *, ticks: int | None = None) -> bytes:
    fields = Path(f"/proc/{pid}/stat").read_text().replace("(sleep)", "(sh)").split()
    if ticks is not None:
        fields[21] = str(ticks)
    return " ".join(fields).encode() + b"\n"


async def test_a_reused_pid_is_not_ours(world: ProcessWorld, stranger: subprocess.Popen[bytes]) -> None:
    row = world.provisioning()
    ticks = linux.start_ticks(stranger.pid)
    assert ticks is not None
    forge(world, row, claim_of(stranger.pid, ticks=ticks - 1))
    async with world.open() as executor:
        sighting = await executor.look(provisioned(row))
        assert isinstance(sighting, Ended)
        assert not sighting.leftovers
        assert (sighting.exit.pid, sighting.exit.code, sighting.exit.signal) == (stranger.pid, None, None)
        await executor.perform(stopping(row), StopCompute())
    assert is_alive(stranger.pid)


async def test_after_a_reboot_no_pid_means_anything(world: ProcessWorld, stranger: subprocess.Popen[bytes]) -> None:
    row = world.provisioning()
    forge(world, row, claim_of(stranger.pid), host="another boot:1")
    async with world.open() as executor:
        sighting = await executor.look(provisioned(row))
        assert isinstance(sighting, Ended)
        assert sighting.fault is not None
        assert sighting.fault.code == HOST_RESTARTED
        assert "restarted" in sighting.fault.message
        assert not sighting.completed
        await executor.perform(stopping(row), StopCompute())
        assert isinstance(await executor.look(stopping(row)), Ended)
    assert is_alive(stranger.pid)


async def test_what_the_loss_of_power_left_of_a_claim(world: ProcessWorld) -> None:
    lost, empty, never = world.provisioning(), world.provisioning(), world.provisioning()
    forge(world, empty, b"", host="another boot:1")
    for row in (lost, never):
        forge(world, row, b"", host="another boot:1")
        world.records(row).claim_file.unlink()
    async with world.open() as executor:
        for row in (lost, empty):
            sighting = await executor.look(provisioned(row))
            assert isinstance(sighting, Ended)
            assert sighting.fault is not None
            assert sighting.fault.code == HOST_RESTARTED
        assert isinstance(await executor.look(never), Absent)
        await executor.perform(never, Provision())
        assert isinstance(await executor.look(never), Ready)


@pytest.mark.parametrize("claim", [b"", b"garbage", b"\0" * 300, b"-\n", b"1 (sh) S 0\n"])
async def test_a_claim_that_names_nobody(world: ProcessWorld, claim: bytes) -> None:
    row = world.provisioning()
    forge(world, row, claim)
    async with world.open() as executor:
        sighting = await executor.look(provisioned(row))
        assert isinstance(sighting, Ended)
        assert sighting.exit.pid is None
        await executor.perform(row, Provision())
        await executor.perform(stopping(row), StopCompute())
        assert isinstance(await executor.look(stopping(row)), Ended)
        assert world.begun(deployment(row)) == 0


@pytest.mark.parametrize("claim", [b"", b"garbage", None])
async def test_a_damaged_claim_does_not_hide_a_living_program(world: ProcessWorld, claim: bytes | None) -> None:
    row = world.shell(BORN + "while :; do sleep 1000; done")
    async with world.open() as executor:
        await executor.perform(row, Provision())
        await until(lambda: world.begun(deployment(row)) == 1)
        pid = world.pid(row)
    if claim is None:
        world.records(row).claim_file.unlink()
    else:
        world.records(row).claim_file.write_bytes(claim)
    async with world.open() as successor:
        ready = await successor.look(provisioned(row))
        assert isinstance(ready, Ready)
        assert ready.details is not None
        assert ready.details["process"] == pid
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not is_alive(pid))
        sighting = await successor.look(provisioned(row))
        assert isinstance(sighting, Ended)
        assert sighting.exit.signal == signal.SIGKILL


async def test_what_cannot_be_looked_at_is_unseen(world: ProcessWorld) -> None:
    row = world.provisioning()
    forge(world, row, b"")
    records = world.records(row)
    records.claim_file.unlink()
    records.claim_file.symlink_to(records.claim_file)  # ELOOP, for root too
    async with world.open() as executor:
        assert isinstance(await executor.look(provisioned(row)), Unseen)
        assert isinstance(await executor.look(row), Unseen)


async def test_a_host_that_restarted_keeps_the_storage(world: ProcessWorld) -> None:
    row = world.provisioning()
    forge(world, row, b"", host="another boot:1")
    storage = world.state_dir / "pipelines" / row.id / "storage"
    storage.mkdir()
    async with world.open() as executor:
        await executor.perform(stopping(row), StopCompute())
        assert await executor.look(clearing(row)) == Absent(storage_remains=True)
        await executor.perform(stopped(row), ClearStorage())
        assert await executor.look(clearing(row)) == Absent(storage_remains=False)
