"""What the daemon needs of the world: the protocols that adapters implement, and the exceptions that they may raise.

The reconciler, the loop, the compiler and the API speak to these only; `wiring.py` alone knows who implements them. One
contract suite per port (`testing.py`) runs against the fake and every real implementation.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from penstock.answers import Answer, NoAnswer
from penstock.model import (
    Author,
    DeploymentId,
    Effect,
    Fault,
    JsonObject,
    MonitorEvent,
    Pipeline,
    PipelineId,
    RuntimeDesired,
    Sighting,
    Spec,
    TenantId,
)


class PenstockError(Exception):
    """Whatever of ours is raised on purpose."""


class StoreError(PenstockError):
    """A store could not do what it was asked."""


class NotFound(StoreError):
    """There is no such pipeline (any more)."""


class NameTaken(StoreError):
    """The tenant has another pipeline of that name."""


class StaleRevision(StoreError):
    """The row has been written since it was read; read it again and decide again."""


class StoreUnavailable(StoreError):
    """The store cannot be reached or cannot write at the moment; nothing was changed."""


class StoreCorrupt(StoreError):
    """What the store holds cannot be understood. The text names the file and the row. A person must look."""


class StoreLocked(StoreError):
    """Another daemon uses this store."""


class ExecutorError(PenstockError):
    """An effect did not work. `retry`: the same again may help."""

    def __init__(self, fault: Fault, *, retry: bool) -> None:
        super().__init__(fault.message)
        self.fault = fault
        self.retry = retry


class Clock(Protocol):
    """Wall time and new ids. Waiting is not its business: that uses anyio's clock."""

    def now(self) -> datetime:
        """The time, aware, UTC."""
        ...

    def new_id(self) -> str:
        """A new UUID v7 in canonical form; strictly increasing within one process."""
        ...


Listener = Callable[[PipelineId, Author], None]
"""Called after a change of a pipeline became visible, with its author; must return at once and must not raise."""


class Store(Protocol):
    """Rows and their events. Every method may raise StoreUnavailable; none blocks the event loop.

    A row that was returned by a writing method is on disk to the degree that its author needs: a user's request
    survives the loss of power, the daemon's own writes survive the death of any process (design section 6).
    """

    async def create(self, row: Pipeline, *, by: Author = Author.USER) -> Pipeline:
        """Add a new pipeline and its first event. Raises NameTaken. Returns the row with its revision."""
        ...

    async def get(self, pipeline_id: PipelineId) -> Pipeline | None:
        """The row as last committed; None when there is no such pipeline."""
        ...

    async def find(self, tenant: TenantId, name: str) -> Pipeline | None:
        """The tenant's pipeline of that name (case-sensitive); None when there is none."""
        ...

    async def pipelines(self, tenant: TenantId | None = None) -> list[Pipeline]:
        """All pipelines, or those of one tenant, oldest first."""
        ...

    async def commit(
        self, before: Pipeline, rows: Sequence[Pipeline], *, by: Author, cause: str, now: datetime
    ) -> Pipeline:
        """Record the snapshots in `rows` (at least one) and the events they make (`history.record`), one transaction.

        Compares `before.revision` with the stored one. Raises StaleRevision, NotFound, NameTaken (a rename), or
        moves.IllegalMove (our bug); then nothing was changed. Returns the row as stored. Must not be cancelled
        half-way: once begun, it is either wholly applied or not at all.
        """
        ...

    async def delete(self, before: Pipeline) -> None:
        """Remove the pipeline and its events. Raises StaleRevision, NotFound."""
        ...

    async def events(self, pipeline_id: PipelineId, *, after: int = 0, limit: int | None = None) -> list[MonitorEvent]:
        """The retained events with a sequence above `after`, newest first; the newest `limit` of them."""
        ...

    async def event(self, pipeline_id: PipelineId, event_id: str) -> MonitorEvent | None:
        """One event of that pipeline; None when unknown or trimmed."""
        ...

    async def latest_event(self, pipeline_id: PipelineId) -> MonitorEvent | None:
        """The newest event; None when nothing is retained."""
        ...

    def listen(self, listener: Listener) -> None:
        """Have `listener` called after every create, commit and delete. A hint: it may be lost or doubled."""
        ...

    @property
    def instance_id(self) -> str:
        """A UUID made once per store; what carries it is ours."""
        ...

    async def check(self) -> None:
        """Raise StoreUnavailable unless the store can be read and written now."""
        ...


@dataclass(frozen=True, slots=True)
class Compute:
    """Something of ours that exists out there, as `Executor.survey` finds it."""

    pipeline_id: PipelineId
    deployment_id: DeploymentId


class Executor(Protocol):
    """Where compute lives. Holds connections, never state that a restart would lose.

    Everything is addressed by the row's ids. `look` and `perform` may be cancelled at any await; each may be repeated.
    """

    async def look(self, row: Pipeline) -> Sighting:
        """Tell what is there of the row's deployment, adopting what an earlier daemon left. Changes nothing.

        For a Stopped row: Absent; while its storage is Clearing, with `storage_remains` telling whether any exists.
        Anything unsure is Unseen. Never raises for the world's failures.
        """
        ...

    async def perform(self, row: Pipeline, effect: Effect) -> None:
        """Carry out `effect` for the row's deployment; idempotent; returns soon. Raises ExecutorError."""
        ...

    async def survey(self) -> list[Compute]:
        """Everything alive that carries this store's instance id."""
        ...

    async def discard(self, compute: Compute) -> None:
        """Kill what `survey` found and no row knows. Raises ExecutorError."""
        ...

    async def kept(self) -> list[PipelineId]:
        """The pipelines of which something is kept on disk, running or not."""
        ...

    async def forget(self, pipeline_id: PipelineId) -> None:
        """Remove what is kept on disk of a pipeline that was deleted; nothing if there is none."""
        ...

    def events(self) -> AsyncGenerator[PipelineId, None]:
        """Yield the id of each pipeline whose compute changed, as it happens. A hint; ends only when closed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What the processes of an opaque deployment use."""

    rss_bytes: int
    cpu_seconds: float
    processes: int
    threads: int
    open_files: int
    started_at: datetime
    storage_bytes: int | None = None


