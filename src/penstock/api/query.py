"""Reads query parameters; what does not fit is refused with InvalidQueryParam, a 400.

Called by handlers before they look anything up. Pure. Unknown parameters are ignored, as clients expect.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import datetime

from aiohttp import web

from penstock.api.errors import ApiError

MOST = 10**15
"""No number of anything is larger."""

_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d(?:\.\d+)?)([Zz]|[+ -]\d\d:\d\d)", re.ASCII)


def choice(request: web.Request, name: str, choices: Collection[str], default: str) -> str:
    """One of `choices`, spelled exactly; `default` when absent."""
    value = request.query.get(name, default)
    if value not in choices:
        raise invalid(name, value, f"one of {', '.join(choices)}")
    return value


def flag(request: web.Request, name: str, *, default: bool) -> bool:
    """``true`` or ``false``; `default` when absent."""
    value = request.query.get(name)
    if value is None:
        return default
    if value not in ("true", "false"):
        raise invalid(name, value, "true or false")
    return value == "true"


def number(request: web.Request, name: str) -> int | None:
    """A whole number from 0 to MOST; None when absent."""
    value = request.query.get(name)
    if value is None:
        return None
    if not value.isascii() or not value.isdecimal() or len(value) > len(str(MOST)) or int(value) > MOST:
        raise invalid(name, value, f"a whole number from 0 to {MOST}")
    return int(value)


def moment(request: web.Request, name: str) -> datetime | None:
    """A time as RFC 3339 writes it; None when absent. A ``+`` that became a space on its way is forgiven."""
    value = request.query.get(name)
    if value is None:
        return None
    try:
        found = _MOMENT.fullmatch(value)
        if found is not None:
            return datetime.fromisoformat(f"{found[1]}T{found[2]}{found[3].replace(' ', '+')}")
    except ValueError:
        pass  # there is no such day, or hour
    raise invalid(name, value, "a time like 2026-01-31T12:00:00Z, with Z or an offset")


def invalid(name: str, value: str, expected: str) -> ApiError:
    """The refusal of a value."""
    return ApiError(
        "InvalidQueryParam",
        f"Query parameter {name}={value[:100]!r} is not {expected}.",
        {"parameter": name, "value": value[:100], "expected": expected},
    )
