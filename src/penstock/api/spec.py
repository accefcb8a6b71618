"""What a user writes about a pipeline: bodies of POST, PUT and PATCH, checked and made into a Spec.

Called by the handlers of pipelines. Pure. Names and configurations are checked before the pipeline is looked up,
description and tags after that, and only where they change (contract.md section 5.2).
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import msgspec

from penstock.api import configs
from penstock.api.bodies import shaped
from penstock.api.errors import ApiError
from penstock.model import JsonObject, Spec

MAX_NAME_BYTES = 63
MAX_DESCRIPTION = 300
MAX_TAGS = 50
MAX_TAG = 50

NAME_PATTERN = "^([A-Za-z0-9][-A-Za-z0-9_]*)?[A-Za-z0-9]$"
_NAME = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_]*)?[A-Za-z0-9]")
_TAG = re.compile(r"[a-zA-Z0-9 ._/|\\:=-]+")


class _Whole(msgspec.Struct):
    """The body of POST and PUT: what is absent gets its default."""

    name: str
    program_code: str
    description: str = ""
    tags: list[str] | None = None
    udf_rust: str | None = None
    udf_toml: str | None = None
    runtime_config: Any = None
    program_config: Any = None


class _Changes(msgspec.Struct):
    """The body of PATCH: what is absent or null stays as it is."""

    name: str | None = None
    program_code: str | None = None
    description: str | None = None
    tags: list[str] | None = None
    udf_rust: str | None = None
    udf_toml: str | None = None
    runtime_config: Any = None
    program_config: Any = None


def may_be_name(text: str) -> bool:
    """Tell whether a pipeline can be named `text`."""
    return len(text) <= MAX_NAME_BYTES and _NAME.fullmatch(text) is not None


def whole_spec(body: JsonObject) -> Spec:
    """The Spec that `body` describes; description and tags are still to be checked. Raises ApiError."""
    given = shaped(body, _Whole)
    _check_name(given.name)
    return Spec(
        name=given.name,
        description=given.description,
        tags=tuple(given.tags or ()),
        runtime_config=configs.runtime_config(given.runtime_config),
        program_config=configs.program_config(given.program_config),
        program_code=given.program_code,
        udf_rust=given.udf_rust or "",
        udf_toml=given.udf_toml or "",
    )


def spec_changes(body: JsonObject) -> dict[str, Any]:
    """The members of a Spec that `body` changes, for `dataclasses.replace`. Raises ApiError."""
    given = shaped(body, _Changes)
    changes: dict[str, Any] = {
        key: value for key in _Changes.__struct_fields__ if (value := getattr(given, key)) is not None
    }
    if given.name is not None:
        _check_name(given.name)
    if given.tags is not None:
        changes["tags"] = tuple(given.tags)
    if given.runtime_config is not None:
        changes["runtime_config"] = configs.runtime_config(given.runtime_config)
    if given.program_config is not None:
        changes["program_config"] = configs.program_config(given.program_config)
    return changes


def edited(before: Spec, changes: dict[str, Any]) -> Spec:
    """`before` with `changes`, its description and tags checked. Raises ApiError."""
    after = replace(before, **changes)
    check_metadata(after, before)
    return after


def check_metadata(spec: Spec, before: Spec | None = None) -> None:
    """Check description and tags, unless they are as `before`. Raises ApiError."""
    if before is None or spec.description != before.description:
        _check_description(spec.description)
    if before is None or spec.tags != before.tags:
        _check_tags(spec.tags)


def _check_name(name: str) -> None:
    if not name:
        raise ApiError("EmptyName", "A pipeline's name cannot be empty; give it one.")
    length = len(name.encode())
    if length > MAX_NAME_BYTES:
        raise ApiError(
            "TooLongName",
            f"The name has {length} bytes; {MAX_NAME_BYTES} are possible.",
            {"name": name, "length": length, "maximum": MAX_NAME_BYTES},
        )
    if _NAME.fullmatch(name) is None:
        described = "letters, digits, hyphens and underscores, with a letter or digit at both ends"
        raise ApiError(
            "NameDoesNotMatchPattern",
            f"{name!r} cannot be a pipeline's name; it may consist of {described}.",
            {"name": name, "pattern": NAME_PATTERN, "pattern_description": described},
        )


def _check_description(description: str) -> None:
    if len(description) > MAX_DESCRIPTION:
        raise ApiError(
            "TooLongDescription",
            f"The description has {len(description)} characters; {MAX_DESCRIPTION} are possible.",
            {"length": len(description), "maximum": MAX_DESCRIPTION},
        )


def _check_tags(tags: tuple[str, ...]) -> None:
    if len(tags) > MAX_TAGS:
        raise ApiError(
            "TooManyTags",
            f"There are {len(tags)} tags; {MAX_TAGS} are possible.",
            {"count": len(tags), "maximum": MAX_TAGS},
        )
    for tag in tags:
        if not tag:
            reason = "it is empty"
        elif len(tag) > MAX_TAG:
            reason = f"it has {len(tag)} characters; {MAX_TAG} are possible"
        elif _TAG.fullmatch(tag) is None:
            reason = "only letters, digits, spaces and . _ / | \\ : = - are possible"
        else:
            continue
        raise ApiError("InvalidTag", f"{tag[:100]!r} cannot be a tag: {reason}.", {"tag": tag, "reason": reason})
