"""kill -9 a daemon at any moment of a start: one copy of the program runs, and the next daemon finds it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from anyio import to_thread

from penstock.model import Ended, Pipeline, StopCompute
from penstock.testing.executor_contract import deployment, provision, stopping, until

from .world import BORN, ProcessWorld

KILLS = 30 * int(os.environ.get("PENSTOCK_TEST_SCALE", "1"))

NURSERY = """
import os, sys
from dataclasses import replace
from pathlib import Path
import anyio
from penstock.model import DeploymentId, PipelineId, Provision
from tests.executors.world import ProcessWorld

async def live(home, instance_id, script, pipeline, deployment):
    world = ProcessWorld(Path(home))
    world.instance_id = instance_id
    row = world.shell(script)
    world.toolchains.plans[PipelineId(pipeline)] = world.toolchains.plans[row.id]
    async with world.open() as executor:
        print(os.getpid(), flush=True)
        row = replace(row, id=PipelineId(pipeline), deployment_id=DeploymentId(deployment))
        await executor.perform(row, Provision())
        await anyio.sleep_forever()

print("ready", flush=True)
for line in sys.stdin:
    if os.fork() == 0:
        anyio.run(live, *sys.argv[1:], *line.split())
    os.wait()
    print("dead", flush=True)
"""


class Nursery:
    """Bears daemons: processes with an executor in them, which begin one deployment each and are killed."""

    def __init__(self, world: ProcessWorld, script: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", NURSERY, str(world.home), world.instance_id, script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            text=True,
        )
        self._hear("ready")

    def bear_and_kill(self, row: Pipeline, seconds: float) -> None:
        """Have a daemon begin the row's deployment, and kill -9 it that long after it was about to."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{row.id} {row.deployment_id}\n")
        self._process.stdin.flush()
        pid = int(self._hear())
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:  # a sleep is not precise enough
            pass
        os.kill(pid, signal.SIGKILL)
        self._hear("dead")

    def close(self) -> None:
        """Bear no more."""
        self._process.communicate()

    def _hear(self, expected: str | None = None) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert expected in (None, line)
        return line


async def test_killed_at_any_moment_of_a_start(world: ProcessWorld) -> None:
    seed = int(os.environ.get("PENSTOCK_TEST_SEED", random.randrange(1 << 32)))
    print(f"PENSTOCK_TEST_SEED={seed}")
    chance = random.Random(seed)
    script = BORN + "exec sleep 1000"
    async with world.open() as successor:
        nursery = await to_thread.run_sync(Nursery, world, script)
        try:
            for _ in range(KILLS):
                row = world.shell(script)
                # A start takes about 5 ms: nearly all moments of it are met.
                await to_thread.run_sync(nursery.bear_and_kill, row, chance.uniform(0, 0.008))
                await provision(successor, row)
                await until(lambda row=row: world.begun(deployment(row)) == 1)
                await until(lambda row=row: len(world.members(deployment(row))) == 2)
                await successor.perform(stopping(row), StopCompute())
                assert not world.members(deployment(row))
                assert isinstance(await successor.look(stopping(row)), Ended)
                assert world.begun(deployment(row)) == 1
        finally:
            await to_thread.run_sync(nursery.close)


async def test_killed_at_any_moment_of_a_start_that_is_stopped(world: ProcessWorld) -> None:
    """The next daemon has a stop to carry out: whatever the killed one had begun, nothing runs."""
    chance = random.Random(int(os.environ.get("PENSTOCK_TEST_SEED", random.randrange(1 << 32))))
    script = BORN + "exec sleep 1000"
    async with world.open() as successor:
        nursery = await to_thread.run_sync(Nursery, world, script)
        try:
            rows = [world.shell(script) for _ in range(KILLS)]
            for row in rows:
                await to_thread.run_sync(nursery.bear_and_kill, row, chance.uniform(0, 0.006))
                await successor.perform(stopping(row), StopCompute())
                sighting = await successor.look(stopping(row))
                assert isinstance(sighting, Ended)
                assert not sighting.leftovers
            assert await successor.survey() == []
        finally:
            await to_thread.run_sync(nursery.close)


async def test_a_program_outlives_its_daemon_and_tells_how_it_ended(world: ProcessWorld) -> None:
    row = world.shell(BORN + "exec sleep 1000")
    nursery = await to_thread.run_sync(Nursery, world, BORN + "exec sleep 1000")
    await to_thread.run_sync(nursery.bear_and_kill, row, 0.003)
    await to_thread.run_sync(nursery.close)
    async with world.open() as successor:
        await provision(successor, row)
        await until(lambda: world.begun(deployment(row)) == 1)
    pid = world.pid(row)
    os.kill(pid, signal.SIGUSR1)
    await until(lambda: not world.members(deployment(row)))
    async with world.open() as third:
        sighting = await third.look(row)
        assert isinstance(sighting, Ended)
        assert sighting.exit.pid == pid
        assert sighting.exit.signal_name == "SIGUSR1"
