"""Scripts with an inline block (PEP 723), and the environment that they get."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from penstock.model import Pipeline
from penstock.ports import StepBroke, StepFailed, StepPassed
from penstock.toolchains import BUILT_IN, LocalToolchains, Toolchain
from penstock.toolchains.python_build import (
    COMPLETE,
    Flawed,
    Unavailable,
    Wanted,
    declared,
    inline_block,
    interpreter,
    link_environment,
    locked,
)
from tests.toolchains.test_local import built, local, pipeline, python


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
    own = BUILT_IN["python"]
    env = (*own.env, ("PIP_NO_INDEX", "1"), ("UV_OFFLINE", "1"), ("UV_NO_INDEX", "1"))
    return local(tmp_path, replace(own, env=env, timeout_seconds=50.0))


def environments(tmp_path: Path) -> list[str]:
    """The environments that are kept, by digest."""
    return sorted({path.name.partition(".")[0] for path in (tmp_path / "state" / "environments").glob("*")})


def greeter(tmp_path: Path, body: str = "") -> str:
    return script(f'dependencies = ["greeting @ file://{wheel(tmp_path)}"]\nrequires-python = ">=3.11"', body)


async def test_dependencies_are_installed_and_the_script_runs_with_them(tmp_path: Path) -> None:
    toolchains = offline(tmp_path)
    body = "import greeting, penstock, sys\nprint(greeting.TEXT, penstock.__version__, sys.prefix)\n"
    row = await built(toolchains, pipeline(greeter(tmp_path, body)))
    assert await toolchains.verify(row) is None
    plan = toolchains.plan(row)
    assert plan.argv == (f"{plan.artifact_dir}/environment/bin/python", "{program_file}")
    ran = subprocess.run([plan.argv[0], plan.program_file], capture_output=True, text=True, timeout=20)  # noqa: ASYNC221
    assert ran.stdout.startswith("hello from greeting "), ran
    assert ran.stdout.strip().endswith(f"{plan.artifact_dir}/environment")


async def test_an_environment_has_the_library_for_authors_and_nothing_of_the_daemon(tmp_path: Path) -> None:
    body = """import importlib.util, os
from penstock import runtime
with runtime.serve(environ={}) as pipeline:
    print(pipeline.restore({"n": 1}), pipeline.name)
