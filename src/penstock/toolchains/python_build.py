"""Make a Python script ready to run: a tool, started by the `python` toolchain on its own.

A script without an inline block (PEP 723) runs as it is. One whose block asks for packages, or for another Python than
the server's, gets ``{artifact_dir}/environment``: a link to an environment that it shares with every program that asks
for the same, made by uv if there is one, else by venv and pip. Exits with EX_UNAVAILABLE, and the reason on stderr,
where this server cannot do it. Standard library only; must never execute the script.

    {environments_dir}/{digest}/               an environment; COMPLETE in it is written last
    {environments_dir}/{digest}.lock           held while it is made, linked to or removed
    {environments_dir}/{digest}.requirements   what was installed, to the version: made again, it is made of the same

`penstock` is linked into it for `penstock.runtime`.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager

# What takes long to import is imported where it is needed: most scripts have no block.

EX_UNAVAILABLE = 69

COMPLETE = "complete"
"""Exists in an environment that was made to its end."""

PENSTOCK = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

NEWEST_FIRST = range(30, 10, -1)
"""The minor versions of Python 3 that are looked for; `penstock.runtime` wants 3.11."""


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


class Wanted:
    """What a block declares: packages, and a Python by its version specifier (PEP 440), or nothing."""

    def __init__(self, packages: list[str], python: str = "") -> None:
        self.packages = packages
        self.python = python

    @property
    def is_plain(self) -> bool:
        """Whether the server's own interpreter runs the script as it is."""
        return not self.packages and _is_satisfied(self.python, sys.version_info[:3])


def declared(block: str) -> Wanted:
    """What the block declares. Raises Flawed."""
    import tomllib
    from typing import cast

    try:
        table = tomllib.loads(block)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise Flawed(f"the script's inline block (PEP 723) is not valid TOML: {error}") from error
    python = table.get("requires-python", "")
    if not isinstance(python, str) or not _is_specifier(python):
        raise Flawed("`requires-python` in the script's inline block (PEP 723) must be a version specifier (PEP 440)")
    named = table.get("dependencies", [])
    listed = cast("list[object]", named) if isinstance(named, list) else [None]
    packages = [one for one in listed if isinstance(one, str) and one[:1].isalnum()]  # what begins with - is an option
    if len(packages) != len(listed):
        raise Flawed("`dependencies` in the script's inline block (PEP 723) must be a list of requirements (PEP 508)")
    return Wanted(packages, python)


def _is_specifier(text: str) -> bool:
    import re

    clause = r"\s*(~=|===?|!=|<=?|>=?)\s*[0-9][0-9A-Za-z.*+!_-]*\s*"
    return not text.strip() or re.fullmatch(rf"{clause}(,{clause})*,?\s*", text) is not None


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


def link_environment(link: str, environments: str, wanted: Wanted) -> int:
    """Make `link` lead to an environment with what is wanted, made now if there is none; returns the exit code.

    Programs that are built at the same time wait for each other. Raises Unavailable, OSError.
    """
    python = interpreter(wanted.python)
    path = os.path.join(environments, digest_of(wanted, python))
    os.makedirs(environments, exist_ok=True)
    with locked(path + ".lock"):
        code = 0 if os.path.exists(os.path.join(path, COMPLETE)) else _make(path, wanted.packages, python)
        if code == 0:
            os.symlink(path, link)
            with open(path + ".requirements", encoding="utf-8") as file:
                print(f"Environment of {python} with:", file.read() or "nothing", sep="\n", end="")
        return code


def interpreter(wanted: str) -> str:
    """An interpreter that `requires-python` allows: this one, else one on PATH, else one that uv knows.

    Raises Unavailable.
    """
    import shutil
    import subprocess

    if _is_satisfied(wanted, sys.version_info[:3]):
        return sys.executable
    show = "import sys; print(*sys.version_info[:3])"
    for minor in NEWEST_FIRST:
        found = shutil.which(f"python3.{minor}")
        if found is None:
            continue
        ran = subprocess.run([found, "-I", "-S", "-c", show], capture_output=True, text=True, check=False)
        have = tuple(int(part) for part in ran.stdout.split() if part.isdigit())
        if ran.returncode == 0 and len(have) == 3 and _is_satisfied(wanted, have):
            return found
    uv = shutil.which("uv")
    if uv is not None:
        find = [uv, "python", "find", "--no-python-downloads", "--no-project", wanted]
        ran = subprocess.run(find, capture_output=True, text=True, check=False)
        if ran.returncode == 0 and ran.stdout.strip():
            return ran.stdout.strip()
    have = ".".join(str(part) for part in sys.version_info[:3])
    raise Unavailable(
        f"the script requires Python {wanted}, but this server runs {have} and has no other that fits on its PATH; "
        "install one, or correct `requires-python`"
    )


