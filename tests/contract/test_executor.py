"""The executor contract, kept by the fake and by every real executor."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.clock import SystemClock
from penstock.model import (
    DeploymentId,
    Exit,
    Pipeline,
    PipelineId,
    ResourcesDesired,
    ResourcesStatus,
    RuntimeDesired,
    StorageStatus,
)
from penstock.testing.executor_contract import ExecutorContract
from penstock.testing.fake_executor import FakeExecutor
from tests.core.rows import corner
from tests.executors.world import ProcessWorld, world_in


class FakeWorld:
    """Every daemon gets the one fake executor, whose world outlives them all."""

    def __init__(self) -> None:
        self._executor = FakeExecutor()
        self._clock = SystemClock()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[FakeExecutor]:
        yield self._executor

    def provisioning(self, *, paused: bool = False) -> Pipeline:
        row = corner(StorageStatus.IN_USE, ResourcesStatus.PROVISIONING, ResourcesDesired.PROVISIONED)
        return replace(
            row,
            id=PipelineId(self._clock.new_id()),
            deployment_id=DeploymentId(self._clock.new_id()),
            runtime_intent=RuntimeDesired.PAUSED if paused else RuntimeDesired.RUNNING,
        )

    def begun(self, deployment_id: DeploymentId) -> int:
        return self._executor.spawned[deployment_id]

    def running(self, deployment_id: DeploymentId) -> int:
        process = self._executor.processes.get(deployment_id)
        return 0 if process is None or process.exit is not None else 1

    async def end(self, deployment_id: DeploymentId) -> None:
        self._executor.die(deployment_id, Exit(pid=1, code=3))


class TestFakeExecutor(ExecutorContract):
    @pytest.fixture
    def world(self) -> FakeWorld:
        return FakeWorld()


class TestProcessExecutor(ExecutorContract):
    @pytest.fixture
    def world(self, tmp_path: Path) -> Iterator[ProcessWorld]:
        with world_in(tmp_path) as world:
            yield world
