"""What a person sees: commands on a real (pseudo) terminal, read back as the terminal would show it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.daemon import Daemon

from .conftest import STUBBORN, TICKER, environment

CTRL_C = "\x03"
_SEQUENCE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|[\r\n]|\x1b.|[^\x1b\r\n]")


class Terminal:
    """A pseudo terminal on which a command runs."""

    def __init__(self, arguments: tuple[str, ...], env: dict[str, str], columns: int) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
        self.process = subprocess.Popen(
            ["setsid", "--ctty", sys.executable, "-m", "penstock", *arguments],
            env=env,
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        self.raw = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, holds: Callable[[str], bool], within_seconds: float = 15) -> str:
        give_up_at = time.monotonic() + within_seconds
        while not holds(self.raw):
            assert time.monotonic() < give_up_at, self.raw
            self._read(0.1)
        return self.raw

    def interrupt(self) -> None:
        """Type Ctrl-C until it is heeded: one that comes just before the program waits for a line is not."""
        for _ in range(15):
            if self.process.poll() is not None:
                return
            self.type(CTRL_C)
            give_up_at = time.monotonic() + 1
            while self.process.poll() is None and time.monotonic() < give_up_at:
                self._read(0.05)

    def end(self) -> int:
        """Wait until the command has ended; its exit code."""
        while self._read(15):
            pass
        return self.process.wait(15)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    def shown(self) -> list[str]:
        """What stands on the terminal now: enough of its language to follow what is printed here."""
        lines, row, column = [""], 0, 0
        for found in _SEQUENCE.finditer(self.raw):
            text, argument, command = found[0], found[1], found[2]
            if text == "\r":
                column = 0
            elif text == "\n":
                row, column = row + 1, 0
                lines += [""] * (row + 1 - len(lines))
            elif command == "A":
                row = max(0, row - int(argument or 1))
            elif command == "K":
                lines[row] = "" if argument == "2" else lines[row][:column]
            elif len(text) == 1 and text.isprintable():
                lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + 1 :]
                column += 1
        return [line.rstrip() for line in lines if line.strip()]

    def _read(self, timeout: float) -> bool:
        if not select.select([self._master], [], [], timeout)[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # nobody has it open any more
            return False
        self.raw += data.decode()
        return bool(data)


Open = Callable[..., Terminal]


@pytest.fixture
def terminal(daemon: Daemon) -> Iterator[Open]:
    opened: list[Terminal] = []

    def open_(*arguments: str, columns: int = 80, **environ: str) -> Terminal:
        env = {name: value for name, value in {**os.environ, **environment(daemon), **environ}.items() if value}
        opened.append(Terminal(arguments, env, columns))
        return opened[-1]

    yield open_
    for each in opened:
        each.close()


@pytest.fixture
def stubborn(daemon: Daemon) -> Iterator[str]:
    """The name of a running pipeline that does not end when it is asked to."""
    if daemon.ask("GET", "/v0/pipelines/stubborn").status == 404:
        daemon.create("stubborn", STUBBORN)
    daemon.start_pipeline("stubborn")
    yield "stubborn"
    daemon.stop_pipeline("stubborn")


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (
            200,
            "stubborn 1s  program Success resources Provisioned runtime Running → Suspended storage InUse  wait",
        ),
        (80, "stubborn 1s  Success · Provisioned · Running → Suspended · InUse  waits for"),
        (40, "stubborn 1s Running → Stopped"),
        (12, "stubbor…"),
    ],
)
def test_a_line_is_drawn_while_it_waits(terminal: Open, daemon: Daemon, stubborn: str, columns: int, line: str) -> None:
    waiting = terminal("stop", stubborn, columns=columns)
    waiting.until(lambda raw: " 1s" in raw if columns > 12 else line in raw)
    (drawn,) = waiting.shown()
    assert line in drawn
    assert len(drawn) <= columns
    daemon.post(stubborn, "stop", force="true")
    assert waiting.end() == 0
    (told,) = waiting.shown()
    assert told.startswith("stubborn: Stopped (")


def test_what_is_done_at_once_draws_nothing(terminal: Open, daemon: Daemon) -> None:
    daemon.create("quick", TICKER)
    daemon.start_pipeline("quick")
    done = terminal("pause", "quick")
    assert done.end() == 0
    assert done.raw.startswith("quick: Paused (")
    assert len(done.raw.splitlines()) == 1
    daemon.stop_pipeline("quick")


def test_interrupted(terminal: Open, daemon: Daemon, stubborn: str) -> None:
    waiting = terminal("stop", stubborn)
    waiting.until(lambda raw: " 1s" in raw)
    waiting.type(CTRL_C)
    assert waiting.end() == 130
    shown = waiting.shown()
    assert "no longer waiting for stubborn to be Stopped" in shown[0]
    assert shown[-1] == "  try: penstock get stubborn"


def test_a_terminal_that_cannot_draw_gets_lines(terminal: Open, daemon: Daemon, stubborn: str) -> None:
    waiting = terminal("stop", stubborn, columns=200, TERM="dumb")
    waiting.until(lambda raw: "Suspended" in raw)
    daemon.post(stubborn, "stop", force="true")
    assert waiting.end() == 0
    assert "\x1b" not in waiting.raw
    assert "stubborn: program Success, resources Provisioned, runtime Running → Suspended, storage InUse" in waiting.raw


def test_colour(terminal: Open, stubborn: str) -> None:
    coloured = terminal("get", stubborn)
    assert coloured.end() == 0
    assert "\x1b[32mRunning" in coloured.raw
    plain = terminal("get", stubborn, NO_COLOR="1")
    assert plain.end() == 0
    assert "\x1b" not in plain.raw


@pytest.mark.parametrize(
    ("columns", "titles"),
    [
        (100, "NAME STATUS WANTED PROGRAM STORAGE SINCE REMARK"),
        (60, "NAME STATUS PROGRAM REMARK"),
        (40, "NAME STATUS REMARK"),
        (10, "NAME STATUS"),
    ],
)
def test_tables_fit(terminal: Open, daemon: Daemon, columns: int, titles: str) -> None:
    if daemon.ask("GET", "/v0/pipelines/faulty").status == 404:
        daemon.create("faulty", "x = =\n", wait=False)
        daemon.until("faulty", lambda row: row["program_status"] == "SqlError")
    done = terminal("get", "faulty", columns=columns)
    assert done.end() == 0
    header, row = done.shown()
    assert " ".join(header.split()) == titles
    assert columns < 40 or max(len(header), len(row)) <= columns
    assert columns < 40 or "its program" in row


@pytest.mark.parametrize(("answer", "code"), [("n\r", 1), ("\r", 1), (CTRL_C, 130), ("y\r", 0)])
def test_delete_asks(terminal: Open, daemon: Daemon, answer: str, code: int) -> None:
    if daemon.ask("GET", "/v0/pipelines/doomed").status == 404:
        daemon.create("doomed", STUBBORN)
        daemon.start_pipeline("doomed")
    asking = terminal("delete", "doomed")
    asking.until(lambda raw: "[y/N]" in raw)
    assert "doomed: is Running, and will be stopped by force; has storage, which will be lost" in " ".join(
        asking.raw.split()
    )
    if answer == CTRL_C:
        asking.interrupt()
    else:
        asking.type(answer)
    assert asking.end() == code
    assert daemon.ask("GET", "/v0/pipelines/doomed").status == (404 if code == 0 else 200)
