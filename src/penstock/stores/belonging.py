"""Whether a database is the one that the pipelines in the state directory belong to.

Called by `sqlite_file.py`, before anything is done to either, in threads. An empty database beside pipelines is a lost
one: taken for new, it would have every pipeline's data swept away as nobody's. So would one from elsewhere, which is
why the instance id stands in a file of its own, too.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_NAMED = 3
"""How many pipelines a refusal names."""


class Belonging:
    """What the state directory tells. None for a store that has no such directory: everything is fine then."""

    def __init__(self, state_dir: Path | None) -> None:
        self._file = None if state_dir is None else state_dir / "instance"
        self._pipelines = None if state_dir is None else state_dir / "pipelines"
        self._kept = [] if self._pipelines is None else _kept(self._pipelines)
        self._recorded = None if self._file is None else _read(self._file)

    def objection(self, instance_id: str | None) -> str | None:
        """Why a database with that instance id, None for a new one, must not be used; None when it may be.

        An empty id is unknown.
        """
        if not self._kept or instance_id == self._recorded is not None:
            return None
        found = f"{self._pipelines} holds {_described(self._kept)}"
        if instance_id is None:
            return (
                f"the database is lost or empty, but {found}. As a new one it would have all of that deleted. Restore "
                f"it from a backup; or, to begin anew, end what still runs there and move {self._pipelines} away"
            )
        if self._recorded is None or not instance_id:
            return None
        return (
            f"the database is another one (instance {instance_id}), but {found} of instance {self._recorded}, as "
            f"{self._file} says. It would have all of that deleted. Restore the database that belongs there; or move "
            f"{self._pipelines} away; or, if this is the right one after all, remove {self._file}"
        )

    def record(self, instance_id: str) -> None:
        """Remember whose directory it is. Never raises: what a full disk prevents, the next start does."""
        if self._file is None or instance_id == self._recorded:
            return
        aside = self._file.with_suffix(".new")
        with suppress(OSError):
            file = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(file, "w", encoding="utf-8") as text:
                text.write(f"{instance_id}\n")
                text.flush()
                os.fsync(file)
            aside.replace(self._file)


def _kept(pipelines: Path) -> list[str]:
    """The names of what is kept there, but for empty directories: those are no loss. Raises OSError."""
    try:
        names = sorted(os.listdir(pipelines))
    except FileNotFoundError:
        return []
    return [name for name in names if not _is_empty(pipelines / name)]


def _is_empty(entry: Path) -> bool:
    try:
        return not os.listdir(entry)
    except NotADirectoryError:
        return False


def _read(file: Path) -> str | None:
    try:
        return file.read_text("utf-8", "replace").strip() or None
    except FileNotFoundError:
        return None


def _described(names: list[str]) -> str:
    more = ", ..." if len(names) > _NAMED else ""
    return f"{len(names)} pipeline{'s' if len(names) > 1 else ''} ({', '.join(names[:_NAMED])}{more})"
