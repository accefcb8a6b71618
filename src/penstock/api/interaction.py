"""Asks the process of a pipeline on behalf of a client, and passes on what it answers (contract.md section 7.5).

Called by handlers. Nothing is tried twice: what a process was told once it may have done. Must never tell a process
anything that the client has not asked for.
"""

from __future__ import annotations

from aiohttp import hdrs, web

from penstock.api.context import context_of
from penstock.api.errors import ApiError
from penstock.model import Fault, Pipeline, ResourcesStatus, RuntimeStatus
from penstock.ports import Reply


def check_reachable(row: Pipeline) -> None:
    """Raise ApiError unless there is a process to ask."""
    name, status, desired = row.spec.name, row.deployment_status, row.deployment_desired_status
    if row.resources_status is not ResourcesStatus.PROVISIONED:
        raise ApiError(
            "PipelineInteractionNotDeployed",
            f"Pipeline {name!r} is {status}, so there is no process to ask. Start it, or wait until it has started.",
            {"pipeline_name": name, "status": status, "desired_status": desired},
        )
    if row.runtime_status is RuntimeStatus.UNAVAILABLE:
        raise ApiError(
            "PipelineUnavailable",
            f"The process of pipeline {name!r} does not answer at the moment. Its log may tell why.",
            {"pipeline_name": name},
        )


async def ask(request: web.Request, row: Pipeline, location: str, path: str) -> web.Response:
    """Pass on what the process answers to GET `path`, errors too. Raises ApiError when it gives no answer."""
    return _passed_on(row, path, await context_of(request).probe.get(location, path))


async def tell(request: web.Request, row: Pipeline, location: str, path: str) -> web.Response:
    """Pass on what the process answers to POST `path`, and have the daemon look at it again. Raises as `ask`."""
    context = context_of(request)
    try:
        return _passed_on(row, path, await context.probe.post(location, path))
    finally:
        context.look_again(row.id)


def _passed_on(row: Pipeline, path: str, reply: Reply | Fault) -> web.Response:
    if isinstance(reply, Fault):
        raise ApiError(reply.code, reply.message, {"pipeline_name": row.spec.name, **reply.details})
    if not 200 <= reply.http_status < 600:
        error = f"HTTP status {reply.http_status} in answer to {path}"
        raise ApiError(
            "PipelineInteractionInvalidResponse",
            f"The process of pipeline {row.spec.name!r} gave an answer that cannot be passed on: {error}.",
            {"pipeline_name": row.spec.name, "error": error},
        )
    headers = {hdrs.CONTENT_TYPE: reply.content_type} if reply.content_type else None
    return web.Response(body=reply.body, status=reply.http_status, headers=headers)
