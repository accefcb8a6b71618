"""Whose every process is: who was seen to be a stranger is not read again, and nobody is taken for a stranger."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from penstock.executors import ProcessExecutor, procfs
from penstock.executors.procfs import DEPLOYMENT, INSTANCE, PIPELINE, Strangers, is_our_image, take_census
from penstock.model import DeploymentId, PipelineId, Provision, StopCompute
from penstock.ports import Compute
from penstock.testing.executor_contract import deployment, stopping

from .world import ProcessWorld

ME = "instance-of-this-test"
OURS = Compute(PipelineId("p"), DeploymentId("d"))
IDS = {INSTANCE.decode(): ME, PIPELINE.decode(): "p", DEPLOYMENT.decode(): "d"}


@contextmanager
def sleeper(env: dict[str, str]) -> Iterator[int]:
    """A child of this process, with that environment."""
    child = subprocess.Popen(["sleep", "100"], env={"PATH": os.environ["PATH"], **env})
    try:
        yield child.pid
    finally:
        child.kill()
        child.wait()


def inode(pid: int) -> int:
    return {int(e.name): e.inode() for e in os.scandir("/proc") if e.name.isdigit()}[pid]


def test_a_stranger_is_read_once_and_stays_in_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    strangers: Strangers = {}
    first = take_census(ME, {}, strangers)
    assert strangers[1] == (inode(1), os.getpgid(1))
    read: list[int] = []
    real = procfs.environment

    def environment(pid: int) -> bytes:
        read.append(pid)
        return real(pid)

    monkeypatch.setattr(procfs, "environment", environment)
    second = take_census(ME, {}, strangers)
    assert 1 not in read
    assert 1 in second.others[os.getpgid(1)]
    assert 1 in first.others[os.getpgid(1)]


def test_nobody_is_taken_for_a_stranger_that_had_its_pid() -> None:
    with sleeper(env=IDS) as pid:
        strangers: Strangers = {pid: (inode(pid) + 1, 1)}
        assert take_census(ME, {}, strangers).ours == {OURS: [pid]}


def test_what_may_still_become_ours_is_no_stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    strangers: Strangers = {}
    with sleeper(env={}) as young:
        take_census(ME, {}, strangers)
        assert young not in strangers
        monkeypatch.setattr(procfs, "_STRANGE_AFTER_SECONDS", -1.0)
        take_census(ME, {}, strangers)
        assert young not in strangers, "a child of this process may be about to become a recorder"
    with sleeper(env=IDS) as ours:
        take_census(ME, {}, strangers)
        assert ours not in strangers


async def test_who_only_was_in_a_group_of_that_number_keeps_no_stop_waiting(
    world: ProcessWorld, executor: ProcessExecutor
) -> None:
    row = world.provisioning()
    await executor.perform(row, Provision())
    executor._killer._strangers[1] = inode(1), world.pid(row)
    await executor.perform(stopping(row), StopCompute())
    assert not world.members(deployment(row))


def test_a_fork_of_ours_that_is_no_program_yet_is_told_apart() -> None:
    reading, writing = os.pipe()
    fork = os.fork()
    if not fork:
        os.read(reading, 1)
        os._exit(0)
    try:
        assert is_our_image(fork)
        with sleeper(env={}) as other:
            assert not is_our_image(other)
        assert not is_our_image(1)
    finally:
        os.write(writing, b"x")
        os.waitpid(fork, 0)
        os.close(reading)
        os.close(writing)


def test_who_has_gone_is_forgotten() -> None:
    strangers: Strangers = {1 << 22: (5, 5)}
    take_census(ME, {}, strangers)
    assert 1 << 22 not in strangers
