"""Every corner of the machine times everything that can be seen there, at an early and at a late time."""

from __future__ import annotations

import itertools
from datetime import timedelta

import pytest

from penstock import history
from penstock.faults import HOST_RESTARTED
from penstock.machine import Decision, Policy, needs_look, step
from penstock.model import (
    Absent,
    Author,
    ClearStorage,
    DeploymentId,
    EffectFailed,
    Ended,
    Exit,
    Failed,
    Fault,
    Provision,
    Ready,
    Report,
    ResourcesDesired,
    ResourcesStatus,
    RuntimeDesired,
    RuntimeStatus,
    Starting,
    SteerRuntime,
    StopCompute,
    StorageStatus,
    Unbuilt,
    Unseen,
)
from penstock.moves import RESOURCES_MOVES, IllegalMove, check_move, flaw_of

from .rows import EPOCH, corner

RUNNING = Report(RuntimeStatus.RUNNING, RuntimeDesired.RUNNING, {}, {"checkpoints": []})
FAULT = Fault("Broken", "it broke")
EXIT = Exit(pid=1, code=3)
STIMULI = (
    None,
    Absent(),
    Absent(storage_remains=True),
    Starting(),
    Starting({"phase": "pulling"}),
    Ready(),
    Ready("127.0.0.1:1", None, RUNNING),
    Ready(None, {"pid": 7}, Report(RuntimeStatus.SUSPENDED, RuntimeDesired.SUSPENDED)),
    Ended(EXIT),
    Ended(EXIT, leftovers=True),
    Ended(Exit(pid=1, code=0), completed=True),
    Ended(Exit(pid=1), fault=Fault(HOST_RESTARTED, "the host went down")),
    Failed(FAULT),
    Failed(FAULT, confirmed=False),
    Unseen("hung"),
    Unbuilt("gone"),
    EffectFailed(Provision(), FAULT, retry=True),
    EffectFailed(StopCompute(), FAULT, retry=False),
    EffectFailed(SteerRuntime(RuntimeDesired.SUSPENDED), FAULT, retry=False),
    EffectFailed(ClearStorage(), FAULT, retry=True),
)
CORNERS = tuple(itertools.product(StorageStatus, ResourcesStatus, ResourcesDesired))
TIMES = (EPOCH + timedelta(seconds=1), EPOCH + timedelta(days=1))


def decide(corner_: tuple[StorageStatus, ResourcesStatus, ResourcesDesired], stimulus, now=TIMES[0]) -> Decision:
    return step(corner(*corner_), stimulus, now=now, new_id=DeploymentId("d-2"), policy=Policy())


def test_there_are_24_corners() -> None:
    assert len(CORNERS) == 24


@pytest.mark.parametrize("now", TIMES, ids=["early", "late"])
@pytest.mark.parametrize("stimulus", STIMULI, ids=repr)
@pytest.mark.parametrize("where", CORNERS, ids="-".join)
def test_every_corner_decides_something_legal(where, stimulus, now) -> None:
    row = corner(*where)
    decision = step(row, stimulus, now=now, new_id=DeploymentId("d-2"), policy=Policy())

    change = history.record(
        row,
        decision.rows,
        by=Author.DAEMON,
        cause=decision.reason,
        now=now,
        new_id=lambda: "e",
        details_interval_seconds=600,
    )
    final = change.row
    if flaw_of(row) is None:
        assert flaw_of(final) is None
    match decision.effect:
        case Provision():
            assert final.resources_status is ResourcesStatus.PROVISIONING
            assert final.storage_status is StorageStatus.IN_USE
            assert final.resources_desired is ResourcesDesired.PROVISIONED
        case StopCompute():
            assert final.resources_status is ResourcesStatus.STOPPING
        case ClearStorage():
            assert final.storage_status is StorageStatus.CLEARING
            assert final.is_fully_stopped
        case SteerRuntime():
            assert final.resources_status is ResourcesStatus.PROVISIONED
        case None:
            pass
    assert decision.reason


@pytest.mark.parametrize("where", CORNERS, ids="-".join)
@pytest.mark.parametrize("now", TIMES, ids=["early", "late"])
def test_unseen_never_counts_as_absent(where, now) -> None:
    """What cannot be seen never stops a stop, clears a storage or starts a copy."""
    decision = decide(where, Unseen("hung"), now)
    assert not isinstance(decision.effect, Provision | ClearStorage)
    for row in decision.rows:
        assert row.resources_status is not ResourcesStatus.STOPPED or where[1] is ResourcesStatus.STOPPED
        assert row.storage_status is not StorageStatus.CLEARED or where[0] is StorageStatus.CLEARED


