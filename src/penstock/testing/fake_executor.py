"""An executor whose world is a few dictionaries: what tests of the turn and the loop steer pipelines in.

Passes the same contract suite as every real executor. Its faults are knobs: `deaf` looks, failing effects, slow starts.
It outlives the daemon that uses it, as real compute does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import anyio

from penstock.model import (
    Absent,
    ClearStorage,
    DeploymentId,
    Effect,
    Ended,
    Exit,
    Failed,
    Fault,
    JsonObject,
    Pipeline,
    PipelineId,
    Provision,
    Ready,
    Report,
    ResourcesStatus,
    RuntimeDesired,
    RuntimeStatus,
    Sighting,
    Starting,
    SteerRuntime,
    StopCompute,
    Unseen,
)
from penstock.ports import Compute, ExecutorError

NO_CHECKPOINTS: JsonObject = {"checkpoints": []}


@dataclass(slots=True)
class FakeProcess:
    """One deployment in the fake world."""

    pipeline_id: PipelineId
    paused: bool
    ready: bool = True
    told_to_suspend: bool = False
    exit: Exit | None = None
    fault: Fault | None = None
    """Ended by this, not by itself."""
    broken: Fault | None = None
    ignores_suspend: bool = False


@dataclass(slots=True)
class FakeExecutor:
    """See the module. `spawned` counts real spawns per deployment: more than one is a second copy."""

    processes: dict[DeploymentId, FakeProcess] = field(default_factory=dict[DeploymentId, FakeProcess])
    storage: set[PipelineId] = field(default_factory=set[PipelineId])
    spawned: Counter[DeploymentId] = field(default_factory=Counter[DeploymentId])
    performed: list[tuple[PipelineId, Effect]] = field(default_factory=list[tuple[PipelineId, Effect]])
    slow_start: bool = False
    """New processes are not ready until `make_ready`."""
    deaf: bool = False
    """Every look is Unseen."""
    location: str | None = None
    """When set, processes speak contract `http` there, and a look does not know how they are."""
    stubborn: bool = False
    """New processes ignore that they are told to suspend."""
    hung: anyio.Event | None = None
    """When set, looks and effects wait for it."""
    refusals: list[ExecutorError] = field(default_factory=list[ExecutorError])
    """The next effects fail with these, one each."""
    _listeners: list[anyio.Event] = field(default_factory=list[anyio.Event])
    _changed: list[PipelineId] = field(default_factory=list[PipelineId])

    async def look(self, row: Pipeline) -> Sighting:
        if self.hung is not None:
            await self.hung.wait()
        if self.deaf:
            return Unseen("deaf")
        if row.resources_status is ResourcesStatus.STOPPED or row.deployment_id is None:
            return Absent(storage_remains=row.id in self.storage)
        process = self.processes.get(row.deployment_id)
        if process is None:
            return Absent(storage_remains=row.id in self.storage)
        if process.exit is not None:
            completed = process.exit.code == 0 and not process.told_to_suspend
            return Ended(process.exit, completed=completed, fault=process.fault)
        if process.broken is not None:
            return Failed(process.broken)
        if not process.ready:
            return Starting({"phase": "starting"})
        if self.location is not None:
            return Ready(self.location, {"process": 1})
        status = RuntimeStatus.PAUSED if process.paused else RuntimeStatus.RUNNING
        desired = RuntimeDesired.SUSPENDED if process.told_to_suspend else RuntimeDesired(status.value)
        return Ready(None, {"process": 1}, Report(status, desired, {}, NO_CHECKPOINTS))

    async def perform(self, row: Pipeline, effect: Effect) -> None:
        if self.hung is not None:
            await self.hung.wait()
        self.performed.append((row.id, effect))
        if self.refusals:
            raise self.refusals.pop(0)
        if isinstance(effect, ClearStorage):
            self.storage.discard(row.id)
            return
        if row.deployment_id is None:
            return
        process = self.processes.get(row.deployment_id)
        match effect:
            case Provision():
                if process is None:
                    paused = row.runtime_intent is RuntimeDesired.PAUSED
                    self.processes[row.deployment_id] = FakeProcess(
                        row.id, paused, ready=not self.slow_start, ignores_suspend=self.stubborn
                    )
                    self.spawned[row.deployment_id] += 1
                    self.storage.add(row.id)
            case StopCompute():
                if process is None:  # a spawn that lands late finds that it is over
                    self.processes[row.deployment_id] = FakeProcess(row.id, paused=False, exit=Exit(pid=None))
                self._end(row.deployment_id, Exit(pid=1, signal=9, signal_name="SIGKILL"))
            case SteerRuntime(target=RuntimeDesired.SUSPENDED):
                if process is not None and process.exit is None:
                    process.told_to_suspend = True
                    if not process.ignores_suspend:
                        self._end(row.deployment_id, Exit(pid=1, signal=15, signal_name="SIGTERM"))
            case SteerRuntime():
                if process is not None:
                    process.paused = effect.target is RuntimeDesired.PAUSED

    async def survey(self) -> list[Compute]:
        return [Compute(p.pipeline_id, d) for d, p in self.processes.items() if p.exit is None]

    async def discard(self, compute: Compute) -> None:
        self._end(compute.deployment_id, Exit(pid=1, signal=9, signal_name="SIGKILL"))

    async def kept(self) -> list[PipelineId]:
        return list(self.storage)

    async def forget(self, pipeline_id: PipelineId) -> None:
        self.storage.discard(pipeline_id)

    async def events(self) -> AsyncGenerator[PipelineId, None]:
        while True:
            while self._changed:
                yield self._changed.pop(0)
            heard = anyio.Event()
            self._listeners.append(heard)
            await heard.wait()

    # What happens in the world.

    def alive(self, pipeline_id: PipelineId) -> list[DeploymentId]:
        """The deployments of the pipeline that run."""
        return [d for d, p in self.processes.items() if p.pipeline_id == pipeline_id and p.exit is None]

    def die(self, deployment_id: DeploymentId, end: Exit, fault: Fault | None = None) -> None:
        """The process ends by itself, or with its host."""
        self.processes[deployment_id].fault = fault
        self._end(deployment_id, end)

    def make_ready(self, deployment_id: DeploymentId) -> None:
        """A slow start is over."""
        self.processes[deployment_id].ready = True
        self._tell(self.processes[deployment_id].pipeline_id)

    def _end(self, deployment_id: DeploymentId, end: Exit) -> None:
        process = self.processes.get(deployment_id)
        if process is not None and process.exit is None:
            process.exit = end
            self._tell(process.pipeline_id)

    def _tell(self, pipeline_id: PipelineId) -> None:
        self._changed.append(pipeline_id)
        while self._listeners:
            self._listeners.pop().set()
