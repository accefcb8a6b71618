"""Says in words how a pipeline is: at a glance, what it waits for, what went wrong, and what it can be told.

Used by commands for people. Pure; takes rows and faults as the API gives them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import cast

from penstock.cli.failures import Json
from penstock.cli.output import Cell, cell

RESOURCES = ("Stopped", "Provisioning", "Provisioned", "Stopping")
STORAGE = ("Cleared", "InUse", "Clearing")
BROKEN_PROGRAM = ("SqlError", "RustError", "SystemError")

_STEPS = {
    "Pending": "its program to be checked",
    "CompilingSql": "its program to be checked",
    "SqlCompiled": "its program to be built",
    "CompilingRust": "its program to be built",
}
_BROKEN = {
    "SqlError": "its program does not pass its check",
    "RustError": "its program cannot be built",
    "SystemError": "its program could not be checked or built",
}
_TAIL_LINES = 20
_DAEMON_SAYS = "[manager] "
"""What the daemon's own lines in a log begin with; how a process ended is told by what it said itself."""

_SENTENCE = re.compile(r"(?<=[.!?])\s+")


# --- at a glance ------------------------------------------------------------------------------------------------------


def look_of(row: Json) -> str:
    """How its status looks."""
    status: str = row["deployment_status"]
    if row["deployment_error"] is not None or status == "Unavailable":
        return "bad"
    if is_stopped(row):
        return "dim"
    return {"Running": "good", "Paused": "calm"}.get(status, "busy")


def is_stopped(row: Json) -> bool:
    """Whether it is stopped, and wanted so."""
    return row["deployment_resources_status"] == "Stopped" and row["deployment_resources_desired_status"] == "Stopped"


def remark(row: Json) -> tuple[str, str]:
    """What is worth knowing at a glance, and how that looks."""
    fault = row["deployment_error"]
    if fault is not None:
        return f"{fault['error_code']}: {first_sentence(fault['message'])}", "bad"
    if row["program_status"] in _BROKEN:
        return _BROKEN[row["program_status"]], "bad"
    waits = waits_for(row)
    return (f"waits for {waits}", "") if waits else ("", "")


def first_sentence(text: str) -> str:
    """The first sentence, which says what has happened; those after it tell what to do."""
    return _SENTENCE.split(first_line(text), maxsplit=1)[0]


