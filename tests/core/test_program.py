"""The program machine: every function in every status, and what each status means for every column (section 2.6)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from penstock import history, program
from penstock.model import (
    Author,
    Pipeline,
    ProgramError,
    ProgramStatus,
    ResourcesDesired,
    ResourcesStatus,
    StorageStatus,
)
from penstock.moves import IllegalMove, check_move

from .any_rows import changes
from .rows import EPOCH, built, corner, fresh

S = ProgramStatus
NOW = EPOCH + timedelta(minutes=1)
OK, BAD = {"exit_code": 0, "messages": []}, {"exit_code": 1, "messages": ["no"]}
INFO = {"schema": {"inputs": [], "outputs": []}}
Rule = Callable[[Pipeline, int], Pipeline | None]

RULES: dict[str, Rule] = {
    "begin_check": lambda row, _: program.begin_check(row, NOW),
    "check_passed": lambda row, version: program.check_passed(row, version, OK, INFO, NOW),
    "check_failed": lambda row, version: program.check_failed(row, version, BAD, NOW),
    "begin_build": lambda row, _: program.begin_build(row, NOW),
    "build_passed": lambda row, version: program.build_passed(row, version, OK, "digest", NOW),
    "build_failed": lambda row, version: program.build_failed(row, version, BAD, NOW),
    "broke": lambda row, version: program.broke(row, version, "disk full", NOW),
    "resumed": lambda row, _: program.resumed(row, NOW),
    "reset": lambda row, _: program.reset(row, NOW),
}
NAMES_A_VERSION = ("check_passed", "check_failed", "build_passed", "build_failed", "broke")

# What each rule makes of a row in each status; `-`: the row has moved on, the result is dropped.
TABLE = """
Status        begin_check  check_passed check_failed begin_build   build_passed build_failed broke       resumed     reset
Pending       CompilingSql -            -            -             -            -            SystemError -           Pending
CompilingSql  -            SqlCompiled  SqlError     -             -            -            SystemError Pending     Pending
SqlCompiled   -            -            -            CompilingRust -            -            -           -           Pending
CompilingRust -            -            -            -             Success      RustError    SystemError SqlCompiled Pending
Success       -            -            -            -             -            -            -           -           Pending
SqlError      -            -            -            -             -            -            -           -           Pending
RustError     -            -            -            -             -            -            -           -           Pending
SystemError   -            -            -            -             -            -            -           -           Pending
"""  # noqa: E501
HEAD, *LINES = [line.split() for line in TABLE.strip().splitlines()]
CELLS = [(S(line[0]), rule, cell) for line in LINES for rule, cell in zip(HEAD[1:], line[1:], strict=True)]

# Contract 2.6; users move it by an edit, the daemon when the artifact is missing.
LEGAL = {
    S.PENDING: {S.COMPILING_SQL, S.SYSTEM_ERROR},
    S.COMPILING_SQL: {S.PENDING, S.SQL_COMPILED, S.SQL_ERROR, S.SYSTEM_ERROR},
    S.SQL_COMPILED: {S.PENDING, S.COMPILING_RUST},
    S.COMPILING_RUST: {S.PENDING, S.SQL_COMPILED, S.SUCCESS, S.RUST_ERROR, S.SYSTEM_ERROR},
    S.SUCCESS: {S.PENDING},
    S.SQL_ERROR: {S.PENDING},
    S.RUST_ERROR: {S.PENDING},
    S.SYSTEM_ERROR: {S.PENDING},
}


def at(status: ProgramStatus) -> Pipeline:
    """A row as it is when its program has this status: arrived at by the rules themselves."""
    row: Any = replace(fresh(), program_version=3, refresh_version=9)
    before = {S.SQL_ERROR: S.COMPILING_SQL, S.RUST_ERROR: S.COMPILING_RUST, S.SYSTEM_ERROR: S.COMPILING_RUST}
    path = [S.PENDING, S.COMPILING_SQL, S.SQL_COMPILED, S.COMPILING_RUST, S.SUCCESS]
    for step in path[1 : path.index(before.get(status, status)) + 1]:
        rule = {
            S.COMPILING_SQL: "begin_check",
            S.SQL_COMPILED: "check_passed",
            S.COMPILING_RUST: "begin_build",
            S.SUCCESS: "build_passed",
        }[step]
        row = RULES[rule](row, 3)
    last = {S.SQL_ERROR: "check_failed", S.RUST_ERROR: "build_failed", S.SYSTEM_ERROR: "broke"}.get(status)
    row = row if last is None else RULES[last](row, 3)
    assert row.program_status is status
    return replace(row, refresh_version=9, program_status_since=EPOCH)


def test_the_table_is_whole() -> None:
    assert HEAD[1:] == list(RULES)
    assert [S(line[0]) for line in LINES] == list(S)


@pytest.mark.parametrize(("status", "rule", "cell"), CELLS, ids=str)
def test_every_rule_in_every_status(status: ProgramStatus, rule: str, cell: str) -> None:
    before = at(status)
    after = RULES[rule](before, 3)
    if cell == "-":
        assert after is None
        return
    assert after is not None
    assert after.program_status is S(cell)
    assert after.program_status_since == NOW
    by = Author.USER if rule == "reset" else Author.COMPILER
    change = history.record(
        before, [after], by=by, cause=rule, now=NOW, new_id=lambda: "e", details_interval_seconds=600
    )
    assert len(change.events) == (after.program_status is not status)


@pytest.mark.parametrize("status", S)
def test_results_for_another_program_are_dropped(status: ProgramStatus) -> None:
    for rule, version in itertools.product(NAMES_A_VERSION, [2, 4]):
        assert RULES[rule](at(status), version) is None, (rule, version)


@pytest.mark.parametrize("status", S)
def test_nothing_moves_while_compute_is_held(status: ProgramStatus) -> None:
    held = [resources for resources in ResourcesStatus if resources is not ResourcesStatus.STOPPED]
    for rule, resources in itertools.product(RULES.keys() - {"reset", "resumed"}, held):
        assert RULES[rule](replace(at(status), resources_status=resources), 3) is None, (rule, resources)


@pytest.mark.parametrize("status", S)
def test_a_wanted_start_does_not_hold_the_program_up(status: ProgramStatus) -> None:
    before = at(status)
    wanted = replace(before, resources_desired=ResourcesDesired.PROVISIONED)
    for name, rule in RULES.items():
        assert (rule(wanted, 3) is None) is (rule(before, 3) is None), name


# --- columns --------------------------------------------------------------------------------------------------------

SQL, BOTH = ProgramError(sql_compilation=OK), ProgramError(sql_compilation=OK, rust_compilation=OK)
COLUMNS: list[tuple[ProgramStatus, str, dict[str, Any]]] = [
    (S.PENDING, "begin_check", {}),
    (
        S.COMPILING_SQL,
        "check_passed",
        {"program_error": SQL, "program_info": INFO, "refresh_version": 10},
    ),
    (S.COMPILING_SQL, "check_failed", {"program_error": ProgramError(sql_compilation=BAD), "refresh_version": 10}),
    (S.SQL_COMPILED, "begin_build", {}),
    (S.COMPILING_RUST, "build_passed", {"program_error": BOTH, "artifact": "digest", "refresh_version": 10}),
    (
        S.COMPILING_RUST,
        "build_failed",
        {"program_error": replace(SQL, rust_compilation=BAD), "refresh_version": 10},
    ),
    (S.PENDING, "broke", {"program_error": ProgramError(system_error="disk full"), "refresh_version": 10}),
    (S.COMPILING_SQL, "broke", {"program_error": ProgramError(system_error="disk full"), "refresh_version": 10}),
    (S.COMPILING_RUST, "broke", {"program_error": replace(SQL, system_error="disk full"), "refresh_version": 10}),
    (S.COMPILING_SQL, "resumed", {"refresh_version": 10}),
    (S.COMPILING_RUST, "resumed", {"refresh_version": 10}),
    (
        S.SUCCESS,
        "reset",
        {"program_error": ProgramError(), "program_info": None, "artifact": None, "refresh_version": 10},
    ),
    (S.SQL_ERROR, "reset", {"program_error": ProgramError(), "refresh_version": 10}),
    (S.RUST_ERROR, "reset", {"program_error": ProgramError(), "program_info": None, "refresh_version": 10}),
    (S.SYSTEM_ERROR, "reset", {"program_error": ProgramError(), "program_info": None, "refresh_version": 10}),
]


@pytest.mark.parametrize(
    ("status", "rule", "expected"), COLUMNS, ids=lambda part: part if isinstance(part, str) else None
)
def test_what_each_move_writes_and_nothing_else(status: ProgramStatus, rule: str, expected: dict[str, Any]) -> None:
    before = at(status)
    after = RULES[rule](before, 3)
    assert after is not None
    moved = changes(before, after)
    assert moved.pop("program_status") is after.program_status
    assert moved.pop("program_status_since") == NOW
    assert moved == expected


def test_a_check_without_info_leaves_none() -> None:
    after = program.check_passed(at(S.COMPILING_SQL), 3, OK, None, NOW)
    assert after is not None
    assert after.program_info is None


@pytest.mark.parametrize("seed", range(20))
def test_what_a_status_says_about_the_columns(seed: int) -> None:
    """However a program came to its status: an artifact exactly with Success, and nothing left of earlier tries."""
    chance = random.Random(seed)
    row = fresh()
    for _ in range(200):
        after = RULES[chance.choice(list(RULES))](row, row.program_version)
        if after is None:
            continue
        assert after.refresh_version - row.refresh_version == (
            after.program_status not in (S.COMPILING_SQL, S.COMPILING_RUST)
        )
        row = after
        error = row.program_error
        assert (row.artifact is not None) is (row.program_status is S.SUCCESS)
        if row.program_status in (S.PENDING, S.COMPILING_SQL):
            assert (row.program_info, error) == (None, ProgramError())
        if row.program_status is S.SQL_ERROR:
            assert (row.program_info, error) == (None, ProgramError(sql_compilation=BAD))
        if row.program_status in (S.SQL_COMPILED, S.COMPILING_RUST):
            assert (row.program_info, error) == (INFO, SQL)
        if row.program_status is S.SUCCESS:
            assert (row.program_info, error) == (INFO, BOTH)
        assert (error.system_error is not None) is (row.program_status is S.SYSTEM_ERROR)


# --- who may move what ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", S)
def test_each_move_and_its_author(status: ProgramStatus) -> None:
    for to, by in itertools.product(S, Author):
        before, after = replace(built(), program_status=status), replace(built(), program_status=to)
        allowed = status is to
        if to in LEGAL[status]:
            if by is Author.COMPILER:
                allowed = status not in (S.SUCCESS, S.SQL_ERROR, S.RUST_ERROR, S.SYSTEM_ERROR)
            elif by is Author.USER:
                allowed = to is S.PENDING
            else:
                allowed = (status, to) == (S.SUCCESS, S.PENDING)
        if allowed:
            check_move(before, after, by)
        else:
            with pytest.raises(IllegalMove, match=f"program {status} to {to} by {by}"):
                check_move(before, after, by)


@pytest.mark.parametrize("resources", [r for r in ResourcesStatus if r is not ResourcesStatus.STOPPED])
def test_no_program_moves_under_running_compute(resources: ResourcesStatus) -> None:
    before = corner(StorageStatus.IN_USE, resources, ResourcesDesired.STOPPED)
    with pytest.raises(IllegalMove, match="program moves only while stopped"):
        check_move(before, program.reset(before, NOW), Author.DAEMON)


@pytest.mark.parametrize("status", S)
def test_when_the_compiler_has_something_to_do(status: ProgramStatus) -> None:
    for resources in ResourcesStatus:
        row = replace(built(), program_status=status, resources_status=resources)
        due = status in (S.PENDING, S.SQL_COMPILED) and resources is ResourcesStatus.STOPPED
        assert program.is_due(row) is due
