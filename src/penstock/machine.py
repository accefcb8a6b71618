"""Every rule of the deployment and storage machine: what a turn decides, and which moves are legal.

Called by the reconciler (`needs_look`, `step`) and, through `history.record`, by every store (`check_move`). Pure: time
and ids are arguments, the answer is a value with at most one effect. Rules: contract.md sections 2.1, 2.2, 2.4 and
3.2 to 3.6, where ARCHITECTURE.md does not say that ours are better.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from penstock import faults, program, requests
from penstock.model import (
    PROGRAM_FAILED,
    Absent,
    ClearStorage,
    DeploymentId,
    Effect,
    EffectFailed,
    Ended,
    Failed,
    Fault,
    JsonObject,
    Pipeline,
    ProgramStatus,
    Provision,
    Ready,
    Refusal,
    Report,
    ResourcesDesired,
    ResourcesStatus,
    Resume,
    RuntimeDesired,
    RuntimeStatus,
    Sighting,
    Starting,
    SteerRuntime,
    StopCompute,
    StopMode,
    StorageStatus,
    Unbuilt,
    Unseen,
)

SIGTERM = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Every period and bound that a decision needs, in seconds."""

    provisioning_timeout_seconds: float = 20.0
    """Provisioning may last this long, unless `runtime_config.provisioning_timeout_secs` says otherwise."""
    details_write_seconds: float = 10.0
    """Details alone are written at most this often (contract.md section 3.5)."""
    confirm_seconds: float = 1.0
    """An answer that would be fatal must be repeated after this long before it is."""
    starting_revisit_seconds: float = 1.0
    """Safety net while compute starts; its readiness wakes the turn by itself."""
    probe_seconds: float = 2.5
    """How often a process that can be asked is asked (contract.md section 3.1)."""
    probe_changing_seconds: float = 0.25
    """The same while it is on its way somewhere: initialising, suspending."""
    unavailable_timeout_seconds: float | None = None
    """How long a process may answer nothing of use before it is stopped; None = for as long as it likes."""
    resume_after_reboot: bool = True
    """Whether a pipeline that ran when the host went down is started again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What one turn shall do: record `rows` in order, one transaction; then perform `effect`.

    `revisit_seconds` None = only when woken. `retry` = again after a backoff that the loop keeps, `revisit_seconds` at
    the most. `reason` is a
    constant text; it becomes the cause of the events.
    """

    reason: str
    rows: tuple[Pipeline, ...] = ()
    effect: Effect | None = None
    revisit_seconds: float | None = None
    retry: bool = False


# --- one turn -------------------------------------------------------------------------------------------------------


def needs_look(row: Pipeline) -> bool:
    """Tell whether deciding about `row` needs a look at the world.

    A stop does not: it goes on at once, however long a look would hang.
    """
    if row.resources_status is ResourcesStatus.STOPPED:
        if row.resources_desired is ResourcesDesired.PROVISIONED:
            return row.program_status is ProgramStatus.SUCCESS
        return row.storage_status is StorageStatus.CLEARING
    return row.resources_status is ResourcesStatus.STOPPING or row.resources_desired is ResourcesDesired.PROVISIONED


