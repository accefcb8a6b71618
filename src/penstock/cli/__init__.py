"""The command line: each command is imported when it runs, so that `--help`, completion and `get` stay quick.

`__main__.py` calls it. Commands parse, call and print; they decide nothing that the daemon decides, and they turn what
may go wrong into a few lines on stderr and an exit code, never into a traceback.
"""

from __future__ import annotations

import signal
import sys
from importlib import import_module

import click
from click.shell_completion import CompletionItem

from penstock import __version__

OK = 0
FAILED = 1
USAGE = 2
NOT_FOUND = 3
TIMED_OUT = 4
UNREACHABLE = 5
NOT_REACHED = 6
TRY_AGAIN = 75
REFUSED = 78
INTERRUPTED = 130
READER_GONE = 141
"""Exit codes; 64 to 78 mean what sysexits.h says, so that a service manager can tell them apart."""

_EXIT_CODES = (
    ("0", "done, and what was waited for has come"),
    ("1", "it did not work, or was refused; stderr says why. Also: several pipelines, several reasons"),
    ("2", "wrong usage, or a declaration that cannot be used"),
    ("3", "there is no such pipeline"),
    ("4", "it has not come within --timeout; it goes on"),
    ("5", "no daemon answers"),
    ("6", "it will not come: the pipeline failed, its program does not build, or somebody stopped it"),
    ("75", "not now: somebody else was quicker, another daemon uses the store, or the store cannot be reached"),
    ("78", "the configuration is refused; stderr says where and why"),
    ("130, 143", "interrupted, or ended at once by a second SIGINT or SIGTERM; what was asked for goes on"),
    ("141", "whoever read the output is gone"),
)

_COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "Pipelines": {
        "apply": ("apply", "Create and change pipelines as files declare them."),
        "get": ("show", "List pipelines, or some of them."),
        "describe": ("show", "Tell all about a pipeline: what it does, waits for, and can be told."),
        "start": ("steer", "Start pipelines."),
        "stop": ("steer", "Stop pipelines, with grace or by force."),
        "pause": ("steer", "Pause running pipelines."),
        "resume": ("steer", "Resume paused pipelines."),
        "approve": ("steer", "Let pipelines go on that await an approval of their changed program."),
        "clear": ("steer", "Clear the storage of stopped pipelines."),
        "dismiss-error": ("steer", "Forget the error of the last run."),
        "delete": ("steer", "Delete pipelines, with their history and logs."),
        "logs": ("follow", "Print what a pipeline has printed, and follow it."),
        "events": ("follow", "Show a pipeline's history, and follow it."),
    },
    "Daemon": {
        "serve": ("serve", "Run the daemon until it is told to end."),
        "demo": ("", "Show what Penstock does, on a daemon of its own that leaves nothing behind."),
        "check-config": ("check_config", "Check the configuration, and tell where its values come from."),
        "healthcheck": ("healthcheck", "Ask a running daemon whether it is ready."),
    },
    "Shell": {
        "completion": ("completion", "Print what makes a shell complete commands and names of pipelines."),
    },
}
"""By section: the module, and what `--help` shows, so that it need not import it. Command `a-b` is `a_b` there."""

_ALL = {name: command for section in _COMMANDS.values() for name, command in section.items()}

_EPILOG = (
    "The daemon is found by --url, else PENSTOCK_URL, FELDERA_HOST, and else where `serve` would listen by its "
    "configuration. PENSTOCK_API_KEY or FELDERA_API_KEY is the key that it asks for, if it does. Results go to stdout, "
    "everything else to stderr; NO_COLOR means what it says."
)


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_ALL)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.commands or cmd_name not in _ALL:
            return self.commands.get(cmd_name)
        module, _ = _ALL[cmd_name]
        return getattr(import_module(f"{__name__}.{module}"), cmd_name.replace("-", "_"))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in _ALL and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], _ALL, n=1)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"There is no command {args[0]!r}.{meant}")
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [CompletionItem(name, help=text) for name, (_, text) in _ALL.items() if name.startswith(incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in _COMMANDS.items():
            with formatter.section(title):
                formatter.write_dl([(name, text) for name, (_, text) in commands.items()])
        with formatter.section("Exit codes"):
            formatter.write_dl(_EXIT_CODES)


@click.group(cls=_Commands, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
def penstock() -> None:
    """Steer pipelines from their actual to their desired status."""


@penstock.command("demo")
@click.option("--keep", is_flag=True, help="Serve on at the end, until interrupted.")
def _demo(*, keep: bool) -> None:
    """Show a pipeline's whole life on a real daemon of its own, in a temporary directory; leaves nothing behind."""
    from rich.console import Console

    from penstock.cli.demo import ENDS, DemoFailed, Interrupted, run

    try:
        run(keep=keep, console=Console())
    except (DemoFailed, OSError) as failed:
        click.echo(f"penstock: {failed}", err=True)
        sys.exit(FAILED)
    except Interrupted as interrupted:
        for number in ENDS:
            signal.signal(number, signal.SIG_IGN)  # an interpreter that ends would be killed by one more
        sys.exit(128 + interrupted.number)
