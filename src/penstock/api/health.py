"""How the daemon is: for clients, for supervisors, for load balancers, for Prometheus (contract.md section 5.6)."""

from __future__ import annotations

import anyio
from aiohttp import hdrs, web
from anyio import to_thread

from penstock.api import query
from penstock.api.context import Context, context_of
from penstock.api.errors import ApiError
from penstock.api.responses import encoded_response, json_response
from penstock.model import JsonValue
from penstock.ports import StoreUnavailable

CHECK_SECONDS = 5.0
"""A store that does not answer for this long counts as unavailable."""

_HEALTHY = b'{"status":"healthy"}'
_UNHEALTHY = b'{"status":"unhealthy: unable to reach database (see logs for further details)"}'
_ALIVE = b'{"status":"alive"}'
_OK = "ok"


def routes() -> list[web.RouteDef]:
    """The routes of this resource."""
    return [
        web.get("/healthz", get_healthz),
        web.get("/livez", get_livez),
        web.get("/readyz", get_readyz),
        web.get("/metrics", get_metrics),
    ]


async def get_healthz(request: web.Request) -> web.Response:
    """What clients of the reference ask; the two bodies are fixed (conformance.md H1)."""
    trouble = await _store_trouble(context_of(request))
    return encoded_response(_HEALTHY) if trouble is None else encoded_response(_UNHEALTHY, status=500)


async def get_livez(request: web.Request) -> web.Response:
    """Whether the event loop turns, nothing else: an outage of the store is no reason to restart the daemon."""
    return encoded_response(_ALIVE)


async def get_readyz(request: web.Request) -> web.Response:
    """Whether the daemon can do its work; with ``verbose`` each check by name."""
    context = context_of(request)
    trouble = await _store_trouble(context)
    checks: dict[str, JsonValue] = {
        "store": _OK if trouble is None else trouble,
        "caught_up": _OK if context.caught_up() else "pipelines that were found at start have not had their turn yet",
    }
    if any(state != _OK for state in checks.values()):
        failing = ", ".join(name for name, state in checks.items() if state != _OK)
        text = f"The daemon is not ready: {failing}. Pipelines keep running meanwhile."
        raise ApiError("NotReady", text, {"checks": checks})
    verbose = request.query.get("verbose") == "" or query.flag(request, "verbose", default=False)
    return json_response({"status": "ready", "checks": checks} if verbose else {"status": "ready"})


async def get_metrics(request: web.Request) -> web.Response:
    """The daemon's own metrics, in the format that the scraper asks for."""
    render = context_of(request).metrics.render
    body, content_type = await to_thread.run_sync(render, request.headers.get(hdrs.ACCEPT, ""))
    return web.Response(body=body, headers={hdrs.CONTENT_TYPE: content_type})


async def _store_trouble(context: Context) -> str | None:
    """Why the store cannot be used; None when it can."""
    with anyio.move_on_after(CHECK_SECONDS):
        try:
            await context.store.check()
        except StoreUnavailable as error:
            return str(error) or "unavailable"
        return None
    return f"no answer within {CHECK_SECONDS:g} s"
