"""Checkpoints on disk: each a file of its own, whole or not there.

Used by `pipeline.py`: opened once, then only written, by one thread. A checkpoint is never changed: it is written
aside, synced, renamed, and its directory synced, so that a process or a host that dies leaves the former ones or the
new one. What is read back is verified; of what is damaged nothing is ever used.

    {storage}/checkpoints/{sequence}-{uuid}.checkpoint
        penstock-checkpoint 1 {crc32 of the rest} {length of the rest}
        {what is told of it, as JSON}
        {the state, as its author encoded it}
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import zlib
from contextlib import suppress

TYPE_CHECKING = False  # as typing's, whose import would take a quarter of the time that ours takes
if TYPE_CHECKING:
    from collections.abc import Callable

MAGIC = b"penstock-checkpoint 1 "

HEAD_LIMIT_BYTES = 1 << 16
"""The two lines before the state are never longer; what is longer is none of ours."""

SUFFIX, ASIDE = ".checkpoint", ".checkpoint.new"

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


class Damaged(Exception):
    """There are checkpoints, but not one of them is whole: to begin anew would be to forget, the user's to do."""


class InUse(Exception):
    """Another process works with the same checkpoints."""


class Checkpoint:
    """What is told of one: all but the state itself. `size` in bytes, of the whole file."""

    __slots__ = (
        "deployment_id",
        "desired",
        "fingerprint",
        "processed_records",
        "sequence",
        "size",
        "steps",
        "uuid",
        "version",
    )

    def __init__(
        self,
        *,
        sequence: int,
        uuid: str,
        version: str,
        steps: int,
        processed_records: int,
        deployment_id: str,
        desired: str,
        size: int = 0,
    ) -> None:
        self.sequence = sequence
        self.uuid = uuid
        self.version = version
        """What its author calls the shape of the state."""
        self.fingerprint = zlib.crc32(version.encode())
        self.steps = steps
        self.processed_records = processed_records
        self.deployment_id = deployment_id
        self.desired = desired
        """What the pipeline was told to be when it was taken."""
        self.size = size

    def listed(self) -> dict[str, object]:
        """As the contract lists it (contract.md section 1.3)."""
        return {
            "uuid": self.uuid,
            "identifier": None,
            "fingerprint": self.fingerprint,
            "size": self.size,
            "steps": self.steps,
            "processed_records": self.processed_records,
        }