class UsageSource(Protocol):
    """An executor that can tell what a deployment uses."""

    async def usage(self, row: Pipeline) -> Usage | None:
        """What the row's deployment uses now; None when nothing of it runs."""
        ...


@dataclass(frozen=True, slots=True)
class Reply:
    """What a process answered, whole, to be passed on. `content_type` is empty when it named none."""

    http_status: int
    content_type: str
    body: bytes


class Probe(Protocol):
    """Asks a process that speaks contract `http`."""

    async def status(self, location: str) -> Answer | NoAnswer:
        """GET /status; bounded by a time-out; never raises for the world's failures."""
        ...

    async def get(self, location: str, path: str) -> Reply | Fault:
        """GET `path`, percent-encoded and with its query; bounded in time and size; a Fault when nothing came."""
        ...

    async def post(self, location: str, path: str) -> Reply | Fault:
        """POST to `path` once, without a body; as `get`, but what it asks for may take the process its time."""
        ...

    async def steer(self, location: str, target: RuntimeDesired) -> None:
        """Tell the process to be Running, Paused or Suspended. Raises ExecutorError."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPassed:
    """A check or a build that went well. `outcome` is the member of program_error that it fills."""

    outcome: JsonObject
    info: JsonObject | None = None
    artifact: str | None = None


@dataclass(frozen=True, slots=True)
class StepFailed:
    """The program is wrong; `outcome` as above, with the tool's messages."""

    outcome: JsonObject


@dataclass(frozen=True, slots=True)
class StepBroke:
    """Not the program's fault: a missing tool, a time-out, a full disk."""

    reason: str


StepResult = StepPassed | StepFailed | StepBroke


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """How a built program is started: an argv template whose ``{placeholders}`` the executor fills in."""

    argv: tuple[str, ...]
    contract: str
    """``process`` or ``http``."""
    artifact_dir: str
    program_file: str
    env: tuple[tuple[str, str], ...] = ()


class Toolchains(Protocol):
    """Gives programs their meaning: check, build, run (design section 4). Results are kept by digest."""

    def refuse(self, spec: Spec) -> str | None:
        """Tell why `program_config` names no usable toolchain or contract; None when it is fine."""
        ...

    async def check(self, row: Pipeline) -> StepResult:
        """Check the program. May be cancelled: then nothing of it is left running."""
        ...

    async def build(self, row: Pipeline) -> StepResult:
        """Build the program; StepPassed.artifact is its digest. May be cancelled, as above."""
        ...

    async def verify(self, row: Pipeline) -> str | None:
        """Tell what is missing or damaged of `row.artifact`; None when it is whole."""
        ...

    def plan(self, row: Pipeline) -> RunPlan:
        """How to start the row's program. Raises ExecutorError (no retry) when its toolchain is gone."""
        ...

    async def sweep(self, rows: Sequence[Pipeline]) -> int:
        """Remove what no row refers to; returns how many artifacts went."""
        ...


@dataclass(frozen=True, slots=True)
class LogCursor:
    """How far somebody has read a log: up to and with line number `seq` of `epoch`."""

    epoch: str
    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPosition:
    """Where reading of a log begins (contract.md section 8): after line number `seq`.

    `gap` is how many of the lines that were asked for are no longer kept.
    """

    epoch: str
    seq: int
    gap: int
    offset: int
    """The log's own business, as is `torn`."""
    torn: bool


class Logs(Protocol):
    """One log per pipeline, across its runs: what its processes print, and what the daemon has to say of it."""

    def path(self, pipeline_id: PipelineId) -> str:
        """The file that processes append to; exists after this call."""
        ...

    def note(self, row: Pipeline, level: str, message: str) -> None:
        """Append a control-plane line (contract.md section 8). Best effort; never raises, never blocks for long."""
        ...

    def tail(self, pipeline_id: PipelineId, lines: int) -> tuple[str, ...]:
        """The last lines that programs of the latest run have printed, decoded, each bounded in length."""
        ...

    def forget(self, pipeline_id: PipelineId) -> None:
        """End the readers of a pipeline that was deleted."""
        ...

    async def position(
        self,
        pipeline_id: PipelineId,
        *,
        cursor: LogCursor | None = None,
        tail: int | None = None,
        since: datetime | None = None,
    ) -> LogPosition:
        """The latest of: after `cursor`, the last `tail` lines, what was written from `since` on; else the oldest kept.

        An unknown epoch is as good as no cursor; a cursor beyond the end means the end. Nothing that was written from
        `since` on is left out; some that was written before may come too.
        """
        ...

    def read(
        self, pipeline_id: PipelineId, *, follow: bool, position: LogPosition | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Yield blocks of whole lines, oldest kept first; with `follow` go on until closed or deleted.

        With a `position` only lines that have a number, in order and without a gap; ends when some are gone under a
        slow reader. An unfinished line at the very end comes without a line end then.
        """
        ...