def step(
    row: Pipeline,
    stimulus: Sighting | EffectFailed | None,
    *,
    now: datetime,
    new_id: DeploymentId,
    policy: Policy,
) -> Decision:
    """Decide what to do about `row` given what was seen, or what failed.

    `stimulus` None is for rows that need no look. `new_id` is used only if this turn begins a deployment.
    """
    storage, resources, desired = StorageStatus, ResourcesStatus, ResourcesDesired
    seen = stimulus if stimulus is not None else Unseen("not looked at")
    match (row.storage_status, row.resources_status, row.resources_desired):
        case (storage.CLEARED | storage.IN_USE, resources.STOPPED, desired.STOPPED):
            return _rest(row, now)
        case (storage.CLEARING, resources.STOPPED, desired.STOPPED):
            return _clear(row, seen, now)
        case (storage.CLEARED | storage.IN_USE, resources.STOPPED, desired.PROVISIONED):
            return _start(row, seen, now, new_id)
        case (storage.CLEARING, resources.STOPPED, desired.PROVISIONED):
            return _refuse_start(row, faults.impossible(row), now, "impossible desired status")
        case (storage.IN_USE, resources.PROVISIONING, desired.PROVISIONED):
            deadline = row.resources_status_since + timedelta(seconds=provisioning_timeout_seconds(row, policy))
            return _retried_by(deadline, _await_ready(row, seen, now, policy), now)
        case (storage.IN_USE, resources.PROVISIONED, desired.PROVISIONED):
            return _retried_by(row.stop_deadline, _observe(row, seen, now, policy), now)
        case (storage.IN_USE, resources.PROVISIONING | resources.PROVISIONED, desired.STOPPED):
            return _stop(row, None, now, "stop requested")
        case (_, resources.STOPPING, desired.STOPPED | desired.PROVISIONED):
            return _finish_stop(row, seen, now)
        case (
            storage.CLEARED | storage.CLEARING,
            resources.PROVISIONING | resources.PROVISIONED,
            desired.STOPPED | desired.PROVISIONED,
        ):
            return _stop(row, faults.impossible(row), now, "impossible status")


def _retried_by(deadline: datetime | None, decision: Decision, now: datetime) -> Decision:
    """Have what is retried looked at again no later than `deadline`, however long the backoff has become."""
    if deadline is None or not decision.retry:
        return decision
    return replace(decision, revisit_seconds=max(0.0, (deadline - now).total_seconds()))


def _rest(row: Pipeline, now: datetime) -> Decision:
    if row.resume is None:
        return Decision(reason="at rest")
    wanted = requests.start(
        row,
        requests.StartRequest(initial=row.resume.initial, bootstrap=row.resume.bootstrap, dismiss_error=False),
        now=now,
        keep_error=True,
    )
    if isinstance(wanted, Refusal):
        return Decision(reason="start after reboot refused", rows=(replace(row, resume=None),))
    return Decision(reason="started again after reboot", rows=(wanted,), revisit_seconds=0)


def _clear(row: Pipeline, seen: Sighting | EffectFailed, now: datetime) -> Decision:
    match seen:
        case Absent(storage_remains=False):
            cleared = replace(row, storage_status=StorageStatus.CLEARED, storage_status_details=None)
            return Decision(reason="storage cleared", rows=(cleared,), revisit_seconds=0)
        case Absent():
            return Decision(reason="storage remains", effect=ClearStorage(), revisit_seconds=0)
        case EffectFailed():
            details: JsonObject = {"checkpoints": [], "reason": seen.fault.message}
            rows = _if_changed(row, replace(row, storage_status_details=details))
            return Decision(reason="clearing failed", rows=rows, retry=True)
        case Starting() | Ready() | Ended() | Failed() | Unseen() | Unbuilt():
            return Decision(reason="cannot see whether storage is free", retry=True)


def _start(row: Pipeline, seen: Sighting | EffectFailed, now: datetime, new_id: DeploymentId) -> Decision:
    if row.program_status in PROGRAM_FAILED:
        fault = Fault(
            "StartFailedDueToFailedCompilation",
            f"The pipeline was not started because its program has status {row.program_status}. "
            "Read program_error, change the program, and start again.",
            {"compiler_error": f"{row.program_status}: see program_error of the pipeline"},
        )
        return _refuse_start(row, fault, now, "program failed")
    if row.program_status is not ProgramStatus.SUCCESS:
        return Decision(reason="waiting for the program")
    match seen:
        case Absent():
            in_use = replace(row, storage_status=StorageStatus.IN_USE)
            rows = (*_if_changed(row, in_use), _provisioning(in_use, new_id, now))
            return Decision(reason="start requested", rows=rows, effect=Provision(), revisit_seconds=0)
        case Unbuilt():
            return Decision(reason="artifact missing", rows=(program.reset(row, now),))
        case Starting() | Ready() | Ended() | Failed() | Unseen() | EffectFailed():
            return Decision(reason="cannot see whether a start is safe", retry=True)


