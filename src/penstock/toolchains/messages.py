"""Turns what a check prints into the messages of the API (contract.md section 1.3).

Called by `local.py`. Pure. Lines and columns count from 1, ends are inclusive; 0 = the tool named no place.
"""

from __future__ import annotations

import re

from penstock.model import JsonObject

MOST_MESSAGES = 100
LONGEST_MESSAGE_CHARACTERS = 4000

_SUMMARY_LINES = 20


def skipped() -> JsonObject:
    """The outcome of a check that there is nothing to do for."""
    return {"exit_code": 0, "messages": []}


def check_outcome(exit_code: int, output: str, pattern: str | None, source: str) -> JsonObject:
    """The `sql_compilation` member for a check of `source` that printed `output`.

    What a passed check found are warnings. A failed one has at least one message.
    """
    found: list[JsonObject] = []
    lines = source.splitlines()
    for match in re.finditer(pattern, output, re.MULTILINE) if pattern is not None else ():
        if len(found) == MOST_MESSAGES:
            break
        found.append(_message(match, lines, passed=exit_code == 0))
    if exit_code and not found:
        found.append(flaw(summary(output) or f"The check ended with exit code {exit_code} and said nothing."))
    return {"exit_code": exit_code, "messages": found}


def flaw(text: str, error_type: str = "Check error") -> JsonObject:
    """A message that belongs to the whole program."""
    return {
        "start_line_number": 0,
        "start_column": 0,
        "end_line_number": 0,
        "end_column": 0,
        "warning": False,
        "error_type": error_type,
        "message": text,
        "snippet": None,
    }


def _message(match: re.Match[str], lines: list[str], *, passed: bool) -> JsonObject:
    groups = match.groupdict()
    line, column = _number(groups.get("line")), _number(groups.get("column"))
    end_line = max(line, _number(groups.get("end_line")))
    end_column = _number(groups.get("end_column")) or column
    warning = passed or (groups.get("severity") or "").lower().startswith(("warn", "note", "info"))
    return {
        "start_line_number": line,
        "start_column": column,
        "end_line_number": end_line,
        "end_column": end_column,
        "warning": warning,
        "error_type": groups.get("type") or ("Check warning" if warning else "Check error"),
        "message": (groups.get("message") or match[0])[:LONGEST_MESSAGE_CHARACTERS],
        "snippet": _snippet(lines, line, column, end_column if end_line == line else 0),
    }


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() and len(text) < 10 else 0


def _snippet(lines: list[str], line: int, column: int, end_column: int) -> str | None:
    """The line and the one before it, numbered, with carets below (conformance CO7)."""
    if not 1 <= line <= len(lines):
        return None
    shown = [f"{number:5}|{lines[number - 1]}\n" for number in (line - 1, line) if number >= 1]
    if column:
        last = min(max(column, end_column or len(lines[line - 1])), max(column, len(lines[line - 1])))
        shown.append(" " * (5 + column) + "^" * (last - column + 1) + "\n")
    return "".join(shown)


def summary(output: str) -> str:
    """The last lines of what a tool printed; empty when it printed nothing."""
    return "\n".join(output.strip().splitlines()[-_SUMMARY_LINES:])[-LONGEST_MESSAGE_CHARACTERS:]
