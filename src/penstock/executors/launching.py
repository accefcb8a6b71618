"""Begins the program of a deployment, once, and waits until it is seen who began it.

Called by the process executor. Keeps the recorders that are children of this process, to reap them when they end. Must
never begin anything without holding the storage lock, nor take the success of a spawn for that of the claim.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import shutil
import signal
from contextlib import suppress
from dataclasses import dataclass

import anyio
import structlog
from anyio import to_thread

from penstock.executors.killing import described_holders
from penstock.executors.preparation import Prepared, cannot, inherited, prepare, too_big
from penstock.executors.procfs import mark
from penstock.executors.recorder import CLAIM_NOT_WRITTEN, LOST, Launch, Recorder, spawn
from penstock.executors.records import Claim, Records
from penstock.executors.storage import Held, Home
from penstock.executors.watch import Watched
from penstock.linux import IN_CLOSE_WRITE, Inotify, host_id
from penstock.model import DeploymentId, Pipeline, RuntimeDesired
from penstock.ports import Logs, Toolchains

log = structlog.get_logger("penstock.executors.launching")

CLAIM_SECONDS = 5.0
"""A spawned shell claims its deployment within 2 ms; under a load that makes it take this long, look again later."""

RECHECK_SECONDS = 0.1
"""The kernel tells when a claim is made; should its queue have overflowed, this is how often it is looked for."""

STARTS, CLAIM_THREADS = 32, 4
"""How many starts may be under way: of a thousand at once each would be slow, and none of them in time. Their claims
are read in threads of their own, so that none waits for the spawns of others."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A deployment whose program was begun: by whom, what it speaks, and which earlier ones have left something."""

    claim: Claim
    contract: str
    earlier: tuple[DeploymentId, ...]


@dataclass(frozen=True, slots=True)
class _Spawned:
    recorder: Recorder
    contract: str
    earlier: tuple[DeploymentId, ...]


