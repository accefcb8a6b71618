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
"""A column that may be cut is left out rather than made narrower than this."""


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
    may_be_cut: bool = False


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

    def table(self, columns: Sequence[Column], rows: Iterable[Sequence[Cell]], *, header: bool = True) -> None:
        """A table on stdout."""
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        titles = [((column.title, "bold"),) for column in columns]
        shown = [[_printable(cell) for cell in row] for row in rows]
        for row in _fitted(columns, [titles, *shown] if header else shown, width):
            self._write(sys.stdout, "".join(self.styled(text, look, sys.stdout) for text, look in row).rstrip())

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
    while text and width_of(text) > width - 1:
        text = text[:-1]
    return text + "…" if width > 0 else ""


def _printable(cell: Cell) -> Cell:
    return tuple((printable(text), look) for text, look in cell)


def _fitted(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], width: int | None) -> Iterable[Cell]:
    """The rows as lines whose columns stand below each other; in `width`, None = however wide that is."""
    kept = list(range(len(columns)))
    widths = [max([column.width, *(_width(row[at]) for row in rows)]) for at, column in enumerate(columns)]
    while width is not None and (too_wide := sum(widths[at] + len(_GAP) for at in kept) - len(_GAP) - width) > 0:
        cuttable = next((at for at in kept if columns[at].may_be_cut), None)
        if cuttable is not None and widths[cuttable] - too_wide >= _SMALLEST_COLUMN:
            widths[cuttable] -= too_wide
            break
        last = max(kept, key=lambda at: columns[at].rank)
        if columns[last].rank == 0:
            break
        kept.remove(last)
    for row in rows:
        pieces: list[tuple[str, str]] = []
        for at in kept:
            shown = _cut(row[at], widths[at])
            pieces += [*shown, (" " * (widths[at] - _width(shown)) + _GAP, "")]
        yield tuple(pieces)


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
