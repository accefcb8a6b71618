"""Puts the daemon together: the only place that knows which class stands behind which port.

Called by ``penstock serve``. Owns the one task group that every task of the daemon lives in, and the order in which
things begin and end. Must never decide anything about a pipeline.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.from_thread
import anyio.to_thread
import structlog

from penstock import __version__, linux, requests
from penstock.api.context import Context
from penstock.api.server import build_app
from penstock.api.server import serve as serve_api
from penstock.clock import SystemClock
from penstock.compiler import Compiler
from penstock.executors import ProcessExecutor
from penstock.logfile import LogFiles
from penstock.loop import Loop
from penstock.machine import Policy
from penstock.model import Author, Pipeline, PipelineId, ResourcesStatus
from penstock.ports import StaleRevision, StoreLocked, StoreUnavailable
from penstock.probe import HttpProbe
from penstock.reconciler import Reconciler
from penstock.service import Notifier, until_told_to_end, watchdog
from penstock.settings import ConfigRefused, Settings, reloadable_changes
from penstock.stores.sqlite import SqliteStore, open_sqlite
from penstock.telemetry import Metrics, set_up_logging
from penstock.toolchains import BUILT_IN, LocalToolchains, Toolchain, define

log = structlog.get_logger("penstock")

STALLED_SECONDS = 300.0
"""A turn is bounded by far less; one that lasts this long means that the daemon itself hangs."""

STORE_RETRY_SECONDS = 1.0
"""How often a store that cannot be used when all else is ready is tried again."""

SWITCH_SECONDS = 0.0005
"""How long a worker thread may keep the interpreter while the event loop wants it; by default it is ten times that."""

ON_EXIT_EXTRA_SECONDS = 10.0
"""What pipelines get beyond their grace when the daemon stops them before it ends."""


@dataclass(slots=True, kw_only=True)
class Daemon:
    """The parts of a running daemon, and the settings that it obeys at the moment."""

    started_with: Settings
    """What cannot change while it runs holds as it is here."""
    settings: Settings
    """As last read."""
    clock: SystemClock
    store: SqliteStore
    logs: LogFiles
    toolchains: LocalToolchains
    executor: ProcessExecutor
    probe: HttpProbe
    metrics: Metrics
    reconciler: Reconciler
    loop: Loop
    compiler: Compiler


async def serve(settings: Settings, *, reload: Callable[[], Settings], notifier: Notifier) -> None:
    """Run the daemon until it is told to end; pipelines are left running unless `runner.on_exit` says otherwise.

    Raises StoreLocked, StoreCorrupt, StoreUnavailable, ConfigRefused (from `reload` never: a bad file at SIGHUP is
    logged and changes nothing), and OSError when the state directory or the address cannot be used.
    """
    daemon_settings = settings.daemon
    set_up_logging(daemon_settings.log_format, daemon_settings.log_level)
    sys.setswitchinterval(SWITCH_SECONDS)
    async with build(settings) as daemon, anyio.create_task_group() as tasks:
        tasks.start_soon(daemon.logs.run)
        tasks.start_soon(daemon.compiler.run)
        tasks.start_soon(daemon.loop.run)
        serving = anyio.Event()
        tasks.start_soon(_serve_api, daemon, serving)
        tasks.start_soon(_tell_when_ready, daemon, serving, notifier)
        tasks.start_soon(watchdog, notifier, lambda: daemon.loop.longest_turn_seconds() < STALLED_SECONDS)

        async def on_reload() -> None:
            notifier.reloading()
            await _reload(daemon, reload)
            notifier.ready(_status(daemon))

        told = await until_told_to_end(on_reload)
        log.info("told to end", signal=told.name, on_exit=daemon.settings.runner.on_exit)
        notifier.stopping()
        if daemon.settings.runner.on_exit == "stop":
            await stop_all(daemon)
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def build(settings: Settings) -> AsyncGenerator[Daemon, None]:
    """Open and connect everything; nothing runs yet. Raises as `serve` does."""
    state_dir = settings.daemon.state_dir
    clock = SystemClock()
    async with AsyncExitStack() as opened:
        await opened.enter_async_context(_claim(state_dir))
        store = await opened.enter_async_context(
            open_sqlite(
                settings.database_path,
                clock=clock,
                retention=settings.events.retention,
                details_interval_seconds=settings.events.details_interval_seconds,
                state_dir=state_dir,
            )
        )
        logs = LogFiles(state_dir=state_dir, clock=clock, max_bytes=settings.logs.max_bytes)
        await opened.enter_async_context(logs)
        probe = await opened.enter_async_context(HttpProbe())
        toolchains = LocalToolchains(
            toolchains=_toolchains(settings), default=settings.toolchains.default, state_dir=state_dir
        )
        executor = ProcessExecutor(
            state_dir=state_dir,
            instance_id=store.instance_id,
            toolchains=toolchains,
            logs=logs,
            probe=probe,
            clock=clock,
        )
        await opened.enter_async_context(executor)
        metrics = Metrics(__version__)
        reconciler = Reconciler(
            store=store,
            executor=executor,
            toolchains=toolchains,
            probe=probe,
            logs=logs,
            clock=clock,
            policy=_policy(settings),
        )
        loop = Loop(store=store, executor=executor, reconciler=reconciler, metrics=metrics, clock=clock)
        compiler = Compiler(
            store=store,
            toolchains=toolchains,
            clock=clock,
            parallel=settings.toolchains.parallel,
            metrics=metrics,
        )
        metrics.watch(
            lambda: anyio.from_thread.run(store.pipelines),
            lambda: anyio.from_thread.run_sync(_figures, loop, compiler, store),
        )
        yield Daemon(
            started_with=settings,
            settings=settings,
            clock=clock,
            store=store,
            logs=logs,
            toolchains=toolchains,
            executor=executor,
            probe=probe,
            metrics=metrics,
            reconciler=reconciler,
            loop=loop,
            compiler=compiler,
        )


async def stop_all(daemon: Daemon) -> None:
    """Stop every pipeline with grace, and wait until all are; bounded."""
    grace = daemon.settings.runner.stop_grace_seconds
    changed = anyio.Event()

    def on_change(_pipeline_id: PipelineId, _author: Author) -> None:
        changed.set()

    daemon.store.listen(on_change)
    for row in await daemon.store.pipelines():
        await _stop(daemon, row, grace)
    with anyio.move_on_after(grace + ON_EXIT_EXTRA_SECONDS) as patience:
        while any(row.resources_status is not ResourcesStatus.STOPPED for row in await daemon.store.pipelines()):
            await changed.wait()
            changed = anyio.Event()
    if patience.cancelled_caught:
        log.warning("pipelines still running at exit", patience_seconds=grace + ON_EXIT_EXTRA_SECONDS)


async def _stop(daemon: Daemon, row: Pipeline | None, grace_seconds: float) -> None:
    while row is not None:
        now = daemon.clock.now()
        after = requests.stop(row, force=False, grace_seconds=grace_seconds, now=now)
        if after == row:
            return
        try:
            await daemon.store.commit(row, (after,), by=Author.DAEMON, cause="daemon ends", now=now)
        except StaleRevision:
            row = await daemon.store.get(row.id)
        else:
            daemon.loop.wake(row.id, Author.USER)
            return


async def _serve_api(daemon: Daemon, serving: anyio.Event) -> None:
    def ready(address: str) -> None:
        log.info("serving", listen=address)
        serving.set()

    context = Context(
        store=daemon.store,
        toolchains=daemon.toolchains,
        usage=daemon.executor,
        probe=daemon.probe,
        logs=daemon.logs,
        clock=daemon.clock,
        metrics=daemon.metrics,
        version=__version__,
        stop_grace_seconds=lambda: daemon.settings.runner.stop_grace_seconds,
        caught_up=daemon.loop.caught_up.is_set,
        look_again=daemon.loop.wake,
    )
    listen = daemon.started_with.api.listen
    try:
        await serve_api(build_app(context), listen, ready=ready)
    except OSError as error:
        if serving.is_set():
            raise
        raise OSError(error.errno, f"cannot listen on {listen}: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    """Why, in the kernel's words; those of who listens only where they say more than the address again."""
    if error.filename is None and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error)


