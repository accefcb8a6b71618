"""Which moves of a row are legal, who may make them, and what every sound row keeps to.

Called by `history.record`, and so for every change that any store is given. The tables are data: the diagrams in README
and ARCHITECTURE are drawn from them. Pure. Rules: contract.md sections 2.1, 2.3 and 2.4. Must never decide what to do;
that is `machine.step`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from penstock import program
from penstock.model import (
    Author,
    Pipeline,
    ProgramStatus,
    ResourcesDesired,
    ResourcesStatus,
    StorageStatus,
)

_USER, _DAEMON, _COMPILER = Author.USER, Author.DAEMON, Author.COMPILER

ResourcesMove = tuple[ResourcesStatus, ResourcesStatus]
DesiredMove = tuple[ResourcesDesired, ResourcesDesired]
StorageMove = tuple[StorageStatus, StorageStatus]

RESOURCES_MOVES: Mapping[ResourcesMove, frozenset[Author]] = MappingProxyType(
    {
        (ResourcesStatus.STOPPED, ResourcesStatus.PROVISIONING): frozenset({_DAEMON}),
        (ResourcesStatus.PROVISIONING, ResourcesStatus.PROVISIONED): frozenset({_DAEMON}),
        (ResourcesStatus.PROVISIONING, ResourcesStatus.STOPPING): frozenset({_DAEMON}),
        (ResourcesStatus.PROVISIONED, ResourcesStatus.STOPPING): frozenset({_DAEMON}),
        (ResourcesStatus.STOPPING, ResourcesStatus.STOPPED): frozenset({_DAEMON}),
    }
)
DESIRED_MOVES: Mapping[DesiredMove, frozenset[Author]] = MappingProxyType(
    {
        (ResourcesDesired.STOPPED, ResourcesDesired.PROVISIONED): frozenset({_USER, _DAEMON}),
        (ResourcesDesired.PROVISIONED, ResourcesDesired.STOPPED): frozenset({_USER, _DAEMON}),
    }
)
STORAGE_MOVES: Mapping[StorageMove, frozenset[Author]] = MappingProxyType(
    {
        (StorageStatus.CLEARED, StorageStatus.IN_USE): frozenset({_DAEMON}),
        (StorageStatus.IN_USE, StorageStatus.CLEARING): frozenset({_USER}),
        (StorageStatus.CLEARING, StorageStatus.CLEARED): frozenset({_DAEMON}),
    }
)


class IllegalMove(Exception):
    """Somebody tried to record a change that no rule allows: a bug of ours. Carries both rows."""

    def __init__(self, what: str, before: Pipeline, after: Pipeline) -> None:
        super().__init__(f"pipeline {before.id}: {what}")
        self.before = before
        self.after = after


def check_move(before: Pipeline, after: Pipeline, by: Author) -> None:
    """Raise IllegalMove unless `by` may change `before` into `after`, one snapshot at a time."""
    wrong = _wrong_move(before, after, by)
    if wrong is None and flaw_of(before) is None:
        wrong = flaw_of(after)
    if wrong is not None:
        raise IllegalMove(wrong, before, after)


def _wrong_move(before: Pipeline, after: Pipeline, by: Author) -> str | None:
    if (before.id, before.tenant, before.created_at) != (after.id, after.tenant, after.created_at):
        return "identity never changes"
    nobody = frozenset[Author]()
    stopped = before.resources_status is ResourcesStatus.STOPPED
    resources = (before.resources_status, after.resources_status)
    if resources[0] is not resources[1]:
        if by not in RESOURCES_MOVES.get(resources, nobody):
            return f"resources {resources[0]} to {resources[1]} by {by}"
        if stopped and after.resources_desired is ResourcesDesired.STOPPED:
            return "nothing starts that is not wanted"
    if before.deployment_id != after.deployment_id and None not in (before.deployment_id, after.deployment_id):
        return "a deployment keeps its id"
    desired = (before.resources_desired, after.resources_desired)
    if desired[0] is not desired[1]:
        if by not in DESIRED_MOVES.get(desired, nobody):
            return f"desired {desired[0]} to {desired[1]} by {by}"
        if after.resources_desired is ResourcesDesired.PROVISIONED and not stopped:
            return "what was told to stop is wanted again only when Stopped"
    storage = (before.storage_status, after.storage_status)
    if storage[0] is not storage[1]:
        if by not in STORAGE_MOVES.get(storage, nobody):
            return f"storage {storage[0]} to {storage[1]} by {by}"
        if not stopped:
            return "storage moves only while stopped"
        if after.storage_status is not StorageStatus.IN_USE and ResourcesDesired.PROVISIONED in desired:
            return "storage is cleared only while the pipeline is not wanted"
    status = (before.program_status, after.program_status)
    if status[0] is not status[1]:
        if by not in program.MOVES.get(status, nobody):
            return f"program {status[0]} to {status[1]} by {by}"
        if after.resources_status is not ResourcesStatus.STOPPED:
            return "the program moves only while stopped"
    return None


def flaw_of(row: Pipeline) -> str | None:
    """Name the invariant that `row` breaks; None when it is sound."""
    stopped = row.resources_status is ResourcesStatus.STOPPED
    provisioned = row.resources_status is ResourcesStatus.PROVISIONED
    if stopped != (row.deployment_id is None):
        return "a deployment id exists exactly while not Stopped"
    if provisioned != (row.runtime_status is not None):
        return "a runtime status exists exactly while Provisioned"
    if (row.runtime_status is None) != (row.runtime_desired is None):
        return "runtime status and runtime desired status come and go together"
    if row.runtime_status is not None and row.runtime_status_details is None:
        return "a runtime status has details"
    if not stopped and row.program_status is not ProgramStatus.SUCCESS:
        return "only a built program runs"
    if row.resources_status in (ResourcesStatus.PROVISIONING, ResourcesStatus.PROVISIONED):
        if row.storage_status is not StorageStatus.IN_USE:
            return "compute exists only over storage in use"
    elif row.storage_status is StorageStatus.CLEARING and row.resources_desired is ResourcesDesired.PROVISIONED:
        return "a wanted pipeline's storage is not being cleared"
    if row.resources_desired is ResourcesDesired.PROVISIONED:
        if row.resources_status is ResourcesStatus.STOPPING:
            return "Stopping is left only through Stopped"
        if row.deployment_initial is None or row.bootstrap is None:
            return "a wanted pipeline has an initial status and a bootstrap policy"
    return None
