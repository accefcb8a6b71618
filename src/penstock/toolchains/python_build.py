"""Make a Python script ready to run: a tool, started by the `python` toolchain on its own.

A script without an inline block (PEP 723) runs as it is. One whose block declares dependencies gets an environment of
its own in ``{artifact_dir}/environment``, made by uv if there is one, else by venv and pip; `penstock` is linked into
it for `penstock.runtime`. Exits with EX_UNAVAILABLE, and the reason on stderr, where this server cannot do it.
Standard library only; must never execute the script.
"""

from __future__ import annotations

import os
import sys

EX_UNAVAILABLE = 69


class Flawed(Exception):
    """The block is wrong."""


class Unavailable(Exception):
    """The block is fine, but this server cannot do what it asks for."""


def inline_block(source: str) -> str | None:
    """The TOML of the script's ``# /// script`` block; None when there is none.

    Read line by line: the regular expression that PEP 723 gives takes quadratic time on hostile text.
    """
    block: list[str] | None = None
    end: int | None = None
    for line in source.replace("\r\n", "\n").split("\n"):
        if block is None:
            block = [] if line == "# /// script" else None
        elif line == "#" or line.startswith("# "):
            if line == "# ///":
                end = len(block)
            block.append(line[2:])
        elif end is not None:
            break
        else:
            block = None
    return None if block is None or end is None else "\n".join(block[:end])


def dependencies(block: str) -> list[str]:
    """What the block declares. Raises Flawed, or Unavailable for another Python than this one."""
    import tomllib  # only now: most scripts have no block, and this takes as long as all the rest
    from typing import cast

    try:
        declared = tomllib.loads(block)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise Flawed(f"the script's inline block (PEP 723) is not valid TOML: {error}") from error
    wanted = declared.get("requires-python", "")
    if not isinstance(wanted, str) or not _is_satisfied(wanted, sys.version_info[:3]):
        have = ".".join(str(part) for part in sys.version_info[:3])
        raise Unavailable(f"the script requires Python {wanted}, but this server runs {have}")
    named = declared.get("dependencies", [])
    listed = cast("list[object]", named) if isinstance(named, list) else [None]
    needed = [one for one in listed if isinstance(one, str) and one[:1].isalnum()]  # what begins with - is an option
    if len(needed) != len(listed):
        raise Flawed("`dependencies` in the script's inline block (PEP 723) must be a list of requirements (PEP 508)")
    return needed


def _is_satisfied(wanted: str, have: tuple[int, ...]) -> bool:
    """Compare as PEP 440 does for released versions; what is written otherwise is left to the installer."""
    import re

    for clause in filter(None, (part.strip() for part in wanted.split(","))):
        found = re.fullmatch(r"(>=|<=|>|<|==|!=|~=)\s*(\d{1,6}(?:\.\d{1,6}){0,2})(?:\.\*)?", clause)
        if found and not _compare(have, found[1], tuple(int(part) for part in found[2].split("."))):
            return False
    return True


def _compare(have: tuple[int, ...], operator: str, want: tuple[int, ...]) -> bool:
    return {
        ">=": have >= want,
        "<=": have <= want,
        ">": have > want,
        "<": have < want,
        "==": have[: len(want)] == want,
        "!=": have[: len(want)] != want,
        "~=": have >= want and have[: len(want) - 1] == want[:-1],
    }[operator]


def make_environment(path: str, needed: list[str]) -> int:
    """Make an environment at `path` with what is needed; returns the installer's exit code. Raises Unavailable."""
    import subprocess

    for command in _commands(path, needed):
        code = subprocess.run(command, check=False).returncode
        if code:
            return code
    link = os.path.join(path, "lib", f"python{sys.version_info[0]}.{sys.version_info[1]}", "site-packages", "penstock")
    if not os.path.lexists(link):
        os.symlink(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), link)
    return 0


def _commands(path: str, needed: list[str]) -> list[list[str]]:
    """How an environment is made here, the quickest way that there is."""
    import importlib.util
    import shutil
    import subprocess

    python = os.path.join(path, "bin", "python")
    install = ["install", "--quiet", "--no-input", "--disable-pip-version-check", *needed]
    uv = shutil.which("uv")
    if uv is not None:
        return [
            [uv, "venv", "--quiet", "--python", sys.executable, path],
            [uv, "pip", "install", "--quiet", "--python", python, *needed],
        ]
    if importlib.util.find_spec("venv") is not None:
        our_pip = [sys.executable, "-I", "-m", "pip"]
        if subprocess.run([*our_pip, "--version"], capture_output=True, check=False).returncode == 0:
            return [[sys.executable, "-m", "venv", "--without-pip", path], [*our_pip, "--python", python, *install]]
        if importlib.util.find_spec("ensurepip") is not None:
            return [[sys.executable, "-m", "venv", path], [python, "-m", "pip", *install]]
    raise Unavailable(
        f"the script needs {', '.join(needed)}, but neither uv nor Python's venv and pip are installed here; "
        "install one of them"
    )


def main(program_file: str, artifact_dir: str) -> int:
    """Make the script ready, or tell on stderr why it cannot be; returns the exit code."""
    with open(program_file, encoding="utf-8", errors="replace", newline="") as file:
        block = inline_block(file.read())
    if block is None:
        return 0
    try:
        needed = dependencies(block)
        return 0 if not needed else make_environment(os.path.join(artifact_dir, "environment"), needed)
    except Flawed as error:
        print(error, file=sys.stderr)
        return 1
    except Unavailable as error:
        print(error, file=sys.stderr)
        return EX_UNAVAILABLE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