def _await_ready(row: Pipeline, seen: Sighting | EffectFailed, now: datetime, policy: Policy) -> Decision:
    timeout = provisioning_timeout_seconds(row, policy)
    left = timeout - (now - row.resources_status_since).total_seconds()
    match seen:
        case Ready():
            ready = _provisioned(row, seen, now)
            if seen.report is None or seen.report.status is RuntimeStatus.SUSPENDED:
                return Decision(reason="compute ready", rows=(ready,), revisit_seconds=0)
            rows = (ready, *_observed(ready, seen.report, now, policy))
            off_course = _steering(rows[-1], seen.report) is not None
            return Decision(
                reason="compute ready", rows=rows, revisit_seconds=0 if off_course else _revisit(seen, policy)
            )
        case Ended():
            return _ended(row, seen, now, policy)
        case Failed(confirmed=True):
            return _stop(row, seen.fault, now, "compute failed")
        case EffectFailed(retry=False):
            return _stop(row, seen.fault, now, "provisioning failed")
        case Absent() | Starting() | Failed() | Unseen() | Unbuilt() | EffectFailed():
            pass
    if left <= 0:
        return _stop(row, faults.provisioning_timeout(timeout, seen), now, "provisioning timed out")
    match seen:
        case Absent():
            return Decision(reason="provision", effect=Provision(), revisit_seconds=0)
        case EffectFailed():
            rows = _with_details(row, {"reason": seen.fault.message}, now, policy)
            return Decision(reason="provisioning will be retried", rows=rows, retry=True)
        case Starting():
            rows = _with_details(row, seen.details, now, policy)
            wait = min(left, policy.starting_revisit_seconds)
            return Decision(reason="starting", rows=rows, revisit_seconds=wait)
        case Failed() | Unseen() | Unbuilt():
            return Decision(reason="cannot see the compute", retry=True)


def _observe(row: Pipeline, seen: Sighting | EffectFailed, now: datetime, policy: Policy) -> Decision:
    graceful = row.stop_mode is StopMode.GRACEFUL
    if graceful and row.stop_deadline is not None and now >= row.stop_deadline and not isinstance(seen, Ended):
        return _stop(row, None, now, "stop grace exceeded")
    match seen:
        case Ready(report=Report() as report):
            return _observe_report(row, seen, report, now, policy)
        case Ready():
            return Decision(reason="running", revisit_seconds=_revisit(seen, policy))
        case Ended():
            return _ended(row, seen, now, policy)
        case Absent():
            fault = Fault("RunnerCheckError", "The compute of this deployment has vanished without a trace.")
            return _stop(row, fault, now, "compute vanished")
        case Failed(confirmed=True):
            return _stop(row, seen.fault, now, "compute failed")
        case Failed():
            if row.suspect_since is None:
                suspect = replace(row, suspect_since=now)
                return Decision(reason="confirming a failure", rows=(suspect,), revisit_seconds=policy.confirm_seconds)
            left = policy.confirm_seconds - (now - row.suspect_since).total_seconds()
            if left > 0:
                return Decision(reason="confirming a failure", revisit_seconds=left)
            return _stop(row, seen.fault, now, "failure confirmed")
        case Starting():
            report = _unavailable("The process is not ready any more.")
            if _silent_too_long(row, report, now, policy):
                return _stop(
                    row, faults.unavailable_timeout(policy.unavailable_timeout_seconds, report), now, "unavailable"
                )
            rows = _observed(row, report, now, policy)
            return Decision(reason="not ready", rows=rows, revisit_seconds=policy.starting_revisit_seconds)
        case Unseen():
            rows = _observed(row, _unavailable(seen.reason), now, policy)
            return Decision(reason="cannot see the compute", rows=rows, retry=True)
        case EffectFailed(retry=False, effect=SteerRuntime(target=RuntimeDesired.SUSPENDED)):
            return _stop(row, None, now, "graceful stop impossible")
        case EffectFailed(retry=False):
            return Decision(reason="steering refused", rows=(replace(row, runtime_intent=None),))
        case EffectFailed() | Unbuilt():
            return Decision(reason="steering will be retried", retry=True)


