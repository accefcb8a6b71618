"""The numbers of lines: without gaps, the same for ever, whatever is trimmed and whoever is killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest

from penstock.clock import SystemClock
from penstock.logfile import LogFiles, bounds, files, numbering
from penstock.logfile.lines import BLOCK_BYTES, Lines
from penstock.logfile.numbering import Numbering, Place, State
from penstock.model import PipelineId
from penstock.ports import LogCursor, LogPosition
from tests.core.rows import fresh

from .conftest import ID, MB, append, on_disk, until

SCALE = int(os.environ.get("PENSTOCK_TEST_SCALE", "1"))
HOST = "this boot"
GRAIN = bounds.GRAIN_BYTES
clock = SystemClock()


def numbered(path: Path, host: str = HOST) -> Numbering:
    return Numbering.load(str(path), host=host, new_id=clock.new_id)


def at(numbering: Numbering, seq: int, epoch: str | None = None) -> LogPosition:
    return numbering.locate(cursor=LogCursor(epoch or numbering.state.epoch, seq))


def advance(numbering: Numbering, path: Path, target: int) -> None:
    with path.open("rb") as file:
        while not numbering.advance(file.fileno(), target):
            pass


async def lines_from(
    logs: LogFiles, cursor: LogCursor | None = None, *, tail: int | None = None, since: datetime | None = None
) -> tuple[LogPosition, list[bytes]]:
    """Where it began, and what came, unfinished line included."""
    position = await logs.position(ID, cursor=cursor, tail=tail, since=since)
    async with aclosing(logs.read(ID, follow=False, position=position)) as blocks:
        return position, b"".join([block async for block in blocks]).splitlines(keepends=True)


# --- what is where --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_every_number_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(numbering, "PIECE_BYTES", 7)
    monkeypatch.setattr(numbering, "STRIDE_BYTES", 20)
    monkeypatch.setattr(numbering, "MOST_PLACES", 5)
    monkeypatch.setattr(numbering, "LEAP_BYTES", 50)
    chance = random.Random(seed)
    lines = [b"x" * chance.randrange(12) + b"\n" for _ in range(100)]
    path = tmp_path / "pipeline.log"
    path.write_bytes(b"".join(lines) + b"unfinished")
    text = path.read_bytes()
    log = numbered(path)
    for cut in (0, 13, 140, 299):
        advance(log, path, cut)
        discarded = log.state.discarded
        assert len(b"".join(lines[:discarded])) == log.state.front.offset >= cut
        assert not discarded or len(b"".join(lines[: discarded - 1])) < cut
        for seq in chance.sample(range(104), 104):
            found = at(log, seq)
            expected = min(max(seq, discarded), 100)
            assert (found.seq, found.gap) == (expected, max(0, discarded - seq))
            assert text[found.offset :] == b"".join(lines[expected:]) + b"unfinished"
            assert not found.torn
        log = numbered(path)
        assert log.state.discarded == discarded, "recorded"


def test_cursors_as_the_contract_says(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.log"
    path.write_bytes(b"1\n2\n3\n4\n5\n6\n7\n8\n")
    log = numbered(path)
    advance(log, path, 6)
    nothing = log.locate()
    assert (nothing.seq, nothing.gap, nothing.offset, nothing.epoch) == (3, 3, 6, log.state.epoch)
    for seq, expected in {3: (3, 0), 6: (6, 0), 8: (8, 0), 1: (3, 2), 0: (3, 3), 2**64 - 1: (8, 0)}.items():
        assert (at(log, seq).seq, at(log, seq).gap) == expected
    unknown = at(log, 7, clock.new_id())
    assert (unknown.seq, unknown.gap, unknown.offset) == (3, 3, 6)


def test_tail(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.log"
    path.write_bytes(b"1\n2\n3\n4\nunfinished")
    log = numbered(path)
    found = {count: (log.locate(tail=count).seq, log.locate(tail=count).gap) for count in (0, 1, 3, 4, 5, 10**15)}
    assert found == {0: (4, 0), 1: (3, 0), 3: (1, 0), 4: (0, 0), 5: (0, 0), 10**15: (0, 0)}
    advance(log, path, 4)
    assert (log.locate(tail=3).seq, log.locate(tail=3).gap) == (2, 1)
    both = log.locate(tail=2, cursor=LogCursor(log.state.epoch, 3))
    assert both.seq == 3


def test_a_line_across_the_front_is_not_given(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.log"
    path.write_bytes(b"1\n" + b"x" * 100)
    log = numbered(path)
    advance(log, path, 50)
    assert (log.state.front, log.state.torn, log.state.discarded) == (Place(50, 1), True, 2)
    found = log.locate()
    assert (found.seq, found.gap, found.torn, found.offset) == (2, 2, True, 50)
    append(str(path), b"\n3\n4\n")
    assert (at(log, 3).seq, at(log, 3).offset, at(log, 3).torn) == (3, 105, False)
    advance(log, path, 60)
    assert (log.state.front, log.state.torn) == (Place(103, 2), False)


def test_a_front_at_a_line_end_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.log"
    path.write_bytes(b"1\n2\n3\n")
    log = numbered(path)
    advance(log, path, 2)
    assert log.state.front == Place(2, 1)


# --- whoever is killed ----------------------------------------------------------------------------------------------


def test_recorded_but_not_punched(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.log"
    path.write_bytes(b"1\n2\n3\n4\n")
    log = numbered(path)
    advance(log, path, 4)
    again = numbered(path)
    assert again.state == log.state
    assert (again.locate().seq, again.locate().offset) == (2, 4)


@pytest.mark.parametrize("happened", [True, False])
def test_killed_while_the_file_was_shifted(tmp_path: Path, happened: bool) -> None:
    path = tmp_path / "pipeline.log"
    path.write_bytes(b"1\n2\n3\n4\n")
    log = numbered(path)
    advance(log, path, 4)

    def killed() -> None:
        if happened:
            path.write_bytes(path.read_bytes()[4:])
        raise KeyboardInterrupt

    with path.open("rb") as file, pytest.raises(KeyboardInterrupt):
        log.take(file.fileno(), 4, killed)
    again = numbered(path)
    assert again.state.base == (4 if happened else 0)
    assert again.state.taking is None
    append(str(path), b"5\n")
    assert [again.locate(tail=1).seq, at(again, 3).seq, again.locate().seq] == [4, 3, 2]
    assert at(again, 3).offset == 6


def test_what_cannot_be_shifted_stays(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.log"
    path.write_bytes(b"1\n2\n3\n4\n")
    log = numbered(path)
    advance(log, path, 4)
    before = log.state

    def refused() -> None:
        raise OSError(95, "not here")

    with path.open("rb") as file, pytest.raises(OSError, match="not here"):
        log.take(file.fileno(), 4, refused)
    assert log.state == before == numbered(path).state


def test_the_host_was_started_again(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.log"
    path.write_bytes(b"1\n2\n3\n4\n")
    first = numbered(path)
    os.truncate(path, 6)  # the disk had not got the last one
    second = numbered(path, "another boot")
    assert second.state.epoch != first.state.epoch
    append(str(path), b"4 again\n5\n")
    for seq, expected in ((1, 1), (3, 3), (4, 3)):
        found = at(second, seq, first.state.epoch)
        assert (found.seq, found.gap, found.epoch) == (expected, 0, second.state.epoch)
    third = numbered(path, "a third boot")
    assert at(third, 5, second.state.epoch).seq == 5
    assert at(third, 4, first.state.epoch).seq == 3
    for number in range(40):
        third = numbered(path, f"boot {number}")
    assert len(third.state.former) == numbering.MOST_EPOCHS
    assert Path(tmp_path, "pipeline.numbers").stat().st_size == 4096


@pytest.mark.parametrize("damage", [b"", b"garbage", b"00000000 {}"])
def test_a_damaged_record_begins_an_epoch(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "pipeline.log"
    path.write_bytes(b"1\n2\n")
    first = numbered(path)
    record = tmp_path / "pipeline.numbers"
    record.write_bytes(damage + record.read_bytes()[len(damage) :] if damage else b"")
    again = numbered(path)
    assert again.state.epoch != first.state.epoch
    assert at(again, 2, first.state.epoch).seq == 0


def test_a_full_disk_keeps_nobody_from_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pipeline.log"
    path.write_bytes(b"1\n2\n")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as filled:
        filled.setattr(numbering, "_record", full)
        log = numbered(path)
        assert log.locate(tail=1).seq == 1
    advance(log, path, 2)
    assert numbered(path).state == log.state


def test_holes_of_a_log_without_record(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.log"
    with path.open("wb") as file:
        file.truncate(GRAIN)
    append(str(path), b"rest\nwhole\n")
    log = numbered(path)
    assert log.state == State(epoch=log.state.epoch, host=HOST, front=Place(GRAIN, 0), torn=True)
    assert log.locate().seq == 1


def test_emptied_by_somebody_else(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.log"
    path.write_bytes(b"1\n2\n3\n")
    log = numbered(path)
    first = log.state.epoch
    assert log.locate(tail=0).seq == 3
    path.write_bytes(b"new\n")
    assert log.locate(tail=0).seq == 1
    assert log.state.epoch != first
    assert numbered(path).state == log.state


# --- time -----------------------------------------------------------------------------------------------------------


def test_since(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.log"
    begin = datetime(2026, 1, 1, tzinfo=UTC)

    def after(seconds: float) -> datetime:
        return begin + timedelta(seconds=seconds)

    path.write_bytes(b"")
    log = numbered(path)
    size = 0
    for second in range(10):  # one line each second, looked at just before it is written; then rest
        log.mark(after(second), size, resting=False)
        append(str(path), b"%d\n" % second)
        size += 2
    for second in (10, 11, 12, 500):
        log.mark(after(second), size, resting=True)
    append(str(path), b"late, unfin")
    expected = {-5: 0, 0: 0, 0.5: 0, 1: 1, 4.7: 4, 9: 9, 10: 10, 499: 10, 500: 10, 9999: 10}
    assert {second: log.locate(since=after(second)).seq for second in expected} == expected
    log.save_marks()
    again = numbered(path)
    assert {second: again.locate(since=after(second)).seq for second in expected} == expected
    advance(again, path, 8)
    assert (again.locate(since=after(2)).seq, again.locate(since=after(7)).seq) == (4, 7)
    assert again.locate(since=after(7)).gap == 0
    again.mark(after(3), size + 5, resting=True)  # the clock was set back
    assert again.locate(since=after(3.5)).seq == 10
    assert again.locate(since=after(2)).seq == 4, "rather too much than too little"


def test_marks_are_bounded_and_the_recent_ones_dense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbering, "MOST_MARKS", 16)
    path = tmp_path / "pipeline.log"
    path.write_bytes(b"x\n" * 1000)
    log = numbered(path)
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    for second in range(1000):
        log.mark(begin + timedelta(seconds=second), 2 * second, resting=False)
        log.mark(begin + timedelta(seconds=second + 0.1), 2 * second + 1, resting=False)
    assert len(log._marks) <= 16
    for second in range(993, 1000):
        assert log.locate(since=begin + timedelta(seconds=second)).seq == second
    assert log.locate(since=begin + timedelta(seconds=500)).seq <= 500


# --- files that are kept short --------------------------------------------------------------------------------------

NUMBERS = """
import os, sys
number = {first}
while number < {last}:
    os.write(1, b"".join(b"%d %s\\n" % (n, b"x" * (n % 97)) for n in range(number, number + 500)))
    number += 500
