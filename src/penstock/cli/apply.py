"""`apply`: makes pipelines what files declare; what is so already is left alone.

What a file does not mention has its default, and pipelines that no file declares are nobody's business. What somebody
else changes at the same time is never overwritten.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import unified_diff

import click

from penstock.cli import TRY_AGAIN
from penstock.cli.client import path_of
from penstock.cli.command import Session, operator, waits
from penstock.cli.declarations import Declaration, Difference, compared, differences, read
from penstock.cli.failures import Failure, Json, Refused
from penstock.cli.output import Format
from penstock.cli.steer import program_failure
from penstock.cli.waiting import End, Goal, wait_for
from penstock.cli.wording import BROKEN_PROGRAM

_ATTEMPTS = 20
"""The daemon itself writes a row a few times while a program is built or started; each makes another tag."""

_LONGEST_SHOWN = 60

BUILT = Goal(
    "built", lambda row: row["program_status"] == "Success", lambda row: row["program_status"] in BROKEN_PROGRAM
)


@dataclass(frozen=True, slots=True)
class _Applied:
    """What became of a declaration."""

    declaration: Declaration
    result: str
    changes: Sequence[Difference] = ()

    def as_json(self, *, dry_run: bool) -> Json:
        changes = [{"path": each.path, "before": each.before, "after": each.after} for each in self.changes]
        return {
            "name": self.declaration.name,
            "result": self.result,
            "changes": changes,
            "file": self.declaration.file,
            "dry_run": dry_run,
        }


@click.command()
@click.option(
    "-f",
    "--file",
    "files",
    multiple=True,
    required=True,
    metavar="FILE",
    type=click.Path(),
    help="A declaration (.toml, .json), a program (.py), a directory of declarations, or - for standard input.",
)
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@waits
@operator(Format.TABLE, Format.JSON, Format.JSONL, Format.NAME)
def apply(session: Session, files: Sequence[str], *, dry_run: bool, wait: bool, timeout_seconds: float) -> None:
    """Create and change pipelines as files declare them, and wait until their programs are built.

    A file declares one pipeline, or several as [[pipelines]]. It is TOML or JSON:

    \b
        name = "ticker"               # default: the name of the file
        program = "ticker.py"         # a file beside this one; or program_code = "..."
        description = "ticks"
        tags = ["demo"]
        [program_config]
        toolchain = "python"
        [runtime_config.env]
        INTERVAL = "1"

    What is not mentioned has its default, and what is so already is left alone. A program FILE.py is the pipeline FILE;
    then only its program is declared. Whatever changes more than description and tags needs a stopped pipeline.
    """
    declarations = read(files)
    failures: list[Failure] = []
    applied: list[_Applied] = []
    for declaration in declarations:
        try:
            one = _apply(session, declaration, dry_run=dry_run)
        except Refused as refused:
            failures.append(session.explained(refused, declaration.name))
        except Failure as failure:
            if failure.pipeline != declaration.name:
                raise
            failures.append(failure)
        else:
            applied.append(one)
            _tell(session, one, dry_run=dry_run)
    values = [one.as_json(dry_run=dry_run) for one in applied]
    session.out.values(values, single=len(declarations) == 1, names=[value["name"] for value in values])
    if wait and not dry_run:
        failures += _not_built(session, [one.declaration for one in applied], timeout_seconds)
    session.end(failures)


# --- one declaration --------------------------------------------------------------------------------------------------


def _apply(session: Session, declared: Declaration, *, dry_run: bool) -> _Applied:
    decided: Mapping[str, Sequence[Difference]] | None = None
    for _ in range(_ATTEMPTS):
        try:
            row, tag = session.client.get_tagged(path_of(declared.name))
        except Refused as refused:
            if refused.code != "UnknownPipelineName":
                raise
            return _create(session, declared, dry_run=dry_run)
        changes = differences(declared, row)
        if decided is not None and decided != changes:
            break
        decided = changes
        if dry_run or not changes:
            found = [each for field in changes.values() for each in field]
            return _Applied(declared, "changed" if changes else "unchanged", found)
        body = {key: _as_declared(declared, row, key) for key in changes}
        try:
            after = session.client.send("PATCH", path_of(declared.name), body, if_match=tag)
        except Refused as refused:
            if refused.code != "PreconditionFailed":
                raise
            continue  # was it the daemon that wrote the row, or somebody who edits?
        made = [each for key in changes for each in compared(row[key], after[key], key)]
        return _Applied(declared, "changed" if made else "unchanged", made)
    text = "somebody else changes it at this moment; nothing was changed"
    raise Failure(text, exit_code=TRY_AGAIN, code="ChangedMeanwhile", pipeline=declared.name)


def _create(session: Session, declared: Declaration, *, dry_run: bool) -> _Applied:
    if not dry_run:
        session.client.send("POST", "/v0/pipelines", {"name": declared.name, **declared.body})
    return _Applied(declared, "created")


def _as_declared(declared: Declaration, row: Json, key: str) -> Json:
    if declared.program_only and key == "program_config":
        return {**row[key], **declared.body[key]}
    default: Json = [] if key == "tags" else {} if key.endswith("_config") else ""
    return declared.body.get(key, default)


def _not_built(session: Session, declarations: Sequence[Declaration], timeout_seconds: float) -> list[Failure]:
    failures: list[Failure] = []
    by_name = {declared.name: declared for declared in declarations}
    for outcome in wait_for(session, list(by_name), BUILT, timeout_seconds=timeout_seconds):
        if outcome.end is End.LOST:
            failures.append(program_failure(session, outcome.name, file=by_name[outcome.name].program_file))
        elif outcome.end is not End.REACHED:
            failures.append(outcome.failure(BUILT))
    return failures


# --- telling ----------------------------------------------------------------------------------------------------------


def _tell(session: Session, one: _Applied, *, dry_run: bool) -> None:
    name = one.declaration.name
    if not dry_run:
        paths = f": {', '.join(each.path for each in one.changes)}" if one.changes else ""
        session.out.say(f"{name}: {one.result}{paths}", "dim" if one.result == "unchanged" else "")
        return
    session.out.say(f"{name}: {'unchanged' if one.result == 'unchanged' else f'would be {one.result}'}")
    for each in one.changes:
        for line, look in _shown(each):
            session.out.say(f"  {line}", look)


def _shown(change: Difference) -> Iterator[tuple[str, str]]:
    before, after = change.before, change.after
    if isinstance(before, str) and isinstance(after, str) and "\n" in before + after:
        yield f"{change.path}:", "bold"
        for line in unified_diff(before.splitlines(), after.splitlines(), "now", "declared", lineterm="", n=2):
            yield f"  {line}", {"+": "good", "-": "bad", "@": "calm"}.get(line[:1], "")
    else:
        yield f"{change.path}: {_short(before)} → {_short(after)}", ""


def _short(value: Json) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"