@pytest.mark.parametrize("where", CORNERS, ids="-".join)
def test_a_wanted_stop_needs_no_look_until_stopping(where) -> None:
    row = corner(*where)
    if row.resources_desired is ResourcesDesired.STOPPED and row.resources_status in (
        ResourcesStatus.PROVISIONING,
        ResourcesStatus.PROVISIONED,
    ):
        assert not needs_look(row)
        decision = step(row, None, now=TIMES[0], new_id=DeploymentId("x"), policy=Policy())
        assert decision.rows[-1].resources_status is ResourcesStatus.STOPPING
        assert decision.effect == StopCompute()


IN_USE, STOPPED, PROVISIONED = StorageStatus.IN_USE, ResourcesDesired.STOPPED, ResourcesDesired.PROVISIONED
R = ResourcesStatus


def statuses(decision: Decision) -> list[tuple[str, str, str, bool]]:
    return [
        (r.resources_status, r.resources_desired, r.storage_status, r.deployment_error is not None)
        for r in decision.rows
    ]


def test_a_start_records_in_use_first_and_keeps_one_id() -> None:
    decision = decide((StorageStatus.CLEARED, R.STOPPED, PROVISIONED), Absent())
    assert statuses(decision) == [
        ("Stopped", "Provisioned", "InUse", False),
        ("Provisioning", "Provisioned", "InUse", False),
    ]
    assert decision.effect == Provision()
    again = decide((IN_USE, R.PROVISIONING, PROVISIONED), Absent())
    assert again.rows == ()
    assert again.effect == Provision()


def test_initializing_is_recorded_however_fast_the_start() -> None:
    decision = decide((IN_USE, R.PROVISIONING, PROVISIONED), Ready(None, None, RUNNING))
    assert [(r.runtime_status, r.runtime_desired) for r in decision.rows] == [
        (RuntimeStatus.INITIALIZING, RuntimeDesired.RUNNING),
        (RuntimeStatus.RUNNING, RuntimeDesired.RUNNING),
    ]
    assert decision.rows[-1].storage_status_details == {"checkpoints": []}


def test_a_death_records_desired_stopped_first_then_the_error() -> None:
    decision = decide((IN_USE, R.PROVISIONED, PROVISIONED), Ended(EXIT))
    assert statuses(decision) == [
        ("Provisioned", "Stopped", "InUse", False),
        ("Stopping", "Stopped", "InUse", True),
    ]
    assert decision.rows[-1].deployment_error.details["exit_code"] == 3


def test_one_fatal_answer_alone_kills_nothing() -> None:
    first = decide((IN_USE, R.PROVISIONED, PROVISIONED), Failed(FAULT, confirmed=False))
    assert first.effect is None
    [suspect] = first.rows
    later = TIMES[0] + timedelta(seconds=2)
    second = step(suspect, Failed(FAULT, confirmed=False), now=later, new_id=DeploymentId("x"), policy=Policy())
    assert second.rows[-1].deployment_error == FAULT
    good = step(suspect, Ready("h:1", None, RUNNING), now=later, new_id=DeploymentId("x"), policy=Policy())
    assert good.rows[-1].suspect_since is None


def test_a_reboot_owes_a_start_and_pays_it() -> None:
    ended = Ended(Exit(pid=1), fault=Fault(HOST_RESTARTED, "the host went down"))
    row = decide((IN_USE, R.PROVISIONED, PROVISIONED), ended).rows[-1]
    assert row.deployment_error.code == HOST_RESTARTED
    stopped = step(row, ended, now=TIMES[0], new_id=DeploymentId("x"), policy=Policy()).rows[-1]
    assert stopped.resources_status is R.STOPPED
    owed = step(stopped, None, now=TIMES[0], new_id=DeploymentId("x"), policy=Policy())
    [wanted] = owed.rows
    assert wanted.resources_desired is PROVISIONED
    assert wanted.deployment_error.code == HOST_RESTARTED
    check_move(stopped, wanted, Author.DAEMON)


def test_only_the_daemon_moves_resources() -> None:
    for before, after in RESOURCES_MOVES:
        assert RESOURCES_MOVES[before, after] == {Author.DAEMON}
    row = corner(IN_USE, R.STOPPED, STOPPED)
    with pytest.raises(IllegalMove, match="by user"):
        check_move(row, corner(IN_USE, R.PROVISIONING, PROVISIONED), Author.USER)
