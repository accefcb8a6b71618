"""The nouns: how the API spells them, and the two statuses that are computed (contract.md sections 1.1 and 1.2)."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest

from penstock import model
from penstock.model import (
    BootstrapPolicy,
    Initial,
    Pipeline,
    ProgramStatus,
    ResourcesDesired,
    ResourcesStatus,
    RuntimeDesired,
    RuntimeStatus,
    StorageStatus,
)

from .rows import built, corner

SPELLINGS = {
    ResourcesStatus: "Stopped Provisioning Provisioned Stopping",
    ResourcesDesired: "Stopped Provisioned",
    StorageStatus: "Cleared InUse Clearing",
    RuntimeStatus: (
        "Unavailable Coordination Standby Initializing AwaitingApproval Bootstrapping ConcurrentBootstrapping "
        "Synchronizing Replaying Paused Running Suspended"
    ),
    RuntimeDesired: "Unavailable Coordination Standby Paused Running Suspended",
    ProgramStatus: "Pending CompilingSql SqlCompiled CompilingRust Success SqlError RustError SystemError",
    Initial: "running paused standby",
    BootstrapPolicy: "allow reject await_approval",
}
COMBINED = set(SPELLINGS[RuntimeStatus].split()) | {"Stopped", "Provisioning", "Stopping"}
COMBINED_DESIRED = {"Stopped", "Unavailable", "Standby", "Paused", "Running", "Suspended"}


@pytest.mark.parametrize("noun", SPELLINGS, ids=lambda noun: noun.__name__)
def test_statuses_are_spelled_as_in_the_api(noun) -> None:
    assert [status.value for status in noun] == SPELLINGS[noun].split()


@pytest.mark.parametrize("runtime", [None, *RuntimeStatus])
@pytest.mark.parametrize("resources", ResourcesStatus)
def test_combined_status(resources: ResourcesStatus, runtime: RuntimeStatus | None) -> None:
    row = replace(built(), resources_status=resources, runtime_status=runtime)
    if resources is not ResourcesStatus.PROVISIONED:
        assert row.deployment_status == resources.value
    elif runtime is None:
        assert row.deployment_status == "Unavailable"
    else:
        assert row.deployment_status == runtime.value
    assert row.deployment_status in COMBINED


@pytest.mark.parametrize("initial", [None, *Initial])
@pytest.mark.parametrize("runtime", [None, *RuntimeDesired])
@pytest.mark.parametrize("wanted", ResourcesDesired)
def test_combined_desired_status(
    wanted: ResourcesDesired, runtime: RuntimeDesired | None, initial: Initial | None
) -> None:
    row = replace(built(), resources_desired=wanted, runtime_desired=runtime, deployment_initial=initial)
    by_initial = {"running": "Running", "paused": "Paused", "standby": "Standby"}
    if wanted is ResourcesDesired.STOPPED:
        expected = "Stopped"
    elif runtime is not None and runtime is not RuntimeDesired.COORDINATION:
        expected = runtime.value
    else:
        # No client knows a desired status Coordination; such a pipeline still wants what it was started for.
        expected = "Unavailable" if initial is None else by_initial[initial]
    assert row.deployment_desired_status == expected
    assert row.deployment_desired_status in COMBINED_DESIRED


@pytest.mark.parametrize("wanted", ResourcesDesired)
@pytest.mark.parametrize("resources", ResourcesStatus)
def test_fully_stopped_is_one_corner_of_eight(resources: ResourcesStatus, wanted: ResourcesDesired) -> None:
    row = corner(StorageStatus.CLEARED, resources, wanted)
    assert row.is_fully_stopped is ((resources, wanted) == (ResourcesStatus.STOPPED, ResourcesDesired.STOPPED))


def test_an_initial_leads_to_the_status_of_its_name() -> None:
    assert {initial.value: initial.desired for initial in Initial} == {
        "running": RuntimeDesired.RUNNING,
        "paused": RuntimeDesired.PAUSED,
        "standby": RuntimeDesired.STANDBY,
    }


def test_every_value_is_frozen_and_slotted() -> None:
    values = [noun for noun in vars(model).values() if dataclasses.is_dataclass(noun)]
    assert Pipeline in values
    for noun in values:
        assert noun.__dataclass_params__.frozen, noun
        assert "__slots__" in vars(noun), noun