"""


def check(position: LogPosition, lines: list[bytes]) -> None:
    """Each line bears its number: the first one of a log is the daemon's, and those of NUMBERS count from 2."""
    for number, line in enumerate(lines, position.seq + 1):
        if line.endswith(b"\n"):  # not one that is being written
            daemons = number == 1 and line.startswith(b"[manager]")
            assert daemons or line == b"%d %s\n" % (number, b"x" * (number % 97)), (position, number, line)


async def test_numbers_last_while_it_is_trimmed(
    make: Callable[[], LogFiles], spawn: Callable[[str, str], subprocess.Popen[bytes]]
) -> None:
    first, last = 2, 200_002 * SCALE
    for _ in range(3):
        async with make() as logs, anyio.create_task_group() as tasks:
            tasks.start_soon(logs.run)
            process = spawn(logs.path(ID), NUMBERS.format(first=first, last=last))
            while process.poll() is None:
                position, lines = await lines_from(logs)
                check(position, lines)
            first = last + (500 - (last - first) % 500) % 500
            last = first + 100_000
            await until(lambda logs=logs: on_disk(logs.path(ID)) <= MB, "the log within its bound")
            position, lines = await lines_from(logs)
            check(position, lines)
            assert position.seq > 50_000
            assert position.seq + len(lines) == first - 1
            tasks.cancel_scope.cancel()


