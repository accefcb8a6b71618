"""What moves pipelines, `start` to `delete`: ask for it, and wait until it is so.

Several pipelines are asked first and then waited for together, so that they move side by side; what does not work for
one of them keeps none of the others.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence

import click

from penstock.cli import FAILED, NOT_REACHED, USAGE
from penstock.cli.client import path_of
from penstock.cli.command import Duration, Session, names, operator, timeout, waits
from penstock.cli.failures import Failure, Json, Refused
from penstock.cli.output import Format
from penstock.cli.waiting import End, Goal, Outcome, look, patiently, wait_for
from penstock.cli.wording import (
    BROKEN_PROGRAM,
    broken_program,
    evidence_of,
    for_people,
    is_stopped,
    program_trouble,
    remark,
    way_out,
)

STEADY_SECONDS = 0.3
"""An interpreter needs a tenth of a second to find the error in a program's first line; it runs until then."""

_FORMATS = (Format.TABLE, Format.JSON, Format.JSONL, Format.NAME)

STOPPED = Goal("Stopped", is_stopped)
CLEARED = Goal(
    "Cleared",
    lambda row: row["storage_status"] == "Cleared",
    lambda row: row["storage_status"] == "InUse",  # it was started again
)


@click.command()
@names()
@click.option(
    "--initial",
    type=click.Choice(["running", "paused", "standby"]),
    default="running",
    show_default=True,
    help="What to be when started.",
)
@click.option(
    "--bootstrap-policy",
    type=click.Choice(["allow", "reject", "await_approval"]),
    default="await_approval",
    show_default=True,
    help="What to do if its program has changed since its storage was written.",
)
@click.option(
    "--steady",
    "steady_seconds",
    type=Duration(zero=True),
    default=STEADY_SECONDS,
    show_default="300ms",
    help="How long it must have run to count as running.",
)
@waits
@operator(*_FORMATS)
def start(
    session: Session,
    names: Sequence[str],
    *,
    initial: str,
    bootstrap_policy: str,
    steady_seconds: float,
    wait: bool,
    timeout_seconds: float,
) -> None:
    """Start pipelines, and wait until they run.

    Waits for their programs to be built, too. What went wrong is told at once: what the check of a program says, with
    line and column, or how its process ended, with its last lines.
    """
    goal = running(initial.capitalize(), steady_seconds=steady_seconds)
    query = {"initial": initial, "bootstrap_policy": bootstrap_policy}
    _carry_out(session, names, _post(session, "/start", **query), goal, wait=wait, timeout_seconds=timeout_seconds)


@click.command()
@names(required=False)
@click.option("--all", "everything", is_flag=True, help="All that are not stopped.")
@click.option("--force", is_flag=True, help="End their processes at once, without grace.")
@waits
@operator(*_FORMATS)
def stop(
    session: Session, names: Sequence[str], *, everything: bool, force: bool, wait: bool, timeout_seconds: float
) -> None:
    """Stop pipelines, and wait until nothing of them runs.

    A process is asked to end, and killed when its grace is over (`[runner] stop_grace_seconds` of the daemon). Stop it
    once more with --force to cut that short.
    """
    if everything == bool(names):
        raise click.UsageError("Name the pipelines to stop, or say --all.")
    if everything:
        rows = session.client.get("/v0/pipelines", selector="status")
        names = [row["name"] for row in rows if not is_stopped(row)]
        if not names:
            session.out.note("Everything is stopped.")
    act = _post(session, "/stop", force="true" if force else "false")
    _carry_out(session, names, act, STOPPED, wait=wait, timeout_seconds=timeout_seconds)


@click.command()
@names()
@waits
@operator(*_FORMATS)
def pause(session: Session, names: Sequence[str], *, wait: bool, timeout_seconds: float) -> None:
    """Pause running pipelines, and wait until they are. Their processes stay."""
    _carry_out(session, names, _post(session, "/pause"), running("Paused"), wait=wait, timeout_seconds=timeout_seconds)


@click.command()
@names()
@waits
@operator(*_FORMATS)
def resume(session: Session, names: Sequence[str], *, wait: bool, timeout_seconds: float) -> None:
    """Let paused pipelines go on, and wait until they do."""
    _carry_out(
        session, names, _post(session, "/resume"), running("Running"), wait=wait, timeout_seconds=timeout_seconds
    )


