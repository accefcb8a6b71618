"""Draws a pipeline's history: the axes run downwards over time, a row for each event.

Used by `events` and `describe`. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from penstock.cli.failures import Json
from penstock.cli.output import Cell, Column, cell
from penstock.cli.wording import RESOURCES, STORAGE, first_sentence, lane

COLUMNS = (
    Column("TIME", rank=3, width=23),
    Column("RESOURCES", width=17),
    Column("WANTED", rank=2, width=11),
    Column("STORAGE", rank=4, width=12),
    Column("AFTER", rank=5, width=9),
    Column("WHAT IT DOES", rank=1),
)


def history(events: Sequence[Json], *, before: Json = None) -> list[list[Cell]]:
    """Rows below COLUMNS for `events`, oldest first; `before` is the one before them."""
    rows: list[list[Cell]] = []
    for event in events:
        rows.append(
            [
                cell(event["recorded_at"][:23].replace("T", " "), "dim"),
                lane(RESOURCES, event["deployment_resources_status"], "good"),
                cell(event["deployment_resources_desired_status"]),
                lane(STORAGE, event["storage_status"], "calm"),
                cell("" if before is None else _after(before, event), "dim"),
                _activity(event),
            ]
        )
        before = event
    return rows


def _after(before: Json, event: Json) -> str:
    stamps = [datetime.fromisoformat(each["recorded_at"]) for each in (before, event)]
    seconds = (stamps[1] - stamps[0]).total_seconds()
    return f"+{seconds:.3f}s" if seconds < 10 else f"+{seconds:.0f}s" if seconds < 6000 else f"+{seconds / 3600:.1f}h"


def _activity(event: Json) -> Cell:
    if event["deployment_has_error"]:
        fault = event["deployment_error"]
        return cell(f"{fault['error_code']}: {first_sentence(fault['message'])}", "bad")
    runtime, steered = event["deployment_runtime_status"], event["deployment_runtime_desired_status"]
    if runtime is not None:
        told = ", told to end" if steered == "Suspended" and runtime != steered else ""
        return cell(runtime + told)
    return cell("" if event["program_status"] == "Success" else event["program_status"], "dim")