class Launcher:
    """See the module. Use between `start` and `close`, on one loop."""

    def __init__(
        self,
        *,
        instance_id: str,
        bind_address: str,
        toolchains: Toolchains,
        logs: Logs,
        inotify: Inotify,
        threads: anyio.CapacityLimiter,
    ) -> None:
        self.host = host_id()
        self._instance_id = instance_id
        self._bind_address = bind_address
        self._toolchains = toolchains
        self._logs = logs
        self._inotify = inotify
        self._threads = threads
        self._starts = anyio.CapacityLimiter(STARTS)
        self._claims = anyio.CapacityLimiter(CLAIM_THREADS)
        self._children: dict[int, Watched] = {}
        self._nofile = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._inherited: dict[str, str] = {}
        self._setsid: str | None = None

    def start(self) -> None:
        """Make this process fit to have many children that outlive it."""
        self._loop = asyncio.get_running_loop()
        self._inherited = inherited()
        self._setsid = shutil.which("setsid")
        self._nofile = resource.getrlimit(resource.RLIMIT_NOFILE)
        # Two pidfds for each pipeline; programs get the limit that the daemon was started with.
        with suppress(OSError, ValueError):  # a hard limit above what the kernel allows
            resource.setrlimit(resource.RLIMIT_NOFILE, (self._nofile[1], self._nofile[1]))
        _heed_signals()

    def close(self) -> None:
        """Forget the children, which go on."""
        for child in self._children.values():
            child.close()
        self._children.clear()
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, self._nofile)

    def child(self, pid: int) -> Watched | None:
        """The recorder of that pid, if this process began it and has not reaped it; it is watched here, not yours."""
        return self._children.get(pid)

    async def begin(self, row: Pipeline, home: Home, records: Records) -> Begun | None:
        """Begin the program unless somebody has, and wait until it is claimed.

        None: the next look tells whose it is. Raises ExecutorError. May be repeated and cancelled at any time.
        """
        async with self._starts:
            try:
                spawned = await to_thread.run_sync(self._spawn, row, home, records, limiter=self._threads)
                if spawned is None:
                    return None
                claim = await self._claimed(records, spawned.recorder)
            except OSError as error:
                raise cannot(f"The program could not be begun: {error}.", retry=True) from error
        return None if claim is None else Begun(claim, spawned.contract, spawned.earlier)

    def _spawn(self, row: Pipeline, home: Home, records: Records) -> _Spawned | None:
        """Spawn the recorder; None if the deployment is claimed. In a thread."""
        home.make()
        earlier = tuple(one for one in home.deployments() if one != records.root.name)
        records.make()
        if records.read_claim() is not None:
            return None
        prepared = prepare(
            row,
            self._toolchains.plan(row),
            home=home,
            records=records,
            instance_id=self._instance_id,
            bind_address=self._bind_address,
            environment=self._inherited,
        )
        try:
            with home.locked() as lock:
                records.write_origin(host=self.host, contract=prepared.contract, config=prepared.config)
                recorder = self._launch(row, records, prepared, lock)
        except Held:
            if records.read_claim() is not None:
                return None
            text = f"The storage is still in use by an earlier process, {described_holders(home)}. It is tried again."
            raise cannot(text, retry=True) from None
        except OSError as error:
            if error.errno == errno.E2BIG:
                raise too_big(prepared) from error
            raise
        except ValueError as error:
            text = f"The program cannot be begun: {error}. Correct its command or its environment."
            raise cannot(text, retry=False) from error
        self._loop.call_soon_threadsafe(self._mind, recorder)
        return _Spawned(recorder, prepared.contract, earlier)

    def _launch(self, row: Pipeline, records: Records, prepared: Prepared, lock: int) -> Recorder:
        if self._setsid is None:
            raise cannot("setsid(1) is not on the daemon's PATH; install util-linux.", retry=False)
        output = os.open(self._logs.path(row.id), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            soft = self._nofile[0]
            return spawn(
                Launch(
                    directory=records.root,
                    argv=prepared.argv,
                    env=prepared.env,
                    output=output,
                    descriptors=(lock,),
                    soft_nofile="unlimited" if soft == resource.RLIM_INFINITY else str(soft),
                    stopped=prepared.contract == "process" and row.runtime_intent is RuntimeDesired.PAUSED,
                    mark=mark(self._instance_id, DeploymentId(records.root.name)),
                    setsid=self._setsid,
                )
            )
        finally:
            os.close(output)

    def _mind(self, recorder: Recorder) -> None:
        """Reap the recorder when it ends, whatever became of who spawned it. On the loop."""
        try:
            watched = Watched(recorder.pid, os.pidfd_open(recorder.pid))
        except OSError as error:
            log.warning("recorder cannot be watched", pid=recorder.pid, error=str(error))
            return
        self._children[recorder.pid] = watched

        def reap() -> None:
            recorder.poll()
            watched.close()
            self._children.pop(recorder.pid, None)

        watched.when_ended(reap)

    async def _claimed(self, records: Records, recorder: Recorder) -> Claim | None:
        """Wait until the deployment is claimed by a process."""
        changed = asyncio.Event()
        child = self._children.get(recorder.pid)
        if child is not None:
            child.when_ended(changed.set)
        bell = None
        with suppress(OSError):
            bell = self._inotify.watch(str(records.root), IN_CLOSE_WRITE, lambda mask, name: changed.set())
        try:
            with anyio.move_on_after(CLAIM_SECONDS):
                while True:
                    changed.clear()
                    over = child is None or child.ended.is_set()
                    claim = await to_thread.run_sync(records.read_claim, abandon_on_cancel=True, limiter=self._claims)
                    if claim is not None and claim.pid is not None:
                        return claim
                    if over:
                        break
                    with anyio.move_on_after(RECHECK_SECONDS):
                        await changed.wait()
        finally:
            if bell is not None:
                self._inotify.unwatch(bell)
        await self._unclaimed(records, recorder)
        return None

    async def _unclaimed(self, records: Records, recorder: Recorder) -> None:
        code = recorder.returncode
        if code == CLAIM_NOT_WRITTEN:
            await to_thread.run_sync(records.unclaim, limiter=self._threads)
            raise cannot(f"{records.claim_file} could not be written; is the disk full? It is tried again.", retry=True)
        if code != LOST:
            how = f"ended with code {code}" if code is not None else f"has not done so within {CLAIM_SECONDS:g} s"
            raise cannot(f"The shell that begins the program {how}. It is looked at again.", retry=True)


def _heed_signals() -> None:
    """Have no program inherit that a signal is ignored, as a shell arranges for its background jobs.

    With SIGCHLD ignored no recorder could wait for its program, with SIGTERM none would end as asked. What Python
    itself ignores, Popen gives back.
    """
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
