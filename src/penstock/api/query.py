"""Reads query parameters; what does not fit is refused with InvalidQueryParam, a 400.

Called by handlers before they look anything up. Pure. Unknown parameters are ignored, as clients expect.
"""

from __future__ import annotations

from collections.abc import Collection

from aiohttp import web

from penstock.api.errors import ApiError


def choice(request: web.Request, name: str, choices: Collection[str], default: str) -> str:
    """One of `choices`, spelled exactly; `default` when absent."""
    value = request.query.get(name, default)
    if value not in choices:
        raise _invalid(name, value, f"one of {', '.join(choices)}")
    return value


def flag(request: web.Request, name: str, *, default: bool) -> bool:
    """``true`` or ``false``; `default` when absent."""
    value = request.query.get(name)
    if value is None:
        return default
    if value not in ("true", "false"):
        raise _invalid(name, value, "true or false")
    return value == "true"


def _invalid(name: str, value: str, expected: str) -> ApiError:
    return ApiError(
        "InvalidQueryParam",
        f"Query parameter {name}={value[:100]!r} is not {expected}.",
        {"parameter": name, "value": value[:100], "expected": expected},
    )
