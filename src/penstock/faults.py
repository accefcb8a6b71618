"""The faults that the machine itself raises, in the words that users read.

Called by the machine. A fault says what happened, why, and what to do; its details are for programs (contract.md
section 6.5). Pure. Must never decide whether anything is a fault.
"""

from __future__ import annotations

from penstock.model import EffectFailed, Exit, Fault, JsonObject, Pipeline, Report, Sighting, Starting, Unseen

HOST_RESTARTED = "HostRestarted"
"""The code of the fault of what ended with its host; an executor raises it, the machine may start it again."""


def process_exited(end: Exit) -> Fault:
    """The fault of a process that ended by itself (design: the evidence goes into the details)."""
    if end.signal is not None:
        how = f"was killed by signal {end.signal_name or end.signal}"
    elif end.code is not None:
        how = f"exited with code {end.code}"
    else:
        how = "ended; nobody saw how"
    return Fault(
        "PipelineProcessExited",
        f"The pipeline process {how}. Its last lines of output are in details.log_tail; the whole log is at "
        "/v0/pipelines/{name}/logs. Start the pipeline again when the cause is dealt with.",
        {
            "exit_code": end.code,
            "signal": end.signal,
            "signal_name": end.signal_name,
            "inferred": end.inferred,
            "pid": end.pid,
            "ended_at": None if end.ended_at is None else end.ended_at.isoformat(timespec="microseconds"),
            "log_tail": list(end.log_tail),
        },
    )


def impossible(row: Pipeline) -> Fault:
    return Fault(
        "AutomatonImpossibleDesiredStatus",
        f"Storage {row.storage_status}, resources {row.resources_status} and desired {row.resources_desired} can not "
        "occur together. The pipeline is stopped to be safe; start it again.",
        {
            "current_status": row.resources_status.value,
            "desired_status": row.resources_desired.value,
        },
    )


def provisioning_timeout(timeout_seconds: float, seen: Sighting | EffectFailed) -> Fault:
    match seen:
        case EffectFailed():
            last = f" Last attempt: {seen.fault.message}"
        case Unseen():
            last = f" Last look: {seen.reason}"
        case Starting(details={"phase": str(phase)}):
            last = f" It was {phase}."
        case _:
            last = ""
    return Fault(
        "AutomatonProvisioningTimeout",
        f"The pipeline was not ready within {timeout_seconds:g} s.{last} Raise "
        "runtime_config.provisioning_timeout_secs if it needs longer.",
        {"timeout": _duration(timeout_seconds)},
    )


def unavailable_timeout(timeout_seconds: float | None, report: Report) -> Fault:
    """The fault of a process that has answered nothing of use for as long as the operator allows."""
    seconds, reason = timeout_seconds or 0.0, (report.details or {}).get("reason")
    return Fault(
        "AutomatonUnavailableTimeout",
        f"The pipeline process has been Unavailable for {seconds:g} s, as long as [runner] unavailable_timeout_seconds "
        f"allows: {reason}. Its log may tell why. Start the pipeline again when the cause is dealt with.",
        {"timeout": _duration(seconds), "reason": reason},
    )


def _duration(seconds: float) -> JsonObject:
    """As clients of the reference API read durations."""
    whole = int(seconds)
    return {"secs": whole, "nanos": round((seconds - whole) * 1e9)}
