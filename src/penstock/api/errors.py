"""One table from error codes to HTTP statuses, and the one shape that every refusal has (contract.md section 6).

Raised by handlers, rendered by the middleware in `server.py`. A message says what happened, why, and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from penstock.model import JsonObject, Refusal

RETRY_AFTER_SECONDS = 5
"""What manager-made 503 answers tell a client to wait (contract.md section 5.0)."""

STATUSES: Mapping[str, int] = MappingProxyType(
    {
        # Request shape
        "MalformedRequest": 400,
        "UriTooLong": 414,
        "HeadersTooLarge": 431,
        "ExpectationFailed": 417,
        "InvalidJson": 400,
        "InvalidQueryParam": 400,
        "InvalidUuidParam": 400,
        "UnknownRoute": 404,
        "MethodNotAllowed": 405,
        "PayloadTooLarge": 413,
        "UnsupportedMediaType": 415,
        "ForbiddenHost": 403,
        "ForbiddenOrigin": 403,
        "PreconditionFailed": 412,
        # Validation
        "EmptyName": 400,
        "TooLongName": 400,
        "NameDoesNotMatchPattern": 400,
        "InvalidTag": 400,
        "TooManyTags": 400,
        "TooLongDescription": 400,
        "InvalidRuntimeConfig": 400,
        "InvalidProgramConfig": 400,
        "InvalidBootstrapConfig": 400,
        "UnsupportedPipelineAction": 405,
        # Existence and conflict
        "UnknownPipelineName": 404,
        "UnknownPipelineMonitorEvent": 404,
        "NoPipelineMonitorEventsAvailable": 404,
        "DuplicateName": 409,
        # State restrictions
        "UpdateRestrictedToStopped": 400,
        "EditRestrictedToClearedStorage": 400,
        "CannotRenameNonExistingPipeline": 400,
        "DeleteRestrictedToFullyStopped": 400,
        "DeleteRestrictedToClearedStorage": 400,
        "IllegalPipelineAction": 400,
        "CannotStartWithUndismissedError": 400,
        "CannotStartWhileClearingStorage": 400,
        "CannotStartWithCompilationError": 400,
        "InitialImmutableUnlessStopped": 400,
        "BootstrapPolicyImmutableUnlessStopped": 400,
        "InitialStandbyNotAllowed": 400,
        "DismissErrorRestrictedToFullyStopped": 400,
        "StorageStatusImmutableUnlessStopped": 400,
        # Interaction with a process
        "InvalidTransition": 400,
        "PipelineInteractionNotDeployed": 503,
        "PipelineUnavailable": 503,
        "PipelineInteractionUnreachable": 503,
        "PipelineInteractionInvalidResponse": 500,
        # The daemon itself
        "StoreUnavailable": 503,
        "NotReady": 503,
        "InternalError": 500,
    }
)

WITHOUT_RETRY_AFTER = frozenset({"PipelineInteractionNotDeployed", "PipelineUnavailable"})
"""Refusals that waiting does not mend: 503 for the clients' sake, but nothing to retry (design section 7)."""


class ApiError(Exception):
    """An answer that is an error: `code` is one of STATUSES."""

    def __init__(
        self, code: str, message: str, details: JsonObject | None = None, *, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details: JsonObject = details if details is not None else {}
        self.headers = dict(headers or {})
        if self.status == 503 and code not in WITHOUT_RETRY_AFTER:
            self.headers.setdefault("Retry-After", str(RETRY_AFTER_SECONDS))

    @property
    def status(self) -> int:
        """The HTTP status that belongs to the code."""
        return STATUSES[self.code]


def refused(refusal: Refusal) -> ApiError:
    """The answer to a request that the rules do not allow."""
    return ApiError(refusal.code, refusal.message, refusal.details)
