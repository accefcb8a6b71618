"""`get` and `describe`: how pipelines are, at a glance and in full."""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from collections.abc import Sequence
from typing import cast

import click

from penstock.cli.client import path_of
from penstock.cli.command import Session, name, names, operator
from penstock.cli.failures import Failure, Json, Refused
from penstock.cli.history import COLUMNS, history
from penstock.cli.output import Cell, Column, Format, Table, cell, printable
from penstock.cli.waiting import patiently
from penstock.cli.wording import (
    BROKEN_PROGRAM,
    age,
    axes,
    broken_program,
    can_be_told,
    evidence_of,
    for_people,
    look_of,
    program_trouble,
    remark,
    status_cell,
    waits_for,
)

WATCH_SECONDS = 0.5
_RECENT_EVENTS = 8

_COLUMNS = (
    Column("NAME", width=8),
    Column("STATUS", width=12),
    Column("WANTED", rank=3, width=11),
    Column("PROGRAM", rank=2, width=12),
    Column("STORAGE", rank=4, width=8),
    Column("SINCE", rank=5, width=5),
    Column("REMARK", rank=1),
)
_WIDE_COLUMNS = (
    *_COLUMNS[:-1],
    Column("VERSION", rank=7),
    Column("TAGS", rank=8),
    Column("CREATED", rank=9),
    Column("ID", rank=6),
    _COLUMNS[-1],
)


@click.command()
@names(required=False)
@click.option("--watch", "-w", is_flag=True, help="Go on, and show what changes, until interrupted.")
@operator(*Format)
def get(session: Session, names: Sequence[str], *, watch: bool) -> None:
    """List pipelines, or those that are named."""
    if watch and session.out.form is Format.JSON:
        raise click.UsageError("--watch prints no end to an array; use -o jsonl.")
    wanted = list(dict.fromkeys(names))
    failures: list[Failure] = []
    rows = _rows(session, wanted, failures)
    out = session.out
    table = out.table(_WIDE_COLUMNS if out.form is Format.WIDE else _COLUMNS, growing=watch)
    _print(session, rows, table, single=len(wanted) == 1)
    if not rows and not failures:
        out.note("There are no pipelines. `penstock apply -f FILE` makes some.")
    session.end(failures)
    if watch:
        _watch(session, wanted, rows, table)


@click.command()
@name
@operator(Format.TABLE, Format.JSON)
def describe(session: Session, name: str) -> None:
    """Tell all about a pipeline: what it does, what it waits for, what went wrong, and what it can be told now.

    With -o json it is what the API has: `penstock describe NAME -o json` can be given to `penstock apply -f -`.
    """
    try:
        row = session.client.get(path_of(name))
        events = session.client.get(path_of(name, "/events"), selector="all")[:_RECENT_EVENTS]
    except Refused as refused:
        raise session.explained(refused, name) from None
    session.out.values([row], single=True, names=[name])
    if session.out.for_people:
        _Description(session, row).print(events)


# --- get --------------------------------------------------------------------------------------------------------------


def _rows(session: Session, wanted: Sequence[str], failures: list[Failure]) -> list[Json]:
    if not wanted:
        return sorted(session.client.get("/v0/pipelines", selector="status"), key=lambda row: row["name"])
    rows: list[Json] = []
    for each in wanted:
        try:
            rows.append(session.client.get(path_of(each), selector="status"))
        except Refused as refused:
            failures.append(session.explained(refused, each))
    return rows


def _print(session: Session, rows: Sequence[Json], table: Table, *, single: bool = False) -> None:
    session.out.values(rows, single=single, names=[row["name"] for row in rows])
    if session.out.for_people and rows:
        table.print([_cells(session, row) for row in rows])


def _cells(session: Session, row: Json) -> list[Cell]:
    wanted, program = row["deployment_desired_status"], row["program_status"]
    cells = [
        cell(row["name"], "bold"),
        status_cell(row),
        cell(wanted, "dim" if wanted == row["deployment_status"] else ""),
        cell(program, "bad" if program in BROKEN_PROGRAM else "dim" if program == "Success" else "busy"),
        cell(row["storage_status"], "dim"),
        cell(age(session.client.seconds_since(row["deployment_status_since"])), "dim"),
    ]
    if session.out.form is Format.WIDE:
        cells += [
            cell(row["version"]),
            cell(",".join(row["tags"])),
            cell(row["created_at"][:19] + "Z"),
            cell(row["id"], "dim"),
        ]
    return [*cells, cell(*remark(row))]


def _watch(session: Session, wanted: Sequence[str], rows: Sequence[Json], table: Table) -> None:
    shown = {row["name"]: row for row in rows}
    while True:
        time.sleep(WATCH_SECONDS)
        listed = patiently(session, lambda: session.client.get("/v0/pipelines", selector="status"))
        now = {row["name"]: row for row in listed if not wanted or row["name"] in wanted}
        _print(session, [row for name, row in now.items() if row != shown.get(name)], table)
        for gone in shown.keys() - now.keys():
            session.out.say(f"{gone}  deleted", "dim")
        shown = now


