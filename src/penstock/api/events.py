"""The monitor events of a pipeline: the list and single ones (contract.md section 4)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from uuid import UUID

from aiohttp import web

from penstock.api import query
from penstock.api.context import PIPELINE, context_of, pipeline_of
from penstock.api.errors import ApiError
from penstock.api.representation import error_object
from penstock.api.responses import encoded_response, not_modified, stamp, to_json
from penstock.model import JsonValue, MonitorEvent

SELECTORS = ("status", "all")
LATEST = "latest"

KEPT_EVENTS = 8192
"""How many encoded events are kept, of about 400 bytes each: the newest of every pipeline, and some whole lists."""

_HYPHENATED = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_UUID = re.compile(rf"(?:urn:uuid:)?{_HYPHENATED}|\{{{_HYPHENATED}\}}|[0-9a-f]{{32}}", re.IGNORECASE)


def routes() -> list[web.RouteDef]:
    """The routes of this resource."""
    events = _Events()
    return [
        web.get(f"{PIPELINE}/events", events.many),
        web.get(f"{PIPELINE}/events/{{event_id:[^/]+}}", events.one),
    ]


class _Events:
    """The handlers, and what they encoded: an event never changes, so it is encoded once for each selector."""

    def __init__(self) -> None:
        self._encoded: dict[tuple[str, str], bytes] = {}

    async def many(self, request: web.Request) -> web.Response:
        """All retained events, newest first."""
        selector = query.choice(request, "selector", SELECTORS, "status")
        row = await pipeline_of(request)
        events = await context_of(request).store.events(row.id)
        etag = _etag(events[0].event_id, selector) if events else None
        if etag is not None and (unchanged := not_modified(request, etag)):
            return unchanged
        return encoded_response(self._encode_all(events, selector), no_cache=True, etag=etag)

    async def one(self, request: web.Request) -> web.Response:
        """The event of that id, or the latest."""
        selector = query.choice(request, "selector", SELECTORS, "status")
        wanted = request.match_info["event_id"]
        event_id = None if wanted == LATEST else _uuid(wanted)
        row = await pipeline_of(request)
        store = context_of(request).store
        if event_id is None:
            event = await store.latest_event(row.id)
            if event is None:
                text = f"No monitor event of pipeline {row.spec.name!r} is retained. The next change will make one."
                raise ApiError("NoPipelineMonitorEventsAvailable", text)
        else:
            event = await store.event(row.id, event_id)
            if event is None:
                text = f"Pipeline {row.spec.name!r} has no event {event_id} (any more). GET .../events lists them."
                raise ApiError("UnknownPipelineMonitorEvent", text, {"event_id": event_id})
        etag = _etag(event.event_id, selector)
        unchanged = not_modified(request, etag)
        return unchanged or encoded_response(self._encode(event, selector), no_cache=True, etag=etag)

    def _encode_all(self, events: Iterable[MonitorEvent], selector: str) -> bytes:
        return b"[" + b",".join([self._encode(event, selector) for event in events]) + b"]"

    def _encode(self, event: MonitorEvent, selector: str) -> bytes:
        key = (event.event_id, selector)
        body = self._encoded.get(key)
        if body is None:
            body = to_json(_whole(event) if selector == "all" else _light(event))
            while len(self._encoded) >= KEPT_EVENTS:
                del self._encoded[next(iter(self._encoded))]
            self._encoded[key] = body
        return body


def _light(event: MonitorEvent) -> dict[str, JsonValue]:
    whole = _whole(event)
    return {key: value for key, value in whole.items() if not key.endswith("_details") and key != "deployment_error"}


def _whole(event: MonitorEvent) -> dict[str, JsonValue]:
    runtime, runtime_desired = event.runtime_status, event.runtime_desired
    return {
        "event_id": event.event_id,
        "recorded_at": stamp(event.recorded_at),
        "deployment_resources_status": event.resources_status.value,
        "deployment_resources_status_details": event.resources_status_details,
        "deployment_resources_desired_status": event.resources_desired.value,
        "deployment_runtime_status": None if runtime is None else runtime.value,
        "deployment_runtime_status_details": event.runtime_status_details,
        "deployment_runtime_desired_status": None if runtime_desired is None else runtime_desired.value,
        "deployment_has_error": event.deployment_error is not None,
        "deployment_error": error_object(event.deployment_error),
        "program_status": event.program_status.value,
        "storage_status": event.storage_status.value,
        "storage_status_details": event.storage_status_details,
    }


def _etag(event_id: str, selector: str) -> str:
    return f'"{event_id}-{selector}"'


def _uuid(text: str) -> str:
    """The canonical form of a UUID in any of its four spellings. Raises ApiError InvalidUuidParam."""
    if _UUID.fullmatch(text) is None:
        shown = text[:100]
        raise ApiError(
            "InvalidUuidParam",
            f"{shown!r} is neither a UUID nor {LATEST!r}. GET .../events lists the events with their ids.",
            {"value": shown, "error": "expected 32 hexadecimal digits: plain, hyphenated, in braces or as a URN"},
        )
    return str(UUID(text))
