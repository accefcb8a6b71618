"""Installs the peers into an environment of their own, in the user's cache; never into the project's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

from tests.bench.peers.circus import Circus
from tests.bench.peers.supervisord import Supervisord

REQUIREMENTS = ("supervisor>=4.2,<5", "circus>=0.18,<1")
TIMEOUT_SECONDS = 180.0


class CannotInstall(Exception):
    """The peers are not there, and could not be fetched."""


def install_peers() -> dict[str, str]:
    """Make the environment unless it is there, and tell the drivers; returns versions by name. Raises CannotInstall."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    environment = cache / "penstock-bench" / f"peers-{python}"
    complete = environment / "complete"
    if not complete.exists():
        shutil.rmtree(environment, ignore_errors=True)
        _run([sys.executable, "-m", "venv", environment])
        pip = [environment / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1"]
        _run([*pip, *REQUIREMENTS])
        complete.touch()
    Supervisord.programs = Circus.programs = environment / "bin"
    libraries = [str(path) for path in environment.glob("lib/python*/site-packages")]
    versions = {found.name: found.version for found in distributions(path=libraries)}
    return {Supervisord.name: versions["supervisor"], Circus.name: versions["circus"]}


def _run(argv: list[str | Path]) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotInstall(str(error)) from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise CannotInstall(said[-1])
