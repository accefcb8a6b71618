"""The bench goes through all of its rows and leaves nothing behind; its times are nobody's business here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from .__main__ import INTERRUPTED, measure
from .measuring import alive, command_lines, until
from .peers.circus import Circus
from .peers.installing import CannotInstall, install_peers
from .peers.peer import Peer
from .peers.penstock import Penstock
from .peers.supervisord import Supervisord
from .report import print_report
from .rounds import Extent, opened
from .rows import ROWS, Figures

QUICK = Extent(pipelines=10, rounds=1, samples=2, idle_seconds=0.3)


@pytest.fixture(scope="module")
def versions() -> dict[str, str]:
    """The peers are there; skips where they cannot be, unless nothing may be skipped."""
    try:
        return install_peers()
    except CannotInstall as error:
        if os.environ.get("PENSTOCK_TEST_REQUIRE_ALL"):
            pytest.fail(f"cannot install the peers: {error}")
        pytest.skip(f"cannot install the peers: {error}")


def missing(figures: Figures, who: str) -> list[str]:
    """The rows that should have a figure and have none."""
    parts = ("alone.", "among.", "killed.", "own.") if who == Penstock.name else ("alone.", "among.", "killed.")
    return [row.key for row in ROWS if row.key.startswith(parts) and not figures.of(row, who)]


def begun_in(home: Path) -> list[int]:
    """The processes that were told of something in that directory."""
    return [pid for pid, line in command_lines().items() if any(str(home).encode() in word for word in line)]


@pytest.mark.timeout(120)
def test_every_row_of_penstock() -> None:
    figures = Figures()
    measure([Penstock], figures, QUICK)
    assert missing(figures, Penstock.name) == []
    # Counts are no noise: of 20, the one that was killed is missing, and it is known how it ended.
    assert [figures.values[f"killed.{what}", Penstock.name] for what in ("kept", "twice", "left", "obituary")] == [
        [19],
        [0],
        [0],
        ["SIGKILL"],
    ]


@pytest.mark.timeout(240)
def test_every_row_of_the_peers(versions: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    figures = Figures()
    measure([Supervisord, Circus], figures, QUICK)
    assert [missing(figures, kind.name) for kind in (Supervisord, Circus)] == [[], []]
    figures.note("alone.start", Penstock.name, 1.0)
    print_report(figures, QUICK, versions, ("0", "0"), Console(width=200))
    assert "supervisord" in capsys.readouterr().out


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", [Penstock, Supervisord, Circus])
def test_whatever_happens_nothing_is_left(kind: type[Peer], request: pytest.FixtureRequest) -> None:
    if kind is not Penstock:
        request.getfixturevalue("versions")
    pid = 0
    with pytest.raises(KeyboardInterrupt), opened(kind, ["a", "b"]) as peer:  # noqa: PT012
        peer.boot()
        pid = peer.pid
        peer.start_all()
        until(lambda: len(peer.processes()) == 2, "start")
        raise KeyboardInterrupt
    assert pid
    assert not alive(pid)
    assert peer.processes() == []
    assert not peer.home.exists()


def test_an_interrupted_run_shows_what_it_has_and_leaves_nothing(tmp_path_factory: pytest.TempPathFactory) -> None:
    home = tmp_path_factory.mktemp("b")
    argv = [sys.executable, "-m", "tests.bench", "--pipelines", "3", "--rounds", "50", "--only", "floor,alone"]
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "TMPDIR": str(home)},
    ) as bench:
        assert bench.stdout is not None
        assert "floor" in bench.stdout.readline()
        until(lambda: begun_in(home) != [], "a daemon")
        bench.send_signal(signal.SIGINT)
        out, err = bench.communicate(timeout=30)
    assert bench.returncode == INTERRUPTED, err
    assert "Median (range)" in out
    assert list(home.iterdir()) == []
    assert begun_in(home) == []
