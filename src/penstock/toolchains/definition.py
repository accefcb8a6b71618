"""What one toolchain is: argv templates for check, build and run, and what surrounds them.

Made by `wiring.py` from the settings, read by `local.py`. Pure data; must never touch a file or start anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

CONTRACTS = ("process", "http")

EX_UNAVAILABLE = 69
"""How a tool says "not the program's fault" (sysexits.h): its stderr becomes the reason of a SystemError."""

TOOLS_DIR = str(Path(__file__).parent)
"""Where our own tools are: `{tools_dir}`, so that a template means the same wherever we are installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Toolchain:
    """One toolchain. An empty `check` or `build` skips the step; its statuses are gone through all the same.

    `messages` is a regular expression with the groups `line` and, if the tool prints them, `column`, `end_line`,
    `end_column`, `severity`, `type` and `message`; None = the tool's output is one message without a place.
    """

    name: str
    check: tuple[str, ...] = ()
    build: tuple[str, ...] = ()
    run: tuple[str, ...] = ()
    """Empty = the text of the program is itself the command line."""
    contract: str = "process"
    timeout_seconds: float = 600.0
    """How long a check may take, and how long a build may."""
    env: tuple[tuple[str, str], ...] = ()
    """Added to the clean environment of the tools and of the program."""
    messages: str | None = None
    program_name: str = "program"
    """What the file that holds the program is called."""
    is_command: bool = False
    """The text is checked as a command line, as far as `run` is empty and no tool does it."""


BUILT_IN: Mapping[str, Toolchain] = MappingProxyType(
    {
        # -I -S: nothing of the user's or of the site is imported to check a script, and it starts in half the time.
        "python": Toolchain(
            name="python",
            check=("{python}", "-I", "-S", "{tools_dir}/python_check.py", "{program_file}"),
            build=(
                "{python}",
                "-I",
                "-S",
                "{tools_dir}/python_build.py",
                "{program_file}",
                "{artifact_dir}",
                "{environments_dir}",
            ),
            run=("{python}", "{program_file}"),
            env=(("PYTHONUNBUFFERED", "1"),),
            messages=(
                r"^(?P<line>\d+):(?P<column>\d+)-(?P<end_line>\d+):(?P<end_column>\d+): "
                r"(?P<severity>\w+): (?P<type>\w+): (?P<message>.*)$"
            ),
            program_name="program.py",
        ),
        "command": Toolchain(name="command", is_command=True),
    }
)


def define(name: str, given: Mapping[str, object]) -> Toolchain:
    """Make the toolchain `name` from the fields that an operator gave; the rest is as built in, or the default.

    `given` holds valid values only (the settings see to that); `env` is added to what is built in.
    """
    base = BUILT_IN.get(name, Toolchain(name=name))
    changes = {key: _frozen(value) for key, value in given.items()}
    if "env" in changes:
        changes["env"] = tuple({**dict(base.env), **dict(cast("Mapping[str, str]", changes["env"]))}.items())
    return replace(base, **cast("dict[str, Any]", changes))


def _frozen(value: object) -> object:
    return tuple(cast("list[object]", value)) if isinstance(value, list) else value
