"""`penstock apply`: pipelines become what files declare, and nothing else is touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from penstock.cli.declarations import read
from penstock.cli.failures import Failure
from tests.e2e.daemon import Daemon

from .conftest import BROKEN, TICKER, Run

TWO = """
[[pipelines]]
name = "one"
program = "programs/one.py"
description = "the first"
tags = ["x"]
[pipelines.runtime_config.env]
A = "1"

[[pipelines]]
name = "two"
program_code = "pass"
[pipelines.program_config]
toolchain = "python"
"""


@pytest.fixture
def declared(tmp_path: Path) -> Path:
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs" / "one.py").write_text(TICKER)
    (tmp_path / "two.toml").write_text(TWO)
    (tmp_path / "notes.txt").write_text("nothing of interest")
    return tmp_path


@pytest.fixture(autouse=True)
def _clean(daemon: Daemon) -> None:
    for row in daemon.ask("GET", "/v0/pipelines?selector=status").body:
        daemon.stop_pipeline(row["name"])
        daemon.post(row["name"], "clear")
        daemon.until(row["name"], lambda row: row["storage_status"] == "Cleared")
        assert daemon.ask("DELETE", f"/v0/pipelines/{row['name']}").status == 200


def whole(daemon: Daemon, name: str) -> dict[str, Any]:
    return daemon.ask("GET", f"/v0/pipelines/{name}").body


class TestOnADaemon:
    def test_again_changes_nothing(self, run: Run, daemon: Daemon, declared: Path) -> None:
        done = run("apply", "-f", str(declared))
        assert (done.exit_code, done.stdout) == (0, "one: created\ntwo: created\n")
        one = whole(daemon, "one")
        assert (one["program_code"], one["description"], one["tags"]) == (TICKER, "the first", ["x"])
        assert one["runtime_config"]["env"] == {"A": "1"}
        assert one["program_status"] == "Success"
        daemon.start_pipeline("one")
        before = [whole(daemon, "one"), whole(daemon, "two")]
        done = run("apply", "-f", str(declared))
        assert (done.exit_code, done.stdout) == (0, "one: unchanged\ntwo: unchanged\n")
        assert [whole(daemon, "one"), whole(daemon, "two")] == before

    def test_changes_only_what_differs_and_tells(self, run: Run, daemon: Daemon, declared: Path) -> None:
        run("apply", "-f", str(declared))
        file = declared / "two.toml"
        file.write_text(TWO.replace('A = "1"', 'A = "2"').replace("the first", "number one"))
        done = run("apply", "-f", str(declared), "--dry-run")
        assert done.stdout.splitlines() == [
            "one: would be changed",
            '  description: "the first" → "number one"',
            '  runtime_config.env.A: "1" → "2"',
            "two: unchanged",
        ]
        assert whole(daemon, "one")["description"] == "the first"
        before = whole(daemon, "one")
        done = run("apply", "-f", str(declared))
        assert done.stdout == "one: changed: description, runtime_config.env.A\ntwo: unchanged\n"
        after = whole(daemon, "one")
        assert after["program_version"] == before["program_version"]  # not built again
        assert after["runtime_config"] == {**before["runtime_config"], "env": {"A": "2"}}
        file.write_text(TWO.replace("[pipelines.runtime_config.env]\n", "").replace('A = "1"\n', ""))
        done = run("apply", "-f", str(file), "-o", "json")
        changes = [
            {"path": "runtime_config.env.A", "before": "2", "after": None},
            {"path": "description", "before": "number one", "after": "the first"},
        ]
        found = json.loads(done.stdout)[0]
        assert (found["name"], found["result"], found["dry_run"]) == ("one", "changed", False)
        assert sorted(found["changes"], key=str) == sorted(changes, key=str)
        assert whole(daemon, "one")["runtime_config"]["env"] == {}

    def test_shows_how_a_program_would_change(self, run: Run, declared: Path) -> None:
        run("apply", "-f", str(declared))
        (declared / "programs" / "one.py").write_text(TICKER.replace("0.01", "0.02"))
        lines = run("apply", "-f", str(declared), "--dry-run").stdout.splitlines()
        assert "    -    time.sleep(0.01)" in lines
        assert "    +    time.sleep(0.02)" in lines

    def test_a_program_alone_leaves_the_rest(self, run: Run, daemon: Daemon, ticker_file: Path) -> None:
        daemon.create("ticker", "pass\n", description="mine", runtime_config={"env": {"A": "1"}})
        done = run("apply", "-f", str(ticker_file))
        assert (done.exit_code, done.stdout) == (0, "ticker: changed: program_code\n")
        row = whole(daemon, "ticker")
        assert (row["program_code"], row["description"]) == (TICKER, "mine")
        assert row["runtime_config"]["env"] == {"A": "1"}
        assert "toolchain" not in row["program_config"]

    def test_what_describe_prints_is_a_declaration(self, run: Run, daemon: Daemon) -> None:
        daemon.create("exported", TICKER, description="x", tags=["t"], runtime_config={"workers": 3})
        exported = run("describe", "exported", "-o", "json").stdout
        assert run("apply", "-f", "-", text=exported).stdout == "exported: unchanged\n"
        assert run("delete", "-y", "exported").exit_code == 0
        assert run("apply", "-f", "-", text=exported).stdout == "exported: created\n"
        assert whole(daemon, "exported")["runtime_config"]["workers"] == 3

    def test_tells_what_is_wrong_with_a_program_and_where(self, run: Run, tmp_path: Path) -> None:
        file = tmp_path / "broken.py"
        file.write_text(BROKEN)
        done = run("apply", "-f", str(file))
        assert (done.exit_code, done.stdout) == (6, "broken: created\n")
        assert f"  {file}:2:5: error: SyntaxError: invalid syntax\n" in done.stderr
        assert run("apply", "-f", str(file)).exit_code == 6  # unchanged is not fine
        assert run("apply", "-f", str(file), "--no-wait").exit_code == 0

    def test_a_running_pipeline_must_be_stopped_first(self, run: Run, daemon: Daemon, declared: Path) -> None:
        run("apply", "-f", str(declared))
        daemon.start_pipeline("one")
        (declared / "two.toml").write_text(TWO.replace('"pass"', '"print()"').replace('A = "1"', 'A = "2"'))
        done = run("apply", "-f", str(declared))
        assert (done.exit_code, done.stdout) == (1, "two: changed: program_code\n")
        assert "UpdateRestrictedToStopped" in done.stderr
        assert "try: penstock stop one" in done.stderr

    def test_refusals_of_the_daemon(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "refused.toml").write_text('program_code = "x"\n[runtime_config]\nworkers = "many"\n')
        (tmp_path / "named.toml").write_text('name = "-x-"\nprogram_code = "x"\n')
        done = run("apply", "-f", str(tmp_path))
        assert done.exit_code == 1
        assert "InvalidRuntimeConfig" in done.stderr
        assert "NameDoesNotMatchPattern" in done.stderr

    def test_a_program_that_is_too_large(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "huge.py").write_text("#" * 12_000_000)
        done = run("apply", "-f", str(tmp_path / "huge.py"))
        assert done.exit_code == 1
        assert "PayloadTooLarge" in done.stderr

    def test_an_edit_at_the_same_time_is_not_overwritten(
        self, run: Run, daemon: Daemon, declared: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run("apply", "-f", str(declared))
        (declared / "two.toml").write_text(TWO.replace("the first", "by apply"))
        from penstock.cli import apply

        real, edits = apply.differences, ["somebody else's"]

        def slow(*arguments: Any) -> Any:
            found = real(*arguments)
            for description in edits:
                edits.remove(description)
                daemon.ask("PATCH", "/v0/pipelines/one", {"description": description})
            return found

        monkeypatch.setattr(apply, "differences", slow)
        done = run("apply", "-f", str(declared))
        assert done.exit_code == 75
        assert "one: somebody else changes it at this moment; nothing was changed\n" in done.stderr
        assert whole(daemon, "one")["description"] == "somebody else's"

    def test_what_the_daemon_writes_meanwhile_is_no_edit(
        self, run: Run, daemon: Daemon, declared: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run("apply", "-f", str(declared))
        (declared / "two.toml").write_text(TWO.replace("the first", "by apply"))
        from penstock.cli import apply

        real, starts = apply.differences, ["one"]

        def slow(*arguments: Any) -> Any:
            found = real(*arguments)
            while starts:
                daemon.start_pipeline(starts.pop())
            return found

        monkeypatch.setattr(apply, "differences", slow)
        assert run("apply", "-f", str(declared)).exit_code == 0
        assert whole(daemon, "one")["description"] == "by apply"


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("a.toml", "program_code = ", "it is no TOML: "),
        ("a.json", "{", "it is no JSON: "),
        ("a.toml", "", "it declares nothing"),
        ("a.json", "[3]", "pipeline 1: a pipeline is a table of fields"),
        ("a.toml", "name = 'x'", "x: it needs a program"),
        ("a.toml", "program_code = ''\nprogram = 'x'", "a: it needs a program"),
        ("a.toml", "program = 'nothing.py'", "nothing.py: No such file or directory"),
        ("a.toml", "progam_code = 'x'", "there is no field 'progam_code'; is 'program_code' meant?"),
        (
            "a.toml",
            "program_code = 'x'\n[program_config]\ntoolchian = 'command'",
            "program_config has no key 'toolchian'; is 'toolchain' meant?",
        ),
        ("a.toml", "program_code = 'x'\n[runtime_config]\nwrokers = 3", "is 'workers' meant?"),
        ("a.toml", "program_code = 'x'\nworkers = 3", "there is no field 'workers'; there are name, program"),
        ("a.toml", "program_code = 'x'\n[runtime_config]\nx = 2020-01-01", "a value that JSON cannot express"),
        ("a.toml", "program_code = 'x'\n[runtime_config]\nx = nan", "a value that JSON cannot express"),
        ("a.json", '{"pipelines": [{"program_code": "x"}]}', "pipeline 1: it needs a name"),
        ("a.json", '{"pipelines": [], "name": "x"}', "beside `pipelines` there is name"),
        ("a.json", '[{"name": "x", "program_code": ""}, {"name": "x", "program_code": ""}]', "'x' is declared in"),
        ("a.json", '{"name": 3, "program_code": ""}', "3: it needs a name"),
    ],
)
def test_declarations_that_cannot_be_used(tmp_path: Path, file: str, text: str, reason: str) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(Failure) as caught:
        read([str(tmp_path / file)])
    assert caught.value.exit_code == 2
    assert caught.value.message.startswith(f"{tmp_path / file}: ")
    assert reason in caught.value.message


def test_keys_that_only_the_daemon_knows_pass(tmp_path: Path) -> None:
    keys = "workers = 1\nhttp_workers = 1\nio_workers = 2\nhosts = 1\nsomething_new = 3"
    (tmp_path / "a.toml").write_text(f"program_code = 'x'\n[runtime_config]\n{keys}\n")
    [declared] = read([str(tmp_path / "a.toml")])
    assert len(declared.body["runtime_config"]) == 5


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    for given, reason in ((tmp_path, "no .toml or .json file"), (tmp_path / "x.toml", "No such file or directory")):
        with pytest.raises(Failure, match=reason):
            read([str(given)])
    (tmp_path / "latin.py").write_bytes(b"# \xe9\n")
    with pytest.raises(Failure, match="is not UTF-8"):
        read([str(tmp_path / "latin.py")])


def test_a_file_names_its_pipeline(declared: Path) -> None:
    (declared / "clock.toml").write_text("program = 'programs/one.py'\n")
    found = read([str(declared / "clock.toml"), str(declared / "programs" / "one.py"), str(declared / "two.toml")][:2])
    assert [(each.name, each.program_only) for each in found] == [("clock", False), ("one", True)]
    assert found[0].program_file == str(declared / "programs" / "one.py")
    assert [each.name for each in read([str(declared)])] == ["clock", "one", "two"]
