"""The nouns: a pipeline's row, its statuses, what a look can show, what can be done about it.

Floor 0. Everybody imports it, it imports nothing of Penstock. All values are frozen; a change is a new value
(`dataclasses.replace`). Must never do I/O, read a clock or make an id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NewType, TypeAlias

JsonValue: TypeAlias = "bool | int | float | str | Sequence[JsonValue] | Mapping[str, JsonValue] | None"
JsonObject: TypeAlias = Mapping[str, JsonValue]

PipelineId = NewType("PipelineId", str)
"""A UUID in its canonical hyphenated form; stays with a pipeline through renames."""

DeploymentId = NewType("DeploymentId", str)
"""A UUID; one per start. Effects are keyed by it, so that repeating one never starts a second copy."""

TenantId = NewType("TenantId", str)

DEFAULT_TENANT = TenantId("00000000-0000-0000-0000-000000000000")
"""The one tenant of a daemon without authentication (contract.md section 5.0)."""


class ResourcesStatus(StrEnum):
    """Whether compute is held for a pipeline (contract.md section 1.1)."""

    STOPPED = "Stopped"
    """No process of the pipeline runs; storage may remain. Left when the daemon acts on a start."""
    PROVISIONING = "Provisioning"
    """Compute is being created. Left when it is ready, failed, timed out, or a stop was asked for."""
    PROVISIONED = "Provisioned"
    """Compute exists; the runtime status applies. Left when it ends, fails, suspends, or must stop."""
    STOPPING = "Stopping"
    """Compute is being removed. Left when nothing of the deployment is alive any more."""


class ResourcesDesired(StrEnum):
    """What the user wants of the resources."""

    STOPPED = "Stopped"
    PROVISIONED = "Provisioned"


class StorageStatus(StrEnum):
    """Whether a pipeline's storage holds anything (contract.md section 2.4)."""

    CLEARED = "Cleared"
    IN_USE = "InUse"
    CLEARING = "Clearing"


class RuntimeStatus(StrEnum):
    """What a provisioned pipeline does; None on a row that is not Provisioned."""

    UNAVAILABLE = "Unavailable"
    """The process could not be asked, or answered nonsense. Only ever set by the daemon."""
    COORDINATION = "Coordination"
    STANDBY = "Standby"
    INITIALIZING = "Initializing"
    AWAITING_APPROVAL = "AwaitingApproval"
    BOOTSTRAPPING = "Bootstrapping"
    CONCURRENT_BOOTSTRAPPING = "ConcurrentBootstrapping"
    SYNCHRONIZING = "Synchronizing"
    REPLAYING = "Replaying"
    PAUSED = "Paused"
    RUNNING = "Running"
    SUSPENDED = "Suspended"


class RuntimeDesired(StrEnum):
    """What a process says that it has been told to do; not to be confused with `Pipeline.runtime_intent`."""

    UNAVAILABLE = "Unavailable"
    COORDINATION = "Coordination"
    STANDBY = "Standby"
    PAUSED = "Paused"
    RUNNING = "Running"
    SUSPENDED = "Suspended"


class ProgramStatus(StrEnum):
    """Where a program is on its way to an artifact (contract.md section 2.6).

    The names are the reference API's own: read "check" for Sql and "build" for Rust.
    """

    PENDING = "Pending"
    COMPILING_SQL = "CompilingSql"
    SQL_COMPILED = "SqlCompiled"
    COMPILING_RUST = "CompilingRust"
    SUCCESS = "Success"
    SQL_ERROR = "SqlError"
    RUST_ERROR = "RustError"
    SYSTEM_ERROR = "SystemError"


PROGRAM_FAILED = frozenset({ProgramStatus.SQL_ERROR, ProgramStatus.RUST_ERROR, ProgramStatus.SYSTEM_ERROR})


class Initial(StrEnum):
    """How a start wants its pipeline to begin; the spelling is that of the query parameter."""

    RUNNING = "running"
    PAUSED = "paused"
    STANDBY = "standby"

    @property
    def desired(self) -> RuntimeDesired:
        """The runtime status that this beginning leads to."""
        return RuntimeDesired(self.value.capitalize())


class BootstrapPolicy(StrEnum):
    """What to do when a program changed since its last checkpoint."""

    ALLOW = "allow"
    REJECT = "reject"
    AWAIT_APPROVAL = "await_approval"


