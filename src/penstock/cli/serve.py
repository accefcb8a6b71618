"""`penstock serve`: reads the settings, sets the process up, and runs what `wiring.py` puts together.

Here what may go wrong becomes one line on stderr and an exit code; a bug keeps its traceback.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
from functools import partial
from pathlib import Path

import anyio
import click

from penstock.cli import FAILED, INTERRUPTED, REFUSED, TRY_AGAIN
from penstock.ports import PenstockError, StoreLocked, StoreUnavailable
from penstock.service import Notifier, shrug_off_hangup
from penstock.settings import ConfigRefused, Settings, load
from penstock.telemetry import set_up_logging

_PATH = click.Path(path_type=Path, resolve_path=True)


@click.command()
@click.option("--config", type=_PATH, help="The TOML file to read.")
@click.option("--listen", metavar="ADDRESS", help="HOST:PORT on loopback, or unix:/path.")
@click.option("--state-dir", metavar="PATH", help="Where everything that lasts is kept.")
@click.option("--log-format", type=click.Choice(["auto", "text", "json"]), help="auto = text on a terminal, else json.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="What is logged at least.")
def serve(
    config: Path | None, listen: str | None, state_dir: str | None, log_format: str | None, log_level: str | None
) -> None:
    """Run the daemon until SIGTERM or SIGINT; pipelines go on running unless `[runner] on_exit` says "stop".

    A flag is stronger than the environment (PENSTOCK_API__LISTEN and so on), which is stronger than the file. Without
    --config, $XDG_CONFIG_HOME/penstock/config.toml is read if it exists, else /etc/penstock/config.toml. SIGHUP reads
    the file again; SIGUSR2 writes the stacks of all threads to stderr.
    """
    flags = {
        "api.listen": listen,
        # As with every command's paths, from where it is given; an empty one is for the settings to refuse.
        "daemon.state_dir": os.path.realpath(state_dir) if state_dir else state_dir,
        "daemon.log_format": log_format,
        "daemon.log_level": log_level,
    }
    given = {key: value for key, value in flags.items() if value is not None}
    reload = partial(load, config, environ=dict(os.environ), overrides=given)
    shrug_off_hangup()
    try:
        settings = reload()
        set_up_logging(settings.daemon.log_format, settings.daemon.log_level)
        _run(settings, reload)
    except (PenstockError, OSError, BaseExceptionGroup, KeyboardInterrupt) as error:
        explained = explain(error)
        if explained is None:
            raise
        code, text = explained
        click.echo(text, err=True)
        sys.exit(code)


def _run(settings: Settings, reload: partial[Settings]) -> None:
    # Nothing of what is imported is ever garbage: to look for some, then and later, takes a tenth of a quick start.
    gc.disable()
    from penstock import wiring  # after the settings are known to be good: it imports everything

    gc.freeze()
    gc.enable()
    anyio.run(partial(wiring.serve, settings, reload=reload, notifier=Notifier(os.environ)))


def explain(error: BaseException) -> tuple[int, str] | None:
    """The exit code and the text for what may go wrong in the world; None for what is a bug of ours."""
    match error:
        case BaseExceptionGroup():
            explained = [explain(each) for each in error.exceptions]
            return None if None in explained else explained[0]
        case ConfigRefused():
            return REFUSED, str(error)
        case StoreLocked() | StoreUnavailable():
            return TRY_AGAIN, _told(str(error))
        case PenstockError():
            return FAILED, _told(str(error))
        case KeyboardInterrupt():
            return INTERRUPTED, _told("interrupted")
        case OSError():
            words = [error.strerror or str(error)]
            if error.filename is not None:
                words.append(os.fsdecode(error.filename))
            if error.errno == errno.EADDRINUSE:
                words.append("end the program that listens there, or choose another address with --listen")
            return FAILED, _told(": ".join(words))
        case _:
            return None


def _told(text: str) -> str:
    return f"penstock: {' '.join(text.split())}"
