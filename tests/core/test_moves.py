"""Which change of a row may be recorded, and by whom: every pair of corners, and pairs of any rows.

The rules are written here a second time, from contract.md sections 2.1, 2.3 and 2.4; `moves.check_move` must agree.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import history
from penstock.model import (
    Author,
    DeploymentId,
    Initial,
    Pipeline,
    PipelineId,
    ProgramStatus,
    ResourcesDesired,
    ResourcesStatus,
    RuntimeDesired,
    RuntimeStatus,
    StorageStatus,
    TenantId,
)
from penstock.moves import IllegalMove, check_move, flaw_of

from .any_rows import any_rows, sound_rows
from .rows import EPOCH, corner
from .test_program import LEGAL as PROGRAM_MOVES

CORNERS = tuple(itertools.product(StorageStatus, ResourcesStatus, ResourcesDesired))
R, STOPPED, WANTED = ResourcesStatus, ResourcesDesired.STOPPED, ResourcesDesired.PROVISIONED
USER, DAEMON, COMPILER = Author.USER, Author.DAEMON, Author.COMPILER

RESOURCES = {
    (R.STOPPED, R.PROVISIONING),
    (R.PROVISIONING, R.PROVISIONED),
    (R.PROVISIONING, R.STOPPING),
    (R.PROVISIONED, R.STOPPING),
    (R.STOPPING, R.STOPPED),
}
STORAGE = {
    (StorageStatus.CLEARED, StorageStatus.IN_USE): DAEMON,
    (StorageStatus.IN_USE, StorageStatus.CLEARING): USER,
    (StorageStatus.CLEARING, StorageStatus.CLEARED): DAEMON,
}


def can_be(row: Pipeline) -> bool:
    """Whether such a corner can occur (contract 3.2: the last two rows of its table can not)."""
    computing = row.resources_status in (R.PROVISIONING, R.PROVISIONED)
    if computing and row.storage_status is not StorageStatus.IN_USE:
        return False
    wanted = row.resources_desired is WANTED
    return not (wanted and (row.resources_status is R.STOPPING or row.storage_status is StorageStatus.CLEARING))


def lawful(before: Pipeline, after: Pipeline, by: Author) -> bool:
    """Contract 2.1, 2.3, 2.4 and 2.6, read strictly; who may do what is design section 2.1's addition."""
    resources = (before.resources_status, after.resources_status)
    if resources[0] is not resources[1]:
        if resources not in RESOURCES or by is not DAEMON:
            return False
        if resources[1] is R.PROVISIONING and after.resources_desired is STOPPED:
            return False
    deployments = {before.deployment_id, after.deployment_id} - {None}
    if len(deployments) > 1:
        return False
    if before.resources_desired is not after.resources_desired:
        if by is COMPILER:
            return False
        if after.resources_desired is WANTED and before.resources_status is not R.STOPPED:
            return False
    storage = (before.storage_status, after.storage_status)
    if storage[0] is not storage[1]:
        if STORAGE.get(storage) is not by or before.resources_status is not R.STOPPED:
            return False
        unwanted = before.resources_desired is STOPPED and after.resources_desired is STOPPED
        if storage[1] is not StorageStatus.IN_USE and not unwanted:
            return False
    status = (before.program_status, after.program_status)
    if status[0] is not status[1]:
        if status[1] not in PROGRAM_MOVES[status[0]] or after.resources_status is not R.STOPPED:
            return False
        failed_or_built = not PROGRAM_MOVES[status[0]] - {ProgramStatus.PENDING}
        if by is COMPILER and failed_or_built:
            return False
        if by is USER and status[1] is not ProgramStatus.PENDING:
            return False
        if by is DAEMON and status != (ProgramStatus.SUCCESS, ProgramStatus.PENDING):
            return False
    return can_be(after) or not can_be(before)


@pytest.mark.parametrize("by", Author)
@pytest.mark.parametrize("source", CORNERS, ids="-".join)
def test_from_every_corner_to_every_corner(source: Any, by: Author) -> None:
    for target in CORNERS:
        before, after = corner(*source), corner(*target)
        if lawful(before, after, by):
            check_move(before, after, by)
            continue
        with pytest.raises(IllegalMove, match="p-1") as illegal:
            check_move(before, after, by)
        assert (illegal.value.before, illegal.value.after) == (before, after)


@pytest.mark.parametrize("where", CORNERS, ids="-".join)
def test_the_flaw_of_every_corner(where: Any) -> None:
    row = corner(*where)
    assert (flaw_of(row) is None) is can_be(row)


GROUPS = (
    ("resources_status", "deployment_id", "runtime_status", "runtime_desired", "runtime_status_details"),
    ("resources_desired", "deployment_initial", "bootstrap"),
    ("storage_status",),
    ("program_status",),
    ("deployment_error", "resume", "stop_mode", "spec"),
)


