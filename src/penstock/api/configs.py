"""The two configurations that a pipeline carries, typed: what is given is checked, what is not gets its default.

Called by `spec.py`. Names, types and defaults are the reference's (contract.md section 5.2); unknown keys are dropped.
Most settings mean something to the pipeline's process only; the daemon keeps them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType, field

from penstock.api.errors import ApiError
from penstock.model import JsonObject, JsonValue

Unsigned = Annotated[int, Meta(ge=0)]
"""Bodies hold no integer of more than 64 bits (`bodies.py`)."""

RESERVED_ENV = frozenset({"HOSTNAME", "RUST_LOG", "TOKIO_WORKER_THREADS"})
RESERVED_ENV_PREFIXES = ("FELDERA_", "KUBERNETES_", "TOKIO_", "PENSTOCK_")
"""The last one is ours: what tells a process who and where it is (design section 5)."""

MAX_VARIABLE_BYTES = 131_071
"""How long one variable, as ``NAME=value``, may be for the kernel: MAX_ARG_STRLEN without the NUL at its end."""

MAX_ENVIRONMENT_BYTES = 1_500_000
"""How much all of them may take: of the 2 MiB that the kernel has for words and variables some are needed by others."""

_VARIABLE_OVERHEAD_BYTES = 9
"""A NUL and a pointer."""

_RUNTIME_VERSION = re.compile(r"v\d+\.\d+\.\d+|[0-9a-fA-F]{40}")


class DefaultBackend(msgspec.Struct, tag_field="name", tag="default"):
    """Storage where the executor puts it."""


class FileConfig(msgspec.Struct):
    """Storage on a file system. `sync` is the process' own business, apart from being there."""

    async_threads: bool | None = None
    ioop_delay: Unsigned | None = None
    sync: dict[str, object] | None = None


class FileBackend(msgspec.Struct, tag_field="name", tag="file"):
    """Storage on a file system, with settings."""

    config: FileConfig = field(default_factory=FileConfig)


class ObjectBackend(msgspec.Struct, tag_field="name", tag="object"):
    """Storage in an object store: `config` has a `url` and options."""

    config: dict[str, str]

    def __post_init__(self) -> None:
        if "url" not in self.config:
            raise ValueError("Object missing required field `url` - at `$.storage.backend.config`")


class StorageOptions(msgspec.Struct):
    """How a process uses its storage."""

    backend: DefaultBackend | FileBackend | ObjectBackend = field(default_factory=DefaultBackend)
    min_storage_bytes: Unsigned | None = None
    min_step_storage_bytes: Unsigned | None = None
    compression: Literal["default", "none", "snappy"] = "default"
    cache_mib: Unsigned | None = None


class FaultTolerance(msgspec.Struct):
    """How much a process promises after a crash. An object that names no model means the strongest one."""

    model: Literal["none", "at_least_once", "exactly_once"] = "exactly_once"
    checkpoint_interval_secs: Unsigned | None = 60


class Resources(msgspec.Struct):
    """Reservations and limits; exactly these eight keys."""

    cpu_cores_min: float | None = None
    cpu_cores_max: float | None = None
    memory_mb_min: Unsigned | None = None
    memory_mb_max: Unsigned | None = None
    storage_mb_max: Unsigned | None = None
    storage_class: str | None = None
    service_account_name: str | None = None
    namespace: str | None = None


class Template(msgspec.Struct):
    """Where a template of the compute is kept."""

    name: str
    key: str = "pipelineTemplate"


