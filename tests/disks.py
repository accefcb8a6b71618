"""Real file systems that are small enough to be filled; mounting them takes rights that not every machine gives."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

KINDS = ("tmpfs", "ext4")


@contextmanager
def small_disk(home: Path, kind: str, mebibytes: int) -> Iterator[Path]:
    """A file system of its own; skips the test where none may be mounted, unless nothing may be skipped."""
    mounted = home / "disk"
    mounted.mkdir()
    if kind == "tmpfs":
        argv = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "none", str(mounted)]
    else:
        image = home / "image"
        with image.open("wb") as file:
            file.truncate(mebibytes << 20)
        block = "1024" if kind == "ext4-1k" else "4096"
        with suppress(FileNotFoundError):  # then mount has nothing to mount
            subprocess.run(["mkfs.ext4", "-q", "-b", block, "-m", "0", str(image)], capture_output=True, check=False)
        argv = ["mount", "-o", "loop", str(image), str(mounted)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        if os.environ.get("PENSTOCK_TEST_REQUIRE_ALL"):
            pytest.fail(f"may not mount a small disk: {done.stderr}")
        pytest.skip("may not mount a small disk")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "--lazy", str(mounted)], check=True)


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


def _until(holds: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < give_up_at
        time.sleep(0.005)
