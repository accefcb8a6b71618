"""The command line: one module per command, imported when it runs, so that `--help` stays quick.

`__main__.py` calls it. Commands parse, call and print; they decide nothing that the daemon decides, and they turn what
may go wrong into one line on stderr and an exit code, never into a traceback.
"""

from __future__ import annotations

import sys
from importlib import import_module

import click

from penstock import __version__

OK = 0
FAILED = 1
USAGE = 2
TRY_AGAIN = 75
REFUSED = 78
INTERRUPTED = 130
"""Exit codes; 64 to 78 mean what sysexits.h says, so that a service manager can tell them apart."""

_COMMANDS = {
    "serve": "Run the daemon until it is told to end.",
    "demo": "Show what Penstock does, on a daemon of its own that leaves nothing behind.",
    "check-config": "Check the configuration, and tell where its values come from.",
    "healthcheck": "Ask a running daemon whether it is ready.",
}
"""What `--help` shows, so that it need not import them. A command `a-b` that is not here is `a_b` in module `a_b`."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.commands or cmd_name not in _COMMANDS:
            return self.commands.get(cmd_name)
        name = cmd_name.replace("-", "_")
        return getattr(import_module(f"{__name__}.{name}"), name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _COMMANDS[name]) for name in self.list_commands(ctx)])
        with formatter.section("Exit codes"):
            formatter.write_dl(
                [
                    (str(OK), "done"),
                    (str(FAILED), "it did not work; stderr says why"),
                    (str(USAGE), "wrong usage"),
                    (str(TRY_AGAIN), "not now: another daemon uses the store, or the store cannot be reached"),
                    (str(REFUSED), "the configuration is refused; stderr says where and why"),
                    ("130, 143", "interrupted, or ended at once by a second SIGINT or SIGTERM"),
                ]
            )


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
def penstock() -> None:
    """Steer pipelines from their actual to their desired status."""


@penstock.command("demo")
@click.option("--keep", is_flag=True, help="Serve on at the end, until interrupted.")
def _demo(*, keep: bool) -> None:
    """Show a pipeline's whole life on a real daemon of its own, in a temporary directory; leaves nothing behind."""
    from rich.console import Console

    from penstock.cli.demo import DemoFailed, Interrupted, run

    try:
        run(keep=keep, console=Console())
    except (DemoFailed, OSError) as failed:
        click.echo(f"penstock: {failed}", err=True)
        sys.exit(FAILED)
    except Interrupted as interrupted:
        sys.exit(128 + interrupted.number)