def _observe_report(row: Pipeline, seen: Ready, report: Report, now: datetime, policy: Policy) -> Decision:
    if report.status is RuntimeStatus.SUSPENDED:
        return _stop(row, None, now, "suspended", report.storage_details)
    if _silent_too_long(row, report, now, policy):
        return _stop(row, faults.unavailable_timeout(policy.unavailable_timeout_seconds, report), now, "unavailable")
    rows = _observed(row, report, now, policy, seen)
    effect = _steering(row, report)
    revisit = _revisit(seen, policy)
    if effect is not None:  # at once, but one that says something new each time is asked no faster for it
        revisit = policy.probe_changing_seconds if rows else 0
    if row.stop_deadline is not None and revisit != 0:
        left = max(0.0, (row.stop_deadline - now).total_seconds())
        revisit = left if revisit is None else min(left, revisit)
    return Decision(reason="observed", rows=rows, effect=effect, revisit_seconds=revisit)


def _steering(row: Pipeline, report: Report) -> SteerRuntime | None:
    """The one thing to tell the process, if it has been told something else (contract.md section 2.7)."""
    if row.stop_mode is StopMode.GRACEFUL:
        told = report.desired is RuntimeDesired.SUSPENDED or report.status is RuntimeStatus.UNAVAILABLE
        return None if told else SteerRuntime(RuntimeDesired.SUSPENDED)
    steerable = report.status in (RuntimeStatus.RUNNING, RuntimeStatus.PAUSED)
    movable = report.desired in (RuntimeDesired.RUNNING, RuntimeDesired.PAUSED)
    if row.runtime_intent is None or row.runtime_intent is report.desired or not steerable or not movable:
        return None
    return SteerRuntime(row.runtime_intent)


def _finish_stop(row: Pipeline, seen: Sighting | EffectFailed, now: datetime) -> Decision:
    match seen:
        case Ended(leftovers=False):
            return Decision(reason="stopped", rows=(_stopped(row, now),), revisit_seconds=0)
        case Absent():
            # A spawn that a killed daemon began may still land; the effect forbids it, and then the look is Ended.
            return Decision(reason="never spawned", effect=StopCompute(), revisit_seconds=0)
        case Starting() | Ready() | Ended() | Failed():
            return Decision(reason="still alive", effect=StopCompute(), revisit_seconds=0)
        case EffectFailed():
            details: JsonObject = {"reason": seen.fault.message}
            known = row.resources_status_details == details
            told = replace(row, resources_status_details=details, refresh_version=row.refresh_version + 1)
            return Decision(reason="stopping failed", rows=() if known else (told,), retry=True)
        case Unseen() | Unbuilt():
            return Decision(reason="cannot see whether it stopped", retry=True)


def _ended(row: Pipeline, seen: Ended, now: datetime, policy: Policy) -> Decision:
    if seen.fault is not None:
        resume = None
        if seen.fault.code == faults.HOST_RESTARTED and policy.resume_after_reboot and row.stop_mode is None:
            resume = _as_before(row)
        return _stop(replace(row, resume=resume), seen.fault, now, "ended with its host")
    if seen.completed:
        return _stop(row, None, now, "completed")
    asked_to_end = row.stop_mode is StopMode.GRACEFUL
    if asked_to_end and (seen.exit.signal == SIGTERM or seen.exit.code in (0, 128 + SIGTERM)):
        return _stop(row, None, now, "ended as asked")
    return _stop(row, faults.process_exited(seen.exit), now, "process exited")


