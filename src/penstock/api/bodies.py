"""Reads JSON bodies, and refuses what could be parsed but not kept.

Called by handlers that take a body; those that take none must not call it, since clients say ``application/json``
there too (contract.md section 9.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar, cast

import msgspec
from aiohttp import hdrs, http_exceptions, web

from penstock.api.errors import ApiError
from penstock.model import JsonObject, JsonValue

Shape = TypeVar("Shape", bound=msgspec.Struct)

MAX_DEPTH = 128
"""How deep objects and arrays may be nested; the reference's own limit."""

MIN_INTEGER, MAX_INTEGER = -(2**63), 2**64 - 1
"""Beyond these, readers of the stored JSON no longer agree on a number."""


async def json_object(request: web.Request) -> JsonObject:
    """The body, a JSON object. Raises ApiError InvalidJson or UnsupportedMediaType; HTTPRequestEntityTooLarge."""
    try:
        body = await request.read()
    except (web.RequestPayloadError, http_exceptions.HttpProcessingError) as error:
        raise invalid_json(f"it could not be read: {error}") from None
    if not body:
        raise invalid_json("it is empty")
    encoding = request.headers.get(hdrs.CONTENT_ENCODING, "identity")
    if encoding != "identity":
        raise ApiError(
            "UnsupportedMediaType",
            f"The body is encoded as {encoding[:100]!r}; send it as it is.",
            {"expected": "identity"},
        )
    if request.content_type != "application/json":
        raise ApiError(
            "UnsupportedMediaType",
            f"The body is {request.content_type[:100]!r}; send Content-Type: application/json.",
            {"expected": "application/json"},
        )
    try:
        value = cast("JsonValue", msgspec.json.decode(body))
    except (ValueError, RecursionError) as error:
        raise invalid_json(str(error)) from None
    if not isinstance(value, Mapping):
        raise invalid_json("it is not an object")
    _check_storable(value)
    return cast("JsonObject", value)


def shaped(value: JsonObject, shape: type[Shape]) -> Shape:
    """`value` as a `shape`, unknown members ignored. Raises ApiError InvalidJson."""
    try:
        return msgspec.convert(value, shape)
    except msgspec.ValidationError as error:
        raise invalid_json(str(error)) from None


def invalid_json(reason: str) -> ApiError:
    """The refusal of a body."""
    return ApiError("InvalidJson", f"The body cannot be used: {reason}.", {"error": reason})


def _check_storable(value: JsonValue) -> None:
    """Refuse what a store could not give back: NUL and lone surrogates, huge integers, bottomless nesting."""
    level: list[JsonValue] = [value]
    for _ in range(MAX_DEPTH):
        if not level:
            return
        below: list[JsonValue] = []
        for item in level:
            match item:
                case str():
                    _check_text(item)
                case int() if not MIN_INTEGER <= item <= MAX_INTEGER:
                    raise invalid_json("it has an integer of more than 64 bits")
                case Mapping():
                    members = cast("JsonObject", item)
                    below.extend(members)
                    below.extend(members.values())
                case Sequence():
                    below.extend(cast("Sequence[JsonValue]", item))
                case _:
                    pass
        level = below
    raise invalid_json(f"it is nested deeper than {MAX_DEPTH} levels")


def _check_text(text: str) -> None:
    if "\0" in text:
        raise invalid_json("it has a NUL character in a string")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise invalid_json("it has a lone surrogate in a string") from None
