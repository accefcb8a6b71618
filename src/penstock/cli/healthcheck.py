"""`penstock healthcheck`: asks a running daemon whether it is ready, for probes of containers and scripts.

Uses the standard library alone, since it may run every few seconds.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import click

from penstock.cli import FAILED, REFUSED
from penstock.cli.client import UnixConnection

_LONGEST_REASON_BYTES = 500


@click.command()
@click.option("--listen", metavar="ADDRESS", help="Where the daemon listens: HOST:PORT or unix:/path.")
@click.option("--url", help="The same as http://HOST:PORT.")
@click.option("--config", type=click.Path(path_type=Path), help="The TOML file that the daemon reads.")
@click.option(
    "--timeout", "timeout_seconds", type=click.FloatRange(0.01, 3600), default=5.0, show_default=True, metavar="SECONDS"
)
def healthcheck(listen: str | None, url: str | None, config: Path | None, timeout_seconds: float) -> None:
    """Exit with 0 if the daemon answers GET /readyz with success in time; else say why not and exit with 1.

    Without --listen and --url the daemon is sought where the environment or the configuration says that it listens.
    """
    if url is not None and listen is not None:
        raise click.UsageError("--listen and --url exclude each other")
    given = (url, listen, os.environ.get("PENSTOCK_API__LISTEN"))
    where = next((each for each in given if each is not None), None)
    if where is None:
        where = _configured(config)
    ready, reason = ask(_connection(where), where, timeout_seconds)
    click.echo(reason, err=not ready)
    sys.exit(0 if ready else FAILED)


def ask(connection: HTTPConnection, where: str, timeout_seconds: float) -> tuple[bool, str]:
    """GET /readyz; tells whether it succeeded, and one line of what was said. Main thread only: uses SIGALRM."""
    try:
        with _at_most(timeout_seconds):
            connection.request("GET", "/readyz", headers={"Connection": "close"})
            answer = connection.getresponse()
            said = " ".join(answer.read(_LONGEST_REASON_BYTES).decode(errors="replace").split())
    except TimeoutError:
        return False, f"no answer from {where} within {timeout_seconds:g} s"
    except OSError as error:
        return False, f"no daemon at {where}: {error.strerror or error}"
    except HTTPException as error:
        return False, f"what listens at {where} speaks no HTTP: {type(error).__name__}"
    finally:
        connection.close()
    if 200 <= answer.status < 300:
        return True, f"ready: {where}"
    return False, f"not ready: {where} answered {answer.status} {said}".rstrip()


def _connection(where: str) -> HTTPConnection:
    if where.startswith("unix:"):
        return UnixConnection(where.removeprefix("unix:"))
    try:
        parts = urlsplit(where if "://" in where else f"http://{where}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise click.UsageError(f"{where}: {error}") from error
    if parts.scheme != "http" or not host or port == 0:
        raise click.UsageError(
            f"{where} is no address that can be asked; give http://HOST:PORT, HOST:PORT or unix:/path"
        )
    return HTTPConnection(host, port or 80)


def _configured(config: Path | None) -> str:
    from penstock.settings import ConfigRefused, load

    try:
        return load(config, environ=os.environ, overrides={}).api.listen
    except ConfigRefused as refused:
        click.echo(refused, err=True)
        sys.exit(REFUSED)


@contextmanager
def _at_most(seconds: float) -> Generator[None]:
    """Raise TimeoutError when the block takes longer. A socket's own time-out would begin anew with each byte."""

    def expire(*_: object) -> None:
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
