"""Every period and bound of a decision, on both sides of its edge."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from penstock.machine import Decision, Policy, needs_look, step
from penstock.model import (
    Absent,
    DeploymentId,
    EffectFailed,
    Ended,
    Exit,
    Failed,
    Pipeline,
    ProgramStatus,
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
    StopMode,
    StorageStatus,
    Unbuilt,
    Unseen,
)

from .any_rows import FAULT
from .rows import EPOCH, built, corner

STOPPED, WANTED = ResourcesDesired.STOPPED, ResourcesDesired.PROVISIONED
R = ResourcesStatus
STARTS = corner(StorageStatus.IN_USE, R.PROVISIONING, WANTED)
RUNS = corner(StorageStatus.IN_USE, R.PROVISIONED, WANTED)
TICK = timedelta(microseconds=1)


def after(seconds: float) -> datetime:
    return EPOCH + timedelta(seconds=seconds)


def decide(row: Pipeline, stimulus: Any, now: datetime, **policy: Any) -> Decision:
    return step(row, stimulus, now=now, new_id=DeploymentId("d-2"), policy=Policy(**policy))


def own_timeout(value: Any) -> Pipeline:
    return replace(STARTS, spec=replace(STARTS.spec, runtime_config={"provisioning_timeout_secs": value}))


# --- provisioning ---------------------------------------------------------------------------------------------------

WAITING = [
    Absent(),
    Starting(),
    Failed(FAULT, confirmed=False),
    Unseen("hung"),
    Unbuilt("gone"),
    EffectFailed(Provision(), FAULT, retry=True),
]


@pytest.mark.parametrize("seen", WAITING, ids=repr)
@pytest.mark.parametrize(
    ("row", "policy", "seconds"),
    [
        (STARTS, {}, 20.0),
        (STARTS, {"provisioning_timeout_seconds": 5.0}, 5.0),
        (own_timeout(None), {}, 20.0),
        (own_timeout(90), {}, 90.0),
        (own_timeout(2.5), {}, 2.5),
    ],
    ids=["default", "policy", "null", "own", "fraction"],
)
def test_provisioning_is_bounded(row: Pipeline, policy: dict[str, Any], seconds: float, seen: Any) -> None:
    early = decide(row, seen, after(seconds) - TICK, **policy)
    assert all(new.resources_status is R.PROVISIONING for new in early.rows)
    assert early.effect == (Provision() if seen == Absent() else None)
    late = decide(row, seen, after(seconds), **policy)
    error = late.rows[-1].deployment_error
    assert late.effect == StopCompute()
    assert error is not None
    assert error.code == "AutomatonProvisioningTimeout"
    whole = int(seconds)
    assert error.details == {"timeout": {"secs": whole, "nanos": int((seconds - whole) * 1e9)}}


def test_a_timeout_tells_what_was_last_known() -> None:
    for seen, words in (
        (Unseen("hung"), "hung"),
        (EffectFailed(Provision(), FAULT, retry=True), FAULT.message),
        (Starting({"phase": "waiting for the port file"}), "It was waiting for the port file."),
    ):
        error = decide(STARTS, seen, after(20)).rows[-1].deployment_error
        assert error is not None
        assert words in error.message


def test_what_is_ready_or_has_failed_by_then_is_not_timed_out() -> None:
    assert decide(STARTS, Ready(), after(1000)).rows[-1].resources_status is R.PROVISIONED
    for seen in (Failed(FAULT), EffectFailed(Provision(), FAULT, retry=False)):
        assert decide(STARTS, seen, after(1000)).rows[-1].deployment_error == FAULT


@pytest.mark.parametrize(("elapsed", "revisit"), [(0.0, 1.0), (18.9, 1.0), (19.25, 0.75)])
def test_a_start_is_looked_at_again_in_time_for_its_bound(elapsed: float, revisit: float) -> None:
    assert decide(STARTS, Starting(), after(elapsed)).revisit_seconds == pytest.approx(revisit)


# --- details --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("since", "written"), [(None, True), (9.999999, False), (10.0, True)])
def test_details_are_written_at_most_every_so_often(since: float | None, *, written: bool) -> None:
    last = None if since is None else after(15 - since)
    chatty = Ready("h:1", None, Report(RuntimeStatus.RUNNING, RuntimeDesired.RUNNING, {"a": 1}))
    for row, seen in ((RUNS, chatty), (STARTS, Starting({"a": 1}))):
        decision = decide(replace(row, details_written_at=last), seen, after(15))
        assert bool(decision.rows) is written


def test_a_status_never_waits_for_details() -> None:
    row = replace(RUNS, details_written_at=after(15))
    for report in (
        Report(RuntimeStatus.PAUSED, RuntimeDesired.RUNNING),
        Report(RuntimeStatus.RUNNING, RuntimeDesired.PAUSED),
    ):
        [written] = decide(row, Ready("h:1", None, report), after(15)).rows
        assert (written.runtime_status, written.runtime_desired) == (report.status, report.desired)


def test_a_suspicion_is_lifted_at_once() -> None:
    row = replace(RUNS, details_written_at=after(15), suspect_since=after(14))
    [written] = decide(row, Ready("h:1", None, Report(RuntimeStatus.RUNNING, RuntimeDesired.RUNNING)), after(15)).rows
    assert written.suspect_since is None


# --- confirmation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("elapsed", "left"), [(0.0, 1.0), (0.25, 0.75), (0.75, 0.25)])
def test_a_failure_is_confirmed_after_its_time(elapsed: float, left: float) -> None:
    doubtful = Failed(FAULT, confirmed=False)
    decision = decide(replace(RUNS, suspect_since=EPOCH), doubtful, after(elapsed))
    assert (decision.rows, decision.effect) == ((), None)
    assert decision.revisit_seconds == pytest.approx(left)


def test_a_confirmed_failure_stops() -> None:
    decision = decide(replace(RUNS, suspect_since=EPOCH), Failed(FAULT, confirmed=False), after(1.0))
    assert decision.effect == StopCompute()
    assert decision.rows[-1].deployment_error == FAULT


# --- graceful stop --------------------------------------------------------------------------------------------------

LEAVING = replace(RUNS, stop_mode=StopMode.GRACEFUL, stop_deadline=after(30))
ALIVE = [
    Ready("h:1", None, Report(RuntimeStatus.RUNNING, RuntimeDesired.RUNNING)),
    Ready(),
    Starting(),
    Unseen("hung"),
    Failed(FAULT, confirmed=False),
    Failed(FAULT),
    EffectFailed(SteerRuntime(RuntimeDesired.SUSPENDED), FAULT, retry=True),
]


@pytest.mark.parametrize("seen", ALIVE, ids=repr)
def test_grace_ends_at_its_deadline_without_an_error(seen: Any) -> None:
    decision = decide(LEAVING, seen, after(30))
    assert decision.effect == StopCompute()
    assert decision.rows[-1].resources_status is R.STOPPING
    assert decision.rows[-1].deployment_error is None
    if seen != Failed(FAULT):
        early = decide(LEAVING, seen, after(30) - TICK)
        assert all(row.resources_status is R.PROVISIONED for row in early.rows)


def test_suspending_is_asked_for_until_it_was_heard() -> None:
    cases = {
        (RuntimeStatus.RUNNING, RuntimeDesired.RUNNING): SteerRuntime(RuntimeDesired.SUSPENDED),
        (RuntimeStatus.INITIALIZING, RuntimeDesired.PAUSED): SteerRuntime(RuntimeDesired.SUSPENDED),
        (RuntimeStatus.RUNNING, RuntimeDesired.SUSPENDED): None,
        (RuntimeStatus.UNAVAILABLE, RuntimeDesired.UNAVAILABLE): None,
    }
    for (status, desired), effect in cases.items():
        decision = decide(LEAVING, Ready("h:1", None, Report(status, desired)), after(1))
        assert decision.effect == effect


@pytest.mark.parametrize(("elapsed", "revisit"), [(0.0, 0.25), (29.875, 0.125)])
def test_a_suspending_pipeline_is_looked_at_in_time(elapsed: float, revisit: float) -> None:
    suspending = Ready("h:1", None, Report(RuntimeStatus.RUNNING, RuntimeDesired.SUSPENDED))
    assert decide(LEAVING, suspending, after(elapsed)).revisit_seconds == pytest.approx(revisit)
    opaque = Ready(None, None, Report(RuntimeStatus.RUNNING, RuntimeDesired.SUSPENDED))
    assert decide(LEAVING, opaque, after(elapsed)).revisit_seconds == pytest.approx(30 - elapsed)


def test_suspending_that_is_refused_becomes_force() -> None:
    refused = EffectFailed(SteerRuntime(RuntimeDesired.SUSPENDED), FAULT, retry=False)
    decision = decide(LEAVING, refused, after(1))
    assert decision.effect == StopCompute()
    assert decision.rows[-1].deployment_error is None


@pytest.mark.parametrize(
    ("end", "graceful", "code"),
    [
        (Exit(pid=1, code=0), True, None),
        (Exit(pid=1, signal=15), True, None),
        (Exit(pid=1, code=143), True, None),
        (Exit(pid=1, code=1), True, "PipelineProcessExited"),
        (Exit(pid=1, signal=9), True, "PipelineProcessExited"),
        (Exit(pid=1), True, "PipelineProcessExited"),
        (Exit(pid=1, code=0), False, "PipelineProcessExited"),
        (Exit(pid=1, signal=15), False, "PipelineProcessExited"),
        (Exit(pid=1, code=143), False, "PipelineProcessExited"),
    ],
)
@pytest.mark.parametrize("elapsed", [1, 31])
def test_how_a_process_may_end(end: Exit, code: str | None, elapsed: int, *, graceful: bool) -> None:
    """Also after the deadline: what has ended by itself was not killed."""
    error = decide(LEAVING if graceful else RUNS, Ended(end), after(elapsed)).rows[-1].deployment_error
    assert (error.code if error else None) == code
    assert decide(RUNS, Ended(end, completed=True), after(elapsed)).rows[-1].deployment_error is None


# --- steering and revisits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", RuntimeStatus)
def test_only_what_runs_or_pauses_is_steered(status: RuntimeStatus) -> None:
    """Contract 2.7: between Paused and Running; Standby waits for /activate."""
    steerable = status in (RuntimeStatus.RUNNING, RuntimeStatus.PAUSED)
    for desired, intent in itertools.product(RuntimeDesired, [None, RuntimeDesired.RUNNING, RuntimeDesired.PAUSED]):
        row = replace(RUNS, runtime_intent=intent)
        decision = decide(row, Ready("h:1", None, Report(status, desired)), after(1))
        if status is RuntimeStatus.SUSPENDED:
            assert decision.effect == StopCompute()
            continue
        told = intent is None or intent is desired
        movable = desired in (RuntimeDesired.RUNNING, RuntimeDesired.PAUSED)
        expected = SteerRuntime(intent) if intent and not told and steerable and movable else None
        assert decision.effect == expected
        settled = status.value == desired.value and steerable
        # What is steered is looked at at once, but one that says something new each time is asked no faster for it.
        assert decision.revisit_seconds == (
            0 if expected and not decision.rows else 2.5 if settled and not expected else 0.25
        )


def test_an_opaque_program_is_not_polled() -> None:
    running = Ready(None, None, Report(RuntimeStatus.RUNNING, RuntimeDesired.RUNNING))
    assert decide(RUNS, running, after(1)).revisit_seconds is None


@pytest.mark.parametrize("seen", [Starting(), Unseen("hung")], ids=["not ready any more", "cannot be seen"])
def test_out_of_sight_is_unavailable_and_never_fatal(seen: Any) -> None:
    decision = decide(RUNS, seen, after(1e6))
    [row] = decision.rows
    assert (row.resources_status, row.runtime_status, row.runtime_desired) == (
        R.PROVISIONED,
        RuntimeStatus.UNAVAILABLE,
        RuntimeDesired.UNAVAILABLE,
    )
    assert row.runtime_intent is RuntimeDesired.RUNNING, "what the user wants outlives an outage"
    assert decision.effect is None


# --- which rows need a look -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ProgramStatus)
@pytest.mark.parametrize("desired", ResourcesDesired)
def test_a_stopped_row_is_looked_at_only_when_something_can_come_of_it(
    status: ProgramStatus, desired: ResourcesDesired
) -> None:
    row = replace(built(), program_status=status, resources_desired=desired)
    assert needs_look(row) is (desired is WANTED and status is ProgramStatus.SUCCESS)
    if desired is STOPPED:
        assert needs_look(replace(row, storage_status=StorageStatus.CLEARING))


@pytest.mark.parametrize("desired", ResourcesDesired)
@pytest.mark.parametrize("resources", [R.PROVISIONING, R.PROVISIONED, R.STOPPING])
def test_compute_is_looked_at_unless_it_must_stop(resources: ResourcesStatus, desired: ResourcesDesired) -> None:
    row = corner(StorageStatus.IN_USE, resources, desired)
    assert needs_look(row) is (resources is R.STOPPING or desired is WANTED)


@pytest.mark.parametrize("status", ProgramStatus)
def test_an_early_start_waits_for_its_program(status: ProgramStatus) -> None:
    row = replace(corner(StorageStatus.CLEARED, R.STOPPED, WANTED), program_status=status)
    decision = decide(row, Absent() if status is ProgramStatus.SUCCESS else None, after(1e6))
    if status is ProgramStatus.SUCCESS:
        assert decision.effect == Provision()
    elif status in (ProgramStatus.SQL_ERROR, ProgramStatus.RUST_ERROR, ProgramStatus.SYSTEM_ERROR):
        error = decision.rows[-1].deployment_error
        assert error is not None
        assert error.code == "StartFailedDueToFailedCompilation"
        assert status.value in str(error.details["compiler_error"])
    else:
        assert (decision.rows, decision.effect, decision.revisit_seconds, decision.retry) == ((), None, None, False)


# --- unavailable ----------------------------------------------------------------------------------------------------

SILENT = Report(RuntimeStatus.UNAVAILABLE, RuntimeDesired.UNAVAILABLE, {"reason": "refused"})


def silent_since(seconds: float) -> Pipeline:
    return replace(
        RUNS,
        runtime_status=RuntimeStatus.UNAVAILABLE,
        runtime_status_since=after(seconds),
        runtime_status_details=SILENT.details,
        runtime_desired=RuntimeDesired.UNAVAILABLE,
        runtime_desired_since=after(seconds),
    )


@pytest.mark.parametrize("seen", [Ready("h:1", None, SILENT), Starting()], ids=repr)
def test_unavailable_is_bounded_if_the_operator_says_so(seen: Any) -> None:
    row = silent_since(5)
    early = decide(row, seen, after(65) - TICK, unavailable_timeout_seconds=60.0)
    assert early.effect is None
    assert all(new.resources_status is R.PROVISIONED for new in early.rows)
    late = decide(row, seen, after(65), unavailable_timeout_seconds=60.0)
    assert late.effect == StopCompute()
    error = late.rows[-1].deployment_error
    assert error is not None
    assert error.code == "AutomatonUnavailableTimeout"
    assert error.details["timeout"] == {"secs": 60, "nanos": 0}
    assert decide(row, seen, after(10_000_000)).effect is None  # by default it may come back at any time


@pytest.mark.parametrize(
    "seen",
    [
        Ready("h:1", None, Report(RuntimeStatus.RUNNING, RuntimeDesired.RUNNING)),
        Ready("h:1", None, None),
        Unseen("the daemon itself cannot look"),
    ],
    ids=repr,
)
def test_what_is_available_again_or_not_seen_is_not_stopped(seen: Any) -> None:
    assert decide(silent_since(5), seen, after(1000), unavailable_timeout_seconds=60.0).effect is None


def test_a_silence_that_begins_is_not_counted_from_before() -> None:
    row = replace(RUNS, runtime_status_since=after(0))
    decision = decide(row, Ready("h:1", None, SILENT), after(1000), unavailable_timeout_seconds=60.0)
    assert decision.effect is None
    assert decision.rows[-1].runtime_status is RuntimeStatus.UNAVAILABLE


# --- where it is ----------------------------------------------------------------------------------------------------


def test_a_process_that_moved_to_another_port_is_followed_at_once() -> None:
    row = replace(RUNS, deployment_location="h:1", details_written_at=after(15))
    report = Report(RuntimeStatus.RUNNING, RuntimeDesired.RUNNING)
    [moved] = decide(row, Ready("h:2", None, report), after(15)).rows
    assert moved.deployment_location == "h:2"
    assert not decide(replace(moved, details_written_at=after(15)), Ready("h:2", None, report), after(15)).rows
