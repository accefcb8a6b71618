"""What every executor must do: one suite, run against the fake and every real one.

Subclass `ExecutorContract` in a test module and give it a `world` fixture. Must never know how compute is made.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import replace
from typing import Protocol

import anyio

from penstock.model import (
    Absent,
    ClearStorage,
    DeploymentId,
    Ended,
    Pipeline,
    PipelineId,
    Provision,
    Ready,
    ResourcesDesired,
    ResourcesStatus,
    RuntimeDesired,
    RuntimeStatus,
    Sighting,
    SteerRuntime,
    StopCompute,
    StorageStatus,
)
from penstock.ports import Compute, Executor, ExecutorError

PATIENCE_SECONDS = 10.0


class World(Protocol):
    """What a test module tells the suite of the executor that it examines."""

    def open(self) -> AbstractAsyncContextManager[Executor]:
        """Another daemon's executor on the same world."""
        ...

    def provisioning(self, *, paused: bool = False) -> Pipeline:
        """The row of a new pipeline and deployment, in Provisioning, whose program runs until it is told to end."""
        ...

    def begun(self, deployment_id: DeploymentId) -> int:
        """How often the program of a deployment began."""
        ...

    def running(self, deployment_id: DeploymentId) -> int:
        """How many programs of a deployment run; one that is stopped or has not yet begun counts."""
        ...

    async def end(self, deployment_id: DeploymentId) -> None:
        """Have the program of a deployment end with exit code 3."""
        ...


def provisioned(row: Pipeline) -> Pipeline:
    """The same row once its compute was seen to be ready."""
    return replace(row, resources_status=ResourcesStatus.PROVISIONED, runtime_status=RuntimeStatus.RUNNING)


def stopping(row: Pipeline) -> Pipeline:
    """The same row on its way to Stopped."""
    return replace(row, resources_status=ResourcesStatus.STOPPING, resources_desired=ResourcesDesired.STOPPED)


def stopped(row: Pipeline) -> Pipeline:
    """The same row at rest."""
    return replace(
        row,
        resources_status=ResourcesStatus.STOPPED,
        resources_desired=ResourcesDesired.STOPPED,
        deployment_id=None,
        runtime_intent=None,
    )


def clearing(row: Pipeline) -> Pipeline:
    """The same row at rest, with storage that is to be cleared."""
    return replace(stopped(row), storage_status=StorageStatus.CLEARING)