async def _tell_when_ready(daemon: Daemon, serving: anyio.Event, notifier: Notifier) -> None:
    """Ready is who serves, has adopted all that was there to adopt, and can use the store: as ``/readyz`` has it."""
    await daemon.loop.caught_up.wait()
    await serving.wait()
    told = False
    while True:
        try:
            await daemon.store.check()
            break
        except StoreUnavailable as error:
            if not told:
                log.error("not ready, store unavailable", error=str(error))
            told = True
            await anyio.sleep(STORE_RETRY_SECONDS)
    log.info("ready", version=__version__, state_dir=str(daemon.settings.daemon.state_dir))
    notifier.ready(_status(daemon))


def _status(daemon: Daemon) -> str:
    return f"serving on {daemon.started_with.api.listen}"


async def _reload(daemon: Daemon, read: Callable[[], Settings]) -> None:
    try:
        new = await anyio.to_thread.run_sync(read)
    except ConfigRefused as error:
        log.error("configuration refused, nothing changed", reasons=[str(one) for one in error.refusals])
        return
    applied, _ = reloadable_changes(daemon.settings, new)
    _, needs_restart = reloadable_changes(daemon.started_with, new)
    set_up_logging(daemon.started_with.daemon.log_format, new.daemon.log_level)
    daemon.settings = new
    daemon.reconciler.policy = _policy(new)
    daemon.toolchains.toolchains = _toolchains(new)
    daemon.toolchains.default = new.toolchains.default
    daemon.compiler.parallel = new.toolchains.parallel
    daemon.logs.limit(new.logs.max_bytes)
    daemon.store.configure(retention=new.events.retention, details_interval_seconds=new.events.details_interval_seconds)
    log.info("configuration reloaded", applied=list(applied), needs_restart=list(needs_restart))


