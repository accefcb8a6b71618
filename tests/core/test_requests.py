"""What a user may ask for, in every corner: contract.md sections 2.3 to 2.5 and 5.2, as tables."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import history, program, requests
from penstock.model import (
    PROGRAM_FAILED,
    Author,
    Bootstrap,
    BootstrapPolicy,
    Initial,
    Pipeline,
    ProgramError,
    ProgramStatus,
    Refusal,
    ResourcesDesired,
    ResourcesStatus,
    Resume,
    RuntimeDesired,
    RuntimeStatus,
    StopMode,
    StorageStatus,
)
from penstock.moves import flaw_of
from penstock.requests import StartRequest

from .any_rows import BOOTSTRAPS, FAULT, SPECS, SYNCED, any_rows, changes, sound_rows
from .rows import EPOCH, built, corner, fresh

NOW = EPOCH + timedelta(minutes=1)
LATER = NOW + timedelta(minutes=1)
GRACE = timedelta(seconds=30)
STOPPED, WANTED = ResourcesDesired.STOPPED, ResourcesDesired.PROVISIONED
Answer = Pipeline | Refusal | None

CODES = {
    "C": "CannotStartWhileClearingStorage",
    "D": "DeleteRestrictedToFullyStopped",
    "E": "EditRestrictedToClearedStorage",
    "F": "DismissErrorRestrictedToFullyStopped",
    "I": "IllegalPipelineAction",
    "K": "DeleteRestrictedToClearedStorage",
    "N": "PipelineInteractionNotDeployed",
    "S": "StorageStatusImmutableUnlessStopped",
    "T": "InvalidTransition",
    "U": "UpdateRestrictedToStopped",
}
REQUESTS: dict[str, Callable[[Pipeline], Answer]] = {
    "start": lambda row: requests.start(row, StartRequest(), now=NOW),
    "kill": lambda row: requests.stop(row, force=True, grace_seconds=30, now=NOW),
    "stop": lambda row: requests.stop(row, force=False, grace_seconds=30, now=NOW),
    "clear": requests.clear,
    "dismiss": requests.dismiss_error,
    "pause": lambda row: requests.steer(row, RuntimeDesired.PAUSED),
    "code": lambda row: _edit(row, program_code="print(1)"),
    "rename": lambda row: _edit(row, name="p2"),
    "describe": lambda row: _edit(row, description="of the day"),
    "same": lambda row: requests.edit(row, row.spec, platform_version="1", bump=True, now=NOW),
    "bump": lambda row: requests.edit(row, row.spec, platform_version="2", bump=True, now=NOW),
    "delete": requests.delete,
}


def _edit(row: Pipeline, *, bump: bool = False, platform: str = "1", **spec: Any) -> Pipeline | Refusal:
    return requests.edit(row, replace(row.spec, **spec), platform_version=platform, bump=bump, now=NOW)


# `+` changes the row, `=` leaves it as it is (or lets it be deleted); a letter refuses (CODES).
TABLE = """
Storage  Resources    Desired      start kill stop clear dismiss pause code rename describe same bump delete
Cleared  Stopped      Stopped      +     =    =    =     +       N     +    +      +        =    +    =
InUse    Stopped      Stopped      +     =    =    +     +       N     +    E      +        =    +    K
Clearing Stopped      Stopped      C     =    =    =     +       N     +    E      +        =    +    K
Cleared  Stopped      Provisioned  =     +    +    S     F       N     U    U      +        =    U    D
InUse    Stopped      Provisioned  =     +    +    S     F       N     U    U      +        =    U    D
Clearing Stopped      Provisioned  C     +    +    S     F       N     U    U      +        =    U    D
Cleared  Provisioning Stopped      I     =    =    S     F       N     U    U      +        =    U    D
InUse    Provisioning Stopped      I     =    =    S     F       N     U    U      +        =    U    D
Clearing Provisioning Stopped      I     =    =    S     F       N     U    U      +        =    U    D
Cleared  Provisioning Provisioned  =     +    +    S     F       N     U    U      +        =    U    D
InUse    Provisioning Provisioned  =     +    +    S     F       N     U    U      +        =    U    D
Clearing Provisioning Provisioned  C     +    +    S     F       N     U    U      +        =    U    D
Cleared  Provisioned  Stopped      I     =    =    S     F       T     U    U      +        =    U    D
InUse    Provisioned  Stopped      I     =    =    S     F       T     U    U      +        =    U    D
Clearing Provisioned  Stopped      I     =    =    S     F       T     U    U      +        =    U    D
Cleared  Provisioned  Provisioned  =     +    +    S     F       +     U    U      +        =    U    D
InUse    Provisioned  Provisioned  =     +    +    S     F       +     U    U      +        =    U    D
Clearing Provisioned  Provisioned  C     +    +    S     F       +     U    U      +        =    U    D
Cleared  Stopping     Stopped      I     =    =    S     F       N     U    U      +        =    U    D
InUse    Stopping     Stopped      I     =    =    S     F       N     U    U      +        =    U    D
Clearing Stopping     Stopped      I     =    =    S     F       N     U    U      +        =    U    D
Cleared  Stopping     Provisioned  I     +    +    S     F       N     U    U      +        =    U    D
InUse    Stopping     Provisioned  I     +    +    S     F       N     U    U      +        =    U    D
Clearing Stopping     Provisioned  I     +    +    S     F       N     U    U      +        =    U    D
"""
HEAD, *LINES = [line.split() for line in TABLE.strip().splitlines()]
CELLS = [(tuple(line[:3]), name, cell) for line in LINES for name, cell in zip(HEAD[3:], line[3:], strict=True)]


def test_the_table_is_whole() -> None:
    assert HEAD[3:] == list(REQUESTS)
    assert len({tuple(line[:3]) for line in LINES}) == 24


@pytest.mark.parametrize(("where", "name", "cell"), CELLS, ids=lambda part: part if isinstance(part, str) else None)
def test_every_corner_and_every_request(where: tuple[str, str, str], name: str, cell: str) -> None:
    row = corner(StorageStatus(where[0]), ResourcesStatus(where[1]), ResourcesDesired(where[2]))
    if name == "dismiss":
        row = replace(row, deployment_error=FAULT)
    after = REQUESTS[name](row)
    if cell in CODES:
        assert isinstance(after, Refusal)
        assert after.code == CODES[cell]
        assert after.message.endswith(".")
    elif name == "delete":
        assert after is None
    elif cell == "=":
        assert after == row
    else:
        assert isinstance(after, Pipeline)
        assert after != row


# --- start ----------------------------------------------------------------------------------------------------------

ASKED = StartRequest(initial=Initial.STANDBY, bootstrap=Bootstrap(BootstrapPolicy.ALLOW), dismiss_error=False)
HOPELESS = replace(
    corner(StorageStatus.CLEARING, ResourcesStatus.PROVISIONED, WANTED),
    stop_mode=StopMode.GRACEFUL,
    deployment_error=FAULT,
    program_status=ProgramStatus.RUST_ERROR,
)
REMEDIES: list[tuple[str, dict[str, Any]]] = [
    ("IllegalPipelineAction", {"stop_mode": None}),
    ("CannotStartWithUndismissedError", {"deployment_error": None}),
    ("CannotStartWhileClearingStorage", {"storage_status": StorageStatus.IN_USE}),
    ("CannotStartWithCompilationError", {"program_status": ProgramStatus.SUCCESS}),
    ("InitialImmutableUnlessStopped", {"deployment_initial": Initial.STANDBY}),
    ("BootstrapPolicyImmutableUnlessStopped", {"bootstrap": ASKED.bootstrap}),
    ("InitialStandbyNotAllowed", {"spec": replace(HOPELESS.spec, runtime_config=SYNCED)}),
]


def test_refusals_of_a_start_come_in_the_order_of_the_contract() -> None:
    row = HOPELESS
    for code, remedy in REMEDIES:
        refused = requests.start(row, ASKED, now=NOW)
        assert isinstance(refused, Refusal)
        assert refused.code == code
        row = replace(row, **remedy)
    assert requests.start(row, ASKED, now=NOW) == row


@pytest.mark.parametrize("status", ProgramStatus)
def test_a_start_may_be_early_but_not_in_vain(status: ProgramStatus) -> None:
    after = requests.start(replace(built(), program_status=status), StartRequest(), now=NOW)
    assert isinstance(after, Refusal) is (status in PROGRAM_FAILED)


@pytest.mark.parametrize(
    ("storage", "allowed"),
    [
        (None, False),
        ({"backend": {"name": "default"}}, False),
        ({"backend": {"name": "default", "config": {"sync": {}}}}, False),
        ({"backend": {"name": "file"}}, False),
        ({"backend": {"name": "file", "config": None}}, False),
        ({"backend": {"name": "file", "config": {"sync": None}}}, False),
        ({"backend": "file"}, False),
        ({"backend": {"name": "file", "config": {"sync": {}}}}, True),
        (SYNCED["storage"], True),
    ],
)
def test_standby_needs_a_synchronised_file_backend(storage: Any, *, allowed: bool) -> None:
    row = built(runtime_config={"storage": storage})
    after = requests.start(row, StartRequest(initial=Initial.STANDBY), now=NOW)
    if allowed:
        assert isinstance(after, Pipeline)
        assert after.deployment_initial is Initial.STANDBY
    else:
        assert isinstance(after, Refusal)
        assert after.code == "InitialStandbyNotAllowed"


@pytest.mark.parametrize("initial", [Initial.RUNNING, Initial.PAUSED])
def test_what_a_start_writes(initial: Initial) -> None:
    row = replace(built(), deployment_error=FAULT, resume=Resume(Initial.RUNNING, Bootstrap()))
    bootstrap = Bootstrap(BootstrapPolicy.REJECT, silent=True)
    after = requests.start(row, StartRequest(initial=initial, bootstrap=bootstrap), now=NOW)
    assert isinstance(after, Pipeline)
    assert changes(row, after) == {
        "resources_desired": WANTED,
        "resources_desired_since": NOW,
        "deployment_initial": initial,
        "bootstrap": bootstrap,
        "deployment_error": None,
        "resume": None,
    }


def test_a_repeated_start_only_dismisses() -> None:
    row = replace(corner(StorageStatus.IN_USE, ResourcesStatus.STOPPED, WANTED), deployment_error=FAULT)
    after = requests.start(row, StartRequest(), now=NOW)
    assert isinstance(after, Pipeline)
    assert changes(row, after) == {"deployment_error": None}


def test_an_owed_start_keeps_the_error_and_needs_no_dismissal() -> None:
    row = replace(built(), deployment_error=FAULT)
    after = requests.start(row, StartRequest(dismiss_error=False), now=NOW, keep_error=True)
    assert isinstance(after, Pipeline)
    assert after.deployment_error == FAULT
    assert after.resources_desired is WANTED


@pytest.mark.parametrize("mode", StopMode)
def test_no_start_overtakes_a_stop(mode: StopMode) -> None:
    row = replace(corner(StorageStatus.IN_USE, ResourcesStatus.PROVISIONED, WANTED), stop_mode=mode)
    refused = requests.start(row, StartRequest(), now=NOW)
    assert isinstance(refused, Refusal)
    assert refused.code == "IllegalPipelineAction"
    assert {key: value for key, value in refused.details.items() if key != "hint"} == {
        "status": "Provisioned",
        "current_desired_status": "Provisioned",
        "new_desired_status": "Provisioned",
    }
    assert refused.details["hint"]


# --- stop -----------------------------------------------------------------------------------------------------------

NO_LONGER = {"resources_desired": STOPPED, "resources_desired_since": NOW}


def _stop(row: Pipeline, *, force: bool, now: Any = NOW) -> Pipeline:
    return requests.stop(row, force=force, grace_seconds=30, now=now)


@pytest.mark.parametrize("force", [True, False])
def test_a_stop_cancels_an_early_start_and_keeps_the_error(*, force: bool) -> None:
    row = replace(corner(StorageStatus.IN_USE, ResourcesStatus.STOPPED, WANTED), deployment_error=FAULT)
    after = _stop(row, force=force)
    assert changes(row, after) == NO_LONGER | {"deployment_initial": None, "bootstrap": None}


@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize("resources", [ResourcesStatus.STOPPED, ResourcesStatus.STOPPING])
def test_a_stop_cancels_a_start_that_a_reboot_owes(resources: ResourcesStatus, *, force: bool) -> None:
    owed = replace(corner(StorageStatus.IN_USE, resources, STOPPED), resume=Resume(Initial.RUNNING, Bootstrap()))
    assert changes(owed, _stop(owed, force=force)) == {"resume": None}


@pytest.mark.parametrize("force", [True, False])
def test_provisioning_is_stopped_by_force_whatever_was_asked(*, force: bool) -> None:
    row = corner(StorageStatus.IN_USE, ResourcesStatus.PROVISIONING, WANTED)
    assert changes(row, _stop(row, force=force)) == NO_LONGER | {"stop_mode": StopMode.FORCE}


def test_a_graceful_stop_keeps_the_pipeline_wanted_until_its_deadline() -> None:
    row = corner(StorageStatus.IN_USE, ResourcesStatus.PROVISIONED, WANTED)
    asked = _stop(row, force=False)
    assert changes(row, asked) == {"stop_mode": StopMode.GRACEFUL, "stop_deadline": NOW + GRACE}
    assert _stop(asked, force=False, now=LATER) == asked, "asking again does not put the end off"


def test_force_cuts_a_graceful_stop_short_and_is_never_taken_back() -> None:
    row = corner(StorageStatus.IN_USE, ResourcesStatus.PROVISIONED, WANTED)
    asked = _stop(row, force=False)
    forced = _stop(asked, force=True)
    assert changes(asked, forced) == NO_LONGER | {"stop_mode": StopMode.FORCE, "stop_deadline": None}
    assert _stop(forced, force=False, now=LATER) == forced


# --- clear, dismiss, steer, delete ----------------------------------------------------------------------------------


def test_what_a_clear_writes() -> None:
    row = replace(
        corner(StorageStatus.IN_USE, ResourcesStatus.STOPPED, STOPPED),
        storage_status_details={"checkpoints": []},
        deployment_error=FAULT,
        resume=Resume(Initial.RUNNING, Bootstrap()),
    )
    after = requests.clear(row)
    assert isinstance(after, Pipeline)
    assert changes(row, after) == {
        "storage_status": StorageStatus.CLEARING,
        "storage_status_details": None,
        "resume": None,
    }


def test_clearing_that_is_under_way_keeps_what_it_told() -> None:
    row = replace(
        corner(StorageStatus.CLEARING, ResourcesStatus.STOPPED, STOPPED),
        storage_status_details={"checkpoints": [], "reason": "disk"},
    )
    assert requests.clear(row) is row


def test_a_refused_clear_tells_every_status() -> None:
    refused = requests.clear(corner(StorageStatus.IN_USE, ResourcesStatus.STOPPING, STOPPED))
    assert isinstance(refused, Refusal)
    assert refused.details == {
        "resources_status": "Stopping",
        "resources_desired_status": "Stopped",
        "current_status": "InUse",
        "new_status": "Clearing",
    }


@pytest.mark.parametrize("wanted", ResourcesDesired)
@pytest.mark.parametrize("resources", ResourcesStatus)
def test_dismissing_nothing_is_fine_anywhere(resources: ResourcesStatus, wanted: ResourcesDesired) -> None:
    row = corner(StorageStatus.IN_USE, resources, wanted)
    assert requests.dismiss_error(row) == row


def test_what_a_dismissal_writes() -> None:
    row = replace(built(), deployment_error=FAULT)
    after = requests.dismiss_error(row)
    assert isinstance(after, Pipeline)
    assert changes(row, after) == {"deployment_error": None}


@pytest.mark.parametrize("status", RuntimeStatus)
@pytest.mark.parametrize("target", [RuntimeDesired.RUNNING, RuntimeDesired.PAUSED])
def test_steering_by_runtime_status(target: RuntimeDesired, status: RuntimeStatus) -> None:
    row = replace(
        corner(StorageStatus.IN_USE, ResourcesStatus.PROVISIONED, WANTED), runtime_status=status, runtime_intent=None
    )
    after = requests.steer(row, target)
    if status is RuntimeStatus.UNAVAILABLE:
        assert isinstance(after, Refusal)
        assert (after.code, after.details) == ("PipelineUnavailable", {"pipeline_name": "p1"})
    elif status is RuntimeStatus.STANDBY:  # contract 2.7: left only through an activation
        assert isinstance(after, Refusal)
        assert (after.code, after.details) == ("InvalidTransition", {"current": "Standby", "desired": target.value})
    else:
        assert isinstance(after, Pipeline)
        assert changes(row, after) == {"runtime_intent": target}
        assert requests.steer(after, target) is after


def test_what_an_activation_writes() -> None:
    running = replace(corner(StorageStatus.IN_USE, ResourcesStatus.PROVISIONED, WANTED), runtime_intent=None)
    assert changes(running, requests.activated(running, RuntimeDesired.PAUSED)) == {
        "runtime_intent": RuntimeDesired.PAUSED
    }
    told = replace(running, stop_mode=StopMode.GRACEFUL)
    for row in (told, built()):
        assert requests.activated(row, RuntimeDesired.RUNNING) is row


@pytest.mark.parametrize("mode", StopMode)
@pytest.mark.parametrize("status", RuntimeStatus)
def test_what_was_told_to_stop_is_steered_nowhere_else(status: RuntimeStatus, mode: StopMode) -> None:
    """Contract 2.7: nothing follows upon Suspended, whether the process can be reached or not."""
    row = corner(StorageStatus.IN_USE, ResourcesStatus.PROVISIONED, WANTED)
    refused = requests.steer(replace(row, stop_mode=mode, runtime_status=status), RuntimeDesired.PAUSED)
    assert isinstance(refused, Refusal)
    assert (refused.code, refused.details) == ("InvalidTransition", {"current": "Suspended", "desired": "Paused"})


def test_refused_steering_tells_where_the_pipeline_is() -> None:
    refused = requests.steer(corner(StorageStatus.IN_USE, ResourcesStatus.STOPPING, STOPPED), RuntimeDesired.PAUSED)
    assert isinstance(refused, Refusal)
    assert refused.details == {"pipeline_name": "p1", "status": "Stopping", "desired_status": "Stopped"}


# --- edit -----------------------------------------------------------------------------------------------------------

OLD = built(
    description="d",
    tags=("t",),
    program_code="c",
    udf_rust="r",
    udf_toml="t",
    runtime_config={"workers": 1, "logging": None, "dev_tweaks": {"x": 1}},
    program_config={"cache": True},
)
USED = replace(
    OLD,
    version=7,
    program_version=5,
    refresh_version=9,
    program_error=ProgramError(sql_compilation={"exit_code": 0}, rust_compilation={"exit_code": 0}),
    program_info={"schema": {}},
)
RESET = {
    "program_status": ProgramStatus.PENDING,
    "program_status_since": NOW,
    "program_error": ProgramError(),
    "program_info": None,
    "artifact": None,
}
METADATA: dict[str, Any] = {}
CORE = {"version": 8, "refresh_version": 10}
PROGRAM = CORE | {"program_version": 6} | RESET
EDITS = [
    ("description", "e", METADATA),
    ("tags", (), METADATA),
    ("tags", ("t", "u"), METADATA),
    ("name", "p2", CORE),
    ("runtime_config", {"workers": 1, "logging": "debug", "dev_tweaks": {"x": 1}}, CORE),
    ("runtime_config", {"workers": 2, "logging": None, "dev_tweaks": {"x": 1}}, CORE),
    ("runtime_config", {"workers": 1, "logging": None, "dev_tweaks": {"x": True}}, CORE),
    ("runtime_config", {"workers": 1, "logging": None, "dev_tweaks": {"x": [1]}}, CORE),
    ("program_code", "", PROGRAM),
    ("udf_rust", "", PROGRAM),
    ("udf_toml", "", PROGRAM),
    ("program_config", {"cache": False}, PROGRAM),
    ("program_config", {"cache": True, "toolchain": "python"}, PROGRAM),
]


@pytest.mark.parametrize(("field", "value", "effect"), EDITS, ids=lambda part: str(part)[:30])
def test_what_each_edit_counts(field: str, value: Any, effect: dict[str, Any]) -> None:
    after = _edit(USED, **{field: value})
    assert isinstance(after, Pipeline)
    assert repr(getattr(after.spec, field)) == repr(value)
    assert {key: new for key, new in changes(USED, after).items() if key != "spec"} == effect


@pytest.mark.parametrize(("field", "value", "effect"), EDITS, ids=lambda part: str(part)[:30])
def test_only_a_program_edit_brings_the_platform_along(field: str, value: Any, effect: dict[str, Any]) -> None:
    after = _edit(USED, platform="2", **{field: value})
    assert isinstance(after, Pipeline)
    assert after.platform_version == ("2" if effect is PROGRAM else "1")


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, value, _ in EDITS], ids=lambda p: str(p)[:30])
def test_a_bump_makes_every_edit_one_of_the_program(field: str, value: Any) -> None:
    after = _edit(USED, platform="2", bump=True, **{field: value})
    assert isinstance(after, Pipeline)
    assert repr(getattr(after.spec, field)) == repr(value)
    changed = {key: new for key, new in changes(USED, after).items() if key != "spec"}
    assert changed == PROGRAM | {"platform_version": "2"}


def test_a_bump_alone() -> None:
    after = _edit(USED, platform="2", bump=True)
    assert isinstance(after, Pipeline)
    assert changes(USED, after) == PROGRAM | {"platform_version": "2"}


@pytest.mark.parametrize("bump", [True, False])
def test_an_edit_that_changes_nothing_is_no_write(*, bump: bool) -> None:
    running = corner(StorageStatus.IN_USE, ResourcesStatus.PROVISIONED, WANTED)
    same = replace(running.spec, runtime_config=dict(running.spec.runtime_config))
    assert requests.edit(running, same, platform_version="1", bump=bump, now=NOW) is running


def test_neither_the_order_of_keys_nor_the_spelling_of_a_number_is_an_edit() -> None:
    row = built(runtime_config={"workers": 1, "env": {"a": "1", "b": "2"}, "dev_tweaks": {"x": [{"y": 1}]}})
    same = {"dev_tweaks": {"x": [{"y": 1.0}]}, "env": {"b": "2", "a": "1"}, "workers": 1}
    assert _edit(row, runtime_config=same) is row


def test_metadata_beside_a_refused_edit_is_not_written() -> None:
    refused = _edit(corner(StorageStatus.IN_USE, ResourcesStatus.STOPPED, WANTED), description="x", program_code="x")
    assert isinstance(refused, Refusal)
    assert refused.code == "UpdateRestrictedToStopped"


def test_true_is_not_one_however_deep() -> None:
    row = built(runtime_config={"init_containers": [{"args": ["a", {"tty": True}]}]})
    after = _edit(row, runtime_config={"init_containers": [{"args": ["a", {"tty": 1}]}]})
    assert isinstance(after, Pipeline)
    assert after.version == row.version + 1


GUARDED = {
    "workers": {"workers": 3},
    "hosts": {"hosts": 3},
    "fault_tolerance": {"fault_tolerance": {"model": "none"}},
    "resources.storage_mb_max": {"resources": {"storage_mb_max": 3}},
    "resources.namespace": {"resources": {"namespace": "n"}},
    "resources.storage_class": {"resources": {"storage_class": "c"}},
    "clock_timezone_offset": {"clock_timezone_offset": "+01:00"},
}
FREE = [{"max_rss_mb": 3}, {"env": {"A": "1"}}, {"resources": {"memory_mb_max": 3}}, {"storage": None}]


@pytest.mark.parametrize("storage", StorageStatus)
@pytest.mark.parametrize("path", GUARDED)
def test_a_guarded_field_changes_only_while_storage_is_cleared(path: str, storage: StorageStatus) -> None:
    after = _edit(replace(built(), storage_status=storage), runtime_config=GUARDED[path])
    if storage is StorageStatus.CLEARED:
        assert isinstance(after, Pipeline)
    else:
        assert isinstance(after, Refusal)
        assert after.code == "EditRestrictedToClearedStorage"
        assert after.details == {"not_allowed": [f"`runtime_config.{path}`"]}


@pytest.mark.parametrize("storage", StorageStatus)
@pytest.mark.parametrize("config", FREE, ids=str)
def test_other_fields_change_over_any_storage(config: dict[str, Any], storage: StorageStatus) -> None:
    assert isinstance(_edit(replace(built(), storage_status=storage), runtime_config=config), Pipeline)


def test_every_guarded_field_is_named_at_once() -> None:
    everything: dict[str, Any] = {}
    for config in GUARDED.values():
        for key, value in config.items():
            everything[key] = {**everything.get(key, {}), **value} if isinstance(value, dict) else value
    refused = _edit(replace(built(), storage_status=StorageStatus.IN_USE), name="p2", runtime_config=everything)
    assert isinstance(refused, Refusal)
    assert isinstance(refused.details["not_allowed"], list)
    assert sorted(refused.details["not_allowed"]) == sorted(["`name`", *(f"`runtime_config.{p}`" for p in GUARDED)])


def test_the_counters_of_a_life() -> None:
    """Create, compile, patch the program, compile again: the sequence that the reference's own tests pin."""
    row: Any = fresh()
    seen = [(row.version, row.program_version, row.refresh_version)]
    for code in (None, "print(2)"):
        if code is not None:
            row = _edit(row, program_code=code)
            seen.append((row.version, row.program_version, row.refresh_version))
        row = program.begin_check(row, NOW)
        row = program.check_passed(row, row.program_version, {"exit_code": 0}, {}, NOW)
        row = program.begin_build(row, NOW)
        row = program.build_passed(row, row.program_version, {"exit_code": 0}, "a", NOW)
        seen.append((row.version, row.program_version, row.refresh_version))
    assert seen == [(1, 1, 1), (1, 1, 3), (2, 2, 4), (2, 2, 6)]