class StopMode(StrEnum):
    """How a pending stop ends the process."""

    GRACEFUL = "graceful"
    """Ask, then wait until `Pipeline.stop_deadline`, then kill."""
    FORCE = "force"


class Author(StrEnum):
    """Who makes a move; every move names the authors that may make it (`moves.check_move`)."""

    USER = "user"
    DAEMON = "daemon"
    COMPILER = "compiler"


@dataclass(frozen=True, slots=True)
class Fault:
    """A failure of the world, as a value: stored on the row, shown by the API as an ErrorResponse."""

    code: str
    message: str
    details: JsonObject = field(default_factory=dict[str, JsonValue])


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """The bootstrap parameters of one start."""

    policy: BootstrapPolicy = BootstrapPolicy.AWAIT_APPROVAL
    silent: bool = False
    concurrent: bool = False


@dataclass(frozen=True, slots=True)
class Resume:
    """A start that is owed: how the pipeline shall begin again."""

    initial: Initial
    bootstrap: Bootstrap


@dataclass(frozen=True, slots=True)
class ProgramError:
    """What the tools said; the three members are the API's own (contract.md section 1.3)."""

    sql_compilation: JsonObject | None = None
    rust_compilation: JsonObject | None = None
    system_error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What a user may write about a pipeline. Configurations are normalised: every default is filled in."""

    name: str
    description: str = ""
    tags: tuple[str, ...] = ()
    program_code: str = ""
    udf_rust: str = ""
    udf_toml: str = ""
    runtime_config: JsonObject = field(default_factory=dict[str, JsonValue])
    program_config: JsonObject = field(default_factory=dict[str, JsonValue])


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """One row: what a user wrote, what should be true, and what was last seen to be true.

    `revision` counts every write of the row and guards it: a commit names the revision that it read. It is private,
    not to be confused with `version` (core edits), `program_version` (program edits) and `refresh_version`
    (contract.md section 2.5). Columns under "private" never leave the daemon.
    """

    id: PipelineId
    tenant: TenantId = DEFAULT_TENANT
    revision: int = 0
    created_at: datetime
    spec: Spec

    version: int = 1
    program_version: int = 1
    refresh_version: int = 1
    platform_version: str

    program_status: ProgramStatus = ProgramStatus.PENDING
    program_status_since: datetime
    program_error: ProgramError = ProgramError()
    program_info: JsonObject | None = None

    resources_status: ResourcesStatus = ResourcesStatus.STOPPED
    resources_status_since: datetime
    resources_status_details: JsonObject | None = None
    resources_desired: ResourcesDesired = ResourcesDesired.STOPPED
    resources_desired_since: datetime
    deployment_id: DeploymentId | None = None
    deployment_initial: Initial | None = None
    bootstrap: Bootstrap | None = None
    deployment_error: Fault | None = None

    runtime_status: RuntimeStatus | None = None
    runtime_status_since: datetime | None = None
    runtime_status_details: JsonObject | None = None
    runtime_desired: RuntimeDesired | None = None
    runtime_desired_since: datetime | None = None

    storage_status: StorageStatus = StorageStatus.CLEARED
    storage_status_details: JsonObject | None = None

    # Private.
    deployment_location: str | None = None
    """``host:port`` of a process that speaks contract `http`."""
    artifact: str | None = None
    """Digest under which the built program is kept; set with Success."""
    runtime_intent: RuntimeDesired | None = None
    """Paused or Running as the user last asked; outlives Unavailable, crashes of the daemon and reboots."""
    stop_mode: StopMode | None = None
    """Set from the request until Stopped is recorded."""
    stop_deadline: datetime | None = None
    """When a graceful stop becomes a forced one."""
    suspect_since: datetime | None = None
    """Since when the process gives answers that would be fatal; one alone never kills it."""
    resume: Resume | None = None
    """Start again as soon as Stopped is reached: the host went down under a pipeline that should run."""
    details_written_at: datetime | None = None
    """When the details of this deployment were last written; they are written at most every few seconds."""
    event_at: datetime | None = None
    """When the newest monitor event was recorded."""

    @property
    def is_fully_stopped(self) -> bool:
        """Both the actual and the desired resources status are Stopped."""
        return self.resources_status is ResourcesStatus.STOPPED and self.resources_desired is ResourcesDesired.STOPPED

    @property
    def deployment_status(self) -> str:
        """The combined status (contract.md section 1.2)."""
        if self.resources_status is not ResourcesStatus.PROVISIONED:
            return self.resources_status.value
        return (self.runtime_status or RuntimeStatus.UNAVAILABLE).value

    @property
    def deployment_desired_status(self) -> str:
        """The combined desired status (contract.md section 1.2). No client knows one that is called Coordination."""
        if self.resources_desired is ResourcesDesired.STOPPED:
            return ResourcesDesired.STOPPED.value
        if self.runtime_desired not in (None, RuntimeDesired.COORDINATION):
            return self.runtime_desired.value
        if self.deployment_initial is not None:
            return self.deployment_initial.desired.value
        return RuntimeDesired.UNAVAILABLE.value


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorEvent:
    """One recorded change of a pipeline: a snapshot of what a client can see (contract.md section 4).

    `sequence` is given by the store and strictly increases over all pipelines; 0 = not stored yet. `cause`,
    `deployment_id`, `author` and `sequence` are shown only to those who ask.
    """

    event_id: str
    sequence: int = 0
    pipeline_id: PipelineId
    tenant: TenantId
    recorded_at: datetime
    cause: str
    author: Author
    deployment_id: DeploymentId | None

    resources_status: ResourcesStatus
    resources_status_details: JsonObject | None
    resources_desired: ResourcesDesired
    runtime_status: RuntimeStatus | None
    runtime_status_details: JsonObject | None
    runtime_desired: RuntimeDesired | None
    deployment_error: Fault | None
    program_status: ProgramStatus
    storage_status: StorageStatus
    storage_status_details: JsonObject | None


# --- sightings: what a look can show --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Report:
    """What a running process says of itself, or the daemon of an opaque one. `storage_details` None = unknown."""

    status: RuntimeStatus
    desired: RuntimeDesired
    details: JsonObject = field(default_factory=dict[str, JsonValue])
    storage_details: JsonObject | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a process ended. `code` and `signal` both None = nobody can tell any more."""

    pid: int | None
    code: int | None = None
    signal: int | None = None
    signal_name: str | None = None
    inferred: bool = False
    """The signal was read off a shell-style exit code above 128."""
    ended_at: datetime | None = None
    log_tail: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Absent:
    """Nothing of this deployment was ever spawned: to provision it now makes the one copy that there will be.

    After StopCompute it is Ended, and nothing of it can appear any more. `storage_remains` is looked at only while
    storage is Clearing.
    """

    storage_remains: bool = False


