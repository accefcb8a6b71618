"""Whose every process is: who was seen to be a stranger is not read again, and nobody is taken for a stranger."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from penstock.executors import procfs
from penstock.executors.procfs import DEPLOYMENT, INSTANCE, PIPELINE, Strangers, take_census
from penstock.model import DeploymentId, PipelineId
from penstock.ports import Compute

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


def test_who_has_gone_is_forgotten() -> None:
    strangers: Strangers = {1 << 22: (5, 5)}
    take_census(ME, {}, strangers)
    assert 1 << 22 not in strangers
