"""Kills everything of a deployment, and knows when nothing of it is left.

Called by the process executor, on the loop. Of a deployment are: the process group of its program, whoever carries its
ids in the environment or its mark (`procfs.py`), whoever descends from its program by what the kernel tells of parents,
and whoever holds the storage lock open (which only descendants can: it was passed to them). Each is killed by a
descriptor that was checked after it was opened. Must never kill what cannot be proved to be ours.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from concurrent.futures import Executor as Threads
from contextlib import suppress
from typing import TypeVar

import anyio
from anyio import to_thread

from penstock.executors.deployment import Deployment
from penstock.executors.procfs import (
    Census,
    Strangers,
    all_pids,
    children,
    described,
    environment,
    group_of,
    holders,
    holds,
    is_alive,
    is_of,
    is_our_image,
    mark,
    mark_of,
    open_if,
    open_process,
    owner_of,
    take_census,
)
from penstock.executors.records import Claim
from penstock.executors.shared import Shared
from penstock.executors.storage import Home
from penstock.executors.watch import RECORDER_SECONDS, Program, Watched, all_ended
from penstock.linux import stat_fields
from penstock.model import Fault
from penstock.ports import Compute, ExecutorError

KILL_SECONDS = 2.0
"""A killed process that takes longer than this hangs in the kernel."""

PAUSE_SECONDS = 0.001
"""Between two looks at what has no descriptor to wait for: somebody unseen who holds the lock."""

MOST_AT_ONCE = 256
"""How many are killed between two looks at who is alive: each takes a descriptor for as long as it takes to die."""

MOST_NAMED = 10
"""How many of those that cannot be killed are named."""

GATHER_SECONDS, CHASE_SECONDS = 0.25, 0.25
"""How long parents are asked for their children, and how long who forks and ends is chased between two censuses."""

T = TypeVar("T")


class Killer:
    """See the module.

    `known` tells of living processes that need no reading; `is_child` who is reaped elsewhere; `kept` names
    the deployments of which there is something on disk.
    """

    def __init__(
        self,
        *,
        instance_id: str,
        reader: Threads,
        threads: anyio.CapacityLimiter,
        known: Callable[[], dict[int, Compute]],
        is_child: Callable[[int], bool],
        kept: Callable[[], list[Compute]],
    ) -> None:
        self._instance_id = instance_id
        self._threads = threads
        self._is_child = is_child
        self._known = known
        self._kept = kept
        self._strangers: Strangers = {}
        self._census: Shared[Census] = Shared(reader, lambda: take_census(instance_id, known(), self._strangers))

    async def survey(self) -> list[Compute]:
        """The deployments of which anything is alive."""
        census = await self._census.get()
        found = {*census.ours, *self._known().values()}
        nameless = census.marked.keys() - {self._mark(one) for one in found}
        if nameless:
            found |= {one for one in await self._in_thread(self._kept) if self._mark(one) in nameless}
        return list(found)

    async def carriers(self, compute: Compute) -> list[int]:
        """The living processes that carry the deployment's ids in their environment."""
        return (await self._census.get()).ours.get(compute, [])

    async def alive(self, deployment: Deployment) -> set[int]:
        """The living processes of a deployment, its recorder among them."""
        census = await self._census.get()
        main = deployment.program.main
        group: list[int] = []
        if main is not None and main.leads_group:  # what is remembered of strangers may be outdated
            group = [pid for pid in census.others.get(main.pid, []) if group_of(pid) == main.pid]
        watched = [one.pid for one in (main, deployment.program.recorder) if one is not None and one.alive]
        marked = census.marked.get(self._mark(deployment.compute), [])
        return {*census.ours.get(deployment.compute, []), *marked, *group, *watched}

    async def kill(self, deployment: Deployment, home: Home) -> None:
        """Kill everything of a deployment; sets `gone` once nothing of it is alive. Idempotent.

        Raises ExecutorError, naming what is still alive after KILL_SECONDS, and OSError.
        """
        give_up_at = anyio.current_time() + KILL_SECONDS
        program = deployment.program
        await self._kill_family(program)
        keeper = program.recorder
        if keeper is not None:
            await all_ended([keeper], RECORDER_SECONDS)  # its time to write the exit code down; then it is killed too
        own_mark = self._mark(deployment.compute)
        doubtful = False
        while True:
            pids = list(await self.alive(deployment))
            locked = not pids and await self._in_thread(home.is_locked)
            if locked:
                pids = await self._in_thread(lambda: holders(str(home.lock_file)))
            if not pids and not locked:
                if not doubtful:
                    break
                doubtful = False
                continue
            doubtful = True  # who had children that got away may have had more: then none must be seen twice
            left = give_up_at - anyio.current_time()
            if left <= 0:
                raise _still_alive(pids)
            await self._in_thread(lambda: _chase(own_mark))
            if not await self._kill_each(pids, deployment, str(home.lock_file), left):
                await anyio.sleep(PAUSE_SECONDS)
        with anyio.move_on_after(RECORDER_SECONDS):
            await program.ending()
        deployment.gone = True

    async def _kill_family(self, program: Program) -> None:
        """Kill the program, its group, and those of its descendants that have a parent to tell of them."""
        main = program.main
        if main is None:
            return
        family: dict[int, int] = {}
        if main.alive and children(main.pid):
            _signal_group(program, signal.SIGSTOP)  # who is stopped begets nobody
            family = await to_thread.run_sync(_gather, program.claim, limiter=self._threads)
        try:
            _signal_group(program, signal.SIGKILL)
            for pidfd in family.values():
                _kill(pidfd)
        except BaseException:
            _close(family)
            raise
        await self._await_ends(family, KILL_SECONDS)
        await all_ended([main], KILL_SECONDS)

    async def _kill_each(self, pids: list[int], deployment: Deployment, lock_file: str, seconds: float) -> int:
        """Kill those of `pids` that surely are the deployment's, and wait for their end; how many they were."""

        def kill() -> dict[int, int]:
            victims: dict[int, int] = {}
            for pid in pids[:MOST_AT_ONCE]:
                try:
                    pidfd = open_if(pid, lambda pid=pid: self._belongs(pid, deployment, lock_file))
                except OSError:  # too many descriptors
                    if not victims:
                        raise
                    break
                if pidfd is not None:
                    victims[pid] = pidfd
                    _kill(pidfd)
            return victims

        victims = await to_thread.run_sync(kill, limiter=self._threads)
        await self._await_ends(victims, seconds)
        return len(victims)

    async def _await_ends(self, victims: dict[int, int], seconds: float) -> None:
        """Wait for the end of processes, by their descriptors, which are closed then."""
        watched: list[Watched] = []
        try:
            watched += [Watched(pid, pidfd) for pid, pidfd in victims.items()]
            await all_ended(watched, seconds)
            for victim in watched:
                if not self._is_child(victim.pid):
                    _reap(victim)
        finally:
            for victim in watched:
                victim.close()

    def _belongs(self, pid: int, deployment: Deployment, lock_file: str) -> bool:
        found = environment(pid)
        if is_of(found, self._instance_id) and owner_of(found) == deployment.compute:
            return True
        if mark_of(pid) == self._mark(deployment.compute):
            return True
        main = deployment.program.main
        if main is not None and main.leads_group and group_of(pid) == main.pid:
            return True
        # Who has been forked and has not become another program yet holds all that we do, for a moment.
        return holds(pid, lock_file) and not is_our_image(pid)

    def _mark(self, compute: Compute) -> int:
        return mark(self._instance_id, compute.deployment_id)

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await to_thread.run_sync(function, abandon_on_cancel=True, limiter=self._threads)


