"""Keeps what builds made, by digest, on this machine's disk; and the directories that tools work in.

Called by `local.py`, always from a thread: everything here blocks. An artifact appears whole or not at all: it is made
in a directory of its own, its manifest is written last, and then the directory is renamed. Must never start anything.

    {state_dir}/builds/{token}/work/          where a tool runs: its HOME, its TMPDIR
    {state_dir}/builds/{token}/input/         what a tool reads beside the program
    {state_dir}/builds/{token}/kept/          what becomes the artifact
    {state_dir}/artifacts/{digest}/{program}  the text of the program
    {state_dir}/artifacts/{digest}/artifact/  whatever the build put into {artifact_dir}
    {state_dir}/artifacts/{digest}/manifest.json
    {state_dir}/environments/                 Python environments, shared by artifacts (`python_build.py`)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from penstock.linux import host_id, try_lock
from penstock.model import JsonObject
from penstock.toolchains.python_build import COMPLETE

MANIFEST = "manifest.json"

ENVIRONMENT_MARK = "pyvenv.cfg"
"""Every Python environment has one."""

ALWAYS_HASHED_BYTES = 1024 * 1024
"""A file up to this size is read again before each start; a larger one when its size, time or inode have changed."""

ALWAYS_HASHED_FILES = 64
"""So many of an artifact, at most: a whole environment must not be read before each start."""

_READ_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Workspace:
    """The directories of one step."""

    root: Path
    program_file: Path

    @property
    def work(self) -> Path:
        """Where the tool runs."""
        return self.root / "work"

    @property
    def input(self) -> Path:
        """What it reads beside the program."""
        return self.root / "input"

    @property
    def kept(self) -> Path:
        """What becomes the artifact."""
        return self.root / "kept"

    @property
    def artifact(self) -> Path:
        """Where a build puts what it made."""
        return self.kept / "artifact"


@dataclass(frozen=True, slots=True)
class _Stamp:
    """What changes when somebody writes to a file: as good as its content, as long as the machine is not reset."""

    size: int
    time: int
    inode: int


class Artifacts:
    """Everything below one state directory. Safe to use from several threads."""

    def __init__(self, state_dir: Path) -> None:
        self._builds = state_dir / "builds"
        self._artifacts = state_dir / "artifacts"
        self.environments = state_dir / "environments"
        self._host = host_id()
        self._working: set[str] = set()
        self._proven: dict[Path, _Stamp] = {}

    def path(self, digest: str) -> Path:
        """Where the artifact is kept, if it is."""
        return self._artifacts / digest

    def open_workspace(self, program_name: str, program: bytes, inputs: Mapping[str, bytes] | None) -> Workspace:
        """Make fresh directories for one step; `inputs` None = no tool will run in them. Raises OSError."""
        token = secrets.token_hex(8)
        self._working.add(token)  # before it exists: a sweep removes what it finds and does not know
        root = self._builds / token
        space = Workspace(root, root / "kept" / program_name)
        try:
            self._builds.mkdir(parents=True, exist_ok=True)
            for directory in (root, space.kept, space.artifact):
                directory.mkdir()
            space.program_file.write_bytes(program)
            if inputs is not None:
                space.work.mkdir()
                space.input.mkdir()
                for name, content in inputs.items():
                    (space.input / name).write_bytes(content)
        except BaseException:
            self.close_workspace(space)
            raise
        return space

    def close_workspace(self, space: Workspace) -> None:
        """Remove the directories of a step. Never raises: what cannot be removed is left to a sweep."""
        _remove(space.root)
        self._working.discard(space.root.name)

    def is_abandoned(self, work: str) -> bool:
        """Tell whether `work` is the working directory of a step of ours that nobody runs any more."""
        root = Path(work).parent
        return root.parent == self._builds and root.name not in self._working

    def keep(self, space: Workspace, digest: str, outcome: JsonObject) -> None:
        """Make what is in the workspace the artifact `digest`, in place of a damaged one. Raises OSError."""
        files = {str(path.relative_to(space.kept)): _entry(path) for path in _files(space.kept)}
        manifest = {"digest": digest, "host": self._host, "outcome": outcome, "files": files}
        (space.kept / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
        self._artifacts.mkdir(parents=True, exist_ok=True)
        self._discard(digest)
        space.kept.rename(self.path(digest))

    def outcome(self, digest: str) -> JsonObject | None:
        """What the build of `digest` came to, if its artifact is kept and whole."""
        return None if self.flaw(digest) is not None else cast("JsonObject", self._manifest(digest)["outcome"])

    def flaw(self, digest: str) -> str | None:
        """Tell what is missing or damaged of the artifact `digest`; None when it is whole."""
        path = self.path(digest)
        try:
            manifest = self._manifest(digest)
            files = cast("Mapping[str, Mapping[str, object]]", manifest["files"])
            same_host = manifest["host"] == self._host
            for number, (name, entry) in enumerate(files.items()):
                flaw = self._file_flaw(path / name, entry, believe=same_host, always=number < ALWAYS_HASHED_FILES)
                if flaw is not None:
                    return f"The built program is damaged: {flaw} ({path / name})."
            environment = path / "artifact" / "environment"
            if environment.is_symlink() and not (environment / COMPLETE).is_file():
                return f"The Python environment of the built program is missing or not whole ({environment})."
        except FileNotFoundError as error:
            return f"The built program is not kept any more: {error.filename} is missing."
        except OSError as error:
            return f"The built program cannot be read: {error}."
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return f"The built program is damaged: its manifest cannot be read ({error}; {path / MANIFEST})."
        return None

    def sweep(self, wanted: Collection[str]) -> int:
        """Remove every artifact that is not `wanted`, and what is left of steps that nobody runs; count the former."""
        for name in _names(self._builds):
            if name not in self._working:
                _remove(self._builds / name)
        unwanted = [name for name in _names(self._artifacts) if name not in wanted]
        for digest in unwanted:
            self._discard(digest)
        for digest in {name.partition(".")[0] for name in _names(self.environments)}:
            self._discard_environment(digest)
        return len(unwanted)

    def _discard_environment(self, digest: str) -> None:
        """Remove an environment that nothing links to and nobody makes; whoever links to it holds the same lock."""
        path = self.environments / digest
        lock = os.open(f"{path}.lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if try_lock(lock) and not any(_leads_to(link, path) for link in self._links_to_environments()):
                _remove(path)
                for ending in (".requirements", ".lock"):
                    Path(f"{path}{ending}").unlink(missing_ok=True)
        finally:
            os.close(lock)

    def _links_to_environments(self) -> Iterator[Path]:
        yield from self._artifacts.glob("*/artifact/environment")
        yield from self._builds.glob("*/kept/artifact/environment")

    def _discard(self, digest: str) -> None:
        """Remove an artifact: first from its place, so that half of one is never found there."""
        self._builds.mkdir(parents=True, exist_ok=True)
        aside = self._builds / f"discarded-{secrets.token_hex(8)}"
        path = self.path(digest)
        try:
            path.rename(aside)
        except FileNotFoundError:
            return
        _remove(aside)
        for known in [known for known in self._proven if known.is_relative_to(path)]:
            self._proven.pop(known, None)

    def _manifest(self, digest: str) -> JsonObject:
        return cast("JsonObject", json.loads((self.path(digest) / MANIFEST).read_bytes()))

    def _file_flaw(self, path: Path, entry: Mapping[str, object], *, believe: bool, always: bool) -> str | None:
        found = path.lstat()
        if "link" in entry:
            is_same = stat.S_ISLNK(found.st_mode) and os.readlink(path) == entry["link"]
            return None if is_same else "a link leads elsewhere"
        if not stat.S_ISREG(found.st_mode):
            return "a file has become something else"
        if found.st_size != entry["size"]:
            return f"a file has {found.st_size} bytes instead of {entry['size']}"
        if stat.S_IMODE(found.st_mode) != entry["mode"]:
            return "a file has other permissions"
        stamp = _stamp(found)
        if not (always and stamp.size <= ALWAYS_HASHED_BYTES):
            as_built = _Stamp(found.st_size, cast("int", entry["time"]), cast("int", entry["inode"]))
            if self._proven.get(path) == stamp or (believe and stamp == as_built):
                return None
        if _sha256(path) != entry["sha256"]:
            return "the checksum of a file differs"
        if stamp.size > ALWAYS_HASHED_BYTES or not always:
            self._proven[path] = stamp
        return None


def _files(root: Path) -> Iterator[Path]:
    """Files and links; a socket or a pipe that a tool left behind is no part of a program.

    Of a Python environment, thousands of files, only what makes it one: that it is there shows that it was completed.
    """
    for directory, names, files in os.walk(root):
        if ENVIRONMENT_MARK in files:
            names.clear()
            files = [ENVIRONMENT_MARK, "bin/python"]  # noqa: PLW2901 - and nothing else of it
        for path in (Path(directory, name) for name in (*files, *names)):
            if path.is_symlink() or path.is_file():
                yield path


def _entry(path: Path) -> dict[str, object]:
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        return {"link": os.readlink(path)}
    stamp = _stamp(found)
    return {
        "sha256": _sha256(path),
        "size": stamp.size,
        "mode": stat.S_IMODE(found.st_mode),
        "time": stamp.time,
        "inode": stamp.inode,
    }


def _stamp(found: os.stat_result) -> _Stamp:
    return _Stamp(found.st_size, found.st_mtime_ns, found.st_ino)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _leads_to(link: Path, path: Path) -> bool:
    try:
        return os.readlink(link) == str(path)
    except OSError:  # no link, or removed meanwhile
        return False


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _remove(path: Path) -> None:
    """Remove a tree, also one that a tool has made unwritable. Never raises."""
    shutil.rmtree(path, ignore_errors=True)
    if os.path.lexists(path):
        for directory, _, _ in os.walk(path):
            with contextlib.suppress(OSError):
                os.chmod(directory, 0o700)
        shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink()  # where it was no tree
