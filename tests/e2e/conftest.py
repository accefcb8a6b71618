"""End to end: the installed program, real processes, kill -9."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .daemon import Daemon


@pytest.fixture
def make_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Daemon]]:
    """Makes daemons that are not started yet; ends all of them and all that they started."""
    made: list[Daemon] = []

    def make(*, config: str = "", home: Path | None = None) -> Daemon:
        daemon = Daemon(home or tmp_path_factory.mktemp("d"), config=config)
        made.append(daemon)
        return daemon

    yield make
    for daemon in made:
        daemon.close()


@pytest.fixture
def daemon(make_daemon: Callable[..., Daemon]) -> Daemon:
    """A daemon that is ready."""
    made = make_daemon()
    made.start()
    return made


@pytest.fixture
def scale() -> int:
    """How much longer than by default the long tests shall go on; 200 kills are scale 10."""
    return int(os.environ.get("PENSTOCK_TEST_SCALE", "1"))
