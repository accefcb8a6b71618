"""The executor whose compute are processes of this machine: each in a session of its own, none a child to be lost.

Called by the reconciler (`look`, `perform`), the loop (`events`, `survey`, `discard`, `kept`, `forget`) and the API
(`usage`). Use as `async with executor:` on asyncio. What it knows is a cache of what is on disk (`records.py`) and in
/proc (`procfs.py`), so that the next daemon finds everything again. Must never take a process for another's by its pid
alone, and never say Absent while anything of the deployment lives or could still begin.

    nothing starts twice   whoever begins the program makes the claim, with O_EXCL (`recorder.py`); a stop makes it too
    stopped means stopped  killed are the process group, whoever carries the deployment's id in its environment or its
                           mark, and whoever still holds the storage lock, which only descendants can have
    ends are noticed       by pidfd, child or not; how it ended is told by the kernel, else by the recorder's file
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import anyio
import structlog
from anyio import to_thread

from penstock import linux
from penstock.executors.deployment import Deployment, exit_of
from penstock.executors.killing import Killer, cannot_stop, described_holders
from penstock.executors.launching import Launcher
from penstock.executors.port import PortBell
from penstock.executors.preparation import cannot
from penstock.executors.procfs import (
    age_seconds,
    command_line,
    consumption_by_group,
    is_stopped,
    open_files,
    open_process,
    open_recorder,
)
from penstock.executors.recorder import is_unbegun
from penstock.executors.records import Claim, Ending, Facts, Records
from penstock.executors.shared import Shared
from penstock.executors.steering import STEER_SECONDS, go_on, is_paused_soon, pause, tell_to_end
from penstock.executors.storage import Held, Home, pipelines
from penstock.executors.watch import Program, Watched
from penstock.faults import HOST_RESTARTED
from penstock.linux import stat_fields
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
    StorageStatus,
    Unseen,
)
from penstock.ports import Clock, Compute, ExecutorError, Logs, Probe, Toolchains, Usage

log = structlog.get_logger("penstock.executors.process")

LOG_TAIL_LINES = 20

THREADS, CLEARING_THREADS = 8, 2
"""Deleting takes as long as it takes: it has threads of its own, so that no start waits for one."""

NO_CHECKPOINTS: JsonObject = {"checkpoints": []}

T = TypeVar("T")


class ProcessExecutor:
    """See the module. `state_dir` holds the pipelines' directories; `instance_id` marks what is ours."""

    def __init__(
        self,
        *,
        state_dir: Path,
        instance_id: str,
        toolchains: Toolchains,
        logs: Logs,
        probe: Probe,
        clock: Clock,
        bind_address: str = "127.0.0.1",
    ) -> None:
        self._root = state_dir / "pipelines"
        self._logs = logs
        self._probe = probe
        self._clock = clock
        self._bind_address = bind_address
        self._threads = anyio.CapacityLimiter(THREADS)
        self._clearing = anyio.CapacityLimiter(CLEARING_THREADS)
        self._reader = ThreadPoolExecutor(1, "penstock-procfs")
        self._killer = Killer(
            instance_id=instance_id,
            reader=self._reader,
            threads=self._threads,
            known=self._living,
            is_child=lambda pid: self._launcher.child(pid) is not None,
            kept=self._kept,
        )
        self._consumption = Shared(self._reader, consumption_by_group)
        self._inotify = linux.Inotify()
        self._launcher = Launcher(
            instance_id=instance_id,
            bind_address=bind_address,
            toolchains=toolchains,
            logs=logs,
            inotify=self._inotify,
            threads=self._threads,
        )
        self._known: dict[DeploymentId, Deployment] = {}
        self._of: dict[PipelineId, set[DeploymentId]] = {}
        self._listeners: list[asyncio.Queue[PipelineId]] = []
        self._tasks = anyio.create_task_group()

    async def __aenter__(self) -> Self:
        self._inotify.__enter__()
        self._launcher.start()
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(None, None, None)
        for deployment in list(self._known):
            self._drop(deployment)
        self._launcher.close()
        self._inotify.__exit__(kind, error, traceback)
        self._reader.shutdown(wait=False, cancel_futures=True)

    # --- look ---------------------------------------------------------------------------------------------------------

    async def look(self, row: Pipeline) -> Sighting:
        """Tell what is there of the row's deployment, adopting what an earlier daemon left. See `ports.Executor`."""
        try:
            if row.deployment_id is None or row.resources_status is ResourcesStatus.STOPPED:
                clearing = row.storage_status is StorageStatus.CLEARING
                return Absent(storage_remains=clearing and await self._read(self._home(row.id).remains))
            compute = Compute(row.id, row.deployment_id)
            deployment = self._known.get(compute.deployment_id)
            if deployment is None:
                found = await self._find(row, compute)
                if not isinstance(found, Deployment):
                    return found
                deployment = found
            return await self._sight(row, deployment)
        except OSError as error:
            return Unseen(f"The deployment cannot be looked at: {error}.")

    async def _find(self, row: Pipeline, compute: Compute) -> Deployment | Sighting:
        """Adopt what is there, or tell what that is."""
        records = self._home(compute.pipeline_id).records(compute.deployment_id)
        facts = await self._read(records.read)
        claim = facts.claim
        restarted = facts.host is not None and facts.host != self._launcher.host
        if claim is not None and claim.pid is not None and not restarted:
            return self._adopt(compute, records, facts, claim)
        if not restarted:
            # No record tells of a process; does a process tell of itself?
            pids = await self._killer.carriers(compute)
            main = _first_leader(pids)
            if main is not None:
                return self._adopt(compute, records, facts, main)
            if pids and not (claim is not None and claim.forbidden):
                return Starting({"phase": "spawning", "processes": list(pids)})
        if claim is not None or (restarted and row.resources_status is ResourcesStatus.PROVISIONED):
            return self._adopt(compute, records, facts, claim or Claim(), restarted=restarted)
        return Absent()

    def _adopt(
        self, compute: Compute, records: Records, facts: Facts, claim: Claim, *, restarted: bool = False
    ) -> Deployment:
        """Watch the deployment's processes, as far as they live. On the loop, without a break."""
        known = self._known.get(compute.deployment_id)
        if known is not None:
            return known
        main = keeper = None
        if claim.pid is not None and not restarted:
            main = self._watched(claim.pid, open_process(claim.pid, claim.start_ticks))
            keeper = self._launcher.child(claim.recorder)
            if keeper is None:
                pidfd = open_recorder(claim.recorder, claim.start_ticks, compute)
                keeper = self._watched(claim.recorder, pidfd)
        contract = facts.contract or "process"
        program = Program(claim, main, keeper, now=self._clock.now, on_settled=lambda: self._tell(compute.pipeline_id))
        deployment = Deployment(
            compute=compute,
            records=records,
            program=program,
            contract=contract,
            port_bell=PortBell(self._inotify, records.port_file, lambda: self._tell(compute.pipeline_id)),
            told_to_end=facts.told_to_end,
            restarted=restarted,
        )
        self._known[compute.deployment_id] = deployment
        self._of.setdefault(compute.pipeline_id, set()).add(compute.deployment_id)
        return deployment

    @staticmethod
    def _watched(pid: int, pidfd: int | None) -> Watched | None:
        return None if pidfd is None else Watched(pid, pidfd)

    async def _sight(self, row: Pipeline, deployment: Deployment) -> Sighting:
        program = deployment.program
        if not program.alive:
            return await self._sight_end(row, deployment)
        pid = program.pid
        details: JsonObject = {"process": pid, "working_dir": str(deployment.records.work)}
        if deployment.contract == "http":
            return await self._sight_port(row, deployment, details)
        status = RuntimeStatus.PAUSED if is_stopped(pid) else RuntimeStatus.RUNNING
        desired = RuntimeDesired.SUSPENDED if deployment.told_to_end else RuntimeDesired(status.value)
        return Ready(None, details, Report(status, desired, {}, NO_CHECKPOINTS))

    async def _sight_port(self, row: Pipeline, deployment: Deployment, details: JsonObject) -> Sighting:
        """Ready once the port file is whole; its appearance wakes the turn. One that is silent may have moved."""
        if deployment.location is None and row.resources_status is ResourcesStatus.PROVISIONED:
            deployment.location = row.deployment_location
        if deployment.location is None or row.runtime_status is RuntimeStatus.UNAVAILABLE:
            deployment.port_bell.await_file()
            port = await self._read(deployment.records.read_port)
            match port:
                case None | str() if deployment.location is not None:
                    pass
                case None:
                    return Starting({**details, "phase": "waiting for the port file"})
                case str(flaw):
                    text = (
                        f"The port file {deployment.records.port_file} {flaw} where a port number (1 to 65535) must be."
                    )
                    return Failed(Fault("RunnerProvisionError", text, {"error": text}))
                case int():
                    host = f"[{self._bind_address}]" if ":" in self._bind_address else self._bind_address
                    deployment.location = f"{host}:{port}"
        deployment.port_bell.await_change()
        return Ready(deployment.location, details)

    async def _sight_end(self, row: Pipeline, deployment: Deployment) -> Ended:
        await deployment.program.ending()
        stopping = row.resources_status is ResourcesStatus.STOPPING
        end = deployment.exit
        if end is None:
            end, final = await self._read(lambda: self._how_it_ended(deployment, with_tail=not stopping))
            if final:
                deployment.exit = end
        leftovers = False
        # A look at all processes takes its time: an end is told first, what else lives is for the stop to know.
        if not deployment.gone and stopping:
            keeper = deployment.program.recorder
            writing = {keeper.pid} if keeper is not None and keeper.alive else set[int]()
            leftovers = bool(await self._killer.alive(deployment) - writing)
        own_end = deployment.contract == "process" and not deployment.restarted and not deployment.told_to_end
        fault = _host_restarted() if deployment.restarted else None
        return Ended(end, leftovers=leftovers, completed=own_end and end.code == 0, fault=fault)

    def _how_it_ended(self, deployment: Deployment, *, with_tail: bool) -> tuple[Exit, bool]:
        """The exit, and whether it will never be better known. In a thread."""
        program, records = deployment.program, deployment.records
        ending = records.read_ending()
        if ending.wait_status is None and program.wait_status is not None:
            ending = Ending(wait_status=program.wait_status, at=program.ended_at)
            with suppress(OSError):  # the recorder's file says nearly the same
                records.write_ending(ending)
        tail = self._logs.tail(deployment.compute.pipeline_id, LOG_TAIL_LINES) if with_tail else ()
        end = exit_of(ending, program.claim.pid)
        if end.ended_at is None:
            end = replace(end, ended_at=program.ended_at)
        known = end.code is not None or end.signal is not None
        return replace(end, log_tail=tail), known or program.recorder is None or not program.recorder.alive

    # --- perform ------------------------------------------------------------------------------------------------------

    async def perform(self, row: Pipeline, effect: Effect) -> None:
        """Carry out `effect` for the row's deployment. See `ports.Executor`."""
        if isinstance(effect, ClearStorage):
            await self._clear(row.id)
            return
        if row.deployment_id is None:
            return
        compute = Compute(row.id, row.deployment_id)
        match effect:
            case Provision():
                await self._provision(row, compute)
            case SteerRuntime():
                await self._steer(row, compute, effect.target)
            case StopCompute():
                await self._stop(compute, forbid=True)

    async def _provision(self, row: Pipeline, compute: Compute) -> None:
        for former in self._of.get(compute.pipeline_id, set[DeploymentId]()) - {compute.deployment_id}:
            self._drop(former)
        if compute.deployment_id in self._known:
            return
        home = self._home(row.id)
        records = home.records(compute.deployment_id)
        begun = await self._launcher.begin(row, home, records)
        if begun is None:
            return
        facts = Facts(claim=begun.claim, host=self._launcher.host, contract=begun.contract, told_to_end=False)
        try:
            deployment = self._adopt(compute, records, facts, begun.claim)
        except OSError as error:
            raise cannot(f"The program cannot be watched: {error}.", retry=True) from error
        for earlier in begun.earlier:
            self._tasks.start_soon(self._tidy, home, earlier)
        if row.runtime_intent is RuntimeDesired.PAUSED and begun.contract == "process":
            await is_paused_soon(deployment.program)

    async def _tidy(self, home: Home, deployment: DeploymentId) -> None:
        """Delete what an earlier deployment has left, beside everything else; what remains goes at the next start."""
        with suppress(OSError):
            await to_thread.run_sync(home.delete_deployment, deployment, abandon_on_cancel=True, limiter=self._clearing)

    # --- steer --------------------------------------------------------------------------------------------------------

    async def _steer(self, row: Pipeline, compute: Compute, target: RuntimeDesired) -> None:
        found = self._known.get(compute.deployment_id) or await self._find(row, compute)
        if not isinstance(found, Deployment) or not found.program.alive:
            return  # the next look tells
        if found.contract == "http":
            location = found.location or row.deployment_location
            if location is None:
                raise _cannot_steer("The process has not told its port yet.")
            await self._probe.steer(location, target)
            return
        program = found.program
        try:
            match target:
                case RuntimeDesired.PAUSED:
                    done = await pause(program)
                case RuntimeDesired.RUNNING:
                    done = await go_on(program)
                case RuntimeDesired.SUSPENDED:
                    # Recorded first: whoever sees the end must know that it was asked for.
                    await self._note_of(found.records.write_told_to_end, compute)
                    found.told_to_end = done = True
                    tell_to_end(program)
                case _:
                    done = True
        except OSError as error:
            raise _cannot_steer(f"The process could not be told to be {target}: {error}.") from error
        if not done:
            raise _cannot_steer(f"The process did not become {target} within {STEER_SECONDS:g} s of the signal.")

    # --- stop ---------------------------------------------------------------------------------------------------------

    async def _stop(self, compute: Compute, *, forbid: bool) -> None:
        """Kill everything of a deployment; with `forbid`, see to it that nothing of it can begin."""
        try:
            deployment = self._known.get(compute.deployment_id)
            if deployment is None:
                records = self._home(compute.pipeline_id).records(compute.deployment_id)
                if forbid:
                    # Else whoever is about to begin it is found by the lock: it was passed to them.
                    await self._note_of(records.forbid, compute)
                facts = await self._read(records.read)
                restarted = facts.host is not None and facts.host != self._launcher.host
                deployment = self._adopt(compute, records, facts, facts.claim or Claim(), restarted=restarted)
            if not deployment.gone:
                await self._killer.kill(deployment, self._home(compute.pipeline_id))
                self._close(deployment)
        except OSError as error:
            raise cannot_stop(f"The deployment could not be stopped: {error}.") from error

    # --- clear, forget ------------------------------------------------------------------------------------------------

    async def _clear(self, pipeline_id: PipelineId) -> None:
        home = self._home(pipeline_id)
        name = self._clock.new_id()

        def set_aside() -> None:
            if home.exists():
                with home.locked():
                    home.set_aside(name)

        try:
            await self._write(set_aside)
            self._drop_all(pipeline_id)
            await to_thread.run_sync(home.empty_trash, abandon_on_cancel=True, limiter=self._clearing)
        except Held:
            by = await self._read(lambda: described_holders(home))
            raise _cannot_clear(f"The storage is still in use by {by}. It is tried again.") from None
        except OSError as error:
            raise _cannot_clear(f"The storage could not be removed: {error}. It is tried again.") from error

    async def forget(self, pipeline_id: PipelineId) -> None:
        """Remove what is kept on disk of a pipeline that was deleted; what cannot be removed is `kept` for later."""
        self._drop_all(pipeline_id)
        home = self._home(pipeline_id)
        try:
            await to_thread.run_sync(home.remove, abandon_on_cancel=True, limiter=self._clearing)
        except OSError as error:
            log.warning("pipeline directory remains", pipeline=pipeline_id, error=str(error))

    async def kept(self) -> list[PipelineId]:
        """The pipelines that have a directory."""
        return await self._read(lambda: pipelines(self._root))

    # --- survey, events, usage ----------------------------------------------------------------------------------------

    async def survey(self) -> list[Compute]:
        """Everything alive that carries this store's instance id."""
        return await self._killer.survey()

    async def discard(self, compute: Compute) -> None:
        """Kill what `survey` found and no row knows. Raises ExecutorError."""
        await self._stop(compute, forbid=False)
        self._drop(compute.deployment_id)

    async def events(self) -> AsyncGenerator[PipelineId, None]:
        """Yield the id of each pipeline whose program ended or became ready, as it happens."""
        news: asyncio.Queue[PipelineId] = asyncio.Queue()
        self._listeners.append(news)
        try:
            while True:
                yield await news.get()
        finally:
            self._listeners.remove(news)

    async def usage(self, row: Pipeline) -> Usage | None:
        """What the process group of the row's deployment uses now; None when it does not run."""
        if row.deployment_id is None:
            return None
        compute = Compute(row.id, row.deployment_id)
        try:
            found = self._known.get(compute.deployment_id) or await self._find(row, compute)
        except OSError:
            return None
        if not isinstance(found, Deployment) or not found.program.alive:
            return None
        groups, pid = await self._consumption.get(), found.program.pid
        # One that was started paused has no group of its own before it goes on.
        group = groups.get(pid) or [one for others in groups.values() for one in others if one.pid == pid]
        if not group:
            return None
        home = self._home(row.id)
        files, storage_bytes = await self._read(lambda: (sum(open_files(one.pid) for one in group), home.size_bytes()))
        age = timedelta(seconds=age_seconds(found.program.claim.start_ticks))
        return Usage(
            rss_bytes=sum(one.rss_bytes for one in group),
            cpu_seconds=sum(one.cpu_seconds for one in group),
            processes=len(group),
            threads=sum(one.threads for one in group),
            open_files=files,
            started_at=self._clock.now() - age,
            storage_bytes=storage_bytes,
        )

    # --- within -------------------------------------------------------------------------------------------------------

    def _home(self, pipeline_id: PipelineId) -> Home:
        return Home(self._root / pipeline_id)

    def _kept(self) -> list[Compute]:
        """The deployments of which something is on disk. In a thread."""
        return [
            Compute(pipeline, one) for pipeline in pipelines(self._root) for one in self._home(pipeline).deployments()
        ]

    def _living(self) -> dict[int, Compute]:
        """The processes that are surely alive, and whose they are. In any thread."""
        living: dict[int, Compute] = {}
        for deployment in list(self._known.values()):
            for process in (deployment.program.main, deployment.program.recorder):
                if process is not None and process.watched:
                    living[process.pid] = deployment.compute
        return living

    def _tell(self, pipeline_id: PipelineId) -> None:
        for news in self._listeners:
            news.put_nowait(pipeline_id)

    def _drop(self, deployment_id: DeploymentId) -> None:
        """Forget a deployment; what lives of it can be found again."""
        deployment = self._known.pop(deployment_id, None)
        if deployment is not None:
            self._of[deployment.compute.pipeline_id].discard(deployment_id)
            self._close(deployment)

    def _drop_all(self, pipeline_id: PipelineId) -> None:
        for deployment_id in list(self._of.get(pipeline_id, ())):
            self._drop(deployment_id)
        self._of.pop(pipeline_id, None)

    def _close(self, deployment: Deployment) -> None:
        deployment.port_bell.close()
        keeper = deployment.program.recorder
        deployment.program.close()
        if keeper is not None and self._launcher.child(keeper.pid) is not keeper:
            keeper.close()

    async def _read(self, function: Callable[[], T]) -> T:
        """Run what only reads, in a thread; cancelled, it is left behind."""
        return await to_thread.run_sync(function, abandon_on_cancel=True, limiter=self._threads)

    async def _note_of(self, write: Callable[[], None], compute: Compute) -> None:
        """Write what a stop leaves on disk for the next daemon; a disk that takes nothing must not prevent the stop."""
        try:
            await self._write(write)
        except OSError as error:
            log.warning("stop not recorded", pipeline=compute.pipeline_id, error=str(error))

    async def _write(self, function: Callable[[], T]) -> T:
        """Run what changes something, in a thread, to its end."""
        return await to_thread.run_sync(function, limiter=self._threads)


def _host_restarted() -> Fault:
    return Fault(
        HOST_RESTARTED,
        "The host or the container of the daemon was restarted, and the pipeline process ended with it.",
    )


def _first_leader(pids: list[int]) -> Claim | None:
    """Of a deployment whose records are lost, the program: the first to have begun a session of its own."""
    found: list[Claim] = []
    for pid in pids:
        fields = stat_fields(pid)
        if fields is None or int(fields[3]) != pid or is_unbegun(command_line(pid)):
            continue
        found.append(Claim(pid, int(fields[19]), int(fields[1])))
    return min(found, key=lambda claim: claim.start_ticks, default=None)


def _cannot_steer(text: str) -> ExecutorError:
    return ExecutorError(Fault("RunnerCheckError", text, {"error": text}), retry=True)


def _cannot_clear(text: str) -> ExecutorError:
    return ExecutorError(Fault("RunnerClearError", text, {"error": text}), retry=True)
