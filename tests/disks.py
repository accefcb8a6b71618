"""Real file systems that are small enough to be filled; mounting them takes rights that not every machine gives."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

KINDS = ("tmpfs", "ext4")


@contextmanager
def small_disk(home: Path, kind: str, mebibytes: int) -> Iterator[Path]:
    """A file system of its own; skips the test where none may be mounted."""
    mounted = home / "disk"
    mounted.mkdir()
    if kind == "tmpfs":
        argv = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "none", str(mounted)]
    else:
        image = home / "image"
        with image.open("wb") as file:
            file.truncate(mebibytes << 20)
        block = "1024" if kind == "ext4-1k" else "4096"
        if shutil.which("mkfs.ext4") is None:
            no = pytest.fail if os.environ.get("PENSTOCK_TEST_REQUIRE_ALL") else pytest.skip
            no("mkfs.ext4 is not installed (Debian: e2fsprogs)")
        subprocess.run(["mkfs.ext4", "-q", "-b", block, "-m", "0", str(image)], capture_output=True, check=True)
        argv = ["mount", "-o", "loop", str(image), str(mounted)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:  # a right, which nothing that could be installed would give
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "--lazy", str(mounted)], check=True)


@contextmanager
def bound(source: Path, target: Path) -> Iterator[None]:
    """Have `source` at `target` too, made if need be; skips the test as above."""
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.touch()
    _mount(["mount", "--bind", str(source), str(target)])
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(target)], check=True, capture_output=True)


@contextmanager
def hog(disk: Path) -> Iterator[None]:
    """A program that fills the disk, takes whatever becomes free, and never gives up; what it wrote is removed."""
    ballast = disk / "ballast"
    # It is given the open file, and a minute: should it outlive the test, it fills no other disk, and not for long.
    with ballast.open("ab") as file:
        child = subprocess.Popen(
            ["timeout", "60", "sh", "-c", "while :; do cat /dev/zero; done"],
            stdout=file,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    with child:
        try:
            _until(lambda: free_bytes(disk) < 1 << 16)
            yield
        finally:
            size = ballast.stat().st_size
            os.killpg(child.pid, signal.SIGKILL)
            ballast.unlink()
            _until(lambda: free_bytes(disk) > size // 2)  # the kernel takes its time


def free_bytes(disk: Path) -> int:
    """What is free on it."""
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


def _mount(argv: list[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:  # a right, as above
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")


def _until(holds: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < give_up_at
        time.sleep(0.005)
