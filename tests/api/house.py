"""A daemon without disk and processes: the real loop and API on a real socket, a store in memory, a fake world."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
import anyio
from aiohttp import web
from yarl import URL

from penstock import program
from penstock.api.context import Context
from penstock.api.server import build_app, serve
from penstock.clock import SystemClock
from penstock.loop import Loop
from penstock.machine import Policy
from penstock.model import Author, Pipeline, PipelineId, ProgramStatus
from penstock.ports import NotFound, StaleRevision, StepFailed, StepPassed, StoreUnavailable, Usage
from penstock.reconciler import Reconciler
from penstock.telemetry import Metrics
from penstock.testing.fake_executor import FakeExecutor
from penstock.testing.fake_programs import FakeLogs, FakeProbe, FakeToolchains
from penstock.testing.memory_store import MemoryStore

VERSION = "0.337.0"
PATIENCE_SECONDS = 5.0


@dataclass
class FakeUsage:
    """What every deployment uses, if anything."""

    usage_now: Usage | None = None

    async def usage(self, row: Pipeline) -> Usage | None:
        return self.usage_now


@dataclass
class Answer:
    """What the daemon answered, read to its end."""

    status: int
    headers: Any
    body: bytes
    json: Any
    """None when the body is empty or not JSON."""

    @property
    def error_code(self) -> str:
        assert set(self.json) == {"message", "error_code", "details"}, self.body
        assert isinstance(self.json["message"], str)
        assert isinstance(self.json["details"], dict)
        return self.json["error_code"]


@dataclass
class House:
    """See the module. Change the knobs before `running`, or let things happen in `world` and `store` meanwhile."""

    clock: SystemClock = field(default_factory=SystemClock)
    world: FakeExecutor = field(default_factory=FakeExecutor)
    toolchains: FakeToolchains = field(default_factory=FakeToolchains)
    probe: FakeProbe = field(default_factory=FakeProbe)
    logs: FakeLogs = field(default_factory=FakeLogs)
    usage: FakeUsage = field(default_factory=FakeUsage)
    metrics: Metrics = field(default_factory=lambda: Metrics(VERSION))
    version: str = VERSION
    compiles: bool = True
    """False: programs stay Pending until `compile` is called."""
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    grace_seconds: float = 30.0
    store: MemoryStore = field(init=False)
    loop: Loop = field(init=False)
    context: Context = field(init=False)
    app: web.Application = field(init=False)
    address: str = field(init=False)
    """host:port"""
    client: aiohttp.ClientSession = field(init=False)
    _changed: anyio.Event = field(default_factory=anyio.Event)

    def __post_init__(self) -> None:
        self.store = MemoryStore(self.clock)
        self.store.listen(self._on_change)
        reconciler = Reconciler(
            store=self.store,
            executor=self.world,
            toolchains=self.toolchains,
            probe=self.probe,
            logs=self.logs,
            clock=self.clock,
            policy=Policy(),
        )
        self.loop = Loop(
            store=self.store, executor=self.world, reconciler=reconciler, metrics=self.metrics, clock=self.clock
        )
        self.context = Context(
            store=self.store,
            toolchains=self.toolchains,
            usage=self.usage,
            probe=self.probe,
            logs=self.logs,
            clock=self.clock,
            metrics=self.metrics,
            version=self.version,
            stop_grace_seconds=lambda: self.grace_seconds,
            caught_up=self.loop.caught_up.is_set,
            look_again=self.loop.wake,
        )

    # Requests.

    async def ask(self, method: str, path: str, *, body: object = ..., **options: Any) -> Answer:
        """Send one request; `body` goes as JSON. The path is sent as it is, percent signs and all."""
        if body is not ...:
            options["json"] = body
        url = URL(f"http://{self.address}{path}", encoded=True)
        async with self.client.request(method, url, **options) as response:
            content = await response.read()
            is_json = response.content_type == "application/json" and content
            parsed = await response.json() if is_json else None
            return Answer(response.status, response.headers, content, parsed)

    async def get(self, path: str, **options: Any) -> Answer:
        return await self.ask("GET", path, **options)

    async def post(self, path: str, **options: Any) -> Answer:
        return await self.ask("POST", path, **options)

    async def create(self, name: str = "p1", **fields: object) -> dict[str, Any]:
        """POST a pipeline; return the answer's object."""
        answer = await self.post("/v0/pipelines", body={"name": name, "program_code": "", **fields})
        assert answer.status == 201, answer.body
        return answer.json

    async def status(self, name: str = "p1") -> dict[str, Any]:
        answer = await self.get(f"/v0/pipelines/{name}?selector=status")
        assert answer.status == 200, answer.body
        return answer.json

    async def running(self, name: str = "p1", initial: str = "running", **fields: object) -> dict[str, Any]:
        """Create a pipeline, start it, and wait until it runs (or is paused)."""
        await self.create(name, **fields)
        await self.start(name, initial)
        return await self.status(name)

    async def start(self, name: str = "p1", initial: str = "running") -> None:
        answer = await self.post(f"/v0/pipelines/{name}/start?initial={initial}")
        assert answer.status == 202, answer.body
        await self.until(name, deployment_status=initial.capitalize())

    async def stop(self, name: str = "p1") -> None:
        answer = await self.post(f"/v0/pipelines/{name}/stop?force=true")
        assert answer.status == 202, answer.body
        await self.until(name, deployment_status="Stopped")

    async def until(self, name: str = "p1", **fields: object) -> dict[str, Any]:
        """Wait until the pipeline's status form shows `fields`; return it."""
        seen: dict[str, Any] = {}
        with anyio.move_on_after(PATIENCE_SECONDS):
            while True:
                changed = self._changed
                seen = await self.status(name)
                if all(seen[key] == value for key, value in fields.items()):
                    return seen
                await changed.wait()
        raise AssertionError(f"{name} never showed {fields}; at last { ({k: seen[k] for k in fields}) }")

    # What stands behind the API.

    async def row(self, name: str = "p1") -> Pipeline:
        row = await self.store.find(self.context.tenant, name)
        assert row is not None
        return row

    async def row_of(self, pipeline_id: str) -> Pipeline:
        row = await self.store.get(PipelineId(pipeline_id))
        assert row is not None
        return row

    async def rewrite(self, name: str = "p1", **columns: Any) -> Pipeline:
        """Put columns into a row that the rules would not: no event, no check."""
        row = await self.row(name)
        self.store._rows[row.id] = after = replace(row, revision=row.revision + 1, **columns)
        self._on_change(row.id, Author.DAEMON)
        return after

    async def compile(self, name: str = "p1") -> None:
        """Take the program through both steps, as the compiler would."""
        await self._compile((await self.row(name)).id)

    async def _compile(self, pipeline_id: PipelineId) -> None:
        while True:
            row = await self.store.get(pipeline_id)
            if row is None or not program.is_due(row):
                return
            try:
                await self._compile_step(row)
            except (StaleRevision, NotFound):
                continue

    async def _compile_step(self, row: Pipeline) -> None:
        checks = row.program_status is ProgramStatus.PENDING
        begun = await self._put(row, (program.begin_check if checks else program.begin_build)(row, self.clock.now()))
        result = await (self.toolchains.check if checks else self.toolchains.build)(begun)
        now, version = self.clock.now(), begun.program_version
        match result:
            case StepPassed() if checks:
                after = program.check_passed(begun, version, result.outcome, result.info, now)
            case StepPassed():
                after = program.build_passed(begun, version, result.outcome, result.artifact or "", now)
            case StepFailed() if checks:
                after = program.check_failed(begun, version, result.outcome, now)
            case StepFailed():
                after = program.build_failed(begun, version, result.outcome, now)
            case _:
                after = program.broke(begun, version, result.reason, now)
        await self._put(begun, after)

    async def _put(self, before: Pipeline, after: Pipeline | None) -> Pipeline:
        assert after is not None
        return await self.store.commit(before, (after,), by=Author.COMPILER, cause="compiled", now=self.clock.now())

    async def run_compiler(self) -> None:
        while True:
            changed = self._changed
            try:
                for row in await self.store.pipelines():
                    if self.compiles and program.is_due(row):
                        await self._compile(row.id)
                await changed.wait()
            except StoreUnavailable:
                await anyio.sleep(0.01)

    def _on_change(self, _pipeline_id: PipelineId, _author: Author) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()


@asynccontextmanager
async def serving(house: House) -> AsyncGenerator[House]:
    """Run the daemon's loop, compiler and API until the block ends."""
    house.app = build_app(house.context, allowed_hosts=house.allowed_hosts, allowed_origins=house.allowed_origins)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(house.loop.run)
        tasks.start_soon(house.run_compiler)
        house.address = await listening(tasks.start_soon, house.app)
        async with aiohttp.ClientSession(auto_decompress=True) as house.client:
            yield house
        tasks.cancel_scope.cancel()


async def listening(start_soon: Callable[..., None], app: web.Application, listen: str = "127.0.0.1:0") -> str:
    """Serve `app` in a task of the caller's group; return the address once it is served."""
    served = anyio.Event()
    address: list[str] = []

    def ready(bound: str) -> None:
        address.append(bound)
        served.set()

    start_soon(functools.partial(serve, app, listen, ready=ready))
    with anyio.fail_after(PATIENCE_SECONDS):
        await served.wait()
    return address[0]
