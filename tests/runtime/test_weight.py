"""What a pipeline carries: the standard library, little of it, and nothing else of penstock."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
before = set(sys.modules)
import penstock.runtime
print(*sorted(set(sys.modules) - before))
"""

HEAVY = {
    "asyncio", "dataclasses", "datetime", "email", "hashlib", "http", "inspect", "logging", "pathlib", "ssl",
    "subprocess", "tempfile", "traceback", "typing", "urllib", "uuid",
}  # fmt: skip
"""Each costs milliseconds or megabytes in every pipeline of the host."""


def test_only_the_standard_library_and_little_of_it_is_imported() -> None:
    done = subprocess.run([sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{CODE}"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    imported = done.stdout.split()
    assert "penstock.runtime.pipeline" in imported
    of_ours = {name for name in imported if name.partition(".")[0] == "penstock"}
    assert of_ours - {"penstock"} == {name for name in of_ours if name.startswith("penstock.runtime")}
    others = {name.partition(".")[0] for name in set(imported) - of_ours}
    assert others <= set(sys.stdlib_module_names)
    assert others & HEAVY == set()
