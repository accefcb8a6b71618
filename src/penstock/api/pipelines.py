"""Pipelines as resources: list, get, create, replace, change, delete (contract.md section 5.2)."""

from __future__ import annotations

from aiohttp import web

from penstock.api import query
from penstock.api.context import PIPELINE, context_of, pipeline_of
from penstock.api.representation import SELECTABLE, Encoder, Selector
from penstock.api.responses import encoded_response

ENCODER = web.AppKey("encoder", Encoder)


def routes() -> list[web.RouteDef]:
    """The routes of this resource."""
    return [
        web.get("/v0/pipelines", list_pipelines),
        web.get(PIPELINE, get_pipeline),
    ]


async def list_pipelines(request: web.Request) -> web.Response:
    """All pipelines, in order of creation."""
    selector = _selector(request)
    context = context_of(request)
    rows = await context.store.pipelines(context.tenant)
    rows.sort(key=lambda row: row.id)
    return encoded_response(request.app[ENCODER].many(rows, selector), no_cache=True)


async def get_pipeline(request: web.Request) -> web.Response:
    """One pipeline."""
    selector = _selector(request)
    return _rendered(request, await pipeline_of(request), selector)


def _selector(request: web.Request) -> Selector:
    return Selector(query.choice(request, "selector", SELECTABLE, Selector.ALL))


def _rendered(request: web.Request, row, selector: Selector = Selector.INFO, *, status: int = 200) -> web.Response:
    return encoded_response(request.app[ENCODER].one(row, selector), status=status, no_cache=True)
