"""What a command fails with: a sentence for people, an error object for programs, an exit code, and what to do.

Raised everywhere below the commands, shown in one place (`command.py`). Knows no connection and no terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import click

from penstock.cli import FAILED, NOT_FOUND, OK, TRY_AGAIN, UNREACHABLE

Json: TypeAlias = Any
"""What the daemon answered, decoded; its shape is the API's business."""

_OURS = frozenset(
    {
        "ChangedMeanwhile",
        "ConfigRefused",
        "DaemonUnreachable",
        "DeclarationUnusable",
        "Interrupted",
        "LogBrokeOff",
        "NotConfirmed",
        "StartedMeanwhile",
        "StoppedMeanwhile",
        "UnusableAddress",
        "WaitTimedOut",
    }
)
"""Codes that no daemon gives. Programs read them; to people they say no more than the sentence before."""

_NOT_NOW = frozenset({"StoreUnavailable", "NotReady", "PreconditionFailed"})

_STOP = "penstock stop {name}"
_CLEAR = "penstock stop {name} && penstock clear {name}"
_HINTS = {
    "CannotStartWithCompilationError": "penstock describe {name}",
    "CannotStartWhileClearingStorage": "penstock get {name}",
    "DeleteRestrictedToClearedStorage": "penstock delete --force {name}",
    "DeleteRestrictedToFullyStopped": "penstock delete --force {name}",
    "DismissErrorRestrictedToFullyStopped": _STOP,
    "EditRestrictedToClearedStorage": _CLEAR,
    "IllegalPipelineAction": "penstock stop {name}, which waits until it is stopped",
    "InitialImmutableUnlessStopped": _STOP,
    "InvalidTransition": "penstock stop {name}, which waits until it is stopped",
    "PipelineInteractionNotDeployed": "penstock start {name}",
    "PipelineUnavailable": "penstock logs {name}",
    "StorageStatusImmutableUnlessStopped": _STOP,
    "UpdateRestrictedToStopped": _STOP,
}
"""By error code: the command that gets past it."""


class Failure(click.ClickException):
    """Why a command did not do what it was told to."""

    def __init__(
        self,
        message: str,
        *,
        exit_code: int = FAILED,
        code: str = "",
        details: Json = None,
        pipeline: str = "",
        evidence: Sequence[str] = (),
        hint: str = "",
    ) -> None:
        """`code` and `details` are as in the API's errors; `evidence` is shown below the message, a line each."""
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]
        self.code = code
        self.details: Json = details or {}
        self.pipeline = pipeline
        self.evidence = tuple(evidence)
        self.hint = hint

    def of(self, pipeline: str) -> Failure:
        """The same, told of `pipeline`."""
        self.pipeline = pipeline
        if not self.hint and self.code in _HINTS:
            self.hint = _HINTS[self.code].format(name=pipeline)
        return self

    def as_json(self) -> Json:
        """The shape of the API's errors."""
        details = {"pipeline_name": self.pipeline, **self.details} if self.pipeline else self.details
        return {"message": self.message, "error_code": self.code, "details": details}

    def lines(self) -> list[str]:
        """What people read."""
        about = f"{self.pipeline}: " if self.pipeline else ""
        named = f" ({self.code})" if self.code and self.code not in _OURS else ""
        hint = [f"  try: {self.hint}"] if self.hint else []
        return [f"penstock: {about}{self.message}{named}", *(f"  {line}" for line in self.evidence), *hint]


class Unreachable(Failure):
    """Nobody answers, or what answers is no daemon."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, exit_code=UNREACHABLE, code="DaemonUnreachable", hint=hint)


class Refused(Failure):
    """The daemon said no."""

    def __init__(self, http_status: int, message: str, *, code: str, details: Json = None) -> None:
        exit_code = NOT_FOUND if http_status == 404 else TRY_AGAIN if code in _NOT_NOW else FAILED
        hint = "set PENSTOCK_API_KEY to a key of this daemon" if http_status == 401 else ""
        super().__init__(message, exit_code=exit_code, code=code, details=details, hint=hint)
        self.http_status = http_status


def common_exit_code(failures: Iterable[Failure]) -> int:
    """The exit code that all of them have; FAILED when they differ, OK when there are none."""
    codes = {failure.exit_code for failure in failures}
    return OK if not codes else codes.pop() if len(codes) == 1 else FAILED
