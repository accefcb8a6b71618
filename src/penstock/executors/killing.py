"""Kills everything of a deployment, and knows when nothing of it is left.

Called by the process executor, on the loop. Of a deployment are: the process group of its program, whoever carries its
ids in the environment (which children inherit, also those that leave the group), and whoever holds the storage lock
open (which only descendants can: it was passed to them). Each is killed by a descriptor that was checked after it was
opened. Must never kill what cannot be proved to be ours.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import Executor as Threads
from contextlib import suppress
from typing import TypeVar

import anyio
from anyio import to_thread

from penstock.executors.deployment import Deployment
from penstock.executors.procfs import (
    Census,
    described,
    environment,
    holders,
    holds,
    is_of,
    open_if,
    owner_of,
    take_census,
)
from penstock.executors.shared import Shared
from penstock.executors.storage import Home
from penstock.executors.watch import RECORDER_SECONDS, Watched, all_ended
from penstock.linux import stat_fields
from penstock.model import Fault
from penstock.ports import Compute, ExecutorError

KILL_SECONDS = 2.0
"""A killed process that takes longer than this hangs in the kernel."""

PAUSE_SECONDS = 0.001
"""Between two looks at what has no descriptor to wait for: somebody unseen who holds the lock."""

T = TypeVar("T")


class Killer:
    """See the module. `known` tells of living processes that need no reading; `is_child` who is reaped elsewhere."""

    def __init__(
        self,
        *,
        instance_id: str,
        reader: Threads,
        threads: anyio.CapacityLimiter,
        known: Callable[[], dict[int, Compute]],
        is_child: Callable[[int], bool],
    ) -> None:
        self._instance_id = instance_id
        self._threads = threads
        self._is_child = is_child
        self._known = known
        self._census: Shared[Census] = Shared(reader, lambda: take_census(instance_id, known()))

    async def survey(self) -> list[Compute]:
        """The deployments of which anything is alive."""
        census = await self._census.get()
        return list({*census.ours, *self._known().values()})

    async def carriers(self, compute: Compute) -> list[int]:
        """The living processes that carry the deployment's ids in their environment."""
        return (await self._census.get()).ours.get(compute, [])

    async def alive(self, deployment: Deployment) -> set[int]:
        """The living processes of a deployment, its recorder among them."""
        census = await self._census.get()
        main = deployment.program.main
        group = census.others.get(main.pid, []) if main is not None and main.leads_group else []
        watched = [one.pid for one in (main, deployment.program.recorder) if one is not None and one.alive]
        return {*census.ours.get(deployment.compute, []), *group, *watched}

    async def kill(self, deployment: Deployment, home: Home) -> None:
        """Kill everything of a deployment; sets `gone` once nothing of it is alive. Idempotent.

        Raises ExecutorError, naming what is still alive after KILL_SECONDS, and OSError.
        """
        give_up_at = anyio.current_time() + KILL_SECONDS
        program = deployment.program
        program.signal_group(signal.SIGKILL)
        if program.main is not None:
            await all_ended([program.main], KILL_SECONDS)
        keeper = program.recorder
        if keeper is not None:
            await all_ended([keeper], RECORDER_SECONDS)  # its time to write the exit code down; then it is killed too
        while True:
            pids = list(await self.alive(deployment))
            locked = not pids and await self._in_thread(home.is_locked)
            if locked:
                pids = await self._in_thread(lambda: holders(str(home.lock_file)))
            if not pids and not locked:
                break
            left = give_up_at - anyio.current_time()
            if left <= 0:
                who = ", ".join(described(pid) for pid in pids) or "somebody unseen who holds its storage lock"
                text = f"Of the deployment there still is, {KILL_SECONDS:g} s after SIGKILL: {who}."
                raise cannot_stop(f"{text} A process in state D waits for a device. It is tried again.")
            if not await self._kill_each(pids, deployment, str(home.lock_file), left):
                await anyio.sleep(PAUSE_SECONDS)
        with anyio.move_on_after(RECORDER_SECONDS):
            await program.ending()
        deployment.gone = True

    async def _kill_each(self, pids: list[int], deployment: Deployment, lock_file: str, seconds: float) -> int:
        """Kill those of `pids` that surely are the deployment's, and wait for their end; how many they were."""
        victims: list[Watched] = []
        try:
            for pid in pids:
                pidfd = open_if(pid, lambda pid=pid: self._belongs(pid, deployment, lock_file))
                if pidfd is not None:
                    victims.append(Watched(pid, pidfd))
            for victim in victims:
                victim.signal(signal.SIGKILL)
            await all_ended(victims, seconds)
            for victim in victims:
                if not self._is_child(victim.pid):
                    _reap(victim)
        finally:
            for victim in victims:
                victim.close()
        return len(victims)

    def _belongs(self, pid: int, deployment: Deployment, lock_file: str) -> bool:
        found = environment(pid)
        if is_of(found, self._instance_id) and owner_of(found) == deployment.compute:
            return True
        main = deployment.program.main
        fields = stat_fields(pid)
        if main is not None and main.leads_group and fields is not None and int(fields[2]) == main.pid:
            return True
        return holds(pid, lock_file)

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await to_thread.run_sync(function, abandon_on_cancel=True, limiter=self._threads)


def _reap(victim: Watched) -> None:
    """Its parent may have died and left it to this process, where that is the first of its container."""
    with suppress(ChildProcessError):
        os.waitid(os.P_PIDFD, victim.pidfd, os.WEXITED | os.WNOHANG)


def cannot_stop(text: str) -> ExecutorError:
    """The error of a deployment of which something may still be alive."""
    return ExecutorError(Fault("RunnerStopError", text, {"error": text}), retry=True)


def described_holders(home: Home) -> str:
    """Who holds a pipeline's storage lock. In a thread."""
    pids = holders(str(home.lock_file))
    return ", ".join(described(pid) for pid in pids) or "a process that this user cannot see"
