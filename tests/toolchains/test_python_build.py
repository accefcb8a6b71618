"""Scripts with an inline block (PEP 723), and the environment that they get."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.ports import StepBroke, StepFailed
from penstock.toolchains import BUILT_IN, LocalToolchains
from penstock.toolchains.python_build import Flawed, Unavailable, dependencies, inline_block, make_environment
from tests.toolchains.test_local import built, local, pipeline


def script(toml: str, body: str = "") -> str:
    return "# /// script\n" + "".join(f"# {line}\n" for line in toml.splitlines()) + f"# ///\n{body}"


def wheel(directory: Path) -> Path:
    """A package that nobody has to fetch."""
    path = directory / "greeting-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("greeting.py", "TEXT = 'hello from greeting'\n")
        file.writestr("greeting-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n")
        file.writestr("greeting-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("greeting-1.0.dist-info/RECORD", "")
    return path


def offline(tmp_path: Path) -> LocalToolchains:
    python = BUILT_IN["python"]
    env = (*python.env, ("PIP_NO_INDEX", "1"), ("UV_OFFLINE", "1"), ("UV_NO_INDEX", "1"))
    return local(tmp_path, replace(python, env=env, timeout_seconds=50.0))


async def test_dependencies_are_installed_and_the_script_runs_with_them(tmp_path: Path) -> None:
    toolchains = offline(tmp_path)
    body = "import greeting, penstock, sys\nprint(greeting.TEXT, penstock.__version__, sys.prefix)\n"
    code = script(f'dependencies = ["greeting @ file://{wheel(tmp_path)}"]\nrequires-python = ">=3.11"', body)
    row = await built(toolchains, pipeline(code))
    assert await toolchains.verify(row) is None
    plan = toolchains.plan(row)
    assert plan.argv == (f"{plan.artifact_dir}/environment/bin/python", "{program_file}")
    ran = subprocess.run([plan.argv[0], plan.program_file], capture_output=True, text=True, timeout=20)  # noqa: ASYNC221
    assert ran.stdout.startswith("hello from greeting "), ran
    assert ran.stdout.strip().endswith(f"{plan.artifact_dir}/environment")
    (tmp_path / "state" / "artifacts" / str(row.artifact) / "artifact" / "environment" / "pyvenv.cfg").unlink()
    assert "pyvenv.cfg" in (await toolchains.verify(row) or "")


async def test_what_cannot_be_installed_fails_the_build_and_says_why(tmp_path: Path) -> None:
    result = await offline(tmp_path).build(pipeline(script('dependencies = ["no-such-package-here"]')))
    assert isinstance(result, StepFailed)
    assert "no-such-package-here" in str(result.outcome["stderr"])


async def test_a_wrong_block_fails_the_build_and_another_python_breaks_it(tmp_path: Path) -> None:
    toolchains = local(tmp_path)
    for toml in (
        "dependencies = [",
        'dependencies = "x"',
        'dependencies = ["--index-url=http://x"]',
        "dependencies = [1]",
    ):
        result = await toolchains.build(pipeline(script(toml)))
        assert isinstance(result, StepFailed), toml
        assert "PEP 723" in str(result.outcome["stderr"])
    result = await toolchains.build(pipeline(script('requires-python = ">=4"')))
    assert isinstance(result, StepBroke)
    assert "requires Python >=4, but this server runs 3." in result.reason


async def test_a_block_without_dependencies_needs_no_environment(tmp_path: Path) -> None:
    toolchains = local(tmp_path)
    for toml in ("", "dependencies = []", 'requires-python = ">=3.11, <4, !=3.0.*"'):
        row = await built(toolchains, pipeline(script(toml)))
        assert toolchains.plan(row).argv[0] == sys.executable


def test_without_an_installer_the_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Unavailable, match=r"needs requests, rich, but neither uv nor Python's venv and pip"):
        make_environment(str(tmp_path / "environment"), ["requests", "rich"])


@pytest.mark.parametrize(
    ("source", "block"),
    [
        ("", None),
        ("x = 1\n", None),
        ("# /// script\n# a = 1\n# ///\n", "a = 1"),
        ("x\r\n# /// script\r\n# a = 1\r\n#\r\n# b = 2\r\n# ///\r\nx", "a = 1\n\nb = 2"),
        ("# /// script\n# a = 1\n", None),
        ("# /// script\nx\n# ///\n", None),
        ("# /// script\n# a = '''\n# ///\n# '''\n# ///\n", "a = '''\n///\n'''"),
        ("# /// other\n# a = 1\n# ///\n", None),
        ("# /// script\n#a\n# /// script\n# b = 1\n# ///\n", "b = 1"),
    ],
)
def test_the_block_is_found_as_the_standard_says(source: str, block: str | None) -> None:
    assert inline_block(source) == block


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        (">=3.8", True),
        (">=3.8,<3.9", False),
        ("==3.*", True),
        ("~=3.0", True),
        ("~=2.7", False),
        ("!=3.*", False),
        ("<=3", False),
        (">3.999999", False),
        ("whatever", True),
    ],
)
def test_the_python_that_is_required(wanted: str, fits: bool) -> None:
    block = f'requires-python = "{wanted}"'
    if fits:
        assert dependencies(block) == []
    else:
        with pytest.raises(Unavailable):
            dependencies(block)


def test_a_block_that_is_no_toml() -> None:
    with pytest.raises(Flawed):
        dependencies("= = =")
    with pytest.raises((Flawed, Unavailable)):
        dependencies("requires-python = 3")
