"""`logs` and `events`: what a pipeline prints and what becomes of it, and how that goes on.

Following survives a daemon that restarts: logs are resumed where they were left, without loss and without a line
twice, as the API's cursor allows.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from http.client import HTTPException, HTTPResponse
from typing import Any

import click

from penstock.cli.client import path_of
from penstock.cli.command import Duration, Session, name, operator
from penstock.cli.failures import Failure, Json, Refused
from penstock.cli.history import COLUMNS, history
from penstock.cli.output import Format, Table
from penstock.cli.waiting import patiently

EVENTS_SECONDS = 0.5
"""How often events are asked for; mostly the answer is that there are no new ones."""

_BLOCK_BYTES = 64 * 1024
_EPOCH, _SEQ, _GAP = "feldera-logs-epoch", "feldera-logs-seq", "feldera-logs-gap"
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")


class Since(Duration):
    """A duration back from now, or a moment as RFC 3339 writes it."""

    name = "since"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Seconds, or the moment as it was given."""
        if isinstance(value, str) and _MOMENT.fullmatch(value):
            return value
        return super().convert(value, param, ctx)


@click.command()
@name
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes, until the pipeline is deleted.")
@click.option("--tail", metavar="N", type=click.IntRange(0), help="Begin with the last N lines.")
@click.option("--since", metavar="SINCE", type=Since(), help="Begin so long ago (10m, 2h), or at a time (RFC 3339).")
@operator()
def logs(session: Session, name: str, *, follow: bool, tail: int | None, since: float | str | None) -> None:
    """Print what a pipeline has printed in all of its runs, the oldest line first.

    With --follow it goes on through restarts of pipeline and daemon; no line is lost, and none comes twice.
    """
    begin = {"cursor": ""} if tail is None and since is None else {}
    if tail is not None:
        begin["tail"] = str(tail)
    try:
        if since is not None:
            begin["since"] = since if isinstance(since, str) else _ago(session, name, since)
        _Log(session, name, follow=follow).print(begin)
    except Refused as refused:
        raise session.explained(refused, name) from None


@click.command()
@name
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes, until the pipeline is deleted.")
@click.option("--number", "-n", metavar="N", type=click.IntRange(0), help="Begin with the last N events.")
@operator(Format.TABLE, Format.JSON, Format.JSONL)
def events(session: Session, name: str, *, follow: bool, number: int | None) -> None:
    """Show the history of a pipeline, the oldest event first, its axes drawn downwards.

    About 720 events are kept. AFTER is the time since the event before.
    """
    if follow and session.out.form is Format.JSON:
        raise click.UsageError("--follow prints no end to an array; use -o jsonl.")
    try:
        known = _events(session, name)
    except Refused as refused:
        raise session.explained(refused, name) from None
    shown = known if number is None else known[len(known) - min(number, len(known)) :]
    before = known[-len(shown) - 1] if len(shown) < len(known) else None
    table = session.out.table(COLUMNS, growing=follow)
    _print(session, shown, before, table)
    while follow:
        time.sleep(EVENTS_SECONDS)
        try:
            now = patiently(session, lambda: _events(session, name))
        except Refused as refused:
            if refused.http_status != 404:
                raise
            session.out.note(f"{name} was deleted; its history ends here.")
            return
        if now is not known:
            seen = {each["event_id"] for each in known}
            new = [each for each in now if each["event_id"] not in seen]
            _print(session, new, known[-1] if known else None, table)
            known = now


# --- events -----------------------------------------------------------------------------------------------------------


def _events(session: Session, name: str) -> Sequence[Json]:
    """All that are kept, the oldest first."""
    found = session.client.get(path_of(name, "/events"), selector="all")
    return found if isinstance(found, _OldestFirst) else _OldestFirst(found)


class _OldestFirst(list[Json]):
    def __init__(self, newest_first: Sequence[Json]) -> None:
        super().__init__(reversed(newest_first))


def _print(session: Session, events: Sequence[Json], before: Json, table: Table) -> None:
    session.out.values(events)
    if session.out.for_people:
        table.print(history(events, before=before))


# --- logs -------------------------------------------------------------------------------------------------------------


def _ago(session: Session, name: str, seconds: float) -> str:
    """The moment `seconds` ago by the daemon's clock, which the logs go by; rather a second too early than too late."""
    session.client.get(path_of(name), selector="status")
    moment = session.client.now() - timedelta(seconds=seconds)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Log:
    """Prints the lines of one log, and counts them, so that it can go on where it was when a connection breaks."""

    def __init__(self, session: Session, name: str, *, follow: bool) -> None:
        self._session = session
        self._name = name
        self._follow = follow
        self._epoch, self._seq = "", 0

    def print(self, begin: dict[str, str]) -> None:
        """Print what there is from `begin` on, and what comes if it is to be followed. Raises Failure."""
        whole = self._connect(begin)
        while self._follow:
            if not self._epoch:
                raise Failure("the log broke off, and this daemon cannot resume one", code="LogBrokeOff")
            try:
                patiently(self._session, self._resume)
            except Refused as refused:
                if refused.http_status != 404:
                    raise
                return  # its last line has said that it was deleted
        if not whole:
            raise Failure("the log broke off before its end", code="LogBrokeOff")

    def _resume(self) -> None:
        began = time.monotonic()
        self._connect({"cursor": f"{self._epoch}:{self._seq}"})
        if time.monotonic() - began < 0.1:
            time.sleep(0.1)  # whatever ends each connection at once shall not be asked without pause

    def _connect(self, begin: dict[str, str]) -> bool:
        """Print what one connection gives; returns whether it ended as it should."""
        query = {**begin, "follow": "true" if self._follow else "false"}
        with self._session.client.stream(path_of(self._name, "/logs"), **query) as response:
            self._epoch = response.headers.get(_EPOCH, "")
            self._seq = int(response.headers.get(_SEQ, "0"))
            gap = int(response.headers.get(_GAP, "0"))
            if gap:
                self._session.out.warn(f"{gap} lines are no longer kept")
            return self._copy(response)

    def _copy(self, response: HTTPResponse) -> bool:
        unfinished = b""
        while block := _read(response):
            lines, newline, rest = block.rpartition(b"\n")
            if newline:
                _write(unfinished + lines + newline)
                self._seq += block.count(b"\n")
                unfinished = rest
            else:
                unfinished += block
        if unfinished and not self._follow:
            _write(unfinished + b"\n")
        return block is not None


def _read(response: HTTPResponse) -> bytes | None:
    """What has come; empty at the end, None when there is no more but it is not the end."""
    try:
        return response.read1(_BLOCK_BYTES)
    except (OSError, HTTPException):
        return None


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