def digest_of(wanted: Wanted, python: str) -> str:
    """What an environment depends on: packages, interpreter, and where `penstock` is linked from."""
    import hashlib

    made_of = [*sorted(wanted.packages), os.path.realpath(python), sys.version, PENSTOCK]
    return hashlib.sha256("\0".join(made_of).encode()).hexdigest()


@contextmanager
def locked(path: str) -> Generator[None]:
    """Hold the lock at `path`, which may be removed by whoever holds it."""
    while True:
        with open(path, "a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                is_current = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
            except FileNotFoundError:
                is_current = False
            if is_current:
                yield
                return


def _make(path: str, packages: list[str], python: str) -> int:
    """Make an environment, of the versions that it was made of before; returns the installer's exit code."""
    import glob
    import shutil
    import subprocess

    shutil.rmtree(path, ignore_errors=True)  # one that was not completed
    installer = _installer(path, python, packages)
    known = path + ".requirements"
    again = os.path.exists(known)
    install = [*installer.install, "--no-deps", "--requirement", known] if again else [*installer.install, *packages]
    for command in [installer.create, install] if packages else [installer.create]:
        code = subprocess.run(command, check=False).returncode
        if code and again and command is install:
            print(f"(The versions are those of the first time, listed in {known}.)", file=sys.stderr)
        if code:
            return code
    if not again:
        listed = subprocess.run(installer.freeze, capture_output=True, text=True, check=True) if packages else None
        _write_whole(known, "" if listed is None else listed.stdout)
    [site] = glob.glob(os.path.join(path, "lib", "python3.*", "site-packages"))
    if not os.path.lexists(os.path.join(site, "penstock")):
        os.symlink(PENSTOCK, os.path.join(site, "penstock"))
    _write_whole(os.path.join(path, COMPLETE), "")
    return 0


def _write_whole(path: str, text: str) -> None:
    with open(path + ".new", "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".new", path)


class Installer:
    """The commands of one installer. `install` wants requirements; `freeze` prints what is installed."""

    def __init__(self, *, create: list[str], install: list[str], freeze: list[str]) -> None:
        self.create = create
        self.install = install
        self.freeze = freeze


def _installer(path: str, python: str, packages: list[str]) -> Installer:
    """How an environment is made here, the quickest way that there is. Raises Unavailable."""
    import importlib.util
    import shutil
    import subprocess

    own = os.path.join(path, "bin", "python")
    uv = shutil.which("uv")
    if uv is not None:
        return Installer(
            create=[uv, "venv", "--quiet", "--python", python, path],
            install=[uv, "pip", "install", "--quiet", "--python", own],
            freeze=[uv, "pip", "freeze", "--quiet", "--python", own],
        )
    quiet = ["--quiet", "--no-input", "--disable-pip-version-check"]
    if importlib.util.find_spec("venv") is not None:
        pip = [sys.executable, "-I", "-m", "pip"]
        if subprocess.run([*pip, "--version"], capture_output=True, check=False).returncode == 0:
            return Installer(
                create=[python, "-m", "venv", "--without-pip", path],
                install=[*pip, "--python", own, "install", *quiet],
                freeze=[*pip, "--python", own, "--disable-pip-version-check", "freeze"],
            )
        if importlib.util.find_spec("ensurepip") is not None:
            return Installer(
                create=[python, "-m", "venv", path],
                install=[own, "-m", "pip", "install", *quiet],
                freeze=[own, "-m", "pip", "--disable-pip-version-check", "freeze"],
            )
    raise Unavailable(
        f"the script needs {', '.join(packages) or 'an environment'}, but neither uv nor Python's venv and pip are "
        "installed here; install one of them"
    )


def main(program_file: str, artifact_dir: str, environments_dir: str) -> int:
    """Make the script ready, or tell on stderr why it cannot be; returns the exit code."""
    with open(program_file, encoding="utf-8", errors="replace", newline="") as file:
        block = inline_block(file.read())
    if block is None:
        return 0
    try:
        wanted = declared(block)
        if wanted.is_plain:
            return 0
        return link_environment(os.path.join(artifact_dir, "environment"), environments_dir, wanted)
    except Flawed as error:
        print(error, file=sys.stderr)
        return 1
    except Unavailable as error:
        print(error, file=sys.stderr)
        return EX_UNAVAILABLE


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
