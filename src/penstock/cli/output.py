"""Prints results in the format that was asked for: text and tables for people, JSON and names for programs.

Used by every command that talks to a daemon. Results go to stdout, everything else to stderr. Colour, and fitting into
the width, only where a terminal is; everything is printed in full elsewhere.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from io import TextIOWrapper
from typing import TextIO, TypeAlias

import click

from penstock.cli.failures import Failure, Json

Cell: TypeAlias = tuple[tuple[str, str], ...]
"""Pieces of text, each with the name of its look: a key of _LOOKS, or empty."""

_LOOKS: Mapping[str, Mapping[str, object]] = {
    "good": {"fg": "green"},
    "bad": {"fg": "red"},
    "busy": {"fg": "yellow"},
    "calm": {"fg": "cyan"},
    "dim": {"dim": True},
    "bold": {"bold": True},
}

_GAP = "  "
_NOT_SHOWN = "\N{REPLACEMENT CHARACTER}"
_SMALLEST_COLUMN = 12
"""Others are left out before a column is made narrower than this."""


class Format(StrEnum):
    """What results look like."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    JSONL = "jsonl"
    NAME = "name"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. The one with the largest `rank` is left out first where a terminal is too narrow."""

    title: str
    rank: int = 0
    """0 = never left out."""
    width: int = 0
    """At least so wide, so that rows which come later fit below."""


class Output:
    """Where a command's results and remarks go."""

    def __init__(self, form: Format, environ: Mapping[str, str] = os.environ) -> None:
        self.form = form
        self._dumb = environ.get("TERM") == "dumb"
        self._plain = bool(environ.get("NO_COLOR")) or self._dumb
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper):
                stream.reconfigure(errors="replace")  # a terminal that lacks a character shows another

    @property
    def for_people(self) -> bool:
        """Whether a person reads the results."""
        return self.form in (Format.TABLE, Format.WIDE)

    @property
    def is_live(self) -> bool:
        """Whether stderr is a terminal on which lines can be drawn again."""
        return sys.stderr.isatty() and not self._dumb

    # --- stdout ------------------------------------------------------------------------------------------------------

    def line(self, text: str, look: str = "") -> None:
        """One line of stdout, as it is, whatever the format."""
        self._write(sys.stdout, self.styled(text, look, sys.stdout))

    def say(self, text: str, look: str = "") -> None:
        """One result, said to people; programs get it from `values`."""
        if self.for_people:
            self.line(printable(text), look)

    def values(self, values: Sequence[Json], *, single: bool = False, names: Iterable[str] = ()) -> None:
        """Results for programs: an array, or an object if there is but a `single` one; lines; or `names`."""
        match self.form:
            case Format.JSON:
                shown = values[0] if single and len(values) == 1 else list(values)
                self.line(json.dumps(shown, indent=2, ensure_ascii=False))
            case Format.JSONL:
                for value in values:
                    self.line(json.dumps(value, ensure_ascii=False))
            case Format.NAME:
                for name in names:
                    self.line(name)
            case Format.TABLE | Format.WIDE:
                pass

    def table(self, columns: Sequence[Column], *, growing: bool = False) -> Table:
        """A table on stdout. It is laid out when it is first printed; `growing`: rows are to come later."""
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        return Table(self, columns, width, growing=growing)

    def pieces(self, cell: Cell) -> None:
        """One line of stdout, piece by piece."""
        self._write(sys.stdout, "".join(self.styled(text, look, sys.stdout) for text, look in cell).rstrip())

    # --- stderr ------------------------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """A remark on what goes on; never part of a result, and nothing that a program needs."""
        if self.for_people:
            self._write(sys.stderr, self.styled(printable(text), "dim", sys.stderr))

    def warn(self, text: str) -> None:
        """A remark that must not be missed."""
        self._write(sys.stderr, self.styled(f"penstock: {printable(text)}", "busy", sys.stderr))

    def failed(self, failure: Failure) -> None:
        """A failure: for programs the API's error object, on one line."""
        if self.form in (Format.JSON, Format.JSONL):
            self._write(sys.stderr, json.dumps(failure.as_json(), ensure_ascii=False))
            return
        first, *rest = (printable(line) for line in failure.lines())
        self._write(sys.stderr, self.styled(first, "bad", sys.stderr))
        for line in rest:
            self._write(sys.stderr, line)

    def styled(self, text: str, look: str, stream: TextIO) -> str:
        """`text` as it looks on `stream`."""
        if not look or self._plain or not stream.isatty():
            return text
        return click.style(text, **_LOOKS[look])  # type: ignore[arg-type]

    def _write(self, stream: TextIO, line: str) -> None:
        stream.write(line + "\n")
        stream.flush()


