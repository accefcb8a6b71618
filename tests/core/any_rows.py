"""Any row that can be: hypothesis draws the corner, then every column that a rule of the core looks at."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import timedelta
from typing import Any

from hypothesis import strategies as st

from penstock.model import (
    Bootstrap,
    BootstrapPolicy,
    DeploymentId,
    Fault,
    Initial,
    Pipeline,
    ProgramStatus,
    ResourcesDesired,
    ResourcesStatus,
    Resume,
    RuntimeDesired,
    RuntimeStatus,
    Spec,
    StopMode,
    StorageStatus,
)
from penstock.moves import flaw_of

from .rows import EPOCH, corner

FAULT = Fault("Broken", "it broke", {"exit_code": 3})
STAMPS = st.sampled_from([EPOCH, EPOCH + timedelta(seconds=5), EPOCH + timedelta(hours=1)])
BOOTSTRAPS = st.builds(Bootstrap, st.sampled_from(BootstrapPolicy), st.booleans(), st.just(value=False))
SYNCED = {"storage": {"backend": {"name": "file", "config": {"sync": {"bucket": "b"}}}}}
SPECS = st.builds(
    Spec,
    name=st.sampled_from(["p1", "p2"]),
    description=st.sampled_from(["", "of the day"]),
    program_code=st.sampled_from(["", "print(1)"]),
    runtime_config=st.sampled_from([{}, {"workers": 1}, {"workers": 2, "logging": "debug"}, SYNCED]),
)


@st.composite
def any_rows(draw: st.DrawFn) -> Pipeline:
    """A row with any statuses and any columns, mostly but not always sound."""
    row = corner(
        draw(st.sampled_from(StorageStatus)),
        draw(st.sampled_from(ResourcesStatus)),
        draw(st.sampled_from(ResourcesDesired)),
    )
    if row.resources_status is ResourcesStatus.STOPPED:
        row = replace(row, program_status=draw(st.sampled_from(ProgramStatus)))
    else:
        row = replace(
            row,
            deployment_id=DeploymentId(draw(st.sampled_from(["d-1", "d-2"]))),
            stop_mode=draw(st.sampled_from([None, *StopMode])),
            stop_deadline=draw(st.none() | STAMPS),
        )
    if row.resources_status is ResourcesStatus.PROVISIONED:
        row = replace(
            row,
            runtime_status=draw(st.sampled_from(RuntimeStatus)),
            runtime_desired=draw(st.sampled_from(RuntimeDesired)),
        )
    if row.resources_desired is ResourcesDesired.PROVISIONED:
        row = replace(row, deployment_initial=draw(st.sampled_from(Initial)), bootstrap=draw(BOOTSTRAPS))
    return replace(
        row,
        spec=draw(SPECS),
        deployment_error=draw(st.none() | st.just(FAULT)),
        resources_status_details=draw(st.none() | st.just({"pid": 7})),
        resume=draw(st.none() | st.builds(Resume, st.sampled_from(Initial), BOOTSTRAPS)),
        platform_version=draw(st.sampled_from(["1", "2"])),
        event_at=draw(st.none() | STAMPS),
    )


def sound_rows() -> st.SearchStrategy[Pipeline]:
    """A row that breaks no invariant."""
    return any_rows().filter(lambda row: flaw_of(row) is None)


def changes(before: Pipeline, after: Pipeline) -> dict[str, Any]:
    """Every column that differs, and what it became."""
    return {
        column.name: getattr(after, column.name)
        for column in fields(Pipeline)
        if getattr(after, column.name) != getattr(before, column.name)
    }
