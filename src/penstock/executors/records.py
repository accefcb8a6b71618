"""What is kept on disk of one deployment, beside the work directory of its program and out of its way.

Called by the process executor, in threads: every method may block, and raises OSError unless it says otherwise. The
files outlive the daemon; they are all that the next one has to go by. Must never decide what they mean.

    claim        made with O_EXCL by whoever begins the program first: the line of its /proc/PID/stat. Empty or `-`:
                 nobody may begin it any more
    origin       a symbolic link to `CONTRACT@HOST`, the contract that the program speaks and the boot of the host under
                 which it is begun: made whole or not at all, whatever becomes of power and disk
    exit         the exit code in the manner of shells, written by the recorder; empty = could not be written
    ended.json   the exact wait status, written by a daemon that saw the end
    told_to_end  exists once the program was told to end
    config.json  for the program
    work/        its working directory; work/port is the port file of contract `http`
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PRIVATE = 0o700
_LONGEST_RECORD_BYTES = 4096
_LONGEST_PORT_BYTES = 32


@dataclass(frozen=True, slots=True)
class Claim:
    """Who began the program of a deployment. `pid` None: nobody, and nobody ever will."""

    pid: int | None = None
    start_ticks: int = 0
    recorder: int = 0
    forbidden: bool = False
    """Made by a stop, not by a shell that did not get as far as to fill it in."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a program ended: an exact wait status, or an exit code in the manner of shells, or neither."""

    wait_status: int | None = None
    shell_code: int | None = None
    at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The records of a deployment, read at once."""

    claim: Claim | None
    host: str | None
    contract: str | None
    told_to_end: bool


class Records:
    """The directory of one deployment."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.work = root / "work"
        self.config_file = root / "config.json"
        self.claim_file = root / "claim"
        self.port_file = self.work / "port"

    def make(self) -> None:
        """Make the directories; nothing if they exist."""
        make_private(self.work)

    def read(self) -> Facts:
        """Everything that is recorded; what is missing or damaged reads as None."""
        contract, _, host = self._origin().partition("@")
        return Facts(
            claim=self.read_claim(),
            host=host or None,
            contract=contract or None,
            told_to_end=os.path.lexists(self.root / "told_to_end"),
        )

    def read_claim(self) -> Claim | None:
        """The claim; None when nobody has made it yet."""
        text = _read(self.claim_file)
        if text is None:
            return None
        words = text.split()
        # pid (sh) state ppid ... starttime: the name is that of a shell, one word.
        if text.endswith(b"\n") and len(words) > 21 and all(words[i].isdigit() for i in (0, 3, 21)):
            return Claim(int(words[0]), int(words[21]), int(words[3]))
        return Claim(forbidden=words == [b"-"])

    def forbid(self) -> None:
        """Claim the deployment for nobody, so that a spawn that lands late does not begin. Nothing if it is claimed."""
        make_private(self.root)
        with suppress(FileExistsError):
            fd = os.open(self.claim_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb", buffering=0) as file, suppress(OSError):  # empty says the same
                file.write(b"-\n")

    def unclaim(self) -> None:
        """Remove a claim whose maker has told that it could not fill it in, and has ended."""
        self.claim_file.unlink(missing_ok=True)

    def write_origin(self, *, host: str, contract: str, config: dict[str, Any]) -> None:
        """Record what is about to be begun, and write the program's configuration. Holding the storage lock."""
        origin = f"{contract}@{host}"
        if self._origin() != origin:
            with suppress(FileNotFoundError):
                (self.root / "origin").unlink()
            (self.root / "origin").symlink_to(origin)
        fd = os.open(self.config_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(json.dumps(config, indent=1))

    def write_told_to_end(self) -> None:
        """Record that the program is about to be told to end."""
        make_private(self.root)
        (self.root / "told_to_end").touch(mode=0o600)

    def write_ending(self, ending: Ending) -> None:
        """Record the exact wait status that was seen."""
        at = None if ending.at is None else ending.at.isoformat()
        make_private(self.root)
        _write(self.root / "ended.json", json.dumps({"wait_status": ending.wait_status, "at": at}))

    def read_ending(self) -> Ending:
        """How it ended: what a daemon saw, else what the recorder wrote, else nothing known."""
        seen = _read_json(self.root / "ended.json")
        match seen:
            case {"wait_status": int(status), "at": str(at)}:
                with suppress(ValueError):
                    return Ending(wait_status=status, at=datetime.fromisoformat(at))
            case _:
                pass
        text = _read(self.root / "exit")
        if text is None or not text.strip().isdigit():
            return Ending()
        written = (self.root / "exit").stat().st_mtime
        return Ending(shell_code=int(text), at=datetime.fromtimestamp(written, UTC))

    def read_port(self) -> int | str | None:
        """The port in the port file, what is wrong with it, or None when it is not there yet (or still empty)."""
        if self.port_file.exists() and not self.port_file.is_file():
            return "is no regular file"
        text = _read(self.port_file, _LONGEST_PORT_BYTES + 1)
        if text is None or not text:
            return None
        if len(text) > _LONGEST_PORT_BYTES:
            return f"is longer than {_LONGEST_PORT_BYTES} bytes"
        digits = text.strip()
        if digits.isdigit() and 0 < int(digits) < 1 << 16:
            return int(digits)
        return f"holds {text!r}"

    def _origin(self) -> str:
        try:
            return os.readlink(self.root / "origin")
        except OSError:
            return ""


def make_private(directory: Path) -> None:
    """Make a directory, and those missing above it, for this user only; nothing if it exists."""
    try:
        directory.mkdir(mode=PRIVATE)
    except FileNotFoundError:
        make_private(directory.parent)
        directory.mkdir(mode=PRIVATE, exist_ok=True)
    except FileExistsError:
        if not directory.is_dir():
            raise


def _read(path: Path, longest: int = _LONGEST_RECORD_BYTES) -> bytes | None:
    """The beginning of a file; None when there is none."""
    try:
        # A program may have put anything in its place: a fifo must not block.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return os.read(fd, longest)
    finally:
        os.close(fd)


def _read_json(path: Path) -> Any:
    text = _read(path, 1 << 20)
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        return None


def _write(path: Path, text: str) -> None:
    """Write a file so that nobody ever reads half of it."""
    aside = path.with_suffix(".new")
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)
    aside.replace(path)
