"""What each move does to every column (contract.md sections 2.2, 2.4 and 2.5), and how many events it makes.

Each row is filled to the brim before the move, so that what is kept, set and forgotten can be told apart: a column that
a case does not name must be kept.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from penstock import history
from penstock.machine import Decision, Policy, step
from penstock.model import (
    Absent,
    Author,
    Bootstrap,
    ClearStorage,
    DeploymentId,
    EffectFailed,
    Ended,
    Exit,
    Failed,
    Fault,
    Initial,
    Pipeline,
    ProgramError,
    ProgramStatus,
    Provision,
    Ready,
    Report,
    ResourcesDesired,
    ResourcesStatus,
    Resume,
    RuntimeDesired,
    RuntimeStatus,
    Starting,
    SteerRuntime,
    StopCompute,
    StopMode,
    StorageStatus,
    Unbuilt,
)

from .any_rows import FAULT, changes
from .rows import EPOCH, corner

NOW = EPOCH + timedelta(seconds=15)
LONG_AGO = EPOCH - timedelta(hours=1)
POLICY = Policy()
OTHER = Fault("Other", "something else broke")
STOPPED, WANTED = ResourcesDesired.STOPPED, ResourcesDesired.PROVISIONED
R, Storage = ResourcesStatus, StorageStatus
CHECKPOINTS = {"checkpoints": [{"uuid": "new"}]}


def brimful(storage: StorageStatus, resources: ResourcesStatus, desired: ResourcesDesired) -> Pipeline:
    """A row in which every column that a move may touch holds something."""
    row = replace(
        corner(storage, resources, desired),
        refresh_version=5,
        deployment_error=FAULT,
        resources_status_details={"old": True},
        storage_status_details={"checkpoints": [{"uuid": "old"}]},
        deployment_location="old:1",
        suspect_since=EPOCH,
        details_written_at=LONG_AGO,
        resources_desired_since=LONG_AGO,
        program_error=ProgramError(sql_compilation={"exit_code": 0}),
        program_info={"schema": {}},
    )
    if desired is WANTED:
        row = replace(row, deployment_initial=Initial.PAUSED, bootstrap=Bootstrap(silent=True))
    if resources is R.PROVISIONED:
        row = replace(row, runtime_status_details={"reason": "old"})
    return row


def decide(row: Pipeline, stimulus: Any, now: Any = NOW) -> Decision:
    return step(row, stimulus, now=now, new_id=DeploymentId("d-2"), policy=POLICY)


def moves(row: Pipeline, stimulus: Any, now: Any = NOW) -> list[dict[str, Any]]:
    """What each snapshot changes in the one before; recorded for good, one event each."""
    decision = decide(row, stimulus, now)
    change = history.record(
        row,
        decision.rows,
        by=Author.DAEMON,
        cause=decision.reason,
        now=now,
        new_id=lambda: "e",
        details_interval_seconds=0,
    )
    assert len(change.events) == len(decision.rows)
    return [changes(old, new) for old, new in zip((row, *decision.rows), decision.rows, strict=False)]


TO_PROVISIONING: dict[str, Any] = {
    "resources_status": R.PROVISIONING,
    "resources_status_since": NOW,
    "resources_status_details": None,
    "deployment_id": "d-2",
    "deployment_location": None,
    "deployment_error": None,
    "runtime_intent": RuntimeDesired.PAUSED,
    "suspect_since": None,
    "details_written_at": None,
    "refresh_version": 6,
}


def test_to_provisioning_over_cleared_storage() -> None:
    assert moves(brimful(Storage.CLEARED, R.STOPPED, WANTED), Absent()) == [
        {"storage_status": Storage.IN_USE},
        TO_PROVISIONING,
    ]


def test_to_provisioning_over_storage_in_use_is_one_event() -> None:
    assert moves(brimful(Storage.IN_USE, R.STOPPED, WANTED), Absent()) == [TO_PROVISIONING]


@pytest.mark.parametrize(
    ("initial", "intent"),
    [
        (Initial.RUNNING, RuntimeDesired.RUNNING),
        (Initial.PAUSED, RuntimeDesired.PAUSED),
        (Initial.STANDBY, None),
    ],
)
def test_a_start_intends_what_it_was_asked_for(initial: Initial, intent: RuntimeDesired | None) -> None:
    row = replace(brimful(Storage.IN_USE, R.STOPPED, WANTED), deployment_initial=initial)
    assert decide(row, Absent()).rows[-1].runtime_intent is intent


def test_remain_provisioning() -> None:
    row = brimful(Storage.IN_USE, R.PROVISIONING, WANTED)
    noted = {"details_written_at": NOW, "refresh_version": 6}
    assert moves(row, Starting({"phase": "pulling"})) == [{"resources_status_details": {"phase": "pulling"}} | noted]
    failed = EffectFailed(Provision(), OTHER, retry=True)
    assert moves(row, failed) == [{"resources_status_details": {"reason": OTHER.message}} | noted]
    assert moves(row, Starting()) == []
    assert moves(row, Starting({"old": True})) == []


TO_PROVISIONED: dict[str, Any] = {
    "resources_status": R.PROVISIONED,
    "resources_status_since": NOW,
    "resources_status_details": {"pid": 7},
    "deployment_location": "h:1",
    "deployment_error": None,
    "runtime_status": RuntimeStatus.INITIALIZING,
    "runtime_status_since": NOW,
    "runtime_desired": RuntimeDesired.PAUSED,
    "runtime_desired_since": NOW,
    "details_written_at": None,
    "refresh_version": 6,
}


def test_to_provisioned() -> None:
    [moved] = moves(brimful(Storage.IN_USE, R.PROVISIONING, WANTED), Ready("h:1", {"pid": 7}))
    assert set(moved.pop("runtime_status_details")) == {"reason"}
    assert moved == TO_PROVISIONED


def test_to_provisioned_with_a_first_report() -> None:
    report = Report(RuntimeStatus.PAUSED, RuntimeDesired.PAUSED, {"a": 1}, CHECKPOINTS)
    first, second = moves(brimful(Storage.IN_USE, R.PROVISIONING, WANTED), Ready("h:1", {"pid": 7}, report))
    assert set(first.pop("runtime_status_details")) == {"reason"}
    assert first == TO_PROVISIONED
    assert second == {
        "runtime_status": RuntimeStatus.PAUSED,
        "runtime_status_details": {"a": 1},
        "storage_status_details": CHECKPOINTS,
        "suspect_since": None,
        "details_written_at": NOW,
        "refresh_version": 7,
    }


def test_what_is_suspended_at_first_sight_is_shown_as_provisioned_first() -> None:
    suspended = Report(RuntimeStatus.SUSPENDED, RuntimeDesired.SUSPENDED, {}, CHECKPOINTS)
    decision = decide(brimful(Storage.IN_USE, R.PROVISIONING, WANTED), Ready("h:1", None, suspended))
    assert [row.runtime_status for row in decision.rows] == [RuntimeStatus.INITIALIZING]
    assert (decision.effect, decision.revisit_seconds) == (None, 0)


SEEN = {"suspect_since": None, "details_written_at": NOW, "refresh_version": 6}
REPORTS: list[tuple[str, Ready, dict[str, Any]]] = [
    (
        "status",
        Ready("old:1", None, Report(RuntimeStatus.REPLAYING, RuntimeDesired.RUNNING, {"reason": "old"})),
        {"runtime_status": RuntimeStatus.REPLAYING, "runtime_status_since": NOW},
    ),
    (
        "desired",
        Ready("old:1", None, Report(RuntimeStatus.RUNNING, RuntimeDesired.PAUSED, {"reason": "old"})),
        {"runtime_desired": RuntimeDesired.PAUSED, "runtime_desired_since": NOW},
    ),
    (
        "details",
        Ready("old:1", {"pid": 7}, Report(RuntimeStatus.RUNNING, RuntimeDesired.RUNNING, {"a": 1}, CHECKPOINTS)),
        {
            "resources_status_details": {"pid": 7},
            "runtime_status_details": {"a": 1},
            "storage_status_details": CHECKPOINTS,
        },
    ),
    (
        "location",
        Ready("h:1", None, Report(RuntimeStatus.RUNNING, RuntimeDesired.RUNNING, {"reason": "old"})),
        {"deployment_location": "h:1"},
    ),
    ("nothing", Ready("old:1", None, Report(RuntimeStatus.RUNNING, RuntimeDesired.RUNNING, {"reason": "old"})), {}),
]


@pytest.mark.parametrize(("report", "expected"), [case[1:] for case in REPORTS], ids=[case[0] for case in REPORTS])
def test_remain_provisioned(report: Ready, expected: dict[str, Any]) -> None:
    """Details that are not reported are kept; a stamp moves only with its value; an answer clears every suspicion."""
    row = brimful(Storage.IN_USE, R.PROVISIONED, WANTED)
    [moved] = [changes(row, after) for after in decide(row, report).rows]
    assert moved == expected | SEEN


def test_a_report_without_news_is_no_write() -> None:
    row = replace(brimful(Storage.IN_USE, R.PROVISIONED, WANTED), suspect_since=None)
    assert decide(row, REPORTS[-1][1]).rows == ()


UNWANTED = {"resources_desired": STOPPED, "resources_desired_since": NOW}
TO_STOPPING: dict[str, Any] = {
    "resources_status": R.STOPPING,
    "resources_status_since": NOW,
    "resources_status_details": None,
    "deployment_initial": None,
    "bootstrap": None,
    "deployment_location": None,
    "runtime_intent": None,
    "suspect_since": None,
    "stop_mode": StopMode.FORCE,
    "refresh_version": 6,
}
FROM_PROVISIONED = TO_STOPPING | {
    "runtime_status": None,
    "runtime_status_since": None,
    "runtime_status_details": None,
    "runtime_desired": None,
    "runtime_desired_since": None,
}


def test_to_stopping_with_an_error() -> None:
    provisioned = brimful(Storage.IN_USE, R.PROVISIONED, WANTED)
    assert moves(provisioned, Failed(OTHER)) == [UNWANTED, FROM_PROVISIONED | {"deployment_error": OTHER}]
    provisioning = brimful(Storage.IN_USE, R.PROVISIONING, WANTED)
    assert moves(provisioning, Failed(OTHER)) == [UNWANTED, TO_STOPPING | {"deployment_error": OTHER}]


def test_to_stopping_without_an_error_forgets_an_old_one() -> None:
    """With what a suspended process said last about its storage, if it said anything."""
    row = brimful(Storage.IN_USE, R.PROVISIONED, WANTED)
    silent = Ready("h:1", {"pid": 7}, Report(RuntimeStatus.SUSPENDED, RuntimeDesired.SUSPENDED))
    assert moves(row, silent) == [UNWANTED, FROM_PROVISIONED | {"deployment_error": None}]
    said = Ready("h:1", None, Report(RuntimeStatus.SUSPENDED, RuntimeDesired.SUSPENDED, {}, CHECKPOINTS))
    assert moves(row, said) == [
        UNWANTED,
        FROM_PROVISIONED | {"deployment_error": None, "storage_status_details": CHECKPOINTS},
    ]


@pytest.mark.parametrize("resources", [R.PROVISIONING, R.PROVISIONED])
def test_to_stopping_when_it_is_no_longer_wanted_is_one_event(resources: ResourcesStatus) -> None:
    [moved] = moves(brimful(Storage.IN_USE, resources, STOPPED), None)
    kept = ("deployment_initial", "bootstrap", "stop_mode")  # a stop by force was recorded by the request
    expected = FROM_PROVISIONED if resources is R.PROVISIONED else TO_STOPPING
    assert moved == {k: v for k, v in expected.items() if k not in kept} | {"deployment_error": None}


def test_to_stopping_ends_a_graceful_stop() -> None:
    row = brimful(Storage.IN_USE, R.PROVISIONED, WANTED)
    asked = replace(row, stop_mode=StopMode.GRACEFUL, stop_deadline=NOW)
    _, moved = moves(asked, Ended(Exit(pid=1, code=0)))
    assert moved == FROM_PROVISIONED | {"deployment_error": None, "stop_deadline": None}


def test_remain_stopping() -> None:
    row = brimful(Storage.IN_USE, R.STOPPING, STOPPED)
    failed = EffectFailed(StopCompute(), OTHER, retry=True)
    [moved] = moves(row, failed)
    assert moved == {"resources_status_details": {"reason": OTHER.message}, "refresh_version": 6}
    assert moves(replace(row, resources_status_details={"reason": OTHER.message}), failed) == []


GONE = Ended(Exit(pid=1, code=0))
TO_STOPPED: dict[str, Any] = {
    "resources_status": R.STOPPED,
    "resources_status_since": NOW,
    "resources_status_details": None,
    "deployment_id": None,
    "stop_mode": None,
    "details_written_at": None,
    "refresh_version": 6,
}


def test_to_stopped_keeps_error_and_storage() -> None:
    owed = replace(brimful(Storage.IN_USE, R.STOPPING, STOPPED), resume=Resume(Initial.PAUSED, Bootstrap()))
    assert moves(replace(owed, stop_deadline=EPOCH), GONE) == [TO_STOPPED | {"stop_deadline": None}]


@pytest.mark.parametrize("storage", Storage)
def test_to_stopped_from_where_it_cannot_be(storage: StorageStatus) -> None:
    """Wanted and Stopping at once: stopped like any other, and with the stamp and columns of one that is not wanted."""
    expected = TO_STOPPED | UNWANTED | {"deployment_initial": None, "bootstrap": None}
    assert moves(brimful(storage, R.STOPPING, WANTED), GONE) == [expected]


def test_remain_stopped_with_an_error() -> None:
    row = replace(brimful(Storage.IN_USE, R.STOPPED, WANTED), program_status=ProgramStatus.SQL_ERROR)
    unwanted, failed = moves(row, None)
    assert unwanted == UNWANTED | {"deployment_initial": None, "bootstrap": None}
    assert failed.pop("deployment_error").code == "StartFailedDueToFailedCompilation"
    assert failed == {"resources_status_details": None, "refresh_version": 6}


def test_to_cleared_counts_nothing() -> None:
    row = brimful(Storage.CLEARING, R.STOPPED, STOPPED)
    assert moves(row, Absent()) == [{"storage_status": Storage.CLEARED, "storage_status_details": None}]


def test_remain_clearing_tells_why() -> None:
    row = brimful(Storage.CLEARING, R.STOPPED, STOPPED)
    failed = EffectFailed(ClearStorage(), OTHER, retry=True)
    told = {"checkpoints": [], "reason": OTHER.message}
    assert moves(row, failed) == [{"storage_status_details": told}]
    assert moves(replace(row, storage_status_details=told), failed) == []


def test_a_missing_artifact_is_built_again_and_the_start_stays_wanted() -> None:
    assert moves(brimful(Storage.IN_USE, R.STOPPED, WANTED), Unbuilt("gone")) == [
        {
            "program_status": ProgramStatus.PENDING,
            "program_status_since": NOW,
            "program_error": ProgramError(),
            "program_info": None,
            "artifact": None,
            "refresh_version": 6,
        }
    ]


@pytest.mark.parametrize("resources", [R.PROVISIONING, R.PROVISIONED])
@pytest.mark.parametrize("storage", [Storage.CLEARED, Storage.CLEARING])
@pytest.mark.parametrize("desired", ResourcesDesired)
def test_an_impossible_corner_is_stopped_and_named(
    storage: StorageStatus, resources: ResourcesStatus, desired: ResourcesDesired
) -> None:
    decision = decide(brimful(storage, resources, desired), Ready())
    stopping = decision.rows[-1]
    assert (stopping.resources_status, stopping.storage_status, stopping.deployment_id) == (R.STOPPING, storage, "d-1")
    assert stopping.deployment_error == Fault(
        "AutomatonImpossibleDesiredStatus",
        stopping.deployment_error.message if stopping.deployment_error else "",
        {"current_status": resources.value, "desired_status": desired.value},
    )
    assert decision.effect == StopCompute()


# --- private columns ------------------------------------------------------------------------------------------------


def test_a_suspicion_and_a_refused_steering_are_nobodys_business() -> None:
    row = replace(brimful(Storage.IN_USE, R.PROVISIONED, WANTED), suspect_since=None)
    [suspect] = decide(row, Failed(OTHER, confirmed=False)).rows
    assert changes(row, suspect) == {"suspect_since": NOW}
    refused = EffectFailed(SteerRuntime(RuntimeDesired.PAUSED), OTHER, retry=False)
    [given_up] = decide(row, refused).rows
    assert changes(row, given_up) == {"runtime_intent": None}


@pytest.mark.parametrize(
    ("intent", "initial", "owed"),
    [
        (RuntimeDesired.RUNNING, Initial.PAUSED, Initial.RUNNING),
        (RuntimeDesired.PAUSED, Initial.RUNNING, Initial.PAUSED),
        (None, Initial.STANDBY, Initial.STANDBY),
        (None, Initial.PAUSED, Initial.PAUSED),
    ],
)
def test_a_reboot_owes_what_the_user_wanted_last(
    intent: RuntimeDesired | None, initial: Initial, owed: Initial
) -> None:
    row = brimful(Storage.IN_USE, R.PROVISIONED, WANTED)
    row = replace(row, runtime_intent=intent, deployment_initial=initial)
    went_down = Ended(Exit(pid=1), fault=Fault("HostRestarted", "the host went down"))
    assert decide(row, went_down).rows[-1].resume == Resume(owed, Bootstrap(silent=True))
    for not_owed in (
        (replace(row, stop_mode=StopMode.GRACEFUL, stop_deadline=NOW), went_down, POLICY),
        (row, Ended(Exit(pid=1), fault=OTHER), POLICY),
        (row, went_down, Policy(resume_after_reboot=False)),
    ):
        where, seen, policy = not_owed
        decision = step(where, seen, now=NOW, new_id=DeploymentId("x"), policy=policy)
        assert decision.rows[-1].resume is None
        assert decision.rows[-1].deployment_error == seen.fault


def test_a_start_that_is_owed_is_dropped_when_it_has_become_impossible() -> None:
    row = replace(
        brimful(Storage.IN_USE, R.STOPPED, STOPPED),
        resume=Resume(Initial.PAUSED, Bootstrap()),
        program_status=ProgramStatus.RUST_ERROR,
    )
    [dropped] = decide(row, None).rows
    assert changes(row, dropped) == {"resume": None}
