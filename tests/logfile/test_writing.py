"""What the daemon writes into a pipeline's log, and `tail`."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from penstock.clock import SystemClock
from penstock.logfile import LogFiles
from penstock.logfile.files import TAIL_LINE_CHARACTERS
from penstock.model import PipelineId
from tests.core.rows import fresh

from .conftest import ID, append, history

ROW = replace(fresh(), id=ID)
STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"


async def test_begins_with_a_fresh_start(logs: LogFiles) -> None:
    path = logs.path(ID)
    assert logs.path(ID) == path
    (line,) = await history(logs)
    expected = (
        rf'\[manager\] {STAMP}  INFO penstock: Fresh start of pipeline logs pipeline-id="{ID}" pipeline-name="N/A"\n'
    )
    assert re.fullmatch(expected.encode(), line)


def test_only_its_owner_may_read(make: Callable[[], LogFiles]) -> None:
    path = Path(make().path(ID))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    numbered = make()
    numbered.note(ROW, "INFO", "known")
    numbered._files[ID].numbering.mark(SystemClock().now(), 1, resting=True)
    numbered._files[ID].numbering.save_marks()
    assert {file.name for file in path.parent.iterdir()} == {"pipeline.log", "pipeline.numbers", "pipeline.times"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}
    for directory in list(path.parents)[:3]:
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


async def test_notes(logs: LogFiles) -> None:
    logs.note(ROW, "INFO", "resources transition stopped -> provisioning")
    logs.note(ROW, "ERROR", "two\nlines")
    _, *lines = await history(logs)
    where = f'pipeline-id="{ID}" pipeline-name="p1"\n'
    for line, expected in zip(
        lines,
        (
            rf"\[manager\] {STAMP}  INFO penstock: resources transition stopped -> provisioning ",
            rf"\[manager\] {STAMP} ERROR penstock: two ",
            rf"\[manager\] {STAMP} ERROR penstock: lines ",
        ),
        strict=True,
    ):
        assert re.fullmatch((expected + re.escape(where)).encode(), line)


async def test_a_note_does_not_hide_a_partial_line(logs: LogFiles) -> None:
    append(logs.path(ID), b"Traceback: out of")
    logs.note(ROW, "INFO", "ended")
    _, program, note = await history(logs)
    assert program == b"Traceback: out of\n"
    assert b"penstock: ended" in note


def test_a_note_never_raises(make: Callable[[], LogFiles], tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where a directory should be")
    make().note(ROW, "INFO", "lost")


async def test_survives_the_daemon(make: Callable[[], LogFiles]) -> None:
    async with make() as first:
        first.note(ROW, "INFO", "one")
    append(first.path(ID), b"between\n")
    async with make() as second:
        second.note(ROW, "INFO", "two")
        lines = await history(second)
    assert [b"Fresh" in lines[0], b"one" in lines[1], lines[2] == b"between\n", b"two" in lines[3]] == [True] * 4
    assert len(lines) == 4


def test_tail(make: Callable[[], LogFiles]) -> None:
    logs = make()
    assert logs.tail(PipelineId("unknown"), 5) == ()
    path = logs.path(ID)
    append(path, b"one\ntwo\xff\0\nlast words")
    assert logs.tail(ID, 2) == ("two�", "last words")
    assert logs.tail(ID, 3) == ("one", "two�", "last words")
    assert len(logs.tail(ID, 100)) == 3
    assert logs.tail(ID, 0) == ()


def test_a_tail_is_what_the_program_of_the_latest_run_has_printed(make: Callable[[], LogFiles]) -> None:
    logs = make()
    logs.note(ROW, "INFO", "---- run d-1 begins ----")
    path = logs.path(ID)
    append(path, b"of the first run\n")
    logs.note(ROW, "INFO", "---- run d-1 ended ----")
    logs.note(ROW, "INFO", "---- run d-2 begins ----")
    assert logs.tail(ID, 5) == ()
    append(path, b"one\n---- run d-3 begins ----\n")
    logs.note(ROW, "INFO", "runtime transition initializing -> running")
    append(path, b"two\n")
    assert logs.tail(ID, 5) == ("one", "---- run d-3 begins ----", "two")
    assert logs.tail(ID, 1) == ("two",)


def test_tail_is_bounded(make: Callable[[], LogFiles]) -> None:
    logs = make()
    path = logs.path(ID)
    append(path, b"first\n" + b"x" * 1_000_000)
    (line,) = logs.tail(ID, 10)
    assert line == "x" * (TAIL_LINE_CHARACTERS - 1) + "…"
    append(path, b"\n" + b"y\n" * 1_000_000)
    assert logs.tail(ID, 10) == ("y",) * 10
    os.truncate(path, 0)
    assert logs.tail(ID, 10) == ()