class RuntimeConfig(msgspec.Struct):
    """How a pipeline runs."""

    workers: Annotated[int, Meta(ge=0, le=65535)] = 8
    max_rss_mb: Unsigned | None = None
    datafusion_memory_mb: Unsigned | None = None
    hosts: Unsigned = 1
    storage: StorageOptions | bool | None = field(default_factory=StorageOptions)
    fault_tolerance: FaultTolerance | Literal["initial_state", "latest_checkpoint"] | None = None
    cpu_profiler: bool = True
    tracing: bool = False
    tracing_endpoint_jaeger: str = "127.0.0.1:6831"
    min_batch_size_records: Unsigned = 0
    max_buffering_delay_usecs: Unsigned = 0
    resources: Resources = field(default_factory=Resources)
    clock_resolution_usecs: Unsigned | None = 1_000_000
    clock_timezone_offset: str | int | None = None
    pin_cpus: list[Unsigned] = field(default_factory=list[int])
    provisioning_timeout_secs: Unsigned | None = None
    max_parallel_connector_init: Unsigned | None = None
    init_containers: object = None
    checkpoint_during_suspend: bool = True
    http_workers: Unsigned | None = None
    io_workers: Unsigned | None = None
    env: dict[str, str] = field(default_factory=dict[str, str])
    dev_tweaks: dict[str, object] = field(default_factory=dict[str, object])
    logging: str | None = None
    pipeline_template_configmap: Template | None = None

    def __post_init__(self) -> None:
        if isinstance(self.storage, bool):
            self.storage = StorageOptions() if self.storage else None
        if self.fault_tolerance is None:
            self.fault_tolerance = FaultTolerance(model="none")
        elif isinstance(self.fault_tolerance, str):  # how clients of old enabled it
            self.fault_tolerance = FaultTolerance()


class ProgramConfig(msgspec.Struct):
    """How a program is built. The last two are ours, and shown only when they were given (design section 4)."""

    profile: Literal["dev", "unoptimized", "optimized", "optimized_symbols"] | None = None
    cache: bool = True
    runtime_version: str | None = None
    use_platform_compiler: bool = False
    toolchain: str | UnsetType | None = UNSET
    contract: str | UnsetType | None = UNSET

    def __post_init__(self) -> None:
        if self.runtime_version is not None and _RUNTIME_VERSION.fullmatch(self.runtime_version) is None:
            raise ValueError("Expected vX.Y.Z or the 40 digits of a commit - at `$.runtime_version`")
        self.toolchain = self.toolchain or UNSET
        self.contract = self.contract or UNSET


def runtime_config(value: JsonValue) -> JsonObject:
    """`value` with every default filled in; None is ``{}``. Raises ApiError InvalidRuntimeConfig."""
    given: JsonValue = {} if value is None else value
    try:
        config = msgspec.convert(given, RuntimeConfig)
    except msgspec.ValidationError as error:
        raise _invalid("InvalidRuntimeConfig", given, "DeserializationFailed", str(error)) from None
    flaw = _env_flaw(config.env)
    if flaw is not None:
        raise _invalid("InvalidRuntimeConfig", given, "InvalidPipelineEnv", flaw)
    return msgspec.to_builtins(config)


def program_config(value: JsonValue) -> JsonObject:
    """`value` with every default filled in; None is ``{}``. Raises ApiError InvalidProgramConfig."""
    given: JsonValue = {} if value is None else value
    try:
        return msgspec.to_builtins(msgspec.convert(given, ProgramConfig))
    except msgspec.ValidationError as error:
        raise invalid_program_config(given, str(error)) from None


def invalid_program_config(value: JsonValue, reason: str) -> ApiError:
    """The refusal of a program_config."""
    return _invalid("InvalidProgramConfig", value, "DeserializationFailed", reason)


def _env_flaw(env: Mapping[str, str]) -> str | None:
    """Why no process could be begun with `env`; None when one can."""
    total = 0
    for name, value in env.items():
        if name in RESERVED_ENV or name.startswith(RESERVED_ENV_PREFIXES):
            return f"environment variable {name!r} is reserved and cannot be overridden"
        if not name or "=" in name or "\0" in name:
            return f"{name[:100]!r} cannot be the name of an environment variable"
        if "\0" in value:
            return f"environment variable {name[:100]!r} has a NUL character"
        size = len(f"{name}={value}".encode(errors="replace"))
        if size > MAX_VARIABLE_BYTES:
            most = MAX_VARIABLE_BYTES
            return f"environment variable {name[:100]!r} has {size} bytes, with its name; {most} are possible"
        total += size + _VARIABLE_OVERHEAD_BYTES
    if total > MAX_ENVIRONMENT_BYTES:
        return f"the environment variables take {total} bytes in all; {MAX_ENVIRONMENT_BYTES} are possible"
    return None


def _invalid(code: str, value: JsonValue, kind: str, text: str) -> ApiError:
    which = "runtime_config" if code == "InvalidRuntimeConfig" else "program_config"
    return ApiError(code, f"{which} cannot be used: {text}.", {"value": value, "error": {kind: text}})