def _stop(
    row: Pipeline, fault: Fault | None, now: datetime, reason: str, storage_details: JsonObject | None = None
) -> Decision:
    rows = _stopping(row, fault, now, storage_details)
    return Decision(reason=reason, rows=rows, effect=StopCompute(), revisit_seconds=0)


# --- what a move does to every column (contract.md section 2.2) -----------------------------------------------------


def _provisioning(row: Pipeline, new_id: DeploymentId, now: datetime) -> Pipeline:
    initial = row.deployment_initial
    steers = initial is not None and initial.desired in (RuntimeDesired.RUNNING, RuntimeDesired.PAUSED)
    return replace(
        row,
        resources_status=ResourcesStatus.PROVISIONING,
        resources_status_since=now,
        resources_status_details=None,
        deployment_id=new_id,
        deployment_location=None,
        deployment_error=None,
        runtime_intent=initial.desired if initial is not None and steers else None,
        suspect_since=None,
        details_written_at=None,
        refresh_version=row.refresh_version + 1,
    )


def _provisioned(row: Pipeline, seen: Ready, now: datetime) -> Pipeline:
    initial = row.deployment_initial
    return replace(
        row,
        resources_status=ResourcesStatus.PROVISIONED,
        resources_status_since=now,
        resources_status_details=seen.details,
        deployment_location=seen.location,
        deployment_error=None,
        runtime_status=RuntimeStatus.INITIALIZING,
        runtime_status_since=now,
        runtime_status_details={"reason": "Set by the daemon; the process has not been asked yet."},
        runtime_desired=initial.desired if initial is not None else RuntimeDesired.UNAVAILABLE,
        runtime_desired_since=now,
        details_written_at=None,  # what the first question brings is shown at once
        refresh_version=row.refresh_version + 1,
    )


def _observed(
    row: Pipeline, report: Report, now: datetime, policy: Policy, seen: Ready | None = None
) -> tuple[Pipeline, ...]:
    """The row with what the process reports; nothing when nothing is new, or only details and too soon."""
    details = row.resources_status_details if seen is None or seen.details is None else seen.details
    location = row.deployment_location if seen is None or seen.location is None else seen.location
    moved = (report.status, report.desired, location) != (
        row.runtime_status,
        row.runtime_desired,
        row.deployment_location,
    )
    after = replace(
        row,
        runtime_status=report.status,
        runtime_status_since=now if report.status is not row.runtime_status else row.runtime_status_since,
        runtime_status_details=report.details,
        runtime_desired=report.desired,
        runtime_desired_since=now if report.desired is not row.runtime_desired else row.runtime_desired_since,
        resources_status_details=details,
        deployment_location=location,
        storage_status_details=(
            report.storage_details if report.storage_details is not None else row.storage_status_details
        ),
        suspect_since=None,
    )
    if not moved:
        if after == row:
            return ()
        if after.suspect_since is row.suspect_since and _too_soon(row, now, policy):
            return ()
    return (replace(after, details_written_at=now, refresh_version=row.refresh_version + 1),)


def _stopping(
    row: Pipeline, fault: Fault | None, now: datetime, storage_details: JsonObject | None
) -> tuple[Pipeline, ...]:
    wanted_no_more = _no_longer_wanted(row, now)
    return (
        *_if_changed(row, wanted_no_more),
        replace(
            wanted_no_more,
            resources_status=ResourcesStatus.STOPPING,
            resources_status_since=now,
            resources_status_details=None,
            deployment_initial=None,
            bootstrap=None,
            deployment_location=None,
            deployment_error=fault,
            runtime_status=None,
            runtime_status_since=None,
            runtime_status_details=None,
            runtime_desired=None,
            runtime_desired_since=None,
            runtime_intent=None,
            storage_status_details=(storage_details if storage_details is not None else row.storage_status_details),
            suspect_since=None,
            stop_mode=StopMode.FORCE,
            stop_deadline=None,
            refresh_version=row.refresh_version + 1,
        ),
    )


