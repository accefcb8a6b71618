"""How a state becomes bytes and is found again the same: JSON, for what JSON gives back as it was.

The default of ``Pipeline.restore``. JSON would silently turn the key 1 into "1", and a Counter into a dict: such a
state would be another one after a restore, so it is refused, with the place in it.
"""

from __future__ import annotations

import json

CHECKED_VALUES = 100_000
"""So many values of a state are looked at, each time: more would hold a large pipeline for too long."""

_SCALARS = (str, int, float, bool, type(None))


def encode(state: object) -> bytes:
    """As JSON. Raises TypeError for what JSON would not give back as it was, and names its place."""
    _check(state)
    return json.dumps(state, separators=(",", ":")).encode()


def decode(data: bytes) -> object:
    """The state again."""
    return json.loads(data)


def _check(state: object) -> None:
    left = CHECKED_VALUES
    todo: list[tuple[str, object]] = [("state", state)]
    while todo and left:
        place, value = todo.pop()
        left -= 1
        kind = type(value)
        if kind in _SCALARS:
            continue
        if kind is dict:
            members: dict[object, object] = value  # type: ignore[assignment]
            for key, member in members.items():
                if type(key) is not str:
                    raise TypeError(
                        f"{place} has the key {key!r}, which JSON would not give back as it is; use strings, or give "
                        "restore() your own encode and decode, for instance those of pickle"
                    )
                todo.append((f"{place}[{key!r}]", member))
        elif kind is list:
            todo += [(f"{place}[{number}]", member) for number, member in enumerate(value)]  # type: ignore[arg-type]
        else:
            raise TypeError(
                f"{place} is a {kind.__name__}, which JSON would not give back as it is; use dict, list, str, numbers, "
                "True, False and None, or give restore() your own encode and decode, for instance those of pickle"
            )