# --- whatever the row -----------------------------------------------------------------------------------------------

ASKS: st.SearchStrategy[Callable[[Pipeline], Answer]] = st.one_of(
    st.builds(
        lambda initial, bootstrap, dismiss: (
            lambda row: requests.start(
                row, StartRequest(initial=initial, bootstrap=bootstrap, dismiss_error=dismiss), now=NOW
            )
        ),
        st.sampled_from(Initial),
        BOOTSTRAPS,
        st.booleans(),
    ),
    st.sampled_from(list(REQUESTS.values())[1:4]),
    st.just(requests.dismiss_error),
    st.sampled_from([RuntimeDesired.RUNNING, RuntimeDesired.PAUSED]).map(
        lambda target: lambda row: requests.steer(row, target)
    ),
    st.builds(
        lambda spec, platform, bump: (
            lambda row: requests.edit(row, spec, platform_version=platform, bump=bump, now=NOW)
        ),
        SPECS,
        st.sampled_from(["1", "2"]),
        st.booleans(),
    ),
)


@given(any_rows(), ASKS)
def test_asking_twice_is_asking_once(row: Pipeline, ask: Callable[[Pipeline], Answer]) -> None:
    once = ask(row)
    if isinstance(once, Pipeline):
        assert ask(once) == once


@given(any_rows(), ASKS)
def test_a_request_leaves_the_row_it_was_given_alone(row: Pipeline, ask: Callable[[Pipeline], Answer]) -> None:
    before = copy.deepcopy(row)
    after = ask(row)
    assert row == before
    if isinstance(after, Refusal):
        assert after.code
        assert ask(row) == after


