"""How values become answers: JSON by msgspec, stamps with six digits and a Z, caching forbidden where clients poll.

Called by handlers. Pure apart from building aiohttp responses.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import cast

import msgspec
from aiohttp import hdrs, web

from penstock.api.errors import ApiError

_NO_CACHE = {"Cache-Control": "no-cache"}


@lru_cache(maxsize=4096)
def stamp(moment: datetime) -> str:
    """RFC 3339 in UTC, always six digits and Z (design section 7). A row shows most of its stamps several times."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def to_json(value: object) -> bytes:
    """Encode a JSON-like value; any Mapping is an object."""
    return _encode(value)


def json_response(value: object, *, status: int = 200, no_cache: bool = False) -> web.Response:
    """An answer with `value` as its JSON body."""
    return encoded_response(to_json(value), status=status, no_cache=no_cache)


def error_response(error: ApiError) -> web.Response:
    """The answer that `error` is: ``{message, error_code, details}``."""
    answer = {"message": error.message, "error_code": error.code, "details": error.details}
    # What a client sent may be quoted here, and need not be text; msgspec would refuse to encode that.
    body = json.dumps(answer, ensure_ascii=False, default=dict).encode(errors="replace")
    return web.Response(body=body, status=error.status, content_type="application/json", headers=error.headers)


def encoded_response(
    body: bytes, *, status: int = 200, no_cache: bool = False, etag: str | None = None
) -> web.Response:
    """An answer whose JSON body is encoded already; `etag` names its content, quotes included."""
    return web.Response(
        body=body, status=status, content_type="application/json", headers=_headers(no_cache=no_cache, etag=etag)
    )


def not_modified(request: web.Request, etag: str) -> web.Response | None:
    """The answer to a client that has the content named `etag` already; None when it has not."""
    if not _names(request.headers.get(hdrs.IF_NONE_MATCH), etag):
        return None
    return web.Response(status=304, headers=_headers(no_cache=True, etag=etag))


def may_change(request: web.Request, etag: str) -> bool:
    """Tell whether a request to change the content named `etag` is meant for it; it is, unless it says If-Match."""
    expected = request.headers.get(hdrs.IF_MATCH)
    return expected is None or _names(expected, etag)


def _names(header: str | None, etag: str) -> bool:
    if header is None:
        return False
    return header.strip() == "*" or etag in (tag.strip().removeprefix("W/") for tag in header.split(","))


def _headers(*, no_cache: bool, etag: str | None) -> dict[str, str] | None:
    headers = dict(_NO_CACHE) if no_cache else {}
    if etag is not None:
        headers[hdrs.ETAG] = etag
    return headers or None


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(cast("Mapping[str, object]", value))
    raise TypeError(f"{type(value).__name__} is not JSON")


_encode = msgspec.json.Encoder(enc_hook=_plain).encode