class Table:
    """Rows whose columns stand below each other, within a width if there is one."""

    def __init__(self, out: Output, columns: Sequence[Column], width: int | None, *, growing: bool) -> None:
        """The last column takes what the others leave, and is cut; None = however wide it gets."""
        self._out = out
        self._columns = columns
        self._width = width
        self._growing = growing
        self._kept: list[int] = []
        self._widths: list[int] = []

    def print(self, rows: Iterable[Sequence[Cell]]) -> None:
        """Print `rows`; before the first ones the titles, even if there are none."""
        shown = [[_printable(cell) for cell in row] for row in rows]
        if not self._kept:
            shown.insert(0, [((column.title, "bold"),) for column in self._columns])
            self._lay_out(shown)
        for row in shown:
            pieces: list[tuple[str, str]] = []
            for at in self._kept:
                last = at == len(self._columns) - 1
                cell = _cut(row[at], self._widths[at]) if last and self._width is not None else row[at]
                pieces += [*cell, (" " * (self._widths[at] - _width(cell)) + _GAP, "")]
            self._out.pieces(tuple(pieces))

    def _lay_out(self, rows: Sequence[Sequence[Cell]]) -> None:
        columns, last = self._columns, len(self._columns) - 1
        self._kept = list(range(len(columns)))
        self._widths = [max([column.width, *(_width(row[at]) for row in rows)]) for at, column in enumerate(columns)]
        if self._width is None:
            return
        needed = _SMALLEST_COLUMN if self._growing else min(_SMALLEST_COLUMN, self._widths[last])
        while (room := self._width - sum(self._widths[at] + len(_GAP) for at in self._kept if at != last)) < needed:
            least = max(self._kept, key=lambda at: columns[at].rank)
            if columns[least].rank == 0:
                break
            self._kept.remove(least)
        self._widths[last] = max(0, room)


def cell(text: object, look: str = "") -> Cell:
    """A cell in one look."""
    return ((str(text), look),)


def printable(text: str) -> str:
    """`text` without anything that would move a terminal's cursor, or worse."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else " " if each.isspace() else _NOT_SHOWN for each in text)


def width_of(text: str) -> int:
    """How many columns of a terminal `text` takes."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(each) else 2 if east_asian_width(each) in "WF" else 1 for each in text)


def cut(text: str, width: int) -> str:
    """`text` in at most `width` columns; what is cut says so."""
    if width_of(text) <= width:
        return text
    text = text[: 4 * width]  # no use in measuring what is far beyond
    while text and width_of(text) > width - 1:
        text = text[:-1]
    return text + "…" if width > 0 else ""


def _printable(cell: Cell) -> Cell:
    return tuple((printable(text), look) for text, look in cell)


def _width(cell: Cell) -> int:
    return sum(width_of(text) for text, _ in cell)


def _cut(cell: Cell, width: int) -> Cell:
    if _width(cell) <= width:
        return cell
    shown: list[tuple[str, str]] = []
    for text, look in cell:
        shown.append((cut(text, width), look))
        width -= width_of(shown[-1][0])
        if width <= 0:
            break
    return tuple(shown)