NOT_ITS_OWN = {
    "id", "tenant", "revision", "created_at", "resources_status", "resources_status_since", "resources_status_details",
    "deployment_id", "deployment_location", "runtime_status", "runtime_status_since", "runtime_status_details",
    "runtime_desired", "runtime_desired_since", "suspect_since", "details_written_at", "event_at",
}  # fmt: skip


@given(sound_rows(), ASKS)
def test_what_is_accepted_a_user_may_record(row: Pipeline, ask: Callable[[Pipeline], Answer]) -> None:
    """Nor does it touch what only the daemon moves: resources, deployments, what was seen of the process."""
    after = ask(row)
    if isinstance(after, Pipeline):
        history.record(
            row, [after], by=Author.USER, cause="x", now=NOW, new_id=lambda: "e", details_interval_seconds=600
        )
        assert flaw_of(after) is None
        assert not changes(row, after).keys() & NOT_ITS_OWN


def test_a_new_pipeline() -> None:
    row = fresh()
    assert row.is_fully_stopped
    assert (row.deployment_status, row.deployment_desired_status) == ("Stopped", "Stopped")
    assert (row.storage_status, row.program_status) == (StorageStatus.CLEARED, ProgramStatus.PENDING)
    assert (row.version, row.program_version, row.refresh_version, row.revision) == (1, 1, 1, 0)
    assert {row.created_at, row.program_status_since, row.resources_status_since, row.resources_desired_since} == {
        EPOCH
    }
    assert flaw_of(row) is None
