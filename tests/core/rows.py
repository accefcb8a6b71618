"""Rows for the core's tests: one for every corner of the machine."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from penstock import requests
from penstock.model import (
    Bootstrap,
    DeploymentId,
    Initial,
    Pipeline,
    PipelineId,
    ProgramStatus,
    ResourcesDesired,
    ResourcesStatus,
    RuntimeDesired,
    RuntimeStatus,
    Spec,
    StopMode,
    StorageStatus,
)

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


def fresh(**spec: object) -> Pipeline:
    """A pipeline that was just created."""
    made = Spec(name="p1", **spec)  # type: ignore[arg-type]
    return requests.new_pipeline(PipelineId("p-1"), made, platform_version="1", now=EPOCH)


def built(**spec: object) -> Pipeline:
    """A pipeline whose program is ready to run."""
    return replace(fresh(**spec), program_status=ProgramStatus.SUCCESS, artifact="a" * 64)


def corner(storage: StorageStatus, resources: ResourcesStatus, desired: ResourcesDesired) -> Pipeline:
    """A row in the given corner, with the columns that belong to it."""
    row = replace(built(), storage_status=storage, resources_status=resources, resources_desired=desired)
    if desired is ResourcesDesired.PROVISIONED:
        row = replace(row, deployment_initial=Initial.RUNNING, bootstrap=Bootstrap())
    if resources is not ResourcesStatus.STOPPED:
        row = replace(row, deployment_id=DeploymentId("d-1"), runtime_intent=RuntimeDesired.RUNNING)
    if resources is ResourcesStatus.PROVISIONED:
        row = replace(
            row,
            deployment_location="h:1",
            runtime_status=RuntimeStatus.RUNNING,
            runtime_status_since=EPOCH,
            runtime_status_details={},
            runtime_desired=RuntimeDesired.RUNNING,
            runtime_desired_since=EPOCH,
            storage_status_details={"checkpoints": []},
        )
    if resources is ResourcesStatus.STOPPING or (
        resources is not ResourcesStatus.STOPPED and desired is ResourcesDesired.STOPPED
    ):
        row = replace(row, stop_mode=StopMode.FORCE)
    return row