async def test_followers_resume_without_loss_or_doubling(
    logs: LogFiles, spawn: Callable[[str, str], subprocess.Popen[bytes]]
) -> None:
    last = 100_002
    process = spawn(logs.path(ID), NUMBERS.format(first=2, last=last))
    cursor, seen, gaps = None, 0, 0
    chance = random.Random(1)
    with anyio.fail_after(20):
        while cursor is None or cursor.seq < last - 1:
            position = await logs.position(ID, cursor=cursor)
            assert position.seq == (cursor.seq if cursor else 0) + position.gap
            gaps += position.gap
            count, most = 0, chance.randrange(1, 20_000)
            async with aclosing(logs.read(ID, follow=True, position=position)) as blocks:
                async for block in blocks:
                    lines = block.splitlines(keepends=True)
                    check(replace(position, seq=position.seq + count), lines)
                    count += len(lines)
                    if count >= most or position.seq + count >= last - 1:
                        break
            cursor = LogCursor(position.epoch, position.seq + count)
            seen += count
    assert process.wait() == 0
    assert seen + gaps == last - 1


async def test_a_follower_with_a_position_that_is_overtaken_ends(logs: LogFiles) -> None:
    path = logs.path(ID)
    append(path, b"x" * 99 + b"\n")
    position = await logs.position(ID)
    async with aclosing(logs.read(ID, follow=True, position=position)) as blocks:
        got = await anext(blocks)
        append(path, (b"y" * 99 + b"\n") * 40_000)
        await until(lambda: on_disk(path) <= MB, "the log within its bound")
        with anyio.fail_after(5):
            rest = [block async for block in blocks]
    lines = (got + b"".join(rest)).count(b"\n")
    assert lines == 2
    again = await logs.position(ID, cursor=LogCursor(position.epoch, lines))
    assert again.gap > 20_000
    assert again.seq == lines + again.gap


