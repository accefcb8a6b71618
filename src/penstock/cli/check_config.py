"""`penstock check-config`: reads the settings as `serve` would, and prints what is set and where."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click

from penstock.cli import REFUSED
from penstock.settings import ConfigRefused, resolve


@click.command()
@click.option("--config", type=click.Path(path_type=Path), help="The TOML file to check.")
def check_config(config: Path | None) -> None:
    """Check the configuration, from the file and the environment, as `serve` would read it.

    Prints each value that differs from its default, and where it comes from. Exits with 78 when something is refused.
    """
    try:
        found = resolve(config, environ=os.environ, overrides={})
    except ConfigRefused as refused:
        click.echo(refused, err=True)
        sys.exit(REFUSED)
    changed = found.changed()
    for key, value in changed.items():
        click.echo(f"{key} = {json.dumps(value, ensure_ascii=False, default=str)}  # {found.origins[key]}")
    read = "no file" if found.file is None else str(found.file)
    click.echo(
        f"The configuration is fine ({read}); {len(changed) or 'no'} values differ from their defaults.", err=True
    )