class Checkpoints:
    """The checkpoints in one directory, of which the newest `keep` stay. `say` is told what an operator should know."""

    def __init__(self, directory: str, *, keep: int, say: Callable[[str], None]) -> None:
        self._directory = directory
        self._keep = max(1, keep)
        self._say = say
        self._lock: int | None = None
        self._files: dict[int, str] = {}
        self._known: list[Checkpoint] = []

    def open(self) -> None:
        """Find what is there; nobody else may work with it from now on. Raises InUse, OSError."""
        os.makedirs(self._directory, exist_ok=True)
        _sync_directory(os.path.dirname(self._directory) or ".")
        lock = os.open(os.path.join(self._directory, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise InUse(f"another process works with the checkpoints in {self._directory}") from None
        self._lock = lock
        for name in os.listdir(self._directory):
            if name.endswith(ASIDE):
                os.unlink(os.path.join(self._directory, name))
            sequence = name.partition("-")[0]
            if name.endswith(SUFFIX) and sequence.isascii() and sequence.isdecimal():
                self._files[int(sequence)] = name
        for sequence in sorted(self._files):
            with suppress(ValueError):  # a damaged one is told of when it would have been used
                self._known.append(self._read(sequence, whole=False)[0])

    def close(self) -> None:
        """Let others in."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def listed(self) -> list[dict[str, object]]:
        """All that are there, oldest first; never touches the disk."""
        return [checkpoint.listed() for checkpoint in tuple(self._known)]

    def size_bytes(self) -> int:
        """What all of them take."""
        return sum(checkpoint.size for checkpoint in tuple(self._known))

    def newest(self) -> tuple[Checkpoint, bytes] | None:
        """The newest that is whole, and its state; None when there is none at all.

        Raises Damaged when there are some, but none that is whole; OSError.
        """
        for sequence in sorted(self._files, reverse=True):
            try:
                return self._read(sequence, whole=True)
            except ValueError as error:
                self._say(f"checkpoint {self._files[sequence]} is damaged and not used: {error}")
                self._known = [one for one in self._known if one.sequence != sequence]
        if self._files:
            raise Damaged(f"none of the {len(self._files)} checkpoints in {self._directory} is whole")
        return None

    def write(self, state: bytes, checkpoint: Checkpoint) -> None:
        """Keep `state` as the newest checkpoint; its `sequence` and `size` are set here. Raises OSError.

        When the disk is full, the older ones make room but for the newest of them.
        """
        checkpoint.sequence = max(self._files, default=0) + 1
        told = {
            "uuid": checkpoint.uuid,
            "version": checkpoint.version,
            "steps": checkpoint.steps,
            "processed_records": checkpoint.processed_records,
            "deployment_id": checkpoint.deployment_id,
            "desired": checkpoint.desired,
        }
        line = json.dumps(told).encode() + b"\n"
        head = MAGIC + b"%08x %d\n" % (zlib.crc32(state, zlib.crc32(line)), len(line) + len(state))
        checkpoint.size = len(head) + len(line) + len(state)
        name = f"{checkpoint.sequence:012d}-{checkpoint.uuid}{SUFFIX}"
        try:
            self._write(name, (head, line, state))
        except OSError as error:
            if error.errno not in NO_ROOM or not self._prune(self._known[-1:]):
                raise
            self._write(name, (head, line, state))
        self._files[checkpoint.sequence] = name
        self._prune([*self._known, checkpoint][-self._keep :])

    def _write(self, name: str, parts: tuple[bytes, ...]) -> None:
        path = os.path.join(self._directory, name)
        aside = path.removesuffix(SUFFIX) + ASIDE
        try:
            with open(aside, "wb", buffering=0) as file:
                for part in parts:
                    rest = memoryview(part)
                    while rest:
                        rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            os.rename(aside, path)
            _sync_directory(self._directory)
        except OSError:
            for left in (aside, path):
                with suppress(OSError):
                    os.unlink(left)
            raise

    def _read(self, sequence: int, *, whole: bool) -> tuple[Checkpoint, bytes]:
        """One from disk; without `whole`, only its head, and no state. Raises ValueError when it is damaged."""
        name = self._files[sequence]
        with open(os.path.join(self._directory, name), "rb") as file:
            head = file.readline(HEAD_LIMIT_BYTES)
            fields = head[len(MAGIC) :].split()
            if not head.startswith(MAGIC) or not head.endswith(b"\n") or len(fields) != 2:
                raise ValueError("it does not begin as a checkpoint does")
            checksum, length = int(fields[0], 16), int(fields[1])
            size = os.fstat(file.fileno()).st_size
            if size != len(head) + length:
                raise ValueError(f"it has {size} bytes and not {len(head) + length}")
            line = file.readline(HEAD_LIMIT_BYTES)
            state = file.read() if whole else b""
        if whole and zlib.crc32(state, zlib.crc32(line)) != checksum:
            raise ValueError("its checksum is wrong")
        try:
            told = json.loads(line)
            checkpoint = Checkpoint(
                sequence=sequence,
                uuid=str(told["uuid"]),
                version=str(told["version"]),
                steps=int(told["steps"]),
                processed_records=int(told["processed_records"]),
                deployment_id=str(told["deployment_id"]),
                desired=str(told["desired"]),
                size=size,
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"what it tells of itself makes no sense: {error!r}") from error
        return checkpoint, state

    def _prune(self, known: list[Checkpoint]) -> bool:
        """Have `known` be all that there are; tells whether any went."""
        self._known = known
        kept = {one.sequence for one in known}
        removed = False
        for sequence in [one for one in self._files if one not in kept]:
            try:
                os.unlink(os.path.join(self._directory, self._files[sequence]))
            except FileNotFoundError:
                pass
            except OSError as error:
                self._say(f"checkpoint {self._files[sequence]} cannot be removed: {error}")
                continue
            del self._files[sequence]
            removed = True
        return removed


def _sync_directory(path: str) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
