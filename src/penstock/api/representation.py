"""A pipeline's row as clients see it: the exact key sets of contract.md section 5.1, encoded once per revision.

Called by the handlers that answer with pipelines. Private columns never appear here. Pure, apart from the cache.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import cast

from penstock.api.responses import stamp, to_json
from penstock.model import Fault, JsonObject, JsonValue, Pipeline, PipelineId

CACHE_BYTES = 16 * 1024 * 1024
"""About 8,000 pipelines in their status form; what does not fit is encoded again when asked for."""


class Selector(StrEnum):
    """Which representation: the first three are values of the query parameter, the last answers to writes."""

    ALL = "all"
    STATUS = "status"
    STATUS_WITH_CONNECTORS = "status_with_connectors"
    INFO = "info"


SELECTABLE = (Selector.ALL, Selector.STATUS, Selector.STATUS_WITH_CONNECTORS)


class Encoder:
    """Encodes rows, and keeps what it encoded until the row has another revision or room is needed."""

    def __init__(self, capacity_bytes: int = CACHE_BYTES) -> None:
        self._capacity_bytes = capacity_bytes
        self._kept: OrderedDict[tuple[PipelineId, Selector], tuple[int, bytes]] = OrderedDict()
        self._kept_bytes = 0

    def one(self, row: Pipeline, selector: Selector) -> bytes:
        """The row as a JSON object."""
        key = (row.id, selector)
        kept = self._kept.get(key)
        if kept is not None and kept[0] == row.revision:
            return kept[1]
        body = to_json(represent(row, selector))
        self._keep(key, row.revision, body)
        return body

    def many(self, rows: Iterable[Pipeline], selector: Selector) -> bytes:
        """The rows as a JSON array."""
        return b"[" + b",".join([self.one(row, selector) for row in rows]) + b"]"

    def forget(self, pipeline_id: PipelineId) -> None:
        """Drop what is kept of a pipeline that was deleted."""
        for selector in Selector:
            self._drop((pipeline_id, selector))

    @property
    def kept_bytes(self) -> int:
        """How much is kept."""
        return self._kept_bytes

    def _keep(self, key: tuple[PipelineId, Selector], revision: int, body: bytes) -> None:
        self._drop(key)
        if len(body) > self._capacity_bytes // 16:
            return  # one huge program shall not push out everybody else
        while self._kept and self._kept_bytes + len(body) > self._capacity_bytes:
            self._drop(next(iter(self._kept)))
        self._kept[key] = (revision, body)
        self._kept_bytes += len(body)

    def _drop(self, key: tuple[PipelineId, Selector]) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._kept_bytes -= len(kept[1])


def represent(row: Pipeline, selector: Selector) -> dict[str, JsonValue]:
    """The row as a JSON object, with exactly the keys of `selector`."""
    match selector:
        case Selector.ALL:
            return {**_light(row), **_heavy(row), **_bootstrap(row)}
        case Selector.INFO:
            return {**_light(row), **_heavy(row)}
        case Selector.STATUS:
            return {**_light(row), **_bootstrap(row)}
        case Selector.STATUS_WITH_CONNECTORS:
            stats = _connector_stats(row)
            status = {**_light(row), **_bootstrap(row)}
            return status if stats is None else {**status, "connectors": stats}


def _heavy(row: Pipeline) -> dict[str, JsonValue]:
    """What the status forms leave out."""
    spec = row.spec
    return {
        "runtime_config": spec.runtime_config,
        "program_code": spec.program_code,
        "udf_rust": spec.udf_rust,
        "udf_toml": spec.udf_toml,
        "program_error": {
            "sql_compilation": row.program_error.sql_compilation,
            "rust_compilation": row.program_error.rust_compilation,
            "system_error": row.program_error.system_error,
        },
        "program_info": _trimmed(row.program_info),
        "deployment_resources_status_details": row.resources_status_details,
    }


def _bootstrap(row: Pipeline) -> dict[str, JsonValue]:
    """What the answers to POST, PUT and PATCH leave out."""
    bootstrap = row.bootstrap
    return {
        "bootstrap_policy": None if bootstrap is None else bootstrap.policy.value,
        "silent_bootstrap": bootstrap is not None and bootstrap.silent,
        "concurrent_bootstrap": bootstrap is not None and bootstrap.concurrent,
    }


def _light(row: Pipeline) -> dict[str, JsonValue]:
    """What every form has."""
    spec = row.spec
    return {
        "id": row.id,
        "name": spec.name,
        "description": spec.description,
        "tags": list(spec.tags),
        "created_at": stamp(row.created_at),
        "version": row.version,
        "platform_version": row.platform_version,
        "program_config": spec.program_config,
        "program_version": row.program_version,
        "program_status": row.program_status.value,
        "program_status_since": stamp(row.program_status_since),
        "deployment_error": error_object(row.deployment_error),
        "refresh_version": row.refresh_version,
        "storage_status": row.storage_status.value,
        "storage_status_details": row.storage_status_details,
        **_deployment(row),
    }


def _deployment(row: Pipeline) -> dict[str, JsonValue]:
    runtime_since, wanted_since = row.runtime_status_since, row.runtime_desired_since
    return {
        "deployment_id": row.deployment_id,
        "deployment_initial": None if row.deployment_initial is None else row.deployment_initial.desired.value,
        "deployment_status": row.deployment_status,
        "deployment_status_since": stamp(_later(row.resources_status_since, runtime_since)),
        "deployment_desired_status": row.deployment_desired_status,
        "deployment_desired_status_since": stamp(_later(row.resources_desired_since, wanted_since)),
        "deployment_resources_status": row.resources_status.value,
        "deployment_resources_status_since": stamp(row.resources_status_since),
        "deployment_resources_desired_status": row.resources_desired.value,
        "deployment_resources_desired_status_since": stamp(row.resources_desired_since),
        "deployment_runtime_status": None if row.runtime_status is None else row.runtime_status.value,
        "deployment_runtime_status_details": _runtime_details(row.runtime_status_details),
        "deployment_runtime_status_since": None if runtime_since is None else stamp(runtime_since),
        "deployment_runtime_desired_status": None if row.runtime_desired is None else row.runtime_desired.value,
        "deployment_runtime_desired_status_since": None if wanted_since is None else stamp(wanted_since),
    }


def error_object(fault: Fault | None) -> JsonObject | None:
    """A fault as the API's ErrorResponse; None stays None."""
    if fault is None:
        return None
    return {"message": fault.message, "error_code": fault.code, "details": fault.details}


def _later(first: datetime, second: datetime | None) -> datetime:
    return first if second is None else max(first, second)


def _trimmed(info: JsonObject | None) -> JsonObject | None:
    """The members of program_info that clients may see, all of them (contract.md section 1.3)."""
    if info is None:
        return None
    return {
        "schema": info.get("schema", {"inputs": [], "outputs": []}),
        "udf_stubs": info.get("udf_stubs", ""),
        "input_connectors": info.get("input_connectors", {}),
        "output_connectors": info.get("output_connectors", {}),
    }


def _runtime_details(details: JsonObject | None) -> JsonObject | None:
    """Processes of old put the program's difference at the top (contract.md section 1.3)."""
    if details is not None and "program_diff" in details:
        return {"approval_diff": details}
    return details


def _connector_stats(row: Pipeline) -> JsonObject | None:
    stats = (row.runtime_status_details or {}).get("connector_stats")
    if not isinstance(stats, Mapping):
        return None
    errors = cast("JsonObject", stats).get("num_errors")
    return {"num_errors": errors} if isinstance(errors, int) else None