def first_line(text: str) -> str:
    """The first line that says anything."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def age(seconds: float) -> str:
    """A span of time, roughly: ``42s``, ``7m``, ``5h``, ``3d``."""
    whole = max(0, int(seconds))
    for unit, size, until in (("s", 1, 120), ("m", 60, 7200), ("h", 3600, 172_800)):
        if whole < until:
            return f"{whole // size}{unit}"
    return f"{whole // 86_400}d"


def lane(stops: tuple[str, ...], current: str, look: str) -> Cell:
    """One axis, drawn: a dot for each status, and the name of the current one."""
    dots = tuple(("●", look) if stop == current else ("·", "dim") for stop in stops)
    return (*dots, (f" {current}", ""))


def axes(row: Json) -> dict[str, str]:
    """The four axes of a row or an event; what is wanted is said where it differs."""
    resources, runtime = row["deployment_resources_status"], row["deployment_runtime_status"]
    wanted, steered = row["deployment_resources_desired_status"], row["deployment_runtime_desired_status"]
    shown = {
        "program": row["program_status"],
        "resources": resources if resources == wanted else f"{resources} → {wanted}",
        "runtime": runtime if steered in (runtime, None) else f"{runtime} → {steered}",
        "storage": row["storage_status"],
    }
    return {axis: status for axis, status in shown.items() if status is not None}


# --- what it waits for, and what it can be told -----------------------------------------------------------------------


def waits_for(row: Json) -> str | None:
    """What has to come before anything moves; None when nothing is to move."""
    wanted = row["deployment_resources_desired_status"]
    match row["deployment_resources_status"]:
        case "Stopping":
            return "its last process to end"
        case "Provisioning" | "Provisioned" if wanted == "Stopped":
            return "its process to be stopped"
        case "Provisioning":
            return _with_reason("its process to be ready", row.get("deployment_resources_status_details"))
        case "Provisioned":
            return _runtime_waits_for(row)
        case _ if row["storage_status"] == "Clearing":
            return _with_reason("its storage to be gone", row["storage_status_details"])
        case _ if row["program_status"] in _STEPS:
            return _STEPS[row["program_status"]]
        case _ if wanted == "Provisioned" and row["program_status"] == "Success":
            return "its turn to be started"
        case _:
            return None


def _runtime_waits_for(row: Json) -> str | None:
    status, wanted = row["deployment_status"], row["deployment_desired_status"]
    reason = row["deployment_runtime_status_details"]
    if wanted == "Suspended":
        return "its process to end by itself; when its grace is over it is killed"
    match status:
        case "Unavailable":
            return _with_reason("its process to answer", reason)
        case "AwaitingApproval":
            return "an approval: its program has changed since its storage was written"
        case "Running" | "Paused" | "Standby" if wanted in (status, "Unavailable"):
            return None
        case _:
            return _with_reason(f"its process to be {wanted}", reason)


def _with_reason(text: str, details: Json) -> str:
    given = _mapping(details)
    reason = given.get("reason") or given.get("error")
    return f"{text} ({first_line(str(reason))})" if reason else text


def can_be_told(row: Json) -> list[tuple[str, str]]:
    """Commands that make sense now, and what each would do."""
    name = row["name"]
    fault = row["deployment_error"]
    if not is_stopped(row):
        said = {
            "Running": [(f"penstock pause {name}", "let it rest, its process stays")],
            "Paused": [(f"penstock resume {name}", "let it go on")],
            "AwaitingApproval": [(f"penstock approve {name}", "go on with the changed program")],
        }.get(row["deployment_status"], [])
        if row["deployment_desired_status"] in ("Stopped", "Suspended"):
            return [(f"penstock stop --force {name}", "end it at once")]
        return [*said, (f"penstock stop {name}", "end it, with grace")]
    told: list[tuple[str, str]] = []
    if row["program_status"] in BROKEN_PROGRAM:
        broken = row["program_status"] == "SystemError"
        text = "change its program, when the cause is dealt with" if broken else "correct its program"
        told.append(("penstock apply -f FILE", text))
    elif row["storage_status"] != "Clearing":
        told.append((f"penstock start {name}", "start it" + (" again" if fault else "")))
    if fault is not None:
        told += [
            (f"penstock logs {name}", "read all that it printed"),
            (f"penstock dismiss-error {name}", "forget the error"),
        ]
    if row["storage_status"] == "InUse":
        told.append((f"penstock clear {name}", "remove what it has stored"))
    if row["storage_status"] == "Cleared":
        told.append((f"penstock delete {name}", "delete it"))
    return told


# --- what went wrong --------------------------------------------------------------------------------------------------


def evidence_of(fault: Json) -> list[str]:
    """What a fault has to show beside its message: how the process ended, its last lines, other details."""
    details = _mapping(fault["details"])
    shown = [
        f"{key.replace('_', ' ')}: {value}"
        for key in ("exit_code", "signal_name", "pid", "ended_at", "error", "reason")
        if (value := details.get(key)) not in (None, "") and str(value) not in fault["message"]
    ]
    tail: Sequence[str] = details.get("log_tail") or ()
    said = [line for line in tail if not line.startswith(_DAEMON_SAYS)]
    if said:
        shown += ["its last lines:", *(f"  | {line}" for line in said[-_TAIL_LINES:])]
    return shown


def for_people(message: str) -> str:
    """A fault's message without the sentences that tell readers of the API where to look."""
    sentences = _SENTENCE.split(message)
    return " ".join(each for each in sentences if "/v0/" not in each and "details." not in each) or message


def _mapping(value: Json) -> Mapping[str, Json]:
    return cast("Mapping[str, Json]", value) if isinstance(value, Mapping) else {}


def program_trouble(row: Json, *, file: str = "") -> list[str]:
    """What the tools said of a program that does not build; `file` is where it was read. Needs a whole row."""
    error = row["program_error"]
    lines = list(_messages(_mapping(error["sql_compilation"]).get("messages") or (), file))
    built: Json = error["rust_compilation"]
    if built:
        lines.append(f"the build ended with exit code {built['exit_code']}")
        said = [*built["stdout"].splitlines(), *built["stderr"].splitlines()]
        lines += [f"  | {line}" for line in said[-_TAIL_LINES:]]
    if error["system_error"]:
        lines += str(error["system_error"]).splitlines()
    return lines


def way_out(row: Json) -> str:
    """What helps a program that does not build. Only a change has one built again."""
    changed = "with any change, when the cause is dealt with" if row["program_status"] == "SystemError" else "corrected"
    return f"penstock apply -f FILE, {changed}"


def broken_program(row: Json) -> str:
    """What is the matter with a program that does not build."""
    return _BROKEN[row["program_status"]]


def _messages(messages: Iterable[Json], file: str) -> Iterator[str]:
    for each in messages:
        line, column = each["start_line_number"], each["start_column"]
        kind = "warning" if each["warning"] else "error"
        place = "" if not line else f"{file}:{line}:{column}: " if file else f"line {line}, column {column}: "
        first, *rest = str(each["message"]).splitlines() or [""]
        yield f"{place}{kind}: {each['error_type']}: {first}"
        yield from (f"    {more}" for more in rest)
        yield from (f"    {more}" for more in str(each["snippet"] or "").splitlines())


def status_cell(row: Json) -> Cell:
    """Its status, as it looks."""
    return cell(row["deployment_status"], look_of(row))
