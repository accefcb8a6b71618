"""Reads what files declare of pipelines, and compares it with what there is.

Used by `apply`. A file is TOML or JSON: a pipeline, or `pipelines`, an array of them; or a Python program, which is a
pipeline of that name. Reads files and asks nobody.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import cast

from penstock.cli import USAGE
from penstock.cli.failures import Failure, Json

STDIN = "-"
_DECLARATIONS = (".toml", ".json")
_PROGRAM = "program"

_FIELDS = ("description", "tags", "program_code", "udf_rust", "udf_toml", "program_config", "runtime_config")
"""What can be declared beside the name; what is not has its default."""

_WITHIN: Mapping[str, tuple[str, ...]] = {
    "program_config": ("toolchain", "contract", "profile", "cache", "runtime_version", "use_platform_compiler"),
    "runtime_config": (
        "env",
        "workers",
        "storage",
        "fault_tolerance",
        "resources",
        "provisioning_timeout_secs",
        "logging",
    ),
}
"""Keys that are much used. The daemon lets others pass, as clients of its API expect; what is nearly one of these is
refused here, since it would be of no effect."""

_DEFAULTS: Mapping[str, Json] = {"description": "", "tags": [], "udf_rust": "", "udf_toml": ""}

_TOLD_BY_DAEMON = frozenset(
    [
        "id",
        "created_at",
        "version",
        "platform_version",
        "program_version",
        "refresh_version",
        "program_status",
        "program_status_since",
        "program_error",
        "program_info",
        "bootstrap_policy",
        "silent_bootstrap",
        "concurrent_bootstrap",
        "connectors",
    ]
)
"""What the API shows of a pipeline and nobody can write, beside ``deployment_*`` and ``storage_status*``: passed over,
so that what `describe -o json` prints is a declaration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """A pipeline as a file wants it to be."""

    name: str
    body: Mapping[str, Json]
    """As the API takes it, without the name."""
    file: str
    """Where it is declared."""
    program_file: str
    """Where its program is read; empty when it stands in the declaration."""
    program_only: bool
    """Nothing but the program is declared: the rest stays as it is."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A value that is not as declared. None stands for one that is not there."""

    path: str
    before: Json
    after: Json


def read(files: Sequence[str]) -> list[Declaration]:
    """What `files`, directories and ``-`` declare, in their order. Raises Failure for what cannot be used."""
    declarations = [each for file in files for path in _files_of(file) for each in _declared(path)]
    seen: dict[str, Declaration] = {}
    for each in declarations:
        if each.name in seen:
            raise _unusable(each.file, f"{each.name!r} is declared in {seen[each.name].file}, too")
        seen[each.name] = each
    return declarations


def differences(declared: Declaration, row: Json) -> dict[str, list[Difference]]:
    """What changes, by field of the API's body, when `row` becomes as declared. Raises Failure."""
    changes = {
        key: list(compared(row[key], value, key)) for key, value in _wanted(declared, row["program_config"]).items()
    }
    return {key: found for key, found in changes.items() if found}