def _gather(claim: Claim) -> dict[int, int]:
    """Stop who descends from a program, by what the kernel tells of parents; their descriptors, yours to close.

    The program itself was stopped before, and is not among them. In a thread.
    """
    if claim.pid is None:
        return {}
    root = open_process(claim.pid, claim.start_ticks)
    if root is None:
        return {}
    family = {claim.pid: root}
    give_up_at = time.monotonic() + GATHER_SECONDS
    grown = True
    with suppress(OSError):  # too many descriptors: those that were found
        while grown and time.monotonic() < give_up_at:
            grown = False
            for parent, pidfd in list(family.items()):
                for child in children(parent):
                    opened = None
                    if child not in family:
                        opened = open_if(child, lambda child=child, of=(parent, pidfd): _is_child(child, *of))
                    if opened is not None:
                        family[child] = opened
                        _send(opened, signal.SIGSTOP)
                        grown = True
    os.close(family.pop(claim.pid))
    return family


def _is_child(pid: int, parent: int, parent_pidfd: int) -> bool:
    fields = stat_fields(pid)
    if fields is None or int(fields[1]) != parent:
        return False
    poll = select.poll()
    poll.register(parent_pidfd, select.POLLIN)
    return not poll.poll(0)  # it lives, so the number was its own


def _chase(own_mark: int) -> None:
    """Kill whoever has that mark at first sight, the latest first: such as fork and end before a census reads them."""
    met: set[int] = set()
    give_up_at = time.monotonic() + CHASE_SECONDS
    found = True
    while found and time.monotonic() < give_up_at:
        found = False
        for pid in reversed(all_pids()):
            if pid in met:
                continue
            met.add(pid)
            if mark_of(pid) != own_mark:
                continue
            with suppress(OSError):
                pidfd = open_if(pid, lambda pid=pid: mark_of(pid) == own_mark)
                if pidfd is not None:
                    found = True
                    _kill(pidfd)
                    os.close(pidfd)


def _kill(pidfd: int) -> None:
    _send(pidfd, signal.SIGKILL)


def _send(pidfd: int, number: int) -> None:
    """Signal a process; nothing when it is gone, or became another user's: then it is named as still alive."""
    with suppress(ProcessLookupError, PermissionError):
        signal.pidfd_send_signal(pidfd, number)


def _signal_group(program: Program, number: int) -> None:
    with suppress(PermissionError):
        program.signal_group(number)


def _close(pidfds: dict[int, int]) -> None:
    for pidfd in pidfds.values():
        os.close(pidfd)


def _still_alive(pids: list[int]) -> ExecutorError:
    alive = [pid for pid in pids if is_alive(pid)] or pids
    who = ", ".join(described(pid) for pid in alive[:MOST_NAMED]) or "somebody unseen who holds its storage lock"
    if len(alive) > MOST_NAMED:
        who += f" and {len(alive) - MOST_NAMED} more"
    text = f"Of the deployment there still is, {KILL_SECONDS:g} s after SIGKILL: {who}."
    why = (
        "A process in state D waits for a device; one that became another user's may be killed by that user or by root."
    )
    return cannot_stop(f"{text} {why} It is tried again.")


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
