"""Read the SQL that lies beside this package: named statements and numbered migrations, per dialect.

Called by a store when it opens. Must never build SQL out of values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from types import MappingProxyType

from penstock.stores.columns import Value

_PARAMETER = re.compile(r"(?<![:\w]):(\w+)")
_COMMENT = re.compile(r"^--.*\n", re.MULTILINE)
_NAME_LINE = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_HERE = files(__package__ or "")


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL whose parameters are bound by position, which takes a database half the time of binding them by name."""

    text: str
    parameters: tuple[str, ...]

    def bind(self, values: Mapping[str, Value]) -> tuple[Value, ...]:
        """The values of the parameters, in their order; `values` may hold more."""
        return tuple([values[name] for name in self.parameters])


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of a schema. `checksum` (SHA-256 of the file) shows whether the step that a database took was this."""

    number: int
    name: str
    text: str
    checksum: str


@cache
def statements(dialect: str) -> Mapping[str, Statement]:
    """The statements of ``sql/{dialect}.sql`` by the name that stands above each."""
    _, *parts = _NAME_LINE.split((_HERE / "sql" / f"{dialect}.sql").read_text("utf-8"))
    return MappingProxyType({name: _statement(text) for name, text in zip(parts[::2], parts[1::2], strict=True)})


@cache
def migrations(dialect: str) -> tuple[Migration, ...]:
    """The steps of ``migrations/{dialect}/NNNN_name.sql``, in order."""
    found: list[Migration] = []
    for file in (_HERE / "migrations" / dialect).iterdir():
        number, _, rest = file.name.partition("_")
        text = file.read_text("utf-8")
        found.append(Migration(int(number), rest.removesuffix(".sql"), text, sha256(text.encode()).hexdigest()))
    return tuple(sorted(found, key=lambda step: step.number))


def _statement(text: str) -> Statement:
    bare = _COMMENT.sub("", text).strip()
    return Statement(_PARAMETER.sub("?", bare), tuple(_PARAMETER.findall(bare)))
