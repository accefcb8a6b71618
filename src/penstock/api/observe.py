"""What a pipeline prints, and what its processes do: logs, statistics, metrics (contract.md sections 5.5, 7.5 and 8).

A process that speaks contract `http` is asked itself; for an opaque one the daemon answers in the same shape.
"""

from __future__ import annotations

import socket
from contextlib import aclosing
from uuid import UUID

import anyio
from aiohttp import HttpVersion11, hdrs, web

from penstock.api import query
from penstock.api.context import PIPELINE, context_of, pipeline_of
from penstock.api.errors import ApiError
from penstock.api.interaction import ask, check_reachable
from penstock.api.responses import json_response
from penstock.model import JsonValue, Pipeline, RuntimeStatus
from penstock.ports import LogCursor, Usage

FORMATS = ("prometheus", "json")

STUCK_SECONDS = 300.0
"""A reader of logs that takes nothing for this long is cut off; it has cost one descriptor and two small buffers."""

POSITION_HEADERS = ("feldera-logs-epoch", "feldera-logs-seq", "feldera-logs-gap")
"""Where a log stream begins; all three or none (contract.md section 8)."""

_STREAM_HEADERS = {
    hdrs.CONTENT_TYPE: "text/plain; charset=utf-8",
    "X-Content-Type-Options": "nosniff",
    hdrs.CONTENT_ENCODING: "identity",
    hdrs.CACHE_CONTROL: "no-cache",
    "X-Accel-Buffering": "no",
}


def routes() -> list[web.RouteDef]:
    """The routes of this resource."""
    return [
        web.get(f"{PIPELINE}/logs", get_logs, allow_head=False),
        web.get(f"{PIPELINE}/stats", get_stats),
        web.get(f"{PIPELINE}/metrics", get_metrics),
    ]


async def get_logs(request: web.Request) -> web.StreamResponse:
    """The log from its oldest line on; stays open until the pipeline is deleted, unless ``follow=false``.

    With ``cursor``, ``tail`` or ``since`` it begins at the latest of the places that these name, headers tell which
    that is, and the body is nothing but numbered lines; without them it is what clients of old expect.
    """
    follow = query.flag(request, "follow", default=True)
    cursor, tail, since = _cursor(request), query.number(request, "tail"), query.moment(request, "since")
    row = await pipeline_of(request)
    context = context_of(request)
    headers, position = _STREAM_HEADERS, None
    if "cursor" in request.query or tail is not None or since is not None:
        position = await context.logs.position(row.id, cursor=cursor, tail=tail, since=since)
        told = zip(POSITION_HEADERS, (position.epoch, str(position.seq), str(position.gap)), strict=True)
        headers = {**headers, **dict(told)}
    response = web.StreamResponse(headers=headers)
    if request.version >= HttpVersion11:  # an older client reads until the connection closes
        response.enable_chunked_encoding()
    _watch_over(request)
    await response.prepare(request)
    async with aclosing(context.logs.read(row.id, follow=follow, position=position)) as blocks:
        # A pipeline that was deleted before its log was opened has nobody left to end this stream.
        known = not follow
        if position is not None and not known:
            if await context.store.get(row.id) is None:
                return response
            known = True
        async for block in blocks:
            with anyio.move_on_after(STUCK_SECONDS) as patience:
                await response.write(block)
            if patience.cancelled_caught:
                if request.transport is not None:
                    request.transport.abort()
                break
            if not known:
                if await context.store.get(row.id) is None:
                    break
                known = True
    return response


def _cursor(request: web.Request) -> LogCursor | None:
    """``<epoch>:<seq>``; None when it is absent or empty."""
    value = request.query.get("cursor", "")
    if not value:
        return None
    epoch, _, seq = value.partition(":")
    try:
        name = str(UUID(epoch))
    except ValueError:
        name = ""
    if not name or not seq.isascii() or not seq.isdecimal() or len(seq) > 20 or int(seq) >= 1 << 64:
        raise query.invalid("cursor", value, "empty or EPOCH:SEQUENCE as the headers of an earlier answer make it")
    return LogCursor(name, int(seq))


def _watch_over(request: web.Request) -> None:
    """Have the kernel find out within two minutes when the client's host is gone; a quiet log would never tell."""
    connection = None if request.transport is None else request.transport.get_extra_info("socket")
    if connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)


