"""A pipeline's directory: its storage, the lock on it, and how storage is removed so that it is surely gone.

Called by the process executor, in threads: every function may block for as long as the disk takes, and raises OSError.
Storage is renamed aside first, which is atomic, and deleted from there; whatever stays behind counts as remaining.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from penstock import linux
from penstock.executors.records import PRIVATE, Records, make_private
from penstock.model import DeploymentId, PipelineId

_LOWEST_LOCK_DESCRIPTOR = 10
"""Shells use the descriptors below for themselves."""

_LOCK_ATTEMPTS, _LOCK_PAUSE_SECONDS = 5, 0.01
"""A child of this very process, caught between fork and exec, holds every lock for a moment."""

_WALK_SECONDS, _WALK_STEP = 0.25, 256
"""How long `size_bytes` may count before it gives up, and how many files it counts between two looks at the clock."""


class Held(Exception):
    """Somebody holds the storage lock."""


class Home:
    """The directory of one pipeline, below the daemon's state directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.storage = root / "storage"
        self.lock_file = root / "storage.lock"
        self._trash = root / "trash"
        self._deployments = root / "deployments"

    def records(self, deployment_id: DeploymentId) -> Records:
        """The records of one deployment."""
        return Records(self._deployments / deployment_id)

    def make(self) -> None:
        """Make the storage directory; nothing if it exists."""
        make_private(self.storage)

    @contextmanager
    def locked(self) -> Generator[int]:
        """Hold the storage lock; the descriptor may be passed on, and whoever has it holds the lock. Raises Held."""
        with self._locked(os.O_RDWR | os.O_CREAT) as fd:
            yield fd

    @contextmanager
    def _locked(self, mode: int) -> Generator[int]:
        low = os.open(self.lock_file, mode | os.O_CLOEXEC, 0o600)
        try:
            fd = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, _LOWEST_LOCK_DESCRIPTOR)
        finally:
            os.close(low)
        try:
            for attempt in range(_LOCK_ATTEMPTS):
                if linux.try_lock(fd):
                    break
                if attempt + 1 == _LOCK_ATTEMPTS:
                    raise Held
                time.sleep(_LOCK_PAUSE_SECONDS)
            yield fd
        finally:
            os.close(fd)

    def is_locked(self) -> bool:
        """Tell whether anything holds the storage lock, by trying. Needs no room on the disk, nor a right to write."""
        try:
            with self._locked(os.O_RDONLY):
                return False
        except FileNotFoundError:
            return False
        except Held:
            return True

    def remains(self) -> bool:
        """Tell whether storage, or a part of it that was renamed aside, exists."""
        return _exists(self.storage) or bool(_names(self._trash))

    def set_aside(self, name: str) -> None:
        """Rename storage and the deployments out of the way, so that none of it is in use any more."""
        _refuse_mounts(self.storage, self._deployments)
        if self.storage.is_symlink():
            raise OSError(f"{self.storage} is a symbolic link; what it points to must be cleared by hand")
        if not _exists(self._trash) and _exists(self._deployments):
            self._deployments.rename(
                self._trash
            )  # no new directory: a disk that the pipeline filled has no room for one
        make_private(self._trash)
        for directory in (self.storage, self._deployments):
            if _exists(directory):
                directory.rename(self._trash / f"{directory.name}-{name}")
        _sync(self.root)

    def empty_trash(self) -> None:
        """Delete what was renamed aside, and verify that it is gone."""
        if _exists(self._trash):
            delete(self._trash)
            _sync(self.root)

    def delete_deployment(self, deployment_id: DeploymentId) -> None:
        """Delete what is kept of a deployment that is over; nothing if there is nothing."""
        root = self.records(deployment_id).root
        if _exists(root):
            delete(root)

    def deployments(self) -> list[DeploymentId]:
        """The deployments of which something is kept."""
        return [DeploymentId(name) for name in _names(self._deployments)]

    def exists(self) -> bool:
        """Tell whether anything is kept of the pipeline."""
        return _exists(self.root)

    def remove(self) -> None:
        """Delete everything that is kept of the pipeline; nothing if there is nothing."""
        if _exists(self.root):
            delete(self.root)

    def size_bytes(self) -> int | None:
        """What the storage takes on disk; None when there are too many files to count quickly."""
        give_up_at = time.monotonic() + _WALK_SECONDS
        total = seen = 0
        for directory, _, files in os.walk(self.storage):
            for name in files:
                seen += 1
                if seen % _WALK_STEP == 0 and time.monotonic() > give_up_at:
                    return None
                try:
                    total += os.lstat(os.path.join(directory, name)).st_blocks * 512
                except OSError:  # removed meanwhile
                    continue
        return total


def pipelines(root: Path) -> list[PipelineId]:
    """The pipelines that have a directory."""
    return [PipelineId(name) for name in _names(root)]


def delete(path: Path) -> None:
    """Delete a tree, also where its owner took the right to write away. Raises OSError if any of it remains.

    What is mounted in it is somebody else's: then nothing is deleted at all.
    """
    _refuse_mounts(path)

    def again(
        remove: Callable[[str], object], name: str, why: tuple[type[BaseException], BaseException, object]
    ) -> None:
        if isinstance(why[1], FileNotFoundError):
            return
        for directory in (os.path.dirname(name), name):
            if not os.path.islink(directory) and os.path.isdir(directory):
                os.chmod(directory, PRIVATE)
        if remove in (os.open, os.scandir, os.lstat):
            shutil.rmtree(name)
        else:
            remove(name)

    try:
        shutil.rmtree(path, onerror=again)
    except RecursionError:  # a tree a thousand deep; rm(1) knows no bound
        subprocess.run(["rm", "-rf", "--one-file-system", "--", str(path)], check=False, capture_output=True)
    if _exists(path):
        raise OSError(f"{path} is still there")


def _refuse_mounts(*directories: Path) -> None:
    mounts = [point for directory in directories for point in linux.mounts_below(directory)]
    if mounts:
        raise OSError(f"{', '.join(mounts)} is mounted from elsewhere, and kept; umount it first")


def _exists(path: Path) -> bool:
    """As os.path.lexists, but what cannot be looked at is an error rather than absent."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
