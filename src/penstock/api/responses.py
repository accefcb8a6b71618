"""How values become answers: JSON by msgspec, stamps with six digits and a Z, caching forbidden where clients poll.

Called by handlers. Pure apart from building aiohttp responses.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import cast

import msgspec
from aiohttp import web

_NO_CACHE = {"Cache-Control": "no-cache"}


def stamp(moment: datetime) -> str:
    """RFC 3339 in UTC, always six digits and Z (design section 7)."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def to_json(value: object) -> bytes:
    """Encode a JSON-like value; any Mapping is an object."""
    return _encode(value)


def json_response(value: object, *, status: int = 200, no_cache: bool = False) -> web.Response:
    """An answer with `value` as its JSON body."""
    return encoded_response(to_json(value), status=status, no_cache=no_cache)


def encoded_response(body: bytes, *, status: int = 200, no_cache: bool = False) -> web.Response:
    """An answer whose JSON body is encoded already."""
    headers = _NO_CACHE if no_cache else None
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(cast("Mapping[str, object]", value))
    raise TypeError(f"{type(value).__name__} is not JSON")


_encode = msgspec.json.Encoder(enc_hook=_plain).encode
