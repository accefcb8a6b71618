"""Checkpoint files: whole or not there, verified, bounded, one process at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from penstock.runtime.checkpoints import Checkpoint, Checkpoints, Damaged, InUse
from tests.disks import small_disk

from .program import ENDLESS, Program

Run = Callable[..., Program]


def opened(directory: Path, *, keep: int = 3, said: list[str] | None = None) -> Checkpoints:
    checkpoints = Checkpoints(str(directory), keep=keep, say=[].append if said is None else said.append)
    checkpoints.open()
    return checkpoints


def told(steps: int) -> Checkpoint:
    return Checkpoint(
        sequence=0,
        uuid=f"u{steps}",
        version="v",
        steps=steps,
        processed_records=steps * 2,
        deployment_id="d",
        desired="Paused",
    )


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    writer = opened(tmp_path / "c")
    assert writer.newest() is None
    writer.write(b"one", told(1))
    writer.write(b"two\nlines\0", told(2))
    listed = writer.listed()
    writer.close()
    reader = opened(tmp_path / "c")
    assert reader.listed() == listed
    assert [one["processed_records"] for one in listed] == [2, 4]
    newest = reader.newest()
    assert newest is not None
    assert newest[1] == b"two\nlines\0"
    assert (newest[0].uuid, newest[0].version, newest[0].steps, newest[0].desired) == ("u2", "v", 2, "Paused")
    reader.write(b"three", told(3))
    assert len(list((tmp_path / "c").glob("*.checkpoint"))) == 3


def test_only_the_newest_stay(tmp_path: Path) -> None:
    checkpoints = opened(tmp_path / "c", keep=2)
    for number in range(5):
        checkpoints.write(b"%d" % number, told(number))
    assert [one["uuid"] for one in checkpoints.listed()] == ["u3", "u4"]
    assert sorted(path.name[:12] for path in (tmp_path / "c").glob("*.checkpoint")) == ["000000000004", "000000000005"]


def test_no_byte_of_a_checkpoint_can_be_wrong_unnoticed(tmp_path: Path) -> None:
    first = opened(tmp_path / "c")
    first.write(b"former", told(1))
    first.write(b"the newest", told(2))
    first.close()
    path = max((tmp_path / "c").glob("*.checkpoint"))
    whole = path.read_bytes()
    torn = [whole[:length] for length in range(len(whole))]
    flipped = [whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :] for at in range(len(whole))]
    for content in [*torn, *flipped, whole + b"!"]:
        path.write_bytes(content)
        said: list[str] = []
        checkpoints = opened(tmp_path / "c", said=said)
        newest = checkpoints.newest()
        assert newest is not None
        assert newest[1] == b"former", content
        assert path.name in said[0]
        assert [one["uuid"] for one in checkpoints.listed()] == ["u1"]
        checkpoints.close()
    checkpoints = opened(tmp_path / "c")
    checkpoints.newest()
    checkpoints.write(b"next", told(3))
    assert not path.exists()
    assert [one["uuid"] for one in checkpoints.listed()] == ["u1", "u3"]


def test_when_none_is_whole_nothing_is_begun_anew(tmp_path: Path) -> None:
    checkpoints = opened(tmp_path / "c")
    checkpoints.write(b"state", told(1))
    checkpoints.close()
    [path] = (tmp_path / "c").glob("*.checkpoint")
    path.write_bytes(b"")
    with pytest.raises(Damaged):
        opened(tmp_path / "c").newest()
    assert path.exists()


def test_what_a_dead_process_left_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    left = tmp_path / "c" / "000000000001-u.checkpoint.new"
    left.write_bytes(b"half")
    (tmp_path / "c" / "notes.txt").write_text("not ours")
    assert opened(tmp_path / "c").newest() is None
    assert not left.exists()
    assert (tmp_path / "c" / "notes.txt").exists()


def test_two_processes_never_share_checkpoints(tmp_path: Path) -> None:
    checkpoints = opened(tmp_path / "c")
    with pytest.raises(InUse):
        opened(tmp_path / "c")
    checkpoints.close()
    opened(tmp_path / "c")


def test_a_full_disk_costs_older_checkpoints_but_never_the_newest(tmp_path: Path) -> None:
    with small_disk(tmp_path, "tmpfs", 1) as disk:
        said: list[str] = []
        checkpoints = opened(disk / "c", said=said)
        for number in range(8):
            checkpoints.write(os.urandom(300_000), told(number))
        state = os.urandom(300_000)
        checkpoints.write(state, told(8))
        (disk / "ballast").write_bytes(b"x" * (os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize))
        with pytest.raises(OSError, match="No space left"):
            checkpoints.write(os.urandom(900_000), told(9))
        assert not list((disk / "c").glob("*.new"))
        newest = checkpoints.newest()
        assert newest is not None
        assert newest[1] == state
        checkpoints.close()


def test_a_write_is_synced_before_it_is_renamed_and_its_directory_after(tmp_path: Path) -> None:
    """What the kernel was told, in order: the only thing that a test can see of a power cut."""
    script = """
import os, sys
sys.path.insert(0, %r)
calls = []
def traced(name):
    real = getattr(os, name)
    def call(*args, **kwargs):
        what = os.readlink(f"/proc/self/fd/{args[0]}") if name == "fsync" else args[0]
        calls.append((name, os.path.basename(what).partition(".")[2] or "directory"))
        return real(*args, **kwargs)
    setattr(os, name, call)
traced("fsync"), traced("rename")
from penstock.runtime.checkpoints import Checkpoint, Checkpoints
checkpoints = Checkpoints(%r, keep=1, say=print)
checkpoints.open()
calls.clear()
checkpoints.write(b"s", Checkpoint(sequence=0, uuid="u", version="", steps=0, processed_records=0, deployment_id="",
                                   desired=""))
print(calls)
"""
    source = str(Path(__file__).parents[2] / "src")
    done = subprocess.run(
        [sys.executable, "-c", script % (source, str(tmp_path / "c"))], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(
        [("fsync", "checkpoint.new"), ("rename", "checkpoint.new"), ("fsync", "directory")]
    )


def test_a_damaged_newest_is_passed_over_by_a_pipeline(run: Run) -> None:
    program = run(ENDLESS)
    program.until(lambda: program.records() > 5)
    program.take_checkpoint()
    before = program.state()
    program.take_checkpoint()
    program.kill()
    newest = max((program.storage / "checkpoints").glob("*.checkpoint"))
    newest.write_bytes(newest.read_bytes()[:-3])
    program = run(ENDLESS)
    program.until(lambda: program.records() > before["next"])
    assert "damaged" in program.log
    assert f"goes on from checkpoint {program.checkpoints()[0]['uuid']}, {before['next']} records" in program.log


def test_a_pipeline_whose_checkpoints_are_all_damaged_fails_and_says_so(run: Run) -> None:
    program = run(ENDLESS)
    program.until_status("Running", "Running")
    program.take_checkpoint()
    program.kill()
    for path in (program.storage / "checkpoints").glob("*.checkpoint"):
        path.write_bytes(b"")
    program = run(ENDLESS)
    code, body = program.until(lambda: (answer := program.ask("/status"))[0] == 500 and answer)
    assert (code, body["error_code"], body["details"]["exception"]) == (500, "InitializationError", "Damaged")