@click.command()
@names()
@waits
@operator(*_FORMATS)
def approve(session: Session, names: Sequence[str], *, wait: bool, timeout_seconds: float) -> None:
    """Let pipelines go on that await an approval, since their program has changed."""
    goal = Goal(
        "approved",
        lambda row: row["deployment_status"] not in ("AwaitingApproval", "Unavailable"),
        is_stopped,
    )
    _carry_out(session, names, _post(session, "/approve"), goal, wait=wait, timeout_seconds=timeout_seconds)


@click.command()
@names()
@waits
@operator(*_FORMATS)
def clear(session: Session, names: Sequence[str], *, wait: bool, timeout_seconds: float) -> None:
    """Clear the storage of stopped pipelines, and wait until it is gone. It cannot be brought back."""
    _carry_out(session, names, _post(session, "/clear"), CLEARED, wait=wait, timeout_seconds=timeout_seconds)


@click.command()
@names()
@operator(*_FORMATS)
def dismiss_error(session: Session, names: Sequence[str]) -> None:
    """Forget the error of the last run. A start does so, too."""
    _carry_out(session, names, _post(session, "/dismiss_error"), Goal("dismissed", bool), wait=False)


@click.command()
@names()
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Stop them by force and clear their storage first, where needed.")
@timeout
@operator(*_FORMATS)
def delete(session: Session, names: Sequence[str], *, yes: bool, force: bool, timeout_seconds: float) -> None:
    """Delete pipelines, with their history and logs.

    A pipeline must be stopped and its storage cleared; --force sees to that first. Asks before it does anything,
    unless told --yes; without a terminal it must be told.
    """
    names = list(dict.fromkeys(names))
    failures: list[Failure] = []
    rows = _found(session, names, failures)
    if rows and not yes:
        force = _confirmed(session, rows, force=force)
    if force:
        rows = _made_deletable(session, rows, failures, timeout_seconds)
    deleted = [row for row in rows if _done(session, failures, row["name"], lambda name: _delete(session, name))]
    for row in deleted:
        session.out.say(f"{row['name']}: deleted")
    _values(session, names, [{"name": row["name"], "id": row["id"], "deleted": True} for row in deleted])
    session.end(failures)


def running(status: str, *, steady_seconds: float = 0.0) -> Goal:
    """The goal that a pipeline runs, in the way that `status` says, and has been seen to for so long."""
    since: dict[str, float] = {}

    def reached(row: Json) -> bool:
        if row["deployment_status"] != status:
            since.pop(row["id"], None)
            return False
        return time.monotonic() - since.setdefault(row["id"], time.monotonic()) >= steady_seconds

    return Goal(
        status,
        reached,
        lambda row: is_stopped(row) or row["deployment_status"] == "AwaitingApproval",
    )


# --- asking, waiting, telling -----------------------------------------------------------------------------------------


def _post(session: Session, action: str, **query: str) -> Callable[[str], object]:
    return lambda name: session.client.send("POST", path_of(name, action), **query)


def _done(session: Session, failures: list[Failure], name: str, act: Callable[[str], object]) -> bool:
    """Whether the daemon accepted `act`; if not, why not is added to `failures`."""
    try:
        act(name)
    except Refused as refused:
        failures.append(session.explained(refused, name))
        return False
    return True


def _carry_out(
    session: Session,
    names: Iterable[str],
    act: Callable[[str], object],
    goal: Goal,
    *,
    wait: bool,
    timeout_seconds: float = 0.0,
) -> None:
    """Ask, wait if wanted, tell; ends the command with what did not work."""
    wanted = list(dict.fromkeys(names))
    failures: list[Failure] = []
    asked = [name for name in wanted if _done(session, failures, name, act)]
    rows: list[Json] = []
    if wait:
        for outcome in wait_for(session, asked, goal, timeout_seconds=timeout_seconds):
            text = _told(session, outcome, goal)
            if isinstance(text, Failure):
                failures.append(text)
            else:
                rows.append(outcome.row)
                session.out.say(text)
    else:
        rows = [row for name in asked if (row := patiently(session, lambda name=name: look(session, name)))]
        for row in rows:
            done = goal.reached(row)
            session.out.say(f"{row['name']}: {goal.what}" if done else f"{row['name']}: asked to be {goal.what}")
    _values(session, wanted, rows)
    session.end(failures)


def _values(session: Session, wanted: Sequence[str], values: Sequence[Json]) -> None:
    session.out.values(values, single=len(wanted) == 1, names=[value["name"] for value in values])