def compared(before: Json, after: Json, path: str) -> Iterator[Difference]:
    """Where two values differ, member by member."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        old, new = cast("Mapping[str, Json]", before), cast("Mapping[str, Json]", after)
        for key in dict.fromkeys((*old, *new)):
            yield from compared(old.get(key), new.get(key), f"{path}.{key}")
    elif before != after or isinstance(before, bool) is not isinstance(after, bool):
        yield Difference(path, before, after)


def _wanted(declared: Declaration, program_config: Json) -> dict[str, Json]:
    """Every field that is declared, as the daemon would keep it."""
    from penstock.api.configs import program_config as complete_program
    from penstock.api.configs import runtime_config as complete_runtime
    from penstock.api.errors import ApiError

    if declared.program_only:
        fits = program_config.get("toolchain") in (None, "python")
        kept = {} if fits else {"program_config": {**program_config, **declared.body["program_config"]}}
        return {"program_code": declared.body["program_code"], **kept}
    wanted = {**_DEFAULTS, **declared.body}
    try:
        wanted["program_config"] = complete_program(wanted.get("program_config"))
        wanted["runtime_config"] = complete_runtime(wanted.get("runtime_config"))
    except ApiError as error:
        raise Failure(error.message, code=error.code, details=error.details, pipeline=declared.name) from None
    return {key: wanted[key] for key in _FIELDS}


# --- files ------------------------------------------------------------------------------------------------------------


def _files_of(given: str) -> Iterable[str]:
    if given == STDIN or not Path(given).is_dir():
        return [given]
    files = sorted(str(path) for path in Path(given).iterdir() if path.suffix in _DECLARATIONS and path.is_file())
    if not files:
        raise _unusable(given, "there is no .toml or .json file in this directory")
    return files


def _declared(file: str) -> Iterator[Declaration]:
    text = sys.stdin.read() if file == STDIN else _text(Path(file), file)
    if file.endswith(".py"):
        body = {"program_code": text, "program_config": {"toolchain": "python"}}
        yield Declaration(name=Path(file).stem, body=body, file=file, program_file=file, program_only=True)
        return
    if not (value := _parsed(file, text)):
        raise _unusable(file, "it declares nothing")
    if isinstance(value, dict) and "pipelines" in value:
        whole = cast("dict[str, Json]", value)
        if others := ", ".join(sorted(whole.keys() - {"pipelines"})):
            raise _unusable(file, f"beside `pipelines` there is {others}; it belongs to none of them")
        value = whole["pipelines"]
    if isinstance(value, list):
        for number, each in enumerate(cast("list[Json]", value), 1):
            yield _one(file, each, "", f"pipeline {number}")
    else:
        yield _one(file, value, "" if file == STDIN else Path(file).stem, "")


def _one(file: str, value: Json, name: str, which: str) -> Declaration:
    if not isinstance(value, dict):
        raise _unusable(file, "a pipeline is a table of fields", which)
    given = cast("dict[str, Json]", value)
    which = str(given.get("name", which))
    known = ("name", _PROGRAM, *_FIELDS)
    for key in given:
        if key not in known and key not in _TOLD_BY_DAEMON and not key.startswith(("deployment_", "storage_status")):
            near = get_close_matches(key, known, n=1)
            meant = f"; is {near[0]!r} meant?" if near else f"; there are {', '.join(known)}"
            raise _unusable(file, f"there is no field {key!r}{meant}", which)
    called: Json = given.get("name", name)
    if not isinstance(called, str) or not called:
        raise _unusable(file, "it needs a name", which)
    name = called
    if (_PROGRAM in given) is ("program_code" in given):
        raise _unusable(file, "it needs a program: `program`, a file, or `program_code`, its text", name)
    body = {key: given[key] for key in _FIELDS if given.get(key) is not None}
    for field, usual in _WITHIN.items():
        value = body.get(field)
        for key in cast("dict[str, Json]", value) if isinstance(value, dict) else ():
            near = [] if key in usual else get_close_matches(key, usual, n=1, cutoff=0.8)
            if near and not key.endswith(f"_{near[0]}"):
                raise _unusable(file, f"{field} has no key {key!r}; is {near[0]!r} meant?", name)
    program_file = ""
    if _PROGRAM in given:
        if not isinstance(given[_PROGRAM], str):
            raise _unusable(file, "`program` is the path of a file", name)
        path = Path(given[_PROGRAM]) if file == STDIN else Path(file).parent / given[_PROGRAM]
        program_file = str(path)
        body["program_code"] = _text(path, file)
    try:
        json.dumps(body, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise _unusable(file, f"it has a value that JSON cannot express: {error}", name) from None
    return Declaration(name=name, body=body, file=file, program_file=program_file, program_only=False)


def _parsed(file: str, text: str) -> Json:
    is_json = file.endswith(".json") or (file == STDIN and text.lstrip()[:1] in ("{", "[") and "[[" not in text[:99])
    try:
        return json.loads(text) if is_json else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise _unusable(file, f"it is no {'JSON' if is_json else 'TOML'}: {error}") from None


def _text(path: Path, file: str) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise _unusable(file, f"{path}: {error.strerror}" if str(path) != file else str(error.strerror)) from None
    except ValueError:
        raise _unusable(file, f"{path} is not UTF-8") from None


def _unusable(file: str, reason: str, which: str = "") -> Failure:
    where = ": ".join(part for part in ("standard input" if file == STDIN else file, which) if part)
    return Failure(f"{where}: {reason}", exit_code=USAGE, code="DeclarationUnusable")