async def test_an_unfinished_line_has_no_number_yet(logs: LogFiles) -> None:
    append(logs.path(ID), b"2\nunfin")
    position, lines = await lines_from(logs)
    assert lines[1:] == [b"2\n", b"unfin"]
    append(logs.path(ID), b"ished\n4\n")
    _, lines = await lines_from(logs, LogCursor(position.epoch, 2))
    assert lines == [b"unfinished\n", b"4\n"]
    assert (await lines_from(logs, tail=0))[1] == []


async def test_without_holes_numbers_go_on(make: Callable[[], LogFiles], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "no holes here")

    monkeypatch.setattr(bounds, "punch_hole", refuse)
    async with make() as logs, anyio.create_task_group() as tasks:
        tasks.start_soon(logs.run)
        path = logs.path(ID)
        epoch = (await logs.position(ID)).epoch
        append(path, b"".join(b"%d %s\n" % (n, b"x" * 99) for n in range(2, 20_000)) + b"torn")
        await until(lambda: os.stat(path).st_size == 0, "the log emptied")
        append(path, b" line\n20001\n")
        position, lines = await lines_from(logs)
        assert (position.epoch, position.seq, position.gap, lines) == (epoch, 20_000, 20_000, [b"20001\n"])
        logs.note(replace(fresh(), id=ID), "INFO", "still here")
        assert (await lines_from(logs, tail=1))[0].seq == 20_001
        tasks.cancel_scope.cancel()
    async with make() as logs:
        assert (await lines_from(logs, tail=2))[1][0] == b"20001\n"


