"""The command line as scripts see it: a real process, its exit code and what it prints where."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from penstock import __version__

BASE = {"HOME": "/nonexistent", "PATH": os.environ["PATH"]}


def penstock(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "penstock", *arguments],
        env={**BASE, **environ},
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_help_lists_commands_and_exit_codes() -> None:
    done = penstock("--help")
    assert done.returncode == 0
    for word in ("serve", "demo", "check-config", "healthcheck", "Exit codes", "75", "78", "130, 143"):
        assert word in done.stdout
    assert penstock("-h").stdout == done.stdout


@pytest.mark.parametrize("command", ["serve", "demo", "check-config", "healthcheck"])
def test_every_command_has_help(command: str) -> None:
    done = penstock(command, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: penstock {command}")
    assert done.stderr == ""


def test_help_imports_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "penstock", "--help"], capture_output=True, text=True, timeout=30
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "click" in imported
    assert not imported & {
        "pydantic",
        "aiohttp",
        "anyio",
        "structlog",
        "rich",
        "prometheus_client",
        "asyncio",
        "sqlite3",
    }


def test_version() -> None:
    assert penstock("--version").stdout == f"penstock {__version__}\n"


@pytest.mark.parametrize("arguments", [("srve",), ("serve", "--lissen", "x"), ("serve", "--log-level", "loud")])
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    done = penstock(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


class TestCheckConfig:
    def test_prints_what_differs_and_where_it_comes_from(self, tmp_path: Path) -> None:
        file = tmp_path / "config.toml"
        file.write_text(
            "[runner]\nstop_grace_seconds = 5\non_exit = 'leave'\n"
            "[toolchains.bash]\nrun = ['/bin/bash', '{program_file}']\n"
        )
        done = penstock(
            "check-config",
            "--config",
            str(file),
            PENSTOCK_API__LISTEN="unix:/run/p.sock",
            STATE_DIRECTORY="/var/lib/penstock",
        )
        assert done.returncode == 0
        assert done.stdout.splitlines() == [
            'daemon.state_dir = "/var/lib/penstock"  # $STATE_DIRECTORY',
            'api.listen = "unix:/run/p.sock"  # PENSTOCK_API__LISTEN',
            f"runner.stop_grace_seconds = 5.0  # {file}",
            f'toolchains.bash.run = ["/bin/bash", "{{program_file}}"]  # {file}',
        ]
        assert str(file) in done.stderr
        assert "4 values differ" in done.stderr

    def test_nothing_set(self) -> None:
        done = penstock("check-config", "--config", os.devnull)
        assert (done.returncode, done.stdout) == (0, "")
        assert "no values differ" in done.stderr

    def test_refuses(self, tmp_path: Path) -> None:
        file = tmp_path / "config.toml"
        file.write_text("[runner]\nexekutor = 'process'\n[api]\nlisten = '0.0.0.0:80'\n")
        done = penstock("check-config", "--config", str(file), PENSTOCK_EVENTS__RETENTION="0")
        assert (done.returncode, done.stdout) == (78, "")
        assert sorted(line.partition(": ")[2].partition(": ")[0] for line in done.stderr.splitlines()) == [
            "api.listen",
            "events.retention",
            "runner.exekutor",
        ]


class TestServeIsRefused:
    def test_by_a_flag(self) -> None:
        done = penstock("serve", "--listen", "0.0.0.0:8080")
        assert done.returncode == 78
        assert done.stderr.startswith("--listen: api.listen: ")
        assert len(done.stderr.splitlines()) == 1

    def test_by_a_missing_file(self, tmp_path: Path) -> None:
        done = penstock("serve", "--config", str(tmp_path / "nothing.toml"))
        assert done.returncode == 78
        assert done.stderr == f"{tmp_path / 'nothing.toml'}: cannot be read: No such file or directory\n"