def _stopped(row: Pipeline, now: datetime) -> Pipeline:
    return replace(
        _no_longer_wanted(row, now),
        resources_status=ResourcesStatus.STOPPED,
        resources_status_since=now,
        resources_status_details=None,
        deployment_id=None,
        deployment_initial=None,
        bootstrap=None,
        stop_mode=None,
        stop_deadline=None,
        details_written_at=None,
        refresh_version=row.refresh_version + 1,
    )


def _refuse_start(row: Pipeline, fault: Fault, now: datetime, reason: str) -> Decision:
    """Stay Stopped, with an error (contract.md section 2.2, column "remain Stopped")."""
    unwanted = replace(_no_longer_wanted(row, now), deployment_initial=None, bootstrap=None)
    failed = replace(
        unwanted,
        deployment_error=fault,
        resources_status_details=None,
        refresh_version=row.refresh_version + 1,
    )
    return Decision(reason=reason, rows=(unwanted, failed), revisit_seconds=0)


def _no_longer_wanted(row: Pipeline, now: datetime) -> Pipeline:
    if row.resources_desired is ResourcesDesired.STOPPED:
        return row
    return replace(row, resources_desired=ResourcesDesired.STOPPED, resources_desired_since=now)


def _with_details(row: Pipeline, details: JsonObject | None, now: datetime, policy: Policy) -> tuple[Pipeline, ...]:
    if details is None or details == row.resources_status_details or _too_soon(row, now, policy):
        return ()
    return (
        replace(
            row,
            resources_status_details=details,
            details_written_at=now,
            refresh_version=row.refresh_version + 1,
        ),
    )


def _too_soon(row: Pipeline, now: datetime, policy: Policy) -> bool:
    interval = timedelta(seconds=policy.details_write_seconds)
    return row.details_written_at is not None and now - row.details_written_at < interval


def _if_changed(before: Pipeline, after: Pipeline) -> tuple[Pipeline, ...]:
    return () if after == before else (after,)


# --- small questions ------------------------------------------------------------------------------------------------


def provisioning_timeout_seconds(row: Pipeline, policy: Policy) -> float:
    """How long Provisioning of `row` may last: its own `provisioning_timeout_secs`, else the policy's."""
    own = row.spec.runtime_config.get("provisioning_timeout_secs")
    return float(own) if isinstance(own, int | float) else policy.provisioning_timeout_seconds


def _unavailable(reason: str) -> Report:
    return Report(RuntimeStatus.UNAVAILABLE, RuntimeDesired.UNAVAILABLE, {"reason": reason})


def _silent_too_long(row: Pipeline, report: Report, now: datetime, policy: Policy) -> bool:
    """Whether the process has been Unavailable, all the time, for longer than it may be."""
    bound, since = policy.unavailable_timeout_seconds, row.runtime_status_since
    silent = report.status is RuntimeStatus.UNAVAILABLE and row.runtime_status is RuntimeStatus.UNAVAILABLE
    return silent and bound is not None and since is not None and now - since >= timedelta(seconds=bound)


def _as_before(row: Pipeline) -> Resume | None:
    if row.deployment_initial is None or row.bootstrap is None:
        return None
    for initial in type(row.deployment_initial):
        if row.runtime_intent is initial.desired:
            return Resume(initial, row.bootstrap)
    return Resume(row.deployment_initial, row.bootstrap)


def _revisit(seen: Ready, policy: Policy) -> float | None:
    """When to look again at running compute. An opaque process tells by dying; one that can be asked is asked."""
    if seen.location is None:
        return None
    settled = seen.report is not None and seen.report.status in (RuntimeStatus.RUNNING, RuntimeStatus.PAUSED)
    moving = seen.report is None or seen.report.status.value != seen.report.desired.value
    return policy.probe_seconds if settled and not moving else policy.probe_changing_seconds
