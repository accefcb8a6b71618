"""What a process' answer to ``GET /status`` means (contract.md section 3.5).

Called by the reconciler with what the probe brought back. Pure. Turns an answer into a report, or into a failure that
must be confirmed before it stops anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from penstock.model import (
    Failed,
    Fault,
    JsonObject,
    JsonValue,
    Pipeline,
    Report,
    RuntimeDesired,
    RuntimeStatus,
)

STARTUP_GRACE_SECONDS = 20.0
"""A process that cannot be reached counts as Initializing for this long after Provisioned (contract.md 3.1)."""

_LEGACY = {
    "Paused": Report(RuntimeStatus.PAUSED, RuntimeDesired.PAUSED),
    "Running": Report(RuntimeStatus.RUNNING, RuntimeDesired.RUNNING),
    "Initializing": Report(RuntimeStatus.INITIALIZING, RuntimeDesired.PAUSED),
}
"""What processes of old answered: a bare string."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer whose body is JSON."""

    http_status: int
    body: JsonValue


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """Time-out, refused or reset connection, or a body that is not JSON, whatever its HTTP status."""

    reason: str


def interpret(row: Pipeline, answer: Answer | NoAnswer, now: datetime) -> Report | Failed:
    """Tell what `answer` says about `row`'s process. Grace counts from the row's own stamp, so a restart keeps it."""
    match answer:
        case NoAnswer(reason=reason):
            return _unreachable(row, reason, now)
        case Answer(http_status=200, body=body):
            return _from_ok(body, row)
        case Answer(http_status=503, body=body):
            return _from_busy(body)
        case Answer(http_status=status, body=body):
            return Failed(
                _as_error(body) or _invalid(row, f"HTTP status {status} without an error body"),
                confirmed=False,
            )


def _unreachable(row: Pipeline, reason: str, now: datetime) -> Report:
    young = (now - row.resources_status_since).total_seconds() < STARTUP_GRACE_SECONDS
    if young and row.runtime_status is RuntimeStatus.INITIALIZING and row.deployment_initial is not None:
        return Report(RuntimeStatus.INITIALIZING, row.deployment_initial.desired, {"reason": reason})
    return _unavailable(reason)


def _from_ok(body: JsonValue, row: Pipeline) -> Report | Failed:
    if isinstance(body, str):
        if body == "Terminated":
            return Failed(_invalid(row, "the process says that it has terminated"), confirmed=False)
        return _LEGACY.get(body) or _unavailable(f"unknown status {body[:100]!r}")
    if not isinstance(body, Mapping):
        return _unavailable("the answer to /status is neither an object nor a string")
    answer = cast("JsonObject", body)
    try:
        status = RuntimeStatus(cast("str", answer.get("runtime_status")))
        desired = RuntimeDesired(cast("str", answer.get("runtime_desired_status")))
    except ValueError:
        return _unavailable("the answer to /status has no valid runtime_status and runtime_desired_status")
    if "runtime_status_details" not in answer:
        return _unavailable("the answer to /status has no runtime_status_details")
    storage = answer.get("storage_status_details")
    if storage is not None and not isinstance(storage, Mapping):
        return _unavailable("storage_status_details in the answer to /status is not an object")
    return Report(status, desired, _details(answer["runtime_status_details"]), cast("JsonObject | None", storage))


def _from_busy(body: JsonValue) -> Report:
    error = _as_error(body)
    if error is not None and error.code == "Initializing":
        return Report(RuntimeStatus.INITIALIZING, RuntimeDesired.PAUSED, {"reason": error.message})
    if error is not None and error.code == "Suspended":
        return Report(RuntimeStatus.SUSPENDED, RuntimeDesired.SUSPENDED)
    return _unavailable("503 " + (error.message if error is not None else "without an error body"))


def _details(value: JsonValue) -> JsonObject:
    if isinstance(value, Mapping):
        return cast("JsonObject", value)
    return {"reason": value} if isinstance(value, str) and value else {}


def _as_error(body: JsonValue) -> Fault | None:
    if not isinstance(body, Mapping):
        return None
    error = cast("JsonObject", body)
    message, code, details = error.get("message"), error.get("error_code"), error.get("details")
    if not isinstance(message, str) or not isinstance(code, str):
        return None
    return Fault(code, message, cast("JsonObject", details) if isinstance(details, Mapping) else {})


def _unavailable(reason: str) -> Report:
    return Report(RuntimeStatus.UNAVAILABLE, RuntimeDesired.UNAVAILABLE, {"reason": reason})


def _invalid(row: Pipeline, error: str) -> Fault:
    return Fault(
        "PipelineInteractionInvalidResponse",
        f"The pipeline process gave an answer to /status that nobody can go on with: {error}.",
        {"pipeline_name": row.spec.name, "error": error},
    )
