"""What handlers may use: the ports and a few facts, handed in once by wiring and found through the application.

Must never grow logic beyond finding the pipeline that a path names.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from aiohttp import web

from penstock.api.errors import ApiError
from penstock.api.spec import may_be_name
from penstock.model import DEFAULT_TENANT, Pipeline, PipelineId, TenantId
from penstock.ports import Clock, Logs, Probe, Store, Toolchains, UsageSource
from penstock.telemetry import Metrics

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The daemon as its handlers see it."""

    store: Store
    toolchains: Toolchains
    usage: UsageSource
    probe: Probe
    logs: Logs
    clock: Clock
    metrics: Metrics
    version: str
    stop_grace_seconds: Callable[[], float]
    """How long a graceful stop may take; may change with the configuration."""
    caught_up: Callable[[], bool]
    """Whether every pipeline found at start has had its first turn."""
    look_again: Callable[[PipelineId], None]
    """Have the daemon look at a pipeline now, since it was told something."""
    tenant: TenantId = DEFAULT_TENANT


CONTEXT = web.AppKey("context", Context)

PIPELINE = "/v0/pipelines/{pipeline_name:[^/]+}"
"""The path of one pipeline. Any segment may be a name here: an illegal one is unknown, which is a 404 as well."""


def context_of(request: web.Request) -> Context:
    """The context of the application that serves `request`."""
    return request.app[CONTEXT]


async def find_pipeline(request: web.Request) -> Pipeline | None:
    """The pipeline that the path names; None when there is none. A store is not asked for what can be nobody's name."""
    context = context_of(request)
    name = request.match_info["pipeline_name"]
    return await context.store.find(context.tenant, name) if may_be_name(name) else None


async def pipeline_of(request: web.Request) -> Pipeline:
    """The pipeline that the path names. Raises ApiError UnknownPipelineName, also for a name that could never exist."""
    row = await find_pipeline(request)
    if row is None:
        raise unknown_pipeline(request.match_info["pipeline_name"])
    return row


def unknown_pipeline(name: str) -> ApiError:
    """The refusal for a name that nobody has."""
    return ApiError(
        "UnknownPipelineName",
        f"There is no pipeline named {name!r}. GET /v0/pipelines lists the pipelines that exist.",
        {"pipeline_name": name},
    )
