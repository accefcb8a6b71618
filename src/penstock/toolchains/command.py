"""Reads a program that is a command line: shlex rules, no shell.

Called by `local.py` for toolchains without a `run` template. Must never start anything.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Mapping

LONGEST_BYTES = 128 * 1024
"""Linux takes no longer argument (MAX_ARG_STRLEN); it also bounds how long reading takes."""


class CommandLineFlawed(Exception):
    """The text is no command line; says why and what to do."""


def split_words(text: str) -> tuple[str, ...]:
    """The words of the command line. Raises CommandLineFlawed."""
    if len(text.encode()) > LONGEST_BYTES:
        raise CommandLineFlawed(f"The command line is longer than {LONGEST_BYTES} bytes; put the rest into a file.")
    if "\0" in text:
        raise CommandLineFlawed("The command line contains a NUL character, which no program can be given.")
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise CommandLineFlawed(f"The command line cannot be read: {error}. Close every quotation.") from error
    if not words or not words[0]:
        raise CommandLineFlawed("The command line names no program to run.")
    return words


def missing_executable(executable: str, env: Mapping[str, str]) -> str | None:
    """Tell why `executable` cannot be started; None when it can, or when only its start will tell. Looks at files."""
    if re.search(r"\{[a-z_]+\}", executable):
        return None
    if "/" in executable and not os.path.isabs(executable):
        return (
            f"The executable {executable!r} is a relative path, but a program starts in a fresh, empty directory; "
            "give an absolute path, or a name that is on PATH."
        )
    if shutil.which(executable, path=env.get("PATH", os.defpath)):
        return None
    where = "does not exist or is not executable" if "/" in executable else f"is not on PATH ({env.get('PATH', '')})"
    return f"The executable {executable!r} {where}; install it, or correct the command line."
