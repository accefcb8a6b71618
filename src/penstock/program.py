"""The rules of the program machine: from source text to a verified artifact.

Called by the compiler of programs and, for a program that must be built again, by `machine`. Pure: each function
returns the new row, or None where the row has moved on and the result must be dropped. Rules: contract.md section 2.6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from types import MappingProxyType

from penstock.model import Author, JsonObject, Pipeline, ProgramError, ProgramStatus, ResourcesStatus

_S = ProgramStatus
_COMPILER = frozenset({Author.COMPILER})
_AGAIN = frozenset({Author.COMPILER, Author.USER})

MOVES: Mapping[tuple[ProgramStatus, ProgramStatus], frozenset[Author]] = MappingProxyType(
    {
        (_S.PENDING, _S.COMPILING_SQL): _COMPILER,
        (_S.PENDING, _S.SYSTEM_ERROR): _COMPILER,
        (_S.COMPILING_SQL, _S.PENDING): _AGAIN,
        (_S.COMPILING_SQL, _S.SQL_COMPILED): _COMPILER,
        (_S.COMPILING_SQL, _S.SQL_ERROR): _COMPILER,
        (_S.COMPILING_SQL, _S.SYSTEM_ERROR): _COMPILER,
        (_S.SQL_COMPILED, _S.PENDING): _AGAIN,
        (_S.SQL_COMPILED, _S.COMPILING_RUST): _COMPILER,
        (_S.COMPILING_RUST, _S.PENDING): _AGAIN,
        (_S.COMPILING_RUST, _S.SQL_COMPILED): _COMPILER,
        (_S.COMPILING_RUST, _S.SUCCESS): _COMPILER,
        (_S.COMPILING_RUST, _S.RUST_ERROR): _COMPILER,
        (_S.COMPILING_RUST, _S.SYSTEM_ERROR): _COMPILER,
        (_S.SUCCESS, _S.PENDING): frozenset({Author.USER, Author.DAEMON}),
        (_S.SQL_ERROR, _S.PENDING): frozenset({Author.USER}),
        (_S.RUST_ERROR, _S.PENDING): frozenset({Author.USER}),
        (_S.SYSTEM_ERROR, _S.PENDING): frozenset({Author.USER}),
    }
)
"""Which status may follow which, and who may make the move: users by an edit, the daemon when artifacts are missing."""


def is_due(row: Pipeline) -> bool:
    """Tell whether the compiler has something to do for `row` now."""
    return row.program_status in (_S.PENDING, _S.SQL_COMPILED) and (row.resources_status is ResourcesStatus.STOPPED)


def reset(row: Pipeline, now: datetime) -> Pipeline:
    """Back to Pending, with nothing left of earlier results."""
    return replace(
        row,
        program_status=_S.PENDING,
        program_status_since=now,
        program_error=ProgramError(),
        program_info=None,
        artifact=None,
        refresh_version=row.refresh_version + 1,
    )


def begin_check(row: Pipeline, now: datetime) -> Pipeline | None:
    """Pending to CompilingSql."""
    return _move(row, row.program_version, _S.PENDING, _S.COMPILING_SQL, now, ProgramError())


def check_passed(
    row: Pipeline, program_version: int, outcome: JsonObject, info: JsonObject | None, now: datetime
) -> Pipeline | None:
    """CompilingSql to SqlCompiled. `outcome` is the sql_compilation member, `info` the program_info or None."""
    error = ProgramError(sql_compilation=outcome)
    after = _move(row, program_version, _S.COMPILING_SQL, _S.SQL_COMPILED, now, error, refresh=1)
    return None if after is None else replace(after, program_info=info)


def check_failed(row: Pipeline, program_version: int, outcome: JsonObject, now: datetime) -> Pipeline | None:
    """CompilingSql to SqlError: the program is wrong."""
    error = ProgramError(sql_compilation=outcome)
    return _move(row, program_version, _S.COMPILING_SQL, _S.SQL_ERROR, now, error, refresh=1)


def begin_build(row: Pipeline, now: datetime) -> Pipeline | None:
    """SqlCompiled to CompilingRust."""
    return _move(row, row.program_version, _S.SQL_COMPILED, _S.COMPILING_RUST, now, row.program_error)


def build_passed(
    row: Pipeline, program_version: int, outcome: JsonObject, artifact: str, now: datetime
) -> Pipeline | None:
    """CompilingRust to Success. `artifact` is the digest under which the result is kept."""
    error = replace(row.program_error, rust_compilation=outcome)
    after = _move(row, program_version, _S.COMPILING_RUST, _S.SUCCESS, now, error, refresh=1)
    return None if after is None else replace(after, artifact=artifact)


def build_failed(row: Pipeline, program_version: int, outcome: JsonObject, now: datetime) -> Pipeline | None:
    """CompilingRust to RustError: the program can not be built."""
    error = replace(row.program_error, rust_compilation=outcome)
    return _move(row, program_version, _S.COMPILING_RUST, _S.RUST_ERROR, now, error, refresh=1)


def broke(row: Pipeline, program_version: int, reason: str, now: datetime) -> Pipeline | None:
    """To SystemError: not the program's fault. From Pending, CompilingSql or CompilingRust."""
    if row.program_status not in (_S.PENDING, _S.COMPILING_SQL, _S.COMPILING_RUST):
        return None
    error = replace(row.program_error, system_error=reason)
    return _move(row, program_version, row.program_status, _S.SYSTEM_ERROR, now, error, refresh=1)


def resumed(row: Pipeline, now: datetime) -> Pipeline | None:
    """Take back a step that died with the daemon; None when none was under way."""
    if row.program_status is _S.COMPILING_SQL:
        return reset(row, now)
    if row.program_status is _S.COMPILING_RUST:
        return _move(row, row.program_version, _S.COMPILING_RUST, _S.SQL_COMPILED, now, row.program_error, refresh=1)
    return None


def _move(
    row: Pipeline,
    program_version: int,
    source: ProgramStatus,
    target: ProgramStatus,
    now: datetime,
    error: ProgramError,
    refresh: int = 0,
) -> Pipeline | None:
    outdated = row.program_version != program_version or row.program_status is not source
    if outdated or row.resources_status is not ResourcesStatus.STOPPED:
        return None
    return replace(
        row,
        program_status=target,
        program_status_since=now,
        program_error=error,
        refresh_version=row.refresh_version + refresh,
    )
