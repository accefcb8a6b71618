"""A configuration that cannot be used is refused with the place, the key and the reason, in plain words."""

from __future__ import annotations

import json
import tomllib
from functools import reduce
from pathlib import Path

import pytest

from penstock.settings import ConfigRefused, Refusal, Settings, load

HOME = {"HOME": "/home/somebody"}

JARGON = (
    "pydantic",
    "validation error",
    "type=",
    "input_value",
    "Input should",
    "Extra inputs",
    "Value error",
    "Field ",
)


def refusals_of(file: Path, environ: dict[str, str] | None = None, **overrides: object) -> tuple[Refusal, ...]:
    with pytest.raises(ConfigRefused) as refused:
        load(file, environ={**HOME, **(environ or {})}, overrides=overrides)
    lines = str(refused.value).splitlines()
    assert lines == [str(each) for each in refused.value.refusals]
    for word in JARGON:
        assert word.lower() not in str(refused.value).lower()
    return refused.value.refusals


TOOL = "[toolchains.mine]\n"

RULES = {
    "misspelled section": ("[demon]\n", "demon", 'did you mean "daemon"?'),
    "misspelled key": ("[api]\nlisen = 'x'", "api.lisen", 'did you mean "listen"?'),
    "key of another section": ("[daemon]\nlisten = 'x'", "daemon.listen", 'did you mean "api.listen"?'),
    "key without a section": ("listen = 'x'", "listen", 'did you mean "api.listen"?'),
    "key like no other": ("[api]\nzzz = 1", "api.zzz", "known are listen"),
    "misspelled key of toolchains": ("[toolchains]\nparalel = 3", "toolchains.paralel", 'did you mean "parallel"?'),
    "misspelled key of a toolchain": (TOOL + "chek = []", "toolchains.mine.chek", 'did you mean "check"?'),
    "section that is no table": ("runner = 3", "runner", "must be a table, is 3"),
    "no state directory": ("[daemon]\nstate_dir = ''", "daemon.state_dir", "is empty; name a directory"),
    "relative state directory": ("[daemon]\nstate_dir = 'here'", "daemon.state_dir", "must be an absolute path"),
    "unknown log format": ("[daemon]\nlog_format = 'xml'", "daemon.log_format", '"auto", "text" or "json", is "xml"'),
    "unknown log level": ("[daemon]\nlog_level = 'loud'", "daemon.log_level", 'or "error", is "loud"'),
    "address of everybody": ("[api]\nlisten = '0.0.0.0:80'", "api.listen", "no authentication; use a loopback address"),
    "address of everybody, v6": ("[api]\nlisten = '[::]:80'", "api.listen", "no authentication"),
    "address of everybody, short": ("[api]\nlisten = ':80'", "api.listen", "no authentication"),
    "a public name": ("[api]\nlisten = 'example.org:80'", "api.listen", 'others could reach "example.org"'),
    "not quite localhost": ("[api]\nlisten = 'localhost.example.org:80'", "api.listen", "no authentication"),
    "mapped into v6": ("[api]\nlisten = '[::ffff:10.0.0.1]:80'", "api.listen", "no authentication"),
    "an address of two lines": ('[api]\nlisten = "a\\nb\\u0007:80"', "api.listen", "others could reach"),
    "a key of two lines": ('[api]\n"a\\nb" = 1', "api.a\nb", "unknown key"),
    "no port": ("[api]\nlisten = '127.0.0.1'", "api.listen", 'must be "HOST:PORT"'),
    "a url": ("[api]\nlisten = 'http://127.0.0.1:80'", "api.listen", 'must be "HOST:PORT"'),
    "a port beyond all": ("[api]\nlisten = '127.0.0.1:65536'", "api.listen", "port 65536 does not exist"),
    "bare port": ("[api]\nlisten = 8080", "api.listen", "must be text, is 8080"),
    "relative socket": ("[api]\nlisten = 'unix:api.sock'", "api.listen", "by its absolute path"),
    "socket that is a directory": ("[api]\nlisten = 'unix:/run/'", "api.listen", "by its absolute path"),
    "socket with too long a path": (f"[api]\nlisten = 'unix:/{'x' * 107}'", "api.listen", "at most 107 bytes"),
    "another store": ("[store]\nurl = 'postgresql://db/x'", "store.url", "there is no other kind of store"),
    "relative store": ("[store]\nurl = 'sqlite:///penstock.db'", "store.url", "by its absolute path"),
    "store in memory": ("[store]\nurl = 'sqlite:///:memory:'", "store.url", "by its absolute path"),
    "store that is a directory": ("[store]\nurl = 'sqlite:////var/db/'", "store.url", "by its absolute path"),
    "store with an unknown name": ("[store]\nurl = 'sqlite:////x/{home}.db'", "store.url", "by its absolute path"),
    "another executor": ("[runner]\nexecutor = 'docker'", "runner.executor", 'must be "process", is "docker"'),
    "no time to start": (
        "[runner]\nprovisioning_timeout_seconds = 0.5",
        "runner.provisioning_timeout_seconds",
        "must be at least 1, is 0.5",
    ),
    "not a number": ("[runner]\nstop_grace_seconds = nan", "runner.stop_grace_seconds", "must be at least 0, is NaN"),
    "for ever": ("[runner]\nstop_grace_seconds = inf", "runner.stop_grace_seconds", "must be at most 86400"),
    "negative": ("[runner]\nstop_grace_seconds = -1", "runner.stop_grace_seconds", "must be at least 0, is -1"),
    "a switch": ("[runner]\nstop_grace_seconds = true", "runner.stop_grace_seconds", "must be a number, is true"),
    "words": ("[runner]\nstop_grace_seconds = 'soon'", "runner.stop_grace_seconds", 'must be a number, is "soon"'),
    "unknown end": ("[runner]\non_exit = 'kill'", "runner.on_exit", 'must be "leave" or "stop", is "kill"'),
    "unknown beginning": ("[runner]\nafter_reboot = 'stop'", "runner.after_reboot", 'must be "start" or "leave"'),
    "no events": ("[events]\nretention = 0", "events.retention", "must be at least 1, is 0"),
    "half an event": ("[events]\nretention = 7.5", "events.retention", "must be a whole number, is 7.5"),
    "days without end": (
        "[events]\ndetails_interval_seconds = 1e10",
        "events.details_interval_seconds",
        "must be at most 2592000",
    ),
    "logs of nothing": ("[logs]\nmax_bytes = 100", "logs.max_bytes", "must be at least 262144, is 100"),
    "no builds": ("[toolchains]\nparallel = 0", "toolchains.parallel", "must be at least 1, is 0"),
    "unknown default": ("[toolchains]\ndefault = 'pyhton'", "toolchains.default", 'did you mean "python"?'),
    "toolchain that is no table": ("[toolchains]\nmine = 3", "toolchains.mine", "unknown key; known are"),
    "name of a toolchain": ("[toolchains.'My Tool']\n", "toolchains.My Tool", "begins with a letter"),
    "a shell line": (TOOL + "run = 'mytool -x'", "toolchains.mine.run", 'must be a list of words, as in ["mytool"'),
    "a number among words": (TOOL + "build = ['x', 3]", "toolchains.mine.build", "3 is no text"),
    "NUL in a word": (TOOL + 'check = ["a\\u0000b"]', "toolchains.mine.check", "NUL"),
    "empty tool": (TOOL + "check = ['']", "toolchains.mine.check", "is empty"),
    "unknown contract": (TOOL + "contract = 'grpc'", "toolchains.mine.contract", 'must be "process" or "http"'),
    "no time to build": (TOOL + "timeout_seconds = 0", "toolchains.mine.timeout_seconds", "must be at least 1"),
    "variables as text": (TOOL + "env = 'A=1'", "toolchains.mine.env", "must be a table of texts"),
    "variable that is a number": (TOOL + "env = { A = 1 }", "toolchains.mine.env", "A must be text"),
    "name of a variable": (TOOL + "env = { 'A B' = '1' }", "toolchains.mine.env", '"A B" is no name'),
    "variable of the daemon": (TOOL + "env = { PENSTOCK_PORT_FILE = 'x' }", "toolchains.mine.env", "is reserved"),
    "variable of systemd": (TOOL + "env = { NOTIFY_SOCKET = 'x' }", "toolchains.mine.env", "is reserved"),
    "broken pattern": (TOOL + "check = ['x']\nmessages = '('", "toolchains.mine.messages", "no regular expression"),
    "pattern without a line": (
        TOOL + "check = ['x']\nmessages = 'x'",
        "toolchains.mine.messages",
        "no group (?P<line>",
    ),
    "pattern for nothing": (TOOL + "messages = '(?P<line>x)'", "toolchains.mine.messages", "there is no check"),
    "pattern for no check": (
        "[toolchains.python]\ncheck = []\nmessages = '(?P<line>x)'",
        "toolchains.python.messages",
        "there is no check",
    ),
    "store among pipelines": (
        "[store]\nurl = 'sqlite:///{state_dir}/pipelines/x.db'",
        "store.url",
        "belongs to the pipelines",
    ),
    "socket among pipelines": (
        "[daemon]\nstate_dir = '/s'\n[api]\nlisten = 'unix:/s/pipelines/x'",
        "api.listen",
        "belongs to the pipelines",
    ),
    "socket in place of the store": (
        "[daemon]\nstate_dir = '/s'\n[api]\nlisten = 'unix:/s/penstock.db'",
        "api.listen",
        "is the file of the store",
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_says_where_what_and_why(rule: str, tmp_path: Path) -> None:
    text, key, reason = RULES[rule]
    file = tmp_path / "config.toml"
    file.write_text(text)
    (refusal,) = refusals_of(file)
    assert (refusal.file, refusal.key) == (str(file), key)
    assert reason in refusal.reason
    assert len(str(refusal).splitlines()) == 1


def as_variable(rule: str) -> tuple[str, str] | None:
    """The one variable that breaks the same rule; None if it takes more than one, or none could."""
    text, key, _ = RULES[rule]
    words = key.split(".")
    tables = tomllib.loads(text)
    value = reduce(lambda table, word: table.get(word) if isinstance(table, dict) else None, words, tables)
    given = value if isinstance(value, str) else json.dumps(value)
    alone = sum(" = " in line for line in text.splitlines()) == 1
    if value is None or len(words) == 1 or not alone or "\0" in given:
        return None
    return "PENSTOCK_" + "__".join(words).upper(), given


@pytest.mark.parametrize("rule", [rule for rule in RULES if as_variable(rule)])
def test_says_which_variable(rule: str, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("")
    variable = as_variable(rule)
    assert variable is not None
    (refusal,) = refusals_of(file, dict([variable]))
    assert (refusal.file, refusal.key) == (variable[0], RULES[rule][1])


@pytest.mark.parametrize(
    ("name", "value", "key", "reason"),
    [
        ("PENSTOCK_AIP__LISTEN", "x", "aip.listen", 'did you mean "api"?'),
        ("PENSTOCK_API__LISTEN__X", "x", "api.listen.x", "given as a whole, in JSON"),
        ("PENSTOCK_TOOLCHAINS__PYTHON__ENV__LANG", "C", "toolchains.python.env.lang", "given as a whole, in JSON"),
        ("PENSTOCK_TOOLCHAINS__PYTHON__RUN", "python x", "toolchains.python.run", "must be a list of words"),
        ("PENSTOCK_TOOLCHAINS__PYTHON__RUN", "[" * 100_000, "toolchains.python.run", "must be a list of words"),
        ("PENSTOCK_TOOLCHAINS__MINE", "{}", "toolchains.mine", "unknown key"),
        ("PENSTOCK_LOGS__MAX_BYTES", "1" * 5000, "logs.max_bytes", "must be"),
        ("PENSTOCK_LOGS__MAX_BYTES", "", "logs.max_bytes", "must be a whole number"),
        ("PENSTOCK_DAEMON__STATE_DIR", "", "daemon.state_dir", "is empty; name a directory"),
        ("PENSTOCK_API__LISTEN", "unix:/\udcff", "api.listen", "must be UTF-8"),
    ],
)
def test_a_variable_that_cannot_be_used(name: str, value: str, key: str, reason: str) -> None:
    with pytest.raises(ConfigRefused) as refused:
        load(None, environ={**HOME, name: value}, overrides={})
    (refusal,) = refused.value.refusals
    assert (refusal.file, refusal.key) == (name, key)
    assert reason in refusal.reason
    assert len(str(refusal)) < 300


def test_a_flag_that_cannot_be_used(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[api]\nlisten = '127.0.0.1:1'")
    (refusal,) = refusals_of(file, {"PENSTOCK_API__LISTEN": "127.0.0.1:2"}, **{"api.listen": "0.0.0.0:3"})
    assert (refusal.file, refusal.key) == ("--listen", "api.listen")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file"),
        (b"[api\n", "is not valid TOML"),
        (b"[api]\nlisten = '\xff'", "is not valid TOML"),
        (b"x = " + b"[" * 100_000, "is not valid TOML"),
    ],
)
def test_a_file_that_cannot_be_read(content: bytes | None, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    if content is not None:
        file.write_bytes(content)
    (refusal,) = refusals_of(file)
    assert (refusal.file, refusal.key) == (str(file), "")
    assert refusal.reason.startswith(reason)


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("top = 1\n[runner]\non_exit = 3\nx = 1\n[toolchains.a]\nrun = 1\n[toolchains.b]\nrun = 1\n")
    found = {(each.file, each.key) for each in refusals_of(file, {"PENSTOCK_EVENTS__RETENTION": "none"})}
    assert found == {
        (str(file), "top"),
        (str(file), "runner.on_exit"),
        (str(file), "runner.x"),
        (str(file), "toolchains.a.run"),
        (str(file), "toolchains.b.run"),
        ("PENSTOCK_EVENTS__RETENTION", "events.retention"),
    }


def test_nowhere_to_keep_state() -> None:
    with pytest.raises(ConfigRefused) as refused:
        load(None, environ={}, overrides={})
    (refusal,) = refused.value.refusals
    assert refusal.key == "daemon.state_dir"


def test_nothing_changes_afterwards() -> None:
    settings = load(None, environ=HOME, overrides={})
    for owner, field in ((settings, "api"), (settings.api, "listen"), (settings.toolchains, "default")):
        with pytest.raises(ValueError, match="frozen"):
            setattr(owner, field, "x")
    assert isinstance(settings, Settings)
