"""How a request changes a pipeline: read the row, apply a pure rule, commit; again when somebody else was quicker.

Called by the handlers that write. A conflict with another writer of the same row is never the client's business
(design section 6).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from penstock.api.context import context_of, pipeline_of, unknown_pipeline
from penstock.api.errors import ApiError, refused
from penstock.api.responses import may_change
from penstock.model import Author, Pipeline, Refusal
from penstock.ports import NameTaken, NotFound, StaleRevision

ATTEMPTS = 50
"""How often a change is tried again after somebody else wrote the row; the daemon itself writes a few times a start."""

Rule = Callable[[Pipeline], Pipeline | Refusal]


async def change(request: web.Request, rule: Rule, *, cause: str) -> Pipeline:
    """Apply `rule` to the pipeline that the path names and return the row as stored; nothing changed, nothing written.

    `cause` is what the events will tell. Raises ApiError for refusals, an unknown pipeline, a name that is taken and
    an If-Match that does not.
    """
    context = context_of(request)

    async def attempt(row: Pipeline) -> Pipeline:
        after = rule(row)
        if isinstance(after, Refusal):
            raise refused(after)
        if after == row:
            return row
        return await context.store.commit(row, (after,), by=Author.USER, cause=cause, now=context.clock.now())

    return await persist(request, attempt)


async def persist(request: web.Request, attempt: Callable[[Pipeline], Awaitable[Pipeline]]) -> Pipeline:
    """Give `attempt` the row that the path names, afresh whenever it finds it outdated; return what it returns."""
    for _ in range(ATTEMPTS):
        row = await pipeline_of(request)
        if not may_change(request, etag_of(row)):
            raise outdated(etag_of(row))
        try:
            return await attempt(row)
        except StaleRevision:
            continue
        except NotFound:
            raise unknown_pipeline(row.spec.name) from None
        except NameTaken:
            raise name_taken() from None
    raise too_much_else()


def etag_of(row: Pipeline) -> str:
    """The entity tag of a row: another one after every change that anybody makes to it."""
    return f'"{row.id}.{row.revision}"'


def outdated(etag: str | None) -> ApiError:
    """The refusal of a request that was meant for an earlier state; `etag` names the present one, None = it is gone."""
    return ApiError(
        "PreconditionFailed",
        "The pipeline is no longer what If-Match names; read it again and decide again.",
        {"etag": etag},
    )


def too_much_else() -> ApiError:
    """The refusal of a request that others were quicker than, again and again."""
    return ApiError(
        "StoreUnavailable",
        f"Others changed the pipeline {ATTEMPTS} times while this request tried to; nothing was done. Try again.",
    )


def name_taken() -> ApiError:
    """The refusal for a name that another pipeline has."""
    return ApiError("DuplicateName", "Another pipeline has this name; choose another one, or change that pipeline.")
