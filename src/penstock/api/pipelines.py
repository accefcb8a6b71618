"""Pipelines as resources: list, get, create, replace, change, delete (contract.md section 5.2)."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from aiohttp import hdrs, web

from penstock import requests
from penstock.api import query
from penstock.api.bodies import json_object
from penstock.api.configs import invalid_program_config
from penstock.api.context import PIPELINE, Context, context_of, find_pipeline, pipeline_of
from penstock.api.errors import ApiError, refused
from penstock.api.representation import SELECTABLE, Encoder, Selector
from penstock.api.responses import encoded_response, not_modified
from penstock.api.spec import check_metadata, edited, spec_changes, whole_spec
from penstock.api.writing import ATTEMPTS, change, etag_of, name_taken, outdated, persist, too_much_else
from penstock.model import JsonObject, Pipeline, PipelineId, Refusal, Spec
from penstock.ports import NameTaken

ENCODER = web.AppKey("encoder", Encoder)


def routes() -> list[web.RouteDef]:
    """The routes of this resource."""
    return [
        web.get("/v0/pipelines", list_pipelines),
        web.post("/v0/pipelines", post_pipeline),
        web.get(PIPELINE, get_pipeline),
        web.put(PIPELINE, put_pipeline),
        web.patch(PIPELINE, patch_pipeline),
        web.delete(PIPELINE, delete_pipeline),
        web.post(f"{PIPELINE}/update_runtime", update_runtime),
        web.post(f"{PIPELINE}/testing", testing),
    ]


async def list_pipelines(request: web.Request) -> web.Response:
    """All pipelines, in order of creation."""
    selector = _selector(request)
    context = context_of(request)
    rows = sorted(await context.store.pipelines(context.tenant), key=lambda row: row.id)
    return encoded_response(request.app[ENCODER].many(rows, selector), no_cache=True)


async def get_pipeline(request: web.Request) -> web.Response:
    """One pipeline."""
    selector = _selector(request)
    row = await pipeline_of(request)
    return not_modified(request, etag_of(row)) or _rendered(request, row, selector)


async def post_pipeline(request: web.Request) -> web.Response:
    """Create a pipeline."""
    body = await json_object(request)
    spec = whole_spec(body)
    context = context_of(request)
    _check_toolchain(context, spec, body)
    check_metadata(spec)
    try:
        row = await _create(context, spec)
    except NameTaken:
        raise name_taken() from None
    return _rendered(request, row, status=201)


async def put_pipeline(request: web.Request) -> web.Response:
    """Replace the pipeline that the path names, or create it."""
    body = await json_object(request)
    spec = whole_spec(body)
    context = context_of(request)
    _check_toolchain(context, spec, body)

    def rule(row: Pipeline) -> Pipeline | Refusal:
        check_metadata(spec, row.spec)
        return requests.edit(row, spec, platform_version=context.version, bump=True, now=context.clock.now())

    for _ in range(ATTEMPTS):
        if await find_pipeline(request) is None:
            _check_creatable(request, spec)
            with suppress(NameTaken):  # somebody created it just now: replace that
                return _rendered(request, await _create(context, spec), status=201)
        try:
            return _rendered(request, await change(request, rule, cause="edited"))
        except ApiError as error:
            if error.code != "UnknownPipelineName":
                raise
            # Somebody deleted it just now: create it.
    raise too_much_else()


def _check_creatable(request: web.Request, spec: Spec) -> None:
    """Raise ApiError if a PUT may not create what its path names."""
    name = request.match_info["pipeline_name"]
    if request.headers.get(hdrs.IF_MATCH) is not None:
        raise outdated(None)
    if spec.name != name:
        raise ApiError(
            "CannotRenameNonExistingPipeline",
            f"There is no pipeline named {name!r} that could be renamed to {spec.name!r}; use the same name in "
            "path and body to create one.",
        )
    check_metadata(spec)


async def patch_pipeline(request: web.Request) -> web.Response:
    """Change the given fields of a pipeline."""
    body = await json_object(request)
    changes = spec_changes(body)
    context = context_of(request)
    if "program_config" in changes:
        _check_toolchain(context, replace(Spec(name=""), **changes), body)

    def rule(row: Pipeline) -> Pipeline | Refusal:
        spec = edited(row.spec, changes)
        return requests.edit(row, spec, platform_version=context.version, bump=False, now=context.clock.now())

    return _rendered(request, await change(request, rule, cause="edited"))


async def update_runtime(request: web.Request) -> web.Response:
    """Bring the pipeline's platform version up to the daemon's, which compiles its program again."""
    context = context_of(request)

    def rule(row: Pipeline) -> Pipeline | Refusal:
        return requests.edit(row, row.spec, platform_version=context.version, bump=True, now=context.clock.now())

    return _rendered(request, await change(request, rule, cause="runtime updated"))


async def testing(_request: web.Request) -> web.Response:
    """Refuse what the reference keeps for its own tests, as it does unless told otherwise."""
    reason = "it exists only for tests of the platform itself"
    raise ApiError("UnsupportedPipelineAction", f"testing refused: {reason}.", {"action": "testing", "reason": reason})


async def delete_pipeline(request: web.Request) -> web.Response:
    """Delete a pipeline and its events."""
    context = context_of(request)

    async def attempt(row: Pipeline) -> Pipeline:
        refusal = requests.delete(row)
        if refusal is not None:
            raise refused(refusal)
        await context.store.delete(row)
        return row

    gone = await persist(request, attempt)
    request.app[ENCODER].forget(gone.id)
    return web.Response()


async def _create(context: Context, spec: Spec) -> Pipeline:
    row = requests.new_pipeline(
        PipelineId(context.clock.new_id()),
        spec,
        platform_version=context.version,
        now=context.clock.now(),
        tenant=context.tenant,
    )
    return await context.store.create(row)


def _check_toolchain(context: Context, spec: Spec, body: JsonObject) -> None:
    reason = context.toolchains.refuse(spec)
    if reason is not None:
        raise invalid_program_config(body.get("program_config"), reason)


def _selector(request: web.Request) -> Selector:
    return Selector(query.choice(request, "selector", SELECTABLE, Selector.ALL))


def _rendered(
    request: web.Request, row: Pipeline, selector: Selector = Selector.INFO, *, status: int = 200
) -> web.Response:
    body = request.app[ENCODER].one(row, selector)
    return encoded_response(body, status=status, no_cache=True, etag=etag_of(row))