async def until(true: Callable[[], Awaitable[bool] | bool], seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until `true` says so; fails when it does not in time."""
    with anyio.fail_after(seconds):
        while True:
            answer = true()
            if answer if isinstance(answer, bool) else await answer:
                return
            await anyio.sleep(0.002)


async def seen(executor: Executor, row: Pipeline, kind: type[Sighting], seconds: float = PATIENCE_SECONDS) -> Sighting:
    """Look until the sighting is of that kind."""
    sighting: Sighting = await executor.look(row)
    with anyio.fail_after(seconds):
        while not isinstance(sighting, kind):
            await anyio.sleep(0.002)
            sighting = await executor.look(row)
    return sighting


async def reported(executor: Executor, row: Pipeline) -> tuple[RuntimeStatus, RuntimeDesired] | None:
    """What a look shows of the runtime; None when it is not Ready."""
    sighting = await executor.look(row)
    if isinstance(sighting, Ready) and sighting.report is not None:
        return sighting.report.status, sighting.report.desired
    return None


class ExecutorContract:
    """See the module."""

    async def test_absent_before_and_ready_after(self, world: World) -> None:
        row = world.provisioning()
        async with world.open() as executor:
            assert isinstance(await executor.look(row), Absent)
            await executor.perform(row, Provision())
            assert await reported(executor, row) == (RuntimeStatus.RUNNING, RuntimeDesired.RUNNING)
            await until(lambda: world.begun(deployment(row)) == 1)

    async def test_one_deployment_begins_once_however_often_it_is_asked_for(self, world: World) -> None:
        row = world.provisioning()
        async with world.open() as one, world.open() as other:
            async with anyio.create_task_group() as tasks:
                for executor in (one, other):
                    tasks.start_soon(provision, executor, row)
            for executor in (one, other):
                await executor.perform(row, Provision())
                await seen(executor, row, Ready)
            await until(lambda: world.begun(deployment(row)) == 1)
            assert world.running(deployment(row)) == 1

    async def test_what_has_ended_never_begins_again(self, world: World) -> None:
        row = world.provisioning()
        async with world.open() as executor:
            await executor.perform(row, Provision())
            await until(lambda: world.begun(deployment(row)) == 1)
            await executor.perform(stopping(row), StopCompute())
            await executor.perform(row, Provision())
            assert isinstance(await executor.look(row), Ended)
        async with world.open() as successor:
            await successor.perform(row, Provision())
            assert isinstance(await successor.look(row), Ended)
            assert world.begun(deployment(row)) == 1

    async def test_a_stop_ends_everything_and_may_be_repeated(self, world: World) -> None:
        row = world.provisioning()
        async with world.open() as executor:
            await executor.perform(row, Provision())
            await executor.perform(stopping(row), StopCompute())
            assert world.running(deployment(row)) == 0
            sighting = await executor.look(stopping(row))
            assert isinstance(sighting, Ended)
            assert not sighting.leftovers
            assert not sighting.completed
            await executor.perform(stopping(row), StopCompute())
            assert isinstance(await executor.look(stopping(row)), Ended)

    async def test_a_stop_of_what_never_began_forbids_it(self, world: World) -> None:
        row = world.provisioning()
        async with world.open() as executor:
            await executor.perform(stopping(row), StopCompute())
            sighting = await executor.look(stopping(row))
            assert isinstance(sighting, Ended)
            assert not sighting.leftovers
            await executor.perform(row, Provision())
            assert world.begun(deployment(row)) == world.running(deployment(row)) == 0

    async def test_an_end_is_told_and_seen(self, world: World) -> None:
        row = world.provisioning()
        async with world.open() as executor, aclosing(executor.events()) as events:
            await executor.perform(row, Provision())
            await until(lambda: world.begun(deployment(row)) == 1)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(world.end, deployment(row))
                with anyio.fail_after(PATIENCE_SECONDS):
                    assert await anext(events) == row.id
            sighting = await executor.look(provisioned(row))
            assert isinstance(sighting, Ended)
            assert sighting.exit.code == 3
            assert sighting.fault is None
            assert not sighting.completed

    async def test_pause_and_resume(self, world: World) -> None:
        row = world.provisioning()
        async with world.open() as executor:
            await executor.perform(row, Provision())
            for target in (RuntimeDesired.PAUSED, RuntimeDesired.PAUSED, RuntimeDesired.RUNNING):
                await executor.perform(provisioned(row), SteerRuntime(target))
                assert await reported(executor, provisioned(row)) == (RuntimeStatus(target.value), target)

    async def test_a_paused_start(self, world: World) -> None:
        row = world.provisioning(paused=True)
        async with world.open() as executor:
            await executor.perform(row, Provision())
            assert await reported(executor, row) == (RuntimeStatus.PAUSED, RuntimeDesired.PAUSED)
            await executor.perform(row, SteerRuntime(RuntimeDesired.RUNNING))
            assert await reported(executor, row) == (RuntimeStatus.RUNNING, RuntimeDesired.RUNNING)
            await until(lambda: world.begun(deployment(row)) == 1)

    async def test_told_to_suspend_it_ends_paused_or_not(self, world: World) -> None:
        async with world.open() as executor:
            for paused in (False, True):
                row = world.provisioning(paused=paused)
                await executor.perform(row, Provision())
                await executor.perform(provisioned(row), SteerRuntime(RuntimeDesired.SUSPENDED))
                sighting = await seen(executor, provisioned(row), Ended)
                assert isinstance(sighting, Ended)
                assert sighting.exit.signal == 15
                assert not sighting.completed

    async def test_clearing(self, world: World) -> None:
        row = world.provisioning()
        async with world.open() as executor:
            await executor.perform(row, Provision())
            await executor.perform(stopping(row), StopCompute())
            assert await executor.look(clearing(row)) == Absent(storage_remains=True)
            for _ in range(2):
                await executor.perform(clearing(row), ClearStorage())
                assert await executor.look(clearing(row)) == Absent(storage_remains=False)

    async def test_survey_and_discard(self, world: World) -> None:
        rows = [world.provisioning() for _ in range(3)]
        async with world.open() as executor:
            for row in rows:
                await executor.perform(row, Provision())
            await executor.perform(stopping(rows[0]), StopCompute())
            alive = {Compute(row.id, deployment(row)) for row in rows[1:]}
            assert set(await executor.survey()) == alive
        async with world.open() as successor:
            assert set(await successor.survey()) == alive
            await successor.discard(Compute(rows[1].id, deployment(rows[1])))
            assert world.running(deployment(rows[1])) == 0
            assert world.running(deployment(rows[2])) == 1
            assert await successor.survey() == [Compute(rows[2].id, deployment(rows[2]))]

    async def test_a_successor_adopts_what_was_left_without_a_goodbye(self, world: World) -> None:
        row = world.provisioning()
        async with world.open() as lost:
            await lost.perform(row, Provision())
            await until(lambda: world.begun(deployment(row)) == 1)
            before = await lost.look(row)
            async with world.open() as successor:
                assert await successor.look(row) == before
                async with world.open() as third, aclosing(third.events()) as events:
                    assert await third.look(row) == before
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(world.end, deployment(row))
                        with anyio.fail_after(PATIENCE_SECONDS):
                            assert await anext(events) == row.id
                    sighting = await third.look(row)
                    assert isinstance(sighting, Ended)
                    assert sighting.exit.code == 3
            assert world.begun(deployment(row)) == 1

    async def test_what_ended_while_nobody_looked(self, world: World) -> None:
        row = world.provisioning()
        async with world.open() as executor:
            await executor.perform(row, Provision())
            await until(lambda: world.begun(deployment(row)) == 1)
        await world.end(deployment(row))
        await until(lambda: world.running(deployment(row)) == 0)
        async with world.open() as successor:
            sighting = await successor.look(provisioned(row))
            assert isinstance(sighting, Ended)
            assert sighting.exit.code == 3

    async def test_effects_may_be_cut_off_and_repeated(self, world: World) -> None:
        async with world.open() as executor:
            for milliseconds in (0, 0.3, 1, 2, 3, 5, 8):
                row = world.provisioning()
                with anyio.move_on_after(milliseconds / 1000):
                    await executor.perform(row, Provision())
                await provision(executor, row)
                await until(lambda row=row: world.begun(deployment(row)) == 1)
                with anyio.move_on_after(milliseconds / 1000):
                    await executor.perform(stopping(row), StopCompute())
                await executor.perform(stopping(row), StopCompute())
                assert world.running(deployment(row)) == 0
                assert world.begun(deployment(row)) == 1

    async def test_kept_and_forgotten(self, world: World) -> None:
        row = world.provisioning()
        async with world.open() as executor:
            assert await executor.kept() == []
            await executor.forget(row.id)
            await executor.perform(row, Provision())
            await executor.perform(stopping(row), StopCompute())
            assert await executor.kept() == [row.id]
            await executor.forget(row.id)
            await executor.forget(PipelineId("00000000-0000-0000-0000-000000000000"))
            assert await executor.kept() == []


async def provision(executor: Executor, row: Pipeline) -> None:
    """Provision as the reconciler does: look, act where that is due, look again."""
    with anyio.fail_after(PATIENCE_SECONDS):
        while True:
            sighting = await executor.look(row)
            if isinstance(sighting, Ready):
                return
            if isinstance(sighting, Absent):
                try:
                    await executor.perform(row, Provision())
                except ExecutorError as error:
                    if not error.retry:
                        raise
            await anyio.sleep(0.002)


def deployment(row: Pipeline) -> DeploymentId:
    """The row's deployment, which it has."""
    assert row.deployment_id is not None
    return row.deployment_id