def _told(session: Session, outcome: Outcome, goal: Goal) -> str | Failure:
    """What became of it, in words."""
    row = outcome.row
    if outcome.end is End.REACHED:
        said = f"; {remark(row)[0]}" if row["deployment_error"] else ""
        return f"{outcome.name}: {goal.what} ({outcome.seconds:.2f} s){said}"
    if outcome.end is not End.LOST:
        return outcome.failure(goal)
    if goal is CLEARED:
        return _failure(outcome.name, "it was started again meanwhile, and has stored something", "StartedMeanwhile")
    if row["deployment_status"] == "AwaitingApproval":
        text = "it awaits an approval, since its program has changed since its storage was written"
        return _failure(outcome.name, text, "AwaitingApproval", hint=f"penstock approve {outcome.name}")
    return why_stopped(session, row) or _ended_alone(session, outcome, goal)


def why_stopped(session: Session, row: Json) -> Failure | None:
    """The failure that stopped a pipeline; None when it shows none."""
    name, fault = row["name"], row["deployment_error"]
    if row["program_status"] in BROKEN_PROGRAM:
        return program_failure(session, name)
    if fault is None:
        return None
    return _failure(
        name,
        for_people(fault["message"]),
        fault["error_code"],
        details=fault["details"],
        evidence=evidence_of(fault),
        hint=f"penstock logs {name}",
    )


def program_failure(session: Session, name: str, *, file: str = "") -> Failure:
    """The failure of a program that does not build; `file` is where it was read."""
    row = session.client.get(path_of(name))
    evidence = program_trouble(row, file=file)
    return _failure(name, broken_program(row), row["program_status"], evidence=evidence, hint=way_out(row))


def _ended_alone(session: Session, outcome: Outcome, goal: Goal) -> str | Failure:
    """A pipeline that is stopped and shows no fault: its work is done, or somebody stopped it."""
    if goal.what == "Running" and _has_run(session, outcome.name):
        return f"{outcome.name}: ran, and has ended ({outcome.seconds:.2f} s)"
    text = f"it was stopped, or has ended, before it was {goal.what}"
    return _failure(outcome.name, text, "StoppedMeanwhile", hint=f"penstock events {outcome.name}")


def _has_run(session: Session, name: str) -> bool:
    for event in session.client.get(path_of(name, "/events"), selector="status"):
        if event["deployment_runtime_status"] == "Running":
            return True
        if event["deployment_resources_status"] == "Stopped" and (
            event["deployment_resources_desired_status"] == "Provisioned"
        ):
            return False  # here this run begins
    return False


def _failure(name: str, text: str, code: str, **more: Json) -> Failure:
    return Failure(text, exit_code=NOT_REACHED, code=code, pipeline=name, **more)


# --- delete -----------------------------------------------------------------------------------------------------------


def _found(session: Session, names: Iterable[str], failures: list[Failure]) -> list[Json]:
    rows: list[Json] = []

    def find(name: str) -> None:
        rows.append(session.client.get(path_of(name), selector="status"))

    for name in names:
        _done(session, failures, name, find)
    return rows


def _confirmed(session: Session, rows: Sequence[Json], *, force: bool) -> bool:
    """Ask; returns whether to stop and to clear first. Raises Failure if nothing is to be deleted."""
    if not sys.stdin.isatty():
        raise Failure(
            "nothing was deleted, since nobody can be asked", exit_code=USAGE, code="NotConfirmed", hint="--yes"
        )
    click.echo("This deletes, with history and logs:", err=True)
    for row in rows:
        steps = [] if is_stopped(row) else [f"is {row['deployment_status']}, and will be stopped by force"]
        steps += [] if row["storage_status"] == "Cleared" else ["has storage, which will be lost"]
        force = force or bool(steps)
        click.echo("  " + ": ".join([row["name"], *(["; ".join(steps)] if steps else [])]), err=True)
    if not click.confirm("Go on?", err=True):
        raise Failure("nothing was deleted", exit_code=FAILED, code="NotConfirmed")
    return force


def _made_deletable(
    session: Session, rows: Sequence[Json], failures: list[Failure], timeout_seconds: float
) -> list[Json]:
    for action, query, goal in (("/stop", {"force": "true"}, STOPPED), ("/clear", {}, CLEARED)):
        busy = [row["name"] for row in rows if not goal.reached(row)]
        asked = [name for name in busy if _done(session, failures, name, _post(session, action, **query))]
        outcomes = wait_for(session, asked, goal, timeout_seconds=timeout_seconds)
        failures += [each.failure(goal) for each in outcomes if each.end is not End.REACHED]
        done = {each.name: each.row for each in outcomes if each.end is End.REACHED}
        rows = [done.get(row["name"], row) for row in rows if row["name"] not in busy or row["name"] in done]
    return list(rows)


def _delete(session: Session, name: str) -> None:
    session.client.send("DELETE", path_of(name))
