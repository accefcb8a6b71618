"""Check the syntax of a Python script without running it: a tool, started by the `python` toolchain on its own.

Prints one line per finding, ``line:column-end_line:end_column: severity: type: text``, columns counted from 1 and
inclusive, and exits with 1 if one of them is an error. Standard library only; must never execute the script.
"""

from __future__ import annotations

import resource
import sys
import warnings

MEMORY_BYTES = 2 * 1024**3
"""More than any honest script needs to compile; a hostile one meets MemoryError here, and not the daemon's host."""


def finding(place: tuple[int, int, int, int], severity: str, error_type: str, text: str) -> str:
    """One line of output."""
    line, column, end_line, end_column = place
    return f"{line}:{column}-{end_line}:{end_column}: {severity}: {error_type}: {' '.join(text.split())}"


def place_of(error: SyntaxError) -> tuple[int, int, int, int]:
    """Where `error` is; its end is exclusive, and may be missing, zero or before its beginning."""
    line, column = max(1, error.lineno or 1), max(1, error.offset or 1)
    end_line, end_column = max(line, error.end_lineno or line), (error.end_offset or 0) - 1
    if end_line == line:
        end_column = max(column, end_column)
    return line, column, end_line, max(1, end_column)


def main(program_file: str) -> int:
    """Check `program_file`; returns the exit code."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open(program_file, "rb") as file:  # pathlib takes longer to import than all the rest of this takes
        source = file.read()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            compile(source, "program.py", "exec", dont_inherit=True)
            problem = None
        except SyntaxError as error:
            problem = finding(place_of(error), "error", type(error).__name__, error.msg)
        except (ValueError, OverflowError, RecursionError, MemoryError) as error:
            text = str(error) or "the script is too large or too deeply nested to be compiled"
            problem = finding((1, 1, 1, 1), "error", type(error).__name__, text)
    for warning in caught:
        here = (warning.lineno, 1, warning.lineno, 1)
        print(finding(here, "warning", warning.category.__name__, str(warning.message)))
    if problem is not None:
        print(problem)
    return 0 if problem is None else 1


if __name__ == "__main__":
    # What the script holds must not decide whether its findings can be printed.
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    sys.exit(main(sys.argv[1]))