@asynccontextmanager
async def _claim(state_dir: Path) -> AsyncGenerator[None, None]:
    """Hold the state directory against every other daemon. Raises StoreLocked, OSError."""
    await anyio.to_thread.run_sync(lambda: state_dir.mkdir(mode=0o700, parents=True, exist_ok=True))
    lock = await anyio.to_thread.run_sync(linux.hold_lock, str(state_dir / "daemon.lock"))
    if lock is None:
        raise StoreLocked(f"Another daemon runs on {state_dir}; stop it, or give this one another daemon.state_dir.")
    try:
        yield
    finally:
        linux.release_lock(lock)


def _toolchains(settings: Settings) -> dict[str, Toolchain]:
    return {**BUILT_IN, **{name: define(name, given) for name, given in settings.toolchains.named.items()}}


def _policy(settings: Settings) -> Policy:
    return Policy(
        provisioning_timeout_seconds=settings.runner.provisioning_timeout_seconds,
        unavailable_timeout_seconds=settings.runner.unavailable_timeout_seconds or None,
        resume_after_reboot=settings.runner.after_reboot == "start",
    )


def _figures(loop: Loop, compiler: Compiler, store: SqliteStore) -> dict[str, tuple[str, float]]:
    return {
        "penstock_reconcile_queue_depth": ("Pipelines that wait for a turn.", float(loop.depth)),
        "penstock_longest_running_turn_seconds": (
            "How long the oldest turn under way has been running.",
            loop.longest_turn_seconds(),
        ),
        "penstock_store_available": ("1 while the store can be used.", float(loop.store_available)),
        "penstock_events_written_total": ("Monitor events recorded.", float(store.events_written)),
        "penstock_compile_queue_depth": ("Programs that wait for a slot.", float(compiler.depth)),
        "penstock_compiling": ("Programs that are being checked or built.", float(compiler.building)),
    }