async def test_offsets_are_given_back_too(
    make: Callable[[], LogFiles],
    spawn: Callable[[str, str], subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bounds, "SHIFT_BYTES", 5 * MB)
    last = 2 + 400_000 * SCALE
    async with make() as logs, anyio.create_task_group() as tasks:
        tasks.start_soon(logs.run)
        path = logs.path(ID)
        got = bytearray()

        async def follow() -> None:
            async with aclosing(logs.read(ID, follow=True)) as blocks:
                async for block in blocks:
                    got.extend(block)

        tasks.start_soon(follow)
        process = spawn(path, NUMBERS.format(first=2, last=last))
        while process.poll() is None:
            check(*await lines_from(logs))
        await until(lambda: on_disk(path) <= MB, "the log within its bound")
        await until(lambda: logs._trimmer._rigid or logs._files[ID].numbering.state.base > 5 * MB, "offsets given back")
        if logs._trimmer._rigid:
            pytest.skip("this file system cannot take holes out of a file")
        state = logs._files[ID].numbering.state
        assert os.stat(path).st_size < 12 * MB < state.front.offset
        position, lines = await lines_from(logs)
        check(position, lines)
        assert position.seq + len(lines) == last - 1
        await until(lambda: got.endswith(lines[-1]), "the follower at the end")
        numbers = [int(line.split()[0]) for line in got.splitlines() if not line.startswith(b"[manager]")]
        assert numbers == sorted(set(numbers))
        tasks.cancel_scope.cancel()
    async with make() as logs:
        check(*await lines_from(logs))


def test_offsets_beyond_two_tebibytes(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.log"
    path.write_bytes(b"1\n")
    log = numbered(path)
    with path.open("r+b") as file:
        log._become(replace(log.state, front=Place(2 << 40, 77)))
        file.truncate(2 << 40)
        append(str(path), b"78\n79\n")
        try:
            log.take(file.fileno(), 2 << 40, lambda: bounds.collapse_range(file.fileno(), 0, 2 << 40))
        except OSError:
            pytest.skip("this file system cannot take holes out of a file")
    assert path.read_bytes() == b"78\n79\n"
    assert [at(log, 78).seq, at(log, 78).offset] == [78, (2 << 40) + 3]


KEEPER = """
import sys
from pathlib import Path
import anyio
from penstock.clock import SystemClock
from penstock.logfile import LogFiles, bounds
from penstock.model import PipelineId
bounds.FASTEST_LOOK_SECONDS = 0.001
async def keep():
    async with LogFiles(state_dir=Path(sys.argv[1]), clock=SystemClock(), max_bytes=1 << 20) as logs:
        logs.path(PipelineId(sys.argv[2]))
        print("kept", flush=True)
        await logs.run()
anyio.run(keep)
"""


async def test_numbers_last_however_often_the_daemon_is_killed(
    make: Callable[[], LogFiles], tmp_path: Path, spawn: Callable[[str, str], subprocess.Popen[bytes]]
) -> None:
    """Daemons that trim are killed at any instant while a program writes; no line ever gets another number."""
    path = make().path(ID)
    pace = NUMBERS.format(first=2, last=10**12) + "    import time; time.sleep(0.0005)\n"
    process = spawn(path, pace)
    chance = random.Random(7)
    epochs: set[str] = set()
    last = 0
    for _ in range(6 * SCALE):
        command = [sys.executable, "-c", KEEPER, str(tmp_path / "state"), ID]
        keeper = subprocess.Popen(command, stdout=subprocess.PIPE)  # noqa: ASYNC220
        try:
            assert keeper.stdout is not None
            await anyio.to_thread.run_sync(keeper.stdout.readline)
            with anyio.move_on_after(chance.uniform(0.05, 0.5)):
                await anyio.sleep_forever()
        finally:
            keeper.send_signal(signal.SIGKILL)
            keeper.wait()
            keeper.stdout.close()
        position, lines = await lines_from(make())
        check(position, lines)
        assert position.seq >= last
        last = position.seq
        epochs.add(position.epoch)
    assert last > 100_000, "they had the time to trim"
    assert len(epochs) == 1
    assert process.poll() is None


# --- clean lines ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("character", ["é", "€", "😀"])
def test_a_cut_does_not_split_a_character(character: str) -> None:
    encoded = character.encode()
    for shift in range(len(encoded)):
        lines = Lines()
        text = b"x" * (BLOCK_BYTES - shift) + encoded
        assert lines.take(text[:BLOCK_BYTES]) == b""
        got = lines.take(text[BLOCK_BYTES:] + b"\n").decode()
        assert "�" not in got
        cut = f" [cut: {len(encoded)} more bytes]" if shift < len(encoded) else ""
        assert got == "x" * (BLOCK_BYTES - shift) + cut + "\n"


async def test_one_greedy_reader_does_not_starve_the_rest(logs: LogFiles) -> None:
    logs.limit(200 * MB)
    append(logs.path(ID), (b"y" * 99 + b"\n") * 500_000)
    worst = 0.0
    done = anyio.Event()

    async def watch() -> None:
        nonlocal worst
        while not done.is_set():
            before = anyio.current_time()
            await anyio.sleep(0.001)
            worst = max(worst, anyio.current_time() - before)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        async with aclosing(logs.read(ID, follow=False)) as blocks:
            count = 0
            async for block in blocks:
                count += block.count(b"\n")
        done.set()
    print(f"50 MB read at once: the loop waited at most {worst * 1e3:.1f} ms")
    assert count == 500_001
    assert worst < 0.1


def test_a_program_that_opens_a_file_being_looked_at_kills_nobody(tmp_path: Path) -> None:
    """Who breaks a lease has the holder signalled; by default that ends it."""
    code = (
        "import fcntl, os, sys\n"
        "from penstock.logfile import bounds\n"
        "real, opened = fcntl.fcntl, []\n"
        "def control(fd, command, argument=0):\n"
        "    answer = real(fd, command, argument)\n"
        "    if (command, argument) == (fcntl.F_SETLEASE, fcntl.F_RDLCK):\n"
        "        try: os.open(sys.argv[1], os.O_WRONLY | os.O_NONBLOCK)\n"
        "        except BlockingIOError: opened.append(True)\n"
        "    return answer\n"
        "bounds.fcntl.fcntl = control\n"
        "bounds.has_writer(sys.argv[1])\n"
        "sys.exit(0 if opened else 3)\n"
    )
    path = tmp_path / "log"
    path.touch()
    ended = subprocess.run([sys.executable, "-c", code, str(path)], timeout=30, check=False).returncode
    assert ended == 0, "3 = there are no leases here"


async def test_looking_for_holes_makes_none(logs: LogFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """However quickly a program writes while the daemon finds out whether the file system has holes."""
    punch, path = bounds.punch_hole, logs.path(ID)

    def late(fd: int, offset: int, length: int) -> None:
        if offset > 0:
            append(path, (b"y" * 99 + b"\n") * 2_000)
        punch(fd, offset, length)

    monkeypatch.setattr(bounds, "punch_hole", late)
    append(path, (b"x" * 99 + b"\n") * 20_000)
    await until(lambda: logs._trimmer._has_holes is True and on_disk(path) <= MB, "the log within its bound")
    front = logs._files[ID].numbering.state.front.offset
    assert b"\0" not in Path(path).read_bytes()[front:]  # noqa: ASYNC240


@pytest.mark.parametrize("exact", [True, False])
async def test_what_goes_while_it_is_read_is_not_passed_on(
    logs: LogFiles, monkeypatch: pytest.MonkeyPatch, exact: bool
) -> None:
    path = logs.path(ID)
    append(path, b"".join(b"%d %s\n" % (n, b"x" * (n % 97)) for n in range(2, 12_000)))
    piece = files._piece

    async def late(fd: int, offset: int) -> bytes:
        monkeypatch.setattr(files, "_piece", piece)
        advance(logs._files[ID].numbering, Path(path), GRAIN)
        with open(path, "r+b") as file:  # noqa: ASYNC230
            bounds.punch_hole(file.fileno(), 0, GRAIN)
        return await piece(fd, offset)

    position = await logs.position(ID, cursor=LogCursor((await logs.position(ID)).epoch, 500))
    assert 0 < position.offset < GRAIN, "one piece has something of both"
    monkeypatch.setattr(files, "_piece", late)
    async with aclosing(logs.read(ID, follow=False, position=position if exact else None)) as blocks:
        got = b"".join([block async for block in blocks])
    if exact:
        assert got == b"", "it is over: the next position tells what is missing"
    else:
        first, *lines = got.splitlines(keepends=True)
        assert b"prior log lines were discarded" in first
        check(await logs.position(ID), lines)


async def test_what_went_while_a_reader_waited_for_its_turn(logs: LogFiles) -> None:
    path = logs.path(ID)
    append(path, (b"x" * 99 + b"\n") * 20_000)
    file = logs._files[ID]
    with open(path, "r+b") as opened:  # noqa: ASYNC230
        fd = opened.fileno()
        reader = files._Reader(file, fd, None)
        assert reader.missed() == 0
        advance(file.numbering, Path(path), 8 * GRAIN)
        file.numbering.take(fd, 8 * GRAIN, lambda: bounds.collapse_range(fd, 0, 8 * GRAIN))
        assert await reader.next_block(float("inf")) == b""
        assert reader.missed() == file.numbering.state.discarded > 5000
        assert (await reader.next_block(float("inf"))).startswith(b"x" * 99 + b"\n")


async def test_ids_are_remembered_without_a_log(logs: LogFiles) -> None:
    """A stream that was told where to begin in a log that is deleted meanwhile ends, and brings nothing back."""
    logs.path(ID)
    position = await logs.position(ID)
    logs.forget(ID)
    with anyio.fail_after(5):
        async with aclosing(logs.read(ID, follow=True, position=position)) as blocks:
            assert [block async for block in blocks] == []
    assert PipelineId(ID) not in logs._files


async def test_since_a_time_to_come_is_only_what_is_new(logs: LogFiles) -> None:
    with open(logs.path(ID), "ab") as file:  # noqa: ASYNC230 - as a program does
        file.write(b"old\n" * 10)
    position, lines = await lines_from(logs, since=clock.now() + timedelta(days=1))
    assert (position.seq, position.gap, lines) == (11, 0, [])
