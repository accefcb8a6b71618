"""Check, build, verify, plan and sweep with real tools."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest
from anyio.lowlevel import checkpoint

from penstock import requests
from penstock.model import Pipeline, PipelineId, Spec
from penstock.ports import ExecutorError, StepBroke, StepFailed, StepPassed, StepResult
from penstock.toolchains import BUILT_IN, LocalToolchains, Toolchain, define
from penstock.toolchains.artifacts import ALWAYS_HASHED_BYTES
from tests.toolchains.conftest import alive_in

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


def pipeline(code: str, name: str = "p1", **config: object) -> Pipeline:
    spec = Spec(name=name, program_code=code, program_config=config)  # type: ignore[arg-type]
    return requests.new_pipeline(PipelineId(name), spec, platform_version="1", now=EPOCH)


def python(code: str, *arguments: str) -> tuple[str, ...]:
    """The template of a tool that is a few lines of Python."""
    return ("{python}", "-I", "-S", "-c", code, *arguments)


def local(tmp_path: Path, *own: Toolchain, default: str = "python") -> LocalToolchains:
    toolchains = {**BUILT_IN, **{toolchain.name: toolchain for toolchain in own}}
    return LocalToolchains(toolchains=toolchains, default=default, state_dir=tmp_path / "state")


async def built(toolchains: LocalToolchains, row: Pipeline) -> Pipeline:
    result = await toolchains.build(row)
    assert isinstance(result, StepPassed), result
    return replace(row, artifact=result.artifact)


def messages(result: StepResult) -> list[Mapping[str, object]]:
    assert isinstance(result, StepPassed | StepFailed), result
    found = result.outcome["messages"]
    assert isinstance(found, list)
    return found


def content(path: str) -> str:
    return Path(path).read_bytes().decode()


def nothing_is_left_of_steps(tmp_path: Path) -> bool:
    builds = tmp_path / "state" / "builds"
    return not builds.exists() or os.listdir(builds) == []


# --- python ---------------------------------------------------------------------------------------------------------


async def test_a_right_script_passes_and_is_kept(tmp_path: Path) -> None:
    toolchains = local(tmp_path)
    row = pipeline("print('hello')\n")
    assert await toolchains.check(row) == StepPassed(outcome={"exit_code": 0, "messages": []})
    row = await built(toolchains, row)
    assert await toolchains.verify(row) is None
    plan = toolchains.plan(row)
    assert plan.argv == (sys.executable, "{program_file}")
    assert plan.contract == "process"
    assert plan.env == (("PYTHONUNBUFFERED", "1"),)
    assert content(plan.program_file) == "print('hello')\n"
    assert os.listdir(plan.artifact_dir) == []
    assert nothing_is_left_of_steps(tmp_path)


async def test_an_empty_script_is_fine(tmp_path: Path) -> None:
    toolchains = local(tmp_path)
    assert isinstance(await toolchains.check(pipeline("")), StepPassed)
    assert await toolchains.verify(await built(toolchains, pipeline(""))) is None


async def test_a_syntax_error_has_its_place_and_a_snippet(tmp_path: Path) -> None:
    result = await local(tmp_path).check(pipeline("x = 1\ny = (2\n"))
    assert isinstance(result, StepFailed)
    assert result.outcome["exit_code"] == 1
    [message] = messages(result)
    assert message == {
        "start_line_number": 2,
        "start_column": 5,
        "end_line_number": 2,
        "end_column": 5,
        "warning": False,
        "error_type": "SyntaxError",
        "message": "'(' was never closed",
        "snippet": "    1|x = 1\n    2|y = (2\n          ^\n",
    }


async def test_warnings_pass_and_are_shown(tmp_path: Path) -> None:
    result = await local(tmp_path).check(pipeline("x = 1\nif x is 2:\n    pass\n"))
    assert isinstance(result, StepPassed)
    [message] = messages(result)
    assert message["warning"] is True
    assert message["error_type"] == "SyntaxWarning"
    assert message["start_line_number"] == 2


@pytest.mark.parametrize(
    "code",
    [
        "a\0b",
        "\0",
        "\x01\x02\x7f\ufffd",
        "# coding: nonsense\n",
        "# coding: utf-16\n",
        "x = '\ud800'",
        "(" * 100_000,
        "[" * 250 + "]" * 250,
        "-" * 200_000 + "1",
        "\t if",
        "\ufeff\ufeff",
        "'" * 100_000,
        "x = (\n" * 50_000,
    ],
    ids=range(13),
)
async def test_whatever_is_no_script_is_an_error_with_a_message(tmp_path: Path, code: str) -> None:
    result = await local(tmp_path).check(pipeline(code))
    assert isinstance(result, StepFailed), result
    assert messages(result)
    assert "\0" not in json.dumps(result.outcome)
    for message in messages(result):
        assert message["message"]
    assert nothing_is_left_of_steps(tmp_path)


async def test_a_long_or_huge_script_is_no_trouble(tmp_path: Path) -> None:
    toolchains = local(tmp_path)
    huge = "x = 1\n" * 100_000
    assert isinstance(await toolchains.check(pipeline(huge)), StepPassed)
    long = "x = " + "1 + " * 100_000 + "1\n"
    assert isinstance(await toolchains.check(pipeline(long)), StepPassed | StepFailed)


async def test_checking_runs_nothing_of_the_script(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    row = pipeline(f"open({str(mark)!r}, 'w')")
    toolchains = local(tmp_path)
    await toolchains.check(row)
    await built(toolchains, row)
    assert not mark.exists()


# --- command --------------------------------------------------------------------------------------------------------


async def test_a_command_line_runs_as_its_words(tmp_path: Path) -> None:
    toolchains = local(tmp_path, default="command")
    row = pipeline("sh -c 'echo \"$0\" {storage_dir} {x} ${HOME}' {python}")
    assert isinstance(await toolchains.check(row), StepPassed)
    plan = toolchains.plan(await built(toolchains, row))
    assert plan.argv == ("sh", "-c", 'echo "$0" {storage_dir} {x} ${HOME}', sys.executable)


@pytest.mark.parametrize("code", ["", "  \n", "''", "echo 'x", "a\0b", "x" * 200_000, "\\"])
async def test_what_is_no_command_line_is_the_programs_fault(tmp_path: Path, code: str) -> None:
    result = await local(tmp_path).check(pipeline(code, toolchain="command"))
    assert isinstance(result, StepFailed)
    [message] = messages(result)
    assert message["error_type"] == "Command line error"
    assert str(message["message"]).startswith("The command line")


@pytest.mark.parametrize("code", ["no-such-program --x", "/no/such/program", "./relative", "/etc"])
async def test_a_missing_executable_is_not(tmp_path: Path, code: str) -> None:
    result = await local(tmp_path).check(pipeline(code, toolchain="command"))
    assert isinstance(result, StepBroke)
    assert code.split(maxsplit=1)[0] in result.reason


async def test_the_users_own_path_counts(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("#!/bin/sh\n", encoding="utf-8")
    (tmp_path / "mine").chmod(0o755)
    row = pipeline("mine", toolchain="command")
    toolchains = local(tmp_path)
    assert isinstance(await toolchains.check(row), StepBroke)
    spec = replace(row.spec, runtime_config={"env": {"PATH": str(tmp_path)}})
    assert isinstance(await toolchains.check(replace(row, spec=spec)), StepPassed)


async def test_a_toolchain_without_tools_takes_any_text(tmp_path: Path) -> None:
    """CO1: also the empty one; only its start tells that there is nothing to run."""
    toolchains = local(tmp_path, Toolchain(name="opaque"), default="opaque")
    for code in ("", "-- a comment", "CREATE TABLE t (x INT);"):
        row = pipeline(code)
        assert await toolchains.check(row) == StepPassed(outcome={"exit_code": 0, "messages": []})
        row = await built(toolchains, row)
        assert await toolchains.verify(row) is None
        if not code:
            with pytest.raises(ExecutorError, match=r"names no program to run.*'opaque' runs the text") as caught:
                toolchains.plan(row)
            assert caught.value.retry is False


# --- an operator's own ----------------------------------------------------------------------------------------------


SQL = define(
    "sql",
    {
        "check": [
            *python("import sys; print(open(sys.argv[1]).read()); sys.exit(int(sys.argv[2]))", "{program_file}"),
            "1",
        ],
        "messages": r"^\w+\((?P<line>\d+),(?P<column>\d+)\): (?P<severity>\w+) (?P<type>E\d+): (?P<message>.*)$",
        "timeout_seconds": 20.0,
        "env": {"A": "b"},
    },
)


async def test_an_operators_expression_finds_the_places(tmp_path: Path) -> None:
    code = "sql(2,3): error E7: bad thing\nsql(1,1): warning E8: odd\nnoise\nsql(99999,1): error E9: elsewhere\n"
    found = messages(await local(tmp_path, SQL).check(pipeline(code, toolchain="sql")))
    assert [(m["start_line_number"], m["start_column"], m["error_type"], m["warning"]) for m in found] == [
        (2, 3, "E7", False),
        (1, 1, "E8", True),
        (99999, 1, "E9", False),
    ]
    assert found[0]["snippet"] == "    1|sql(2,3): error E7: bad thing\n    2|sql(1,1): warning E8: odd\n        ^\n"
    assert found[2]["snippet"] is None


async def test_what_no_expression_finds_is_one_message(tmp_path: Path) -> None:
    [message] = messages(await local(tmp_path, SQL).check(pipeline("all wrong", toolchain="sql")))
    assert (message["message"], message["start_line_number"], message["snippet"]) == ("all wrong", 0, None)
    silent = replace(SQL, check=python("raise SystemExit(7)"))
    result = await local(tmp_path, silent).check(pipeline("", toolchain="sql"))
    assert isinstance(result, StepFailed)
    assert result.outcome["exit_code"] == 7
    assert "exit code 7" in str(messages(result)[0]["message"])


async def test_a_build_that_fails_tells_all_it_said(tmp_path: Path) -> None:
    """CO8: a tool is given the other texts of a program too."""
    code = "import sys; print('out'); sys.stderr.write(open(sys.argv[1]).read()); sys.exit(101)"
    own = Toolchain(name="rust", build=python(code, "{udf_rust_file}"))
    row = pipeline("", toolchain="rust")
    row = replace(row, spec=replace(row.spec, udf_rust="Davy Jones"))
    result = await local(tmp_path, own).build(row)
    assert result == StepFailed(outcome={"exit_code": 101, "stdout": "out\n", "stderr": "Davy Jones"})
    assert not (tmp_path / "state" / "artifacts").exists()
    assert nothing_is_left_of_steps(tmp_path)


async def test_a_tool_gets_every_text_and_a_clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_API__TOKEN", "secret")
    monkeypatch.setenv("NOTIFY_SOCKET", "/x")
    code = (
        "import json, os, sys\n"
        "read = lambda path: open(path).read()\n"
        "json.dump({'texts': [read(p) for p in sys.argv[1:5]], 'env': dict(os.environ), 'cwd': os.getcwd(),"
        " 'listing': os.listdir()}, open(sys.argv[5], 'w'))"
    )
    names = ("{program_file}", "{udf_rust_file}", "{udf_toml_file}", "{program_config_file}", "{info_file}")
    own = Toolchain(name="own", check=python(code, *names), env=(("A", "b"), ("LANG", "C")))
    row = pipeline("é\r\n", toolchain="own", profile="dev")
    row = replace(row, spec=replace(row.spec, udf_rust="r", udf_toml="t"))
    result = await local(tmp_path, own).check(row)
    assert isinstance(result, StepPassed)
    info = result.info
    assert info is not None
    texts = info["texts"]
    assert isinstance(texts, list)
    assert texts[:3] == ["é\n", "r", "t"]
    assert json.loads(str(texts[3])) == {"toolchain": "own", "profile": "dev"}
    env = info["env"]
    assert isinstance(env, dict)
    assert set(env) <= {
        "PATH",
        "LANG",
        "LANGUAGE",
        "LC_ALL",
        "LC_CTYPE",
        "TZ",
        "HOME",
        "TMPDIR",
        "A",
        "PENSTOCK_BUILD_DIR",
    }
    assert (env["A"], env["LANG"]) == ("b", "C")
    assert env["HOME"] == env["TMPDIR"] == info["cwd"]
    assert info["listing"] == []


@pytest.mark.parametrize("text", ["[1]", "nonsense", "[" * 100_000])
async def test_information_that_makes_no_sense_is_the_tools_fault(tmp_path: Path, text: str) -> None:
    code = "import sys; open(sys.argv[1], 'w').write(sys.argv[2])"
    own = Toolchain(name="own", check=python(code, "{info_file}", text))
    result = await local(tmp_path, own).check(pipeline("", toolchain="own"))
    assert isinstance(result, StepBroke)
    assert "info_file" in result.reason


@pytest.mark.parametrize("step", ["check", "build"])
async def test_what_is_not_the_programs_fault_says_what_to_do(tmp_path: Path, step: str) -> None:
    cases = {
        "no-such-tool": (("no-such-tool",), r"'no-such-tool' cannot be started: No such file.*PATH"),
        "slow": (python("import time; time.sleep(600)"), r"took longer than 0\.7 s"),
        "unavailable": (python("import sys; sys.stderr.write('no licence\\n'); sys.exit(69)"), "no licence"),
        "mute": (python("import sys; sys.exit(69)"), "cannot work here"),
        "killed": (python("import os; os.kill(os.getpid(), 9)"), "killed by SIGKILL"),
    }
    for name, (template, expected) in cases.items():
        seconds = 0.7 if name == "slow" else 20.0
        own = Toolchain(name="own", timeout_seconds=seconds, **{step: template})  # type: ignore[arg-type]
        toolchains = local(tmp_path, own)
        row = pipeline("", toolchain="own")
        result = await (toolchains.check(row) if step == "check" else toolchains.build(row))
        assert isinstance(result, StepBroke), name
        assert re.search(expected, result.reason), result.reason
        assert nothing_is_left_of_steps(tmp_path)


async def test_a_state_directory_that_cannot_be_written_is_not_the_programs_fault(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file", encoding="utf-8")
    toolchains = local(tmp_path)
    for result in (await toolchains.check(pipeline("")), await toolchains.build(pipeline(""))):
        assert isinstance(result, StepBroke)
        assert "Not a directory" in result.reason


async def test_a_full_disk_is_not_the_programs_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    result = await local(tmp_path).build(pipeline(""))
    assert isinstance(result, StepBroke)
    assert "No space left on device" in result.reason
    assert "Free some space" in result.reason
    assert nothing_is_left_of_steps(tmp_path)


async def test_a_step_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    own = Toolchain(name="own", build=python("import time; time.sleep(600)"))
    toolchains = local(tmp_path, own)
    for n in range(12):
        with anyio.move_on_after(n * 0.01):
            await toolchains.build(pipeline("", toolchain="own"))
        assert nothing_is_left_of_steps(tmp_path)
        assert alive_in(tmp_path) == []
    assert isinstance(await local(tmp_path).build(pipeline("")), StepPassed)


# --- which toolchain ------------------------------------------------------------------------------------------------


def refusal(toolchains: LocalToolchains, **config: object) -> str | None:
    return toolchains.refuse(pipeline("", **config).spec)


def test_what_may_be_named(tmp_path: Path) -> None:
    toolchains = local(tmp_path, SQL)
    assert refusal(toolchains) is None
    assert refusal(toolchains, toolchain=None, contract=None, profile="dev") is None
    assert refusal(toolchains, toolchain="sql", contract="http") is None
    near = refusal(toolchains, toolchain="pyhton")
    assert near is not None
    assert "command, python, sql" in near
    assert "Did you mean 'python'?" in near
    for nonsense in ("", 1, ["python"], {"a": 1}, True, "a\0b"):
        assert refusal(toolchains, toolchain=nonsense) is not None
        assert refusal(toolchains, contract=nonsense) is not None


async def test_a_contract_of_ones_own(tmp_path: Path) -> None:
    toolchains = local(tmp_path, replace(SQL, contract="http"))
    assert toolchains.plan(await built(toolchains, pipeline("x", toolchain="sql"))).contract == "http"
    row = await built(toolchains, pipeline("x", toolchain="sql", contract="process"))
    assert toolchains.plan(row).contract == "process"


async def test_a_toolchain_that_was_taken_away(tmp_path: Path) -> None:
    """Nothing is built again, which could only fail; a start says what is wrong, and works when it is back."""
    toolchains = local(tmp_path, Toolchain(name="opaque"))
    row = await built(toolchains, pipeline("true", toolchain="opaque"))
    toolchains.toolchains = BUILT_IN
    assert await toolchains.verify(row) is None
    with pytest.raises(ExecutorError, match="no toolchain 'opaque'"):
        toolchains.plan(row)
    for result in (await toolchains.check(row), await toolchains.build(row)):
        assert isinstance(result, StepBroke)
        assert "no toolchain 'opaque'" in result.reason
    toolchains.toolchains = {**BUILT_IN, "opaque": Toolchain(name="opaque")}
    assert await toolchains.verify(row) is None
    assert toolchains.plan(row).argv == ("true",)


async def test_a_toolchain_that_was_changed_has_its_programs_built_again(tmp_path: Path) -> None:
    toolchains = local(tmp_path, Toolchain(name="opaque"))
    row = await built(toolchains, pipeline("true", toolchain="opaque"))
    toolchains.toolchains = {"opaque": Toolchain(name="opaque", timeout_seconds=5.0, contract="http")}
    assert await toolchains.verify(row) is None
    toolchains.toolchains = {"opaque": Toolchain(name="opaque", env=(("A", "b"),))}
    flaw = await toolchains.verify(row)
    assert flaw is not None
    assert "'opaque' was changed" in flaw
    assert await toolchains.verify(await built(toolchains, row)) is None


def test_an_operators_settings_are_laid_over_what_is_built_in() -> None:
    mine = define("python", {"env": {"A": "b"}, "timeout_seconds": 5.0, "build": []})
    assert mine.env == (("PYTHONUNBUFFERED", "1"), ("A", "b"))
    assert (mine.timeout_seconds, mine.build, mine.check) == (5.0, (), BUILT_IN["python"].check)
    assert define("own", {"run": ["x", "y"]}) == Toolchain(name="own", run=("x", "y"))


# --- artifacts ------------------------------------------------------------------------------------------------------


def counting(tmp_path: Path, code: str = "") -> Toolchain:
    """A toolchain whose build counts itself, and makes a small file, a large one and a link."""
    made = (
        f"import os, sys; open({str(tmp_path / 'counter')!r}, 'a').write('x'); os.chdir(sys.argv[1]); "
        f"os.makedirs('bin/deep'); open('bin/tool', 'w').write('t'); os.chmod('bin/tool', 0o755); "
        f"open('bin/deep/large', 'wb').write(os.urandom({ALWAYS_HASHED_BYTES + 1})); os.symlink('bin/tool', 'link'); "
        "os.mkfifo('pipe'); print('made')\n"
    )
    return Toolchain(name="own", build=python(made + code, "{artifact_dir}"), run=("{artifact_dir}/bin/tool",))


def builds_of(tmp_path: Path) -> int:
    counter = tmp_path / "counter"
    return len(counter.read_text(encoding="utf-8")) if counter.exists() else 0


async def test_the_same_program_is_built_once(tmp_path: Path) -> None:
    toolchains = local(tmp_path, counting(tmp_path))
    first = await toolchains.build(pipeline("x", toolchain="own"))
    again = await toolchains.build(pipeline("x", "p2", toolchain="own"))
    assert first == again
    assert isinstance(first, StepPassed)
    assert first.outcome == {"exit_code": 0, "stdout": "made\n", "stderr": ""}
    assert builds_of(tmp_path) == 1
    # Another program, another configuration: another artifact. Another daemon: the same.
    other = await toolchains.build(pipeline("y", toolchain="own"))
    third = await toolchains.build(pipeline("x", toolchain="own", profile="dev"))
    assert len({result.artifact for result in (first, other, third) if isinstance(result, StepPassed)}) == 3
    assert builds_of(tmp_path) == 3
    assert await local(tmp_path, counting(tmp_path)).build(pipeline("x", toolchain="own")) == first
    assert builds_of(tmp_path) == 3


async def test_builds_of_the_same_program_at_once_are_one(tmp_path: Path) -> None:
    toolchains = local(tmp_path, counting(tmp_path))
    results: list[StepResult] = []

    async def build(name: str) -> None:
        results.append(await toolchains.build(pipeline("x", name, toolchain="own")))

    async with anyio.create_task_group() as tasks:
        for n in range(8):
            tasks.start_soon(build, f"p{n}")
    assert len(results) == 8
    assert results.count(results[0]) == 8
    assert builds_of(tmp_path) == 1
    assert nothing_is_left_of_steps(tmp_path)


async def test_one_who_waits_for_the_same_build_goes_on_when_that_is_cancelled(tmp_path: Path) -> None:
    waits = f"import time\nwhile not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)\n"
    toolchains = local(tmp_path, counting(tmp_path, waits))
    results: list[StepResult] = []

    async def build(name: str) -> None:
        results.append(await toolchains.build(pipeline("x", name, toolchain="own")))

    async with anyio.create_task_group() as tasks:
        async with anyio.create_task_group() as first:
            first.start_soon(build, "p1")
            with anyio.fail_after(10):
                while builds_of(tmp_path) == 0:
                    await anyio.sleep(0.01)
            tasks.start_soon(build, "p2")
            await checkpoint()
            first.cancel_scope.cancel()
        (tmp_path / "go").touch()
    [result] = results
    assert isinstance(result, StepPassed)
    assert builds_of(tmp_path) == 2


def remove(path: Path) -> None:
    path.unlink()


def flip(path: Path) -> None:
    found = path.stat()
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def forbid(path: Path) -> None:
    path.chmod(0o644)


def relink(path: Path) -> None:
    path.unlink()
    path.symlink_to("/bin/true")


def become_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("program", remove),
        ("program", flip),
        ("manifest.json", remove),
        ("manifest.json", cut),
        ("manifest.json", flip),
        ("artifact/bin/tool", flip),
        ("artifact/bin/tool", forbid),
        ("artifact/bin/tool", become_a_directory),
        ("artifact/bin/deep/large", cut),
        ("artifact/bin/deep/large", remove),
        ("artifact/link", relink),
        ("artifact/link", remove),
    ],
)
async def test_damage_is_told_and_the_next_build_mends_it(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    toolchains = local(tmp_path, counting(tmp_path))
    row = await built(toolchains, pipeline("x y", toolchain="own"))
    assert await toolchains.verify(row) is None
    assert row.artifact is not None
    damage(tmp_path / "state" / "artifacts" / row.artifact / name)
    flaw = await toolchains.verify(row)
    assert flaw is not None
    assert name in flaw
    assert await built(toolchains, row) == row
    assert await toolchains.verify(row) is None
    assert builds_of(tmp_path) == 2
    assert nothing_is_left_of_steps(tmp_path)


async def test_an_artifact_that_is_gone_is_told(tmp_path: Path) -> None:
    toolchains = local(tmp_path)
    row = await built(toolchains, pipeline(""))
    shutil.rmtree(tmp_path / "state" / "artifacts")
    assert "not kept any more" in (await toolchains.verify(row) or "")
    assert await toolchains.verify(replace(row, artifact=None)) == "The program has not been built."


async def test_a_large_file_is_read_again_once_its_stamp_is_another(tmp_path: Path) -> None:
    """Restored from a backup it has another inode: once it is read and found the same, that will do."""
    toolchains = local(tmp_path, counting(tmp_path))
    row = await built(toolchains, pipeline("x", toolchain="own"))
    assert row.artifact is not None
    large = tmp_path / "state" / "artifacts" / row.artifact / "artifact/bin/deep/large"
    large.write_bytes(large.read_bytes())
    os.utime(large, ns=(1, 1))
    assert await toolchains.verify(row) is None
    flip(large)  # keeps the stamp: nobody can tell, and nobody pays for looking
    assert await toolchains.verify(row) is None
    os.utime(large, ns=(2, 2))
    assert "checksum" in (await toolchains.verify(row) or "")


async def test_after_a_reboot_nothing_is_taken_on_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toolchains = local(tmp_path, counting(tmp_path))
    row = await built(toolchains, pipeline("x", toolchain="own"))
    assert row.artifact is not None
    flip(tmp_path / "state" / "artifacts" / row.artifact / "artifact/bin/deep/large")
    assert await toolchains.verify(row) is None
    monkeypatch.setattr("penstock.toolchains.artifacts.host_id", lambda: "another boot")
    assert "checksum" in (await local(tmp_path, counting(tmp_path)).verify(row) or "")


# --- sweep ----------------------------------------------------------------------------------------------------------


def kept(tmp_path: Path) -> set[str]:
    return set(os.listdir(tmp_path / "state" / "artifacts"))


async def test_a_sweep_removes_what_no_row_refers_to(tmp_path: Path) -> None:
    before = local(tmp_path, counting(tmp_path))
    rows = [await built(before, pipeline(f"x{n}", f"p{n}", toolchain="own")) for n in range(3)]
    stale = tmp_path / "state" / "builds" / "0123456789abcdef"
    (stale / "work" / "closed").mkdir(parents=True)
    (stale / "work" / "closed" / "file").touch()
    (stale / "work" / "closed").chmod(0o500)
    (tmp_path / "state" / "builds" / "a file").touch()
    # A program on its way to the artifact that an earlier daemon has made already refers to it as well.
    waiting = replace(rows[2], artifact=None)
    toolchains = local(tmp_path, counting(tmp_path))
    assert await toolchains.sweep([rows[0], waiting, pipeline("z", toolchain="gone")]) == 1
    assert kept(tmp_path) == {rows[0].artifact, rows[2].artifact}
    assert nothing_is_left_of_steps(tmp_path)
    assert await toolchains.sweep([]) == 2


async def test_a_sweep_with_rows_of_a_moment_ago_spares_what_was_just_built(tmp_path: Path) -> None:
    toolchains = local(tmp_path)
    row = await built(toolchains, pipeline("x"))
    assert await toolchains.sweep([]) == 0
    assert await toolchains.verify(row) is None
    assert await toolchains.sweep([]) == 1
    assert await toolchains.verify(row) is not None


async def test_a_sweep_leaves_a_build_under_way_alone(tmp_path: Path) -> None:
    go = tmp_path / "go"
    waits = f"import time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\n"
    toolchains = local(tmp_path, counting(tmp_path, waits))
    results: list[StepResult] = []

    async def build() -> None:
        results.append(await toolchains.build(pipeline("x", toolchain="own")))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(build)
        with anyio.fail_after(10):
            while builds_of(tmp_path) == 0:
                await anyio.sleep(0.01)
        for _ in range(3):
            await toolchains.sweep([])
        go.touch()
    [result] = results
    assert isinstance(result, StepPassed)
    assert await toolchains.sweep([]) == 0


async def test_a_sweep_kills_what_a_dead_daemons_tools_left_behind(tmp_path: Path) -> None:
    """And nobody else: neither a tool of another state directory, nor one that runs now."""
    own = Toolchain(name="own", build=python("import time; time.sleep(600)"))
    dead, other = local(tmp_path, own), local(tmp_path / "other", own)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(dead.build, pipeline("", toolchain="own"))
        tasks.start_soon(other.build, pipeline("", toolchain="own"))
        with anyio.fail_after(10):
            while len(alive_in(tmp_path)) < 2:
                await anyio.sleep(0.01)
        await dead.sweep([])
        assert len(alive_in(tmp_path)) == 2
        await local(tmp_path, own).sweep([])
        with anyio.fail_after(10):
            while alive_in(tmp_path / "state"):
                await anyio.sleep(0.01)
        assert len(alive_in(tmp_path / "other")) == 1
        tasks.cancel_scope.cancel()
