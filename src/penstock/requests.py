"""What a user may ask for, and what it does to the row; or the refusal.

Called by the API's handlers and, for a start that a reboot owes, by `machine`. Pure. A refusal carries the error code
of contract.md section 6; the order of the checks is that of contract.md sections 2.3, 2.4 and 5.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import cast

from penstock import program
from penstock.model import (
    DEFAULT_TENANT,
    PROGRAM_FAILED,
    Bootstrap,
    Initial,
    JsonObject,
    JsonValue,
    Pipeline,
    PipelineId,
    Refusal,
    ResourcesDesired,
    ResourcesStatus,
    RuntimeDesired,
    RuntimeStatus,
    Spec,
    StopMode,
    StorageStatus,
    TenantId,
)

GUARDED_RUNTIME_FIELDS: tuple[tuple[str, ...], ...] = (
    ("workers",),
    ("hosts",),
    ("fault_tolerance",),
    ("resources", "storage_mb_max"),
    ("resources", "namespace"),
    ("resources", "storage_class"),
    ("clock_timezone_offset",),
)
"""Paths in runtime_config that may not change while storage is not Cleared (contract.md section 5.2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRequest:
    """The parameters of one start."""

    initial: Initial = Initial.RUNNING
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    dismiss_error: bool = True


def new_pipeline(
    pipeline_id: PipelineId,
    spec: Spec,
    *,
    platform_version: str,
    now: datetime,
    tenant: TenantId = DEFAULT_TENANT,
) -> Pipeline:
    """The row of a pipeline that was just created."""
    return Pipeline(
        id=pipeline_id,
        tenant=tenant,
        created_at=now,
        spec=spec,
        platform_version=platform_version,
        program_status_since=now,
        resources_status_since=now,
        resources_desired_since=now,
    )


def start(row: Pipeline, asked: StartRequest, *, now: datetime, keep_error: bool = False) -> Pipeline | Refusal:
    """Want the pipeline provisioned (contract.md section 2.3). Repeating the same start changes nothing.

    `keep_error` leaves an error on the row until the start is acted upon.
    """
    stopping = row.resources_desired is ResourcesDesired.STOPPED or row.stop_mode is not None
    if row.resources_status is not ResourcesStatus.STOPPED and stopping:
        return Refusal(
            "IllegalPipelineAction",
            f"The pipeline is {row.resources_status} and was told to stop; wait until it is Stopped, then start it.",
            {
                "status": row.resources_status.value,
                "current_desired_status": row.resources_desired.value,
                "new_desired_status": ResourcesDesired.PROVISIONED.value,
                "hint": "Wait for the pipeline to become Stopped before starting it again.",
            },
        )
    if row.deployment_error is not None and not asked.dismiss_error and not keep_error:
        return Refusal(
            "CannotStartWithUndismissedError",
            "The pipeline still shows the error of its last run; dismiss it, or start with dismiss_error=true.",
        )
    if row.storage_status is StorageStatus.CLEARING:
        return Refusal(
            "CannotStartWhileClearingStorage",
            "The pipeline's storage is being cleared; start it when storage_status is Cleared.",
        )
    if row.program_status in PROGRAM_FAILED:
        return Refusal(
            "CannotStartWithCompilationError",
            f"The program has status {row.program_status}; read program_error, change the program, and start again.",
        )
    if row.resources_desired is ResourcesDesired.PROVISIONED:
        if row.deployment_initial is not asked.initial:
            return Refusal(
                "InitialImmutableUnlessStopped",
                f"The pipeline was already started with initial={row.deployment_initial}; stop it to change that.",
            )
        if row.bootstrap != asked.bootstrap:
            return Refusal(
                "BootstrapPolicyImmutableUnlessStopped",
                "The pipeline was already started with other bootstrap parameters; stop it to change them.",
            )
    if asked.initial is Initial.STANDBY and not _may_stand_by(row.spec.runtime_config):
        return Refusal(
            "InitialStandbyNotAllowed",
            "initial=standby needs runtime_config.storage.backend.name=file with a sync section.",
        )
    wanted = row
    if row.resources_desired is not ResourcesDesired.PROVISIONED:
        wanted = replace(
            row,
            resources_desired=ResourcesDesired.PROVISIONED,
            resources_desired_since=now,
            deployment_initial=asked.initial,
            bootstrap=asked.bootstrap,
            resume=None,
        )
    return wanted if keep_error else replace(wanted, deployment_error=None)


def stop(row: Pipeline, *, force: bool, grace_seconds: float, now: datetime) -> Pipeline:
    """Want the pipeline stopped. Always allowed, in every state; repeating it changes nothing.

    A graceful stop of a provisioned pipeline keeps it wanted until the process has suspended itself or ended, or
    `grace_seconds` are over; anything else is wanted Stopped at once.
    """
    provisioned = row.resources_status is ResourcesStatus.PROVISIONED
    if not force and provisioned and row.resources_desired is ResourcesDesired.PROVISIONED:
        if row.stop_mode is not None:
            return row
        deadline = now + timedelta(seconds=grace_seconds)
        return replace(row, stop_mode=StopMode.GRACEFUL, stop_deadline=deadline)
    stopped = row.resources_status is ResourcesStatus.STOPPED
    unwanted = row
    if row.resources_desired is ResourcesDesired.PROVISIONED:
        unwanted = replace(row, resources_desired=ResourcesDesired.STOPPED, resources_desired_since=now)
    if stopped:
        return replace(unwanted, deployment_initial=None, bootstrap=None, resume=None)
    return replace(unwanted, stop_mode=StopMode.FORCE, stop_deadline=None, resume=None)


def clear(row: Pipeline) -> Pipeline | Refusal:
    """Want the storage cleared; nothing to do when it is Cleared or being cleared (contract.md section 2.4)."""
    if not row.is_fully_stopped:
        return Refusal(
            "StorageStatusImmutableUnlessStopped",
            f"Storage can be cleared only while the pipeline is stopped; it is {row.resources_status} and wanted "
            f"{row.resources_desired}. Stop it first.",
            {
                "resources_status": row.resources_status.value,
                "resources_desired_status": row.resources_desired.value,
                "current_status": row.storage_status.value,
                "new_status": StorageStatus.CLEARING.value,
            },
        )
    if row.storage_status is not StorageStatus.IN_USE:
        return row
    return replace(row, storage_status=StorageStatus.CLEARING, storage_status_details=None, resume=None)


def dismiss_error(row: Pipeline) -> Pipeline | Refusal:
    """Forget the error of the last run; nothing to do when there is none."""
    if row.deployment_error is None:
        return row
    if not row.is_fully_stopped:
        return Refusal(
            "DismissErrorRestrictedToFullyStopped",
            "The error can be dismissed only when the pipeline is stopped and wanted Stopped; stop it first.",
        )
    return replace(row, deployment_error=None)


def steer(row: Pipeline, target: RuntimeDesired) -> Pipeline | Refusal:
    """Want a provisioned pipeline Paused or Running; kept through crashes and while it cannot be reached.

    One that was told to stop goes nowhere else any more (contract.md section 2.7).
    """
    if row.resources_status is not ResourcesStatus.PROVISIONED:
        return Refusal(
            "PipelineInteractionNotDeployed",
            f"The pipeline is {row.resources_status}; it must be started before it can be paused or resumed.",
            {
                "pipeline_name": row.spec.name,
                "status": row.resources_status.value,
                "desired_status": row.resources_desired.value,
            },
        )
    if row.stop_mode is not None:
        return Refusal(
            "InvalidTransition",
            f"The pipeline was told to stop and cannot become {target} any more; start it again when it is Stopped.",
            {"current": RuntimeDesired.SUSPENDED.value, "desired": target.value},
        )
    if row.runtime_status is RuntimeStatus.UNAVAILABLE:
        return Refusal(
            "PipelineUnavailable",
            "The pipeline process cannot be reached at the moment; try again, or look at its logs.",
            {"pipeline_name": row.spec.name},
        )
    if row.runtime_status is RuntimeStatus.STANDBY:
        return Refusal(
            "InvalidTransition",
            f"The pipeline is on standby and becomes {target} only when it is activated: POST .../activate.",
            {"current": RuntimeDesired.STANDBY.value, "desired": target.value},
        )
    return row if row.runtime_intent is target else replace(row, runtime_intent=target)


def activated(row: Pipeline, target: RuntimeDesired) -> Pipeline:
    """Note what a process on standby was activated to be; nothing if it was told to stop meanwhile, which is more."""
    if row.resources_status is not ResourcesStatus.PROVISIONED or row.stop_mode is not None:
        return row
    return replace(row, runtime_intent=target)


def edit(row: Pipeline, spec: Spec, *, platform_version: str, bump: bool, now: datetime) -> Pipeline | Refusal:
    """Give the pipeline the (validated, normalised) `spec` (contract.md section 5.2, steps 6 to 10).

    `bump` brings `platform_version` up even if nothing else changes. Returns `row` itself when nothing differs.
    """
    before = row.spec
    bumped = bump and row.platform_version != platform_version
    program_changed = bumped or any(
        (
            spec.program_code != before.program_code,
            spec.udf_rust != before.udf_rust,
            spec.udf_toml != before.udf_toml,
            _differ(before.program_config, spec.program_config),
        )
    )
    if not (program_changed or spec.name != before.name or _differ(before.runtime_config, spec.runtime_config)):
        return row if spec == before else replace(row, spec=spec)
    if not row.is_fully_stopped:
        return Refusal(
            "UpdateRestrictedToStopped",
            "Only description and tags can be changed while the pipeline is not stopped; stop it first.",
        )
    guarded = _guarded_changes(before, spec)
    if guarded and row.storage_status is not StorageStatus.CLEARED:
        return Refusal(
            "EditRestrictedToClearedStorage",
            f"{', '.join(guarded)} can be changed only when storage is Cleared; clear the pipeline's storage first.",
            {"not_allowed": guarded},
        )
    if not program_changed:
        return replace(row, spec=spec, version=row.version + 1, refresh_version=row.refresh_version + 1)
    edited = replace(
        row,
        spec=spec,
        version=row.version + 1,
        program_version=row.program_version + 1,
        platform_version=platform_version,
    )
    return program.reset(edited, now)


def delete(row: Pipeline) -> Refusal | None:
    """Tell why the pipeline may not be deleted; None when it may."""
    if not row.is_fully_stopped:
        return Refusal(
            "DeleteRestrictedToFullyStopped",
            "A pipeline can be deleted only when it is stopped; stop it first.",
        )
    if row.storage_status is not StorageStatus.CLEARED:
        return Refusal(
            "DeleteRestrictedToClearedStorage",
            f"A pipeline can be deleted only when its storage is Cleared; it is {row.storage_status}. Clear it first.",
        )
    return None


def _guarded_changes(before: Spec, after: Spec) -> list[str]:
    names = ["`name`"] if before.name != after.name else []
    configs = [
        f"`runtime_config.{'.'.join(path)}`"
        for path in GUARDED_RUNTIME_FIELDS
        if _differ(_at(before.runtime_config, path), _at(after.runtime_config, path))
    ]
    return names + configs


def _differ(before: JsonValue, after: JsonValue) -> bool:
    """Compare as JSON does: for Python, true is 1 as well, and such an edit would be lost."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        old, new = cast("JsonObject", before), cast("JsonObject", after)
        return old.keys() != new.keys() or any(_differ(old[key], new[key]) for key in old)
    if isinstance(before, list | tuple) and isinstance(after, list | tuple):
        olds, news = cast("list[JsonValue]", before), cast("list[JsonValue]", after)
        return len(olds) != len(news) or any(map(_differ, olds, news))
    return before != after or isinstance(before, bool) is not isinstance(after, bool)


def _at(config: JsonObject, path: tuple[str, ...]) -> JsonValue:
    value: JsonValue = config
    for key in path:
        if not isinstance(value, Mapping):
            return None
        value = cast("JsonObject", value).get(key)
    return value


def _may_stand_by(runtime_config: JsonObject) -> bool:
    backend_is_file = _at(runtime_config, ("storage", "backend", "name")) == "file"
    return backend_is_file and _at(runtime_config, ("storage", "backend", "config", "sync")) is not None