print([name for name in ("aiohttp", "anyio", "msgspec", "pydantic") if importlib.util.find_spec(name)])
"""
    toolchains = offline(tmp_path)
    plan = toolchains.plan(await built(toolchains, pipeline(greeter(tmp_path, body))))
    assert plan.argv[0].startswith(plan.artifact_dir)
    ran = subprocess.run([plan.argv[0], plan.program_file], capture_output=True, text=True, timeout=20)  # noqa: ASYNC221
    assert ran.stdout.splitlines() == ["{'n': 1} ", "[]"], ran


async def test_programs_that_need_the_same_share_an_environment_made_once(tmp_path: Path) -> None:
    toolchains = offline(tmp_path)
    results: list[Pipeline] = []

    async def build(name: str) -> None:
        results.append(await built(toolchains, pipeline(greeter(tmp_path, f"# {name}\n"), name)))

    async with anyio.create_task_group() as tasks:
        for name in ("a", "b", "c"):
            tasks.start_soon(build, name)
    [digest] = environments(tmp_path)
    made = (tmp_path / "state" / "environments" / digest / COMPLETE).stat()
    another = await built(toolchains, pipeline(greeter(tmp_path, "# changed\n"), "a"))
    assert len({row.artifact for row in (*results, another)}) == 4
    assert environments(tmp_path) == [digest]
    assert (tmp_path / "state" / "environments" / digest / COMPLETE).stat().st_ino == made.st_ino
    for row in (*results, another):
        assert await toolchains.verify(row) is None


async def test_an_environment_goes_with_the_last_program_that_needs_it(tmp_path: Path) -> None:
    toolchains = offline(tmp_path)
    one = await built(toolchains, pipeline(greeter(tmp_path), "one"))
    two = await built(toolchains, pipeline(greeter(tmp_path, "# two\n"), "two"))
    for _ in range(2):  # what was built since the last sweep stays for one more
        await toolchains.sweep([one, two])
    await toolchains.sweep([two])
    assert await toolchains.verify(two) is None
    assert len(environments(tmp_path)) == 1
    await toolchains.sweep([])
    assert environments(tmp_path) == []


async def test_an_environment_that_is_being_made_is_not_swept(tmp_path: Path) -> None:
    toolchains = offline(tmp_path)
    kept = tmp_path / "state" / "environments"
    kept.mkdir(parents=True)
    (kept / "abc").mkdir()
    with locked(str(kept / "abc.lock")):
        await toolchains.sweep([])
        assert environments(tmp_path) == ["abc"]
    await toolchains.sweep([])
    assert environments(tmp_path) == []


async def test_a_damaged_environment_is_made_again_of_the_same_versions(tmp_path: Path) -> None:
    toolchains = offline(tmp_path)
    row = await built(toolchains, pipeline(greeter(tmp_path)))
    [digest] = environments(tmp_path)
    environment = tmp_path / "state" / "environments" / digest
    versions = environment.with_name(f"{digest}.requirements")
    assert versions.read_text().startswith("greeting @ file://")
    (environment / COMPLETE).unlink()
    assert "environment" in (await toolchains.verify(row) or "")
    row = await built(toolchains, row)
    assert await toolchains.verify(row) is None
    # Only what is written there is installed: a version that is gone is not silently replaced by another.
    versions.write_text("greeting==0.9\n")
    (environment / COMPLETE).unlink()
    result = await toolchains.build(row)
    assert isinstance(result, StepFailed)
    assert str(versions) in str(result.outcome["stderr"])


async def test_another_python_that_fits_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = other_python()
    if other is None:
        pytest.skip("there is no other Python from 3.11 on in sight")
    version, path = other
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    toolchains = offline(tmp_path)
    code = script(f'requires-python = "=={version}.*"', "import sys, penstock\nprint(sys.version_info[:2])\n")
    plan = toolchains.plan(await built(toolchains, pipeline(code)))
    ran = subprocess.run([plan.argv[0], plan.program_file], capture_output=True, text=True, timeout=20)  # noqa: ASYNC221
    assert ran.stdout.strip() == str(tuple(int(part) for part in version.split("."))), ran


def other_python() -> tuple[str, Path] | None:
    """Another Python than this, as version and path."""
    places = [*map(Path, os.environ["PATH"].split(":")), *Path.home().glob(".pyenv/versions/*/bin")]
    for minor in range(11, 20):
        for place in places:
            path = place / f"python3.{minor}"
            if minor != sys.version_info[1] and path.is_file():
                ran = subprocess.run([path, "-m", "venv", "--help"], capture_output=True, check=False)
                if ran.returncode == 0:
                    return f"3.{minor}", path
    return None


async def test_where_packages_come_from_is_told_to_the_build_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = "import os; print(*sorted(n for n in os.environ if n.lower().endswith(('_url', '_proxy', '_file'))))"
    for name in ("PIP_INDEX_URL", "UV_INDEX_URL", "https_proxy", "SSL_CERT_FILE", "PENSTOCK_SECRET_FILE", "OTHER_URL"):
        monkeypatch.setenv(name, "x")
    tools = Toolchain(name="own", check=python(show), build=python(show), run=("true",))
    toolchains = local(tmp_path, tools, default="own")
    checked = await toolchains.check(pipeline(""))
    assert not isinstance(checked, StepBroke)
    assert "PIP_INDEX_URL" not in str(checked.outcome)
    result = await toolchains.build(pipeline(""))
    assert isinstance(result, StepPassed)
    assert str(result.outcome["stdout"]).split() == ["PIP_INDEX_URL", "SSL_CERT_FILE", "UV_INDEX_URL", "https_proxy"]


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
        link_environment(str(tmp_path / "link"), str(tmp_path / "environments"), Wanted(["requests", "rich"]))


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
        (">=3.8rc1", True),
    ],
)
def test_the_python_that_is_required(wanted: str, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    found = declared(f'requires-python = "{wanted}"')
    assert found.is_plain is fits
    if fits:
        assert interpreter(found.python) == sys.executable
    else:
        with pytest.raises(Unavailable):
            interpreter(found.python)


@pytest.mark.parametrize(
    "block",
    [
        "= = =",
        "requires-python = 3",
        'requires-python = "banana"',
        'requires-python = ">3,4"',
        'requires-python = "--help"',
        "dependencies = 3",
    ],
)
def test_a_block_that_makes_no_sense(block: str) -> None:
    with pytest.raises(Flawed):
        declared(block)