# --- describe ---------------------------------------------------------------------------------------------------------


class _Description:
    """One pipeline on one page."""

    def __init__(self, session: Session, row: Json) -> None:
        self._out = session.out
        self._client = session.client
        self._row = row
        self._width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 100_000

    def print(self, events: Sequence[Json]) -> None:
        """Print it; `events` are the newest, newest first."""
        self._identity()
        self._status()
        self._trouble()
        self._configuration()
        if events:
            self._title("Recent events")
            self._out.table(COLUMNS).print(history(list(reversed(events))))
        told = can_be_told(self._row)
        if not told:
            return
        self._title("What it can be told now")
        widest = max(len(command) for command, _ in told)
        for command, text in told:
            self._out.line(f"  {command:{widest}}  # {text}")

    def _identity(self) -> None:
        row = self._row
        self._out.line(self._out.styled(row["name"], "bold", sys.stdout))
        self._pair("id", row["id"])
        if row["description"]:
            self._pair("description", row["description"])
        if row["tags"]:
            self._pair("tags", ", ".join(row["tags"]))
        self._pair("created", f"{self._when(row['created_at'])}, version {row['version']}")
        self._pair("program", _program(row))

    def _status(self) -> None:
        row = self._row
        self._title("Status")
        self._pair("now", f"{row['deployment_status']}, {self._when(row['deployment_status_since'])}", look_of(row))
        wanted, since = row["deployment_desired_status"], row["deployment_desired_status_since"]
        self._pair("wanted", f"{wanted}, {self._when(since)}")
        waits = waits_for(row)
        if waits:
            self._pair("waits for", waits, "busy")
        since_of = {
            "program": "program_status_since",
            "resources": "deployment_resources_status_since",
            "runtime": "deployment_runtime_status_since",
        }
        for axis, status in axes(row).items():
            since = row.get(since_of.get(axis, ""))
            self._pair(axis, status + (f", {self._when(since)}" if since else ""))
        for title, key in (("process", "deployment_resources_status_details"), ("details", _RUNTIME_DETAILS)):
            if row[key]:
                self._pair(title, ", ".join(f"{key} {value}" for key, value in _flat(row[key])))
        checkpoints: Json = row["storage_status_details"] and row["storage_status_details"].get("checkpoints")
        if checkpoints:
            self._pair("checkpoints", len(checkpoints))

    def _trouble(self) -> None:
        row, fault = self._row, self._row["deployment_error"]
        if row["program_status"] in BROKEN_PROGRAM:
            self._title(f"Program: {broken_program(row)}", "bad")
            self._lines(program_trouble(row))
        if fault is not None:
            self._title(f"Error of the last run: {fault['error_code']}", "bad")
            self._lines([*textwrap.wrap(for_people(fault["message"]), max(30, self._width - 2)), *evidence_of(fault)])

    def _configuration(self) -> None:
        from penstock.api.configs import program_config, runtime_config
        from penstock.cli.declarations import compared

        changed = [
            *compared(program_config(None), self._row["program_config"], "program_config"),
            *compared(runtime_config(None), self._row["runtime_config"], "runtime_config"),
        ]
        self._title("Configuration" + ("" if changed else ": all as by default"))
        self._lines([f"{each.path} = {each.after}" for each in changed])

    def _title(self, text: str, look: str = "bold") -> None:
        self._out.line("")
        self._out.line(self._out.styled(printable(text), look, sys.stdout))

    def _lines(self, lines: Sequence[str]) -> None:
        for line in lines:
            self._out.line(f"  {printable(line)}")

    def _pair(self, key: str, value: object, look: str = "") -> None:
        indent = " " * 15
        wrapped = textwrap.wrap(printable(str(value)), max(25, self._width - len(indent))) or [""]
        self._out.line(f"  {key + ':':13}{self._out.styled(wrapped[0], look, sys.stdout)}")
        for line in wrapped[1:]:
            self._out.line(indent + self._out.styled(line, look, sys.stdout))

    def _when(self, stamp: str) -> str:
        return f"{age(self._client.seconds_since(stamp))} ago ({stamp[:19]}Z)"


_RUNTIME_DETAILS = "deployment_runtime_status_details"


def _program(row: Json) -> str:
    lines = len(row["program_code"].splitlines())
    toolchain = row["program_config"].get("toolchain") or "the default toolchain"
    return f"{lines} {'line' if lines == 1 else 'lines'} for {toolchain}, version {row['program_version']}"


def _flat(value: Json) -> list[tuple[str, Json]]:
    return list(cast("dict[str, Json]", value).items()) if isinstance(value, dict) else [("", value)]
