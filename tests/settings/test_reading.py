"""Flags over environment over file over defaults; where the file and the state are; what a reload can change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from penstock.machine import Policy
from penstock.settings import (
    BUILT_IN_TOOLCHAINS,
    ConfigRefused,
    TcpAddress,
    UnixAddress,
    load,
    parse_listen,
    reloadable_changes,
    resolve,
)
from penstock.toolchains.definition import BUILT_IN, define

HOME = {"HOME": "/home/somebody"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(
        "[api]\nlisten = '127.0.0.1:1'\n[runner]\nstop_grace_seconds = 1\non_exit = 'stop'\n"
        "[toolchains.mine]\nrun = ['file']\ncheck = ['file']\n"
    )
    return path


def test_the_nearer_source_wins(file: Path) -> None:
    environ = {
        **HOME,
        "PENSTOCK_API__LISTEN": "127.0.0.1:2",
        "PENSTOCK_RUNNER__STOP_GRACE_SECONDS": "2.5",
        "PENSTOCK_TOOLCHAINS__MINE__RUN": '["variable", "{program_file}"]',
        "PENSTOCK_TOOLCHAINS__MINE__ENV": '{"LANG": "C"}',
    }
    found = resolve(file, environ=environ, overrides={"api.listen": "127.0.0.1:3"})
    settings = found.settings
    assert settings.api.address == TcpAddress("127.0.0.1", 3)
    assert settings.runner.stop_grace_seconds == 2.5
    assert settings.runner.on_exit == "stop"
    assert settings.toolchains.named == {
        "mine": {"check": ("file",), "run": ("variable", "{program_file}"), "env": {"LANG": "C"}}
    }
    assert settings.runner.after_reboot == "start"
    assert found.origins["api.listen"] == "--listen"
    assert found.origins["runner.stop_grace_seconds"] == "PENSTOCK_RUNNER__STOP_GRACE_SECONDS"
    assert found.origins["runner.on_exit"] == str(file)
    assert "runner.after_reboot" not in found.origins
    assert "daemon.state_dir" not in found.origins


def test_only_names_with_two_underscores_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {
        **HOME,
        "PENSTOCK_PIPELINE_ID": "x",
        "PENSTOCK_API": "x",
        "API__LISTEN": "x",
        "penstock_api__listen": "x",
    }
    monkeypatch.setenv("PENSTOCK_API__LISTEN", "127.0.0.1:9")
    monkeypatch.setenv("PENSTOCK_AIP__LISTEN", "127.0.0.1:9")
    assert load(None, environ=environ, overrides={}) == load(None, environ=HOME, overrides={})


@pytest.mark.parametrize(
    ("environ", "state_dir"),
    [
        ({"HOME": "/h"}, "/h/.local/state/penstock"),
        ({"HOME": "/h", "XDG_STATE_HOME": "/x"}, "/x/penstock"),
        ({"HOME": "/h", "XDG_STATE_HOME": "relative"}, "/h/.local/state/penstock"),
        ({"HOME": "/h", "XDG_STATE_HOME": "/x", "STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}, "/var/lib/a"),
        ({"STATE_DIRECTORY": "/var/lib/a", "PENSTOCK_DAEMON__STATE_DIR": "/mine"}, "/mine"),
    ],
)
def test_where_state_is_kept(environ: dict[str, str], state_dir: str) -> None:
    settings = load(None, environ=environ, overrides={})
    assert settings.daemon.state_dir == Path(state_dir)
    assert settings.database_path == Path(state_dir) / "penstock.db"


def test_where_the_store_is() -> None:
    settings = load(None, environ=HOME, overrides={"store.url": "sqlite:////var/db/p.db"})
    assert settings.database_path == Path("/var/db/p.db")


def test_the_file_is_found(tmp_path: Path) -> None:
    own = tmp_path / "home" / ".config" / "penstock"
    own.mkdir(parents=True)
    (own / "config.toml").write_text("[events]\nretention = 1")
    xdg = tmp_path / "xdg" / "penstock"
    xdg.mkdir(parents=True)
    environ = {"HOME": str(tmp_path / "home")}
    assert load(None, environ=environ, overrides={}).events.retention == 1
    environ["XDG_CONFIG_HOME"] = str(tmp_path / "xdg")
    assert load(None, environ=environ, overrides={}).events.retention == 720
    (xdg / "config.toml").write_text("[events]\nretention = 2")
    assert resolve(None, environ=environ, overrides={}).file == xdg / "config.toml"
    assert load(Path(os.devnull), environ=environ, overrides={}).events.retention == 720


def test_a_file_that_is_found_and_cannot_be_read_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "penstock" / "config.toml").mkdir(parents=True)
    with pytest.raises(ConfigRefused, match=r"config\.toml: cannot be read: Is a directory"):
        load(None, environ={**HOME, "XDG_CONFIG_HOME": str(tmp_path)}, overrides={})
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(ConfigRefused, match=r"config\.toml: cannot be read: Too many levels"):
        load(None, environ={**HOME, "XDG_CONFIG_HOME": str(loop)}, overrides={})


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8080", TcpAddress("127.0.0.1", 8080)),
        ("127.8.9.10:0", TcpAddress("127.8.9.10", 0)),
        ("localhost:80", TcpAddress("localhost", 80)),
        ("[::1]:80", TcpAddress("::1", 80)),
        ("unix:/run/penstock/api.sock", UnixAddress(Path("/run/penstock/api.sock"))),
    ],
)
def test_addresses(text: str, address: TcpAddress | UnixAddress) -> None:
    assert parse_listen(text) == address
    assert load(None, environ=HOME, overrides={"api.listen": text}).api.address == address


def test_defaults_agree_with_those_who_obey_them() -> None:
    settings = load(None, environ=HOME, overrides={})
    policy = Policy()
    assert settings.runner.provisioning_timeout_seconds == policy.provisioning_timeout_seconds
    assert (settings.runner.after_reboot == "start") is policy.resume_after_reboot
    assert set(BUILT_IN_TOOLCHAINS) == set(BUILT_IN)


def test_toolchains_say_only_what_was_given(file: Path) -> None:
    file.write_text(
        "[toolchains]\ndefault = 'empty'\n[toolchains.empty]\n[toolchains.python]\ntimeout_seconds = 5\n"
        "env = { A = '1' }\n"
    )
    named = load(file, environ=HOME, overrides={}).toolchains.named
    assert named == {"empty": {}, "python": {"timeout_seconds": 5.0, "env": {"A": "1"}}}
    python = define("python", named["python"])
    assert python.run == BUILT_IN["python"].run
    assert python.timeout_seconds == 5.0
    assert python.env == (*BUILT_IN["python"].env, ("A", "1"))


def test_what_a_reload_can_change(file: Path) -> None:
    old = load(file, environ=HOME, overrides={})
    assert reloadable_changes(old, old) == ((), ())
    file.write_text(
        "[daemon]\nstate_dir = '/s'\nlog_format = 'json'\nlog_level = 'debug'\n"
        "[api]\nlisten = '127.0.0.1:9'\n[store]\nurl = 'sqlite:////x.db'\n"
        "[runner]\nprovisioning_timeout_seconds = 9\nstop_grace_seconds = 9\non_exit = 'leave'\n"
        "after_reboot = 'leave'\n"
        "[events]\nretention = 9\ndetails_interval_seconds = 9\n[logs]\nmax_bytes = 999_999\n"
        "[toolchains]\ndefault = 'command'\nparallel = 9\n[toolchains.mine]\nrun = ['new']\n[toolchains.more]\n"
    )
    applied, restart = reloadable_changes(old, load(file, environ=HOME, overrides={}))
    assert applied == (
        "daemon.log_level",
        "events.details_interval_seconds",
        "events.retention",
        "logs.max_bytes",
        "runner.after_reboot",
        "runner.on_exit",
        "runner.provisioning_timeout_seconds",
        "runner.stop_grace_seconds",
        "toolchains.default",
        "toolchains.mine.check",
        "toolchains.mine.run",
        "toolchains.more",
        "toolchains.parallel",
    )
    assert restart == ("api.listen", "daemon.log_format", "daemon.state_dir", "store.url")