async def get_stats(request: web.Request) -> web.Response:
    """Statistics of a provisioned pipeline."""
    row = await pipeline_of(request)
    check_reachable(row)
    if row.deployment_location is not None:
        return await ask(request, row, row.deployment_location, f"/stats?{request.rel_url.raw_query_string}")
    usage = await _usage(request, row)
    uptime_seconds = (context_of(request).clock.now() - usage.started_at).total_seconds()
    return json_response({"global_metrics": _global(row, usage, uptime_seconds), "inputs": [], "outputs": []})


async def get_metrics(request: web.Request) -> web.Response:
    """Metrics of a provisioned pipeline; the content type is exactly ``text/plain`` (conformance.md T5)."""
    wanted = query.choice(request, "format", FORMATS, "prometheus")
    row = await pipeline_of(request)
    check_reachable(row)
    if row.deployment_location is not None:
        return await ask(request, row, row.deployment_location, f"/metrics?format={wanted}")
    samples = _samples(await _usage(request, row))
    labels = {"pipeline": row.id, "pipeline_name": row.spec.name}
    if wanted == "json":
        return json_response(
            [
                {"key": name, "type": kind, "description": text, "labels": labels, "value": value}
                for name, kind, text, value in samples
            ]
        )
    named = ",".join(f'{name}="{value}"' for name, value in labels.items())
    families = [
        f"# HELP {name} {text}\n# TYPE {name} {kind}\n{name}{{{named}}} {value}\n"
        for name, kind, text, value in samples
    ]
    return web.Response(body="".join(families).encode(), content_type="text/plain")


async def _usage(request: web.Request, row: Pipeline) -> Usage:
    """What an opaque deployment uses; when it ended a moment ago, the same refusal as if it had been asked itself."""
    usage = await context_of(request).usage.usage(row)
    if usage is None:
        error = "nothing of the deployment runs any more"
        raise ApiError(
            "PipelineInteractionUnreachable",
            f"Pipeline {row.spec.name!r} cannot be observed: {error}. Its status will tell in a moment.",
            {"pipeline_name": row.spec.name, "request": request.path, "error": error},
        )
    return usage


def _global(row: Pipeline, usage: Usage, uptime_seconds: float) -> dict[str, JsonValue]:
    """The members that clients expect; an opaque program has no records, steps and transactions."""
    began = int(usage.started_at.timestamp())
    return {
        "state": "Paused" if row.runtime_status is RuntimeStatus.PAUSED else "Running",
        "bootstrap_in_progress": False,
        "transaction_status": "NoTransaction",
        "transaction_id": 0,
        "transaction_msecs": None,
        "transaction_records": None,
        "transaction_initiators": {
            "transaction_id": None,
            "initiated_by_api": None,
            "initiated_by_connectors": {},
        },
        "commit_progress": None,
        "concurrent_bootstrap_phase": "Inactive",
        "concurrent_bootstrap_progress": None,
        "rss_bytes": usage.rss_bytes,
        "memory_pressure": "low",
        "memory_pressure_epoch": 0,
        "cpu_msecs": int(usage.cpu_seconds * 1000),
        "uptime_msecs": max(0, int(uptime_seconds * 1000)),
        "start_time": began,
        "incarnation_uuid": row.deployment_id,
        "initial_start_time": began,
        "storage_bytes": usage.storage_bytes or 0,
        "storage_mb_secs": 0,
        "runtime_elapsed_msecs": 0,
        "buffered_input_records": 0,
        "buffered_input_bytes": 0,
        "total_input_records": 0,
        "total_input_bytes": 0,
        "total_processed_records": 0,
        "total_processed_bytes": 0,
        "total_completed_records": 0,
        "output_stall_msecs": 0,
        "total_initiated_steps": 0,
        "total_completed_steps": 0,
        "pipeline_complete": False,
    }


def _samples(usage: Usage) -> list[tuple[str, str, str, float]]:
    """Name, type, help and value of each metric of an opaque deployment."""
    samples: list[tuple[str, str, str, float]] = [
        ("records_processed_total", "counter", "Records processed; an opaque program does not tell.", 0),
        ("process_cpu_seconds_total", "counter", "CPU time of all processes, in seconds.", usage.cpu_seconds),
        ("process_resident_memory_bytes", "gauge", "Resident memory of all processes, in bytes.", usage.rss_bytes),
        ("process_open_fds", "gauge", "Open files of all processes.", usage.open_files),
        ("process_threads", "gauge", "Threads of all processes.", usage.threads),
        ("process_count", "gauge", "Processes.", usage.processes),
        ("process_start_time_seconds", "gauge", "When it began, since the epoch.", usage.started_at.timestamp()),
    ]
    if usage.storage_bytes is not None:
        samples.append(("storage_bytes", "gauge", "What its storage takes, in bytes.", usage.storage_bytes))
    return samples