@given(sound_rows(), any_rows(), st.sets(st.sampled_from(GROUPS), min_size=1), st.sampled_from(Author))
def test_any_change_at_all(before: Pipeline, other: Pipeline, moved: set[tuple[str, ...]], by: Author) -> None:
    """Some columns of one row put into another: recorded exactly when every rule allows it."""
    after = replace(before, **{column: getattr(other, column) for group in moved for column in group})
    try:
        change = history.record(
            before, [after], by=by, cause="x", now=EPOCH, new_id=lambda: "e", details_interval_seconds=0
        )
    except IllegalMove:
        assert not lawful(before, after, by) or flaw_of(after) is not None
    else:
        assert lawful(before, after, by)
        assert flaw_of(change.row) is None


@pytest.mark.parametrize("column", ["id", "tenant", "created_at"])
@pytest.mark.parametrize("by", Author)
def test_identity_never_changes(column: str, by: Author) -> None:
    other = {"id": PipelineId("p-2"), "tenant": TenantId("t"), "created_at": EPOCH + timedelta(seconds=1)}
    row = corner(StorageStatus.IN_USE, R.STOPPED, STOPPED)
    with pytest.raises(IllegalMove, match="identity"):
        check_move(row, replace(row, **{column: other[column]}), by)  # type: ignore[arg-type]


@pytest.mark.parametrize("resources", [R.PROVISIONING, R.PROVISIONED, R.STOPPING])
def test_a_deployment_keeps_its_id_to_the_end(resources: ResourcesStatus) -> None:
    """Effects are keyed by it: another id in the middle would be a second copy."""
    row = corner(StorageStatus.IN_USE, resources, STOPPED)
    with pytest.raises(IllegalMove, match="deployment"):
        check_move(row, replace(row, deployment_id=DeploymentId("d-2")), DAEMON)


def test_nor_does_it_change_along_with_the_status() -> None:
    row = corner(StorageStatus.IN_USE, R.PROVISIONING, WANTED)
    after = replace(corner(StorageStatus.IN_USE, R.PROVISIONED, WANTED), deployment_id=DeploymentId("d-2"))
    with pytest.raises(IllegalMove, match="deployment"):
        check_move(row, after, DAEMON)


# --- invariants -----------------------------------------------------------------------------------------------------

RUNTIME = {
    "runtime_status": RuntimeStatus.RUNNING,
    "runtime_desired": RuntimeDesired.RUNNING,
    "runtime_status_details": {},
}
FLAWS: list[tuple[str, ResourcesStatus, ResourcesDesired, dict[str, Any]]] = [
    ("deployment id", R.STOPPED, STOPPED, {"deployment_id": DeploymentId("d-1")}),
    *[("deployment id", at, STOPPED, {"deployment_id": None}) for at in R if at is not R.STOPPED],
    *[("runtime status", at, STOPPED, RUNTIME) for at in R if at is not R.PROVISIONED],
    ("runtime status", R.PROVISIONED, WANTED, dict.fromkeys(RUNTIME)),
    ("come and go together", R.PROVISIONED, WANTED, {"runtime_desired": None}),
    ("come and go together", R.STOPPED, STOPPED, {"runtime_desired": RuntimeDesired.RUNNING}),
    ("has details", R.PROVISIONED, WANTED, {"runtime_status_details": None}),
    *[
        ("built program", at, STOPPED, {"program_status": status})
        for at in R
        if at is not R.STOPPED
        for status in ProgramStatus
        if status is not ProgramStatus.SUCCESS
    ],
    ("initial status", R.STOPPED, WANTED, {"deployment_initial": None}),
    ("initial status", R.PROVISIONED, WANTED, {"bootstrap": None}),
    ("Stopping", R.STOPPING, STOPPED, {"resources_desired": WANTED, "deployment_initial": Initial.RUNNING}),
    ("storage", R.STOPPED, WANTED, {"storage_status": StorageStatus.CLEARING}),
    ("storage", R.PROVISIONING, WANTED, {"storage_status": StorageStatus.CLEARED}),
    ("storage", R.PROVISIONED, STOPPED, {"storage_status": StorageStatus.CLEARING}),
]


@pytest.mark.parametrize(("flaw", "resources", "wanted", "columns"), FLAWS)
def test_every_invariant_is_named(
    flaw: str, resources: ResourcesStatus, wanted: ResourcesDesired, columns: dict[str, Any]
) -> None:
    sound = corner(StorageStatus.IN_USE, resources, wanted)
    assert flaw_of(sound) is None
    named = flaw_of(replace(sound, **columns))
    assert named is not None
    assert flaw in named


@pytest.mark.parametrize(("flaw", "resources", "wanted", "columns"), FLAWS)
def test_what_is_flawed_may_still_be_repaired(
    flaw: str, resources: ResourcesStatus, wanted: ResourcesDesired, columns: dict[str, Any]
) -> None:
    """A row that breaks an invariant, however it came to be, can be written: else nothing could put it right."""
    flawed = replace(corner(StorageStatus.IN_USE, resources, wanted), **columns)
    assert flaw in (flaw_of(flawed) or "")
    check_move(flawed, replace(flawed, suspect_since=EPOCH), DAEMON)
