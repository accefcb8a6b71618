"""What the commands that talk to a daemon have in common: their options, and how they end.

`@operator` hands a Session to a command and turns a Failure into what it prints and the exit code.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec

import click
from click.shell_completion import CompletionItem

from penstock.cli import FAILED, INTERRUPTED, NOT_REACHED, READER_GONE
from penstock.cli.client import Client, find, key_for, path_of
from penstock.cli.failures import Failure, Refused, common_exit_code
from penstock.cli.output import Format, Output
from penstock.cli.wording import broken_program, program_trouble, way_out

P = ParamSpec("P")

WAIT_SECONDS = 600.0
"""How long commands wait unless told otherwise: as long as a check or a build may take by default."""

COMPLETION_SECONDS = 0.5
"""How long a shell waits for names before there are none."""

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


class Duration(click.ParamType):  # type: ignore[type-arg] - generic only in its newest releases
    """``90``, ``1.5s``, ``10m``, ``1h30m``: seconds."""

    name = "duration"

    def __init__(self, *, zero: bool = False) -> None:
        """`zero`: none is possible, too."""
        self._zero = zero

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        if isinstance(value, float):
            return value
        text = str(value).strip()
        parts = _DURATION.findall(text)
        if parts and "".join(number + unit for number, unit in parts) == text:
            seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
        else:
            seconds = float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else -1.0
        if not (0 <= seconds < 1e9 and (seconds > 0 or self._zero)):
            self.fail(f"{text!r} is no duration like 30s, 10m or 1h30m", param, ctx)
        return seconds


@dataclass(frozen=True, slots=True)
class Session:
    """What a command works with."""

    client: Client
    out: Output

    def explained(self, refused: Refused, pipeline: str) -> Failure:
        """A refusal that concerns `pipeline`, with what the daemon knows about it."""
        failure: Failure = refused.of(pipeline)
        if refused.code == "UnknownPipelineName":
            near = self._nearest(pipeline)
            failure = Failure(
                "there is no such pipeline",
                exit_code=refused.exit_code,
                code=refused.code,
                details=refused.details,
                pipeline=pipeline,
                hint=f"{near}, if that is meant" if near else "penstock get",
            )
        elif refused.code == "CannotStartWithCompilationError":
            row = self.client.get(path_of(pipeline))
            failure = Failure(
                f"{broken_program(row)}; it cannot be started",
                exit_code=NOT_REACHED,
                code=refused.code,
                details=refused.details,
                pipeline=pipeline,
                evidence=program_trouble(row),
                hint=way_out(row),
            )
        return failure

    def _nearest(self, pipeline: str) -> str | None:
        from difflib import get_close_matches

        known = [row["name"] for row in self.client.get("/v0/pipelines", selector="status")]
        return next(iter(get_close_matches(pipeline, known, n=1)), None)

    def end(self, failures: Iterable[Failure]) -> None:
        """Show what did not work, and exit accordingly, if anything."""
        found = list(failures)
        for failure in found:
            self.out.failed(failure)
        if found:
            sys.exit(common_exit_code(found))


def operator(*formats: Format, default: Format = Format.TABLE) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command ``--url`` and, if `formats` has any, ``-o``; call it with a Session before its other arguments."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(*args: Any, url: str | None, form: str = default, **kwargs: Any) -> None:
            out = Output(Format(form))
            try:
                _work(out, url, lambda session: command(session, *args, **kwargs))
            except (KeyboardInterrupt, click.Abort):
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # one more shall not change how this ends
                if sys.stderr.isatty():
                    click.echo(err=True)  # the terminal has echoed ^C
                sys.exit(INTERRUPTED)
            except BrokenPipeError:
                _forget_stdout()
                sys.exit(READER_GONE)
            except OSError as error:  # of a connection it would be a Failure
                _forget_stdout()
                out.warn(f"the output cannot be written: {error.strerror or error}")
                sys.exit(FAILED)

        wrapped = click.option(
            "--url", metavar="URL", help="Where the daemon is: http://HOST:PORT, HOST:PORT or unix:/path."
        )(run)
        if not formats:
            return wrapped
        choices = click.Choice([each.value for each in formats])
        return click.option("-o", "--output", "form", type=choices, default=default.value, show_default=True)(wrapped)

    return decorate


timeout = click.option(
    "--timeout",
    "timeout_seconds",
    type=Duration(),
    default=WAIT_SECONDS,
    show_default="10m",
    help="How long to wait: 30s, 10m, 1h30m.",
)
"""``--timeout``: seconds."""


def waits(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command ``--no-wait`` and ``--timeout``."""
    no_wait = click.option(
        "--wait/--no-wait", "wait", default=True, help="Wait until it is so, or only ask for it. Waits by default."
    )
    return no_wait(timeout(command))


def complete_names(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names that pipelines have, with their statuses; none when the daemon does not tell at once."""
    with suppress(Failure, OSError):
        address = find(ctx.params.get("url"), os.environ)
        with Client(address, key_for(address, os.environ), patience_seconds=COMPLETION_SECONDS) as client:
            rows = client.get("/v0/pipelines", selector="status")
        given = ctx.params.get("names") or ()
        return [
            CompletionItem(row["name"], help=row["deployment_status"])
            for row in rows
            if row["name"].startswith(incomplete) and row["name"] not in given
        ]
    return []


def names(*, required: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """``NAME...``: pipelines."""
    return click.argument("names", metavar="NAME...", nargs=-1, required=required, shell_complete=complete_names)


name = click.argument("name", metavar="NAME", shell_complete=complete_names)
"""``NAME``: a pipeline."""


def _work(out: Output, url: str | None, command: Callable[[Session], None]) -> None:
    try:
        address = find(url, os.environ)
        with Client(address, key_for(address, os.environ)) as client:
            command(Session(client, out))
    except Failure as failure:
        out.failed(failure)
        sys.exit(failure.exit_code)


def _forget_stdout() -> None:
    """Let nothing more be written to a pipe that nobody reads; the interpreter tries once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