@dataclass(frozen=True, slots=True)
class Starting:
    """Compute exists but is not ready yet."""

    details: JsonObject | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """Compute runs. `report` None = it has not been asked."""

    location: str | None = None
    details: JsonObject | None = None
    report: Report | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """The main process is gone.

    `leftovers`, looked for only while Stopping: others of the deployment are still alive. `completed`: this is how
    such a program ends when its work is done. `fault`: what ended it, where that was not the process itself
    (`HostRestarted`).
    """

    exit: Exit
    leftovers: bool = False
    completed: bool = False
    fault: Fault | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The compute is broken beyond doubt. `confirmed` False = once more, before anything is done about it."""

    fault: Fault
    confirmed: bool = True


@dataclass(frozen=True, slots=True)
class Unseen:
    """Could not look. Never counts as Absent, decides nothing."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unbuilt:
    """A start is due, but the built program is missing or damaged: build it again."""

    reason: str


Sighting = Absent | Starting | Ready | Ended | Failed | Unseen | Unbuilt


# --- effects: what can be done --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Provision:
    """Create the compute of the row's deployment; nothing if it exists."""


@dataclass(frozen=True, slots=True)
class SteerRuntime:
    """Tell the process to be Paused, Running or Suspended."""

    target: RuntimeDesired


@dataclass(frozen=True, slots=True)
class StopCompute:
    """Kill everything of the deployment, and see to it that nothing of it ever appears; afterwards it is Ended."""


@dataclass(frozen=True, slots=True)
class ClearStorage:
    """Remove the pipeline's storage and verify that it is gone."""


Effect = Provision | SteerRuntime | StopCompute | ClearStorage


@dataclass(frozen=True, slots=True)
class EffectFailed:
    """An effect did not work. `retry`: the same again may help."""

    effect: Effect
    fault: Fault
    retry: bool


@dataclass(frozen=True, slots=True)
class Refusal:
    """A user asked for what the rules do not allow; `code` is one of contract.md section 6."""

    code: str
    message: str
    details: JsonObject = field(default_factory=dict[str, JsonValue])
