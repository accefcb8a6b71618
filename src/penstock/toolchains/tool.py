"""Runs one tool to its end: bounded in time and in output, in a directory of its own, and with nothing left of it.

Called by `local.py`. A tool is a child with a session of its own; it is watched by pidfd, so that no thread waits for
it. Whatever it started and left behind is killed with it: its group, and what moved elsewhere but carries the
directory's name in its environment. Must never know what a toolchain is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import anyio
from anyio import to_thread

KEPT_BYTES = 256 * 1024
"""Of each of stdout and stderr, half from the beginning and half from the end: rows carry it, and lists carry rows."""

OWNER_VARIABLE = "PENSTOCK_BUILD_DIR"
"""Every tool, and so whatever it starts, carries the directory it works for in its environment."""

_READ_BYTES = 64 * 1024
_FLOOD_PAUSE_SECONDS = 0.001
"""Between reads of output that nobody will see: it costs the event loop little, and the tool is never blocked."""

_CLOSE_SECONDS = 0.5
"""How long output may stay open after the tool has ended and its group was killed: what holds it open has escaped."""

_DEATH_SECONDS = 5.0
"""A killed process that has not ended by then hangs in the kernel; nothing more can be done about it."""

_HUNT_ROUNDS = 20


class ToolBroke(Exception):
    """The tool could not be run to its end, which is not the program's fault; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a tool ended, and what it printed. `exit_code` is negative for a signal, as in `subprocess`."""

    exit_code: int
    stdout: str
    stderr: str


@dataclass(slots=True)
class Output:
    """What a stream printed: its beginning and its end, however long it was."""

    total: int = 0
    _head: bytearray = field(default_factory=bytearray)
    _tail: bytearray = field(default_factory=bytearray)

    def add(self, data: bytes) -> None:
        """Take what was read."""
        half = KEPT_BYTES // 2
        self.total += len(data)
        room = half - len(self._head)
        self._head += data[:room]
        self._tail += data[max(0, room) :]
        if len(self._tail) > KEPT_BYTES:
            del self._tail[:-half]

    @property
    def overflows(self) -> bool:
        """More was printed than is kept."""
        return self.total > KEPT_BYTES

    def text(self) -> str:
        """All of it, or its beginning and end. Never holds NUL, which not every store can keep."""
        tail = self._tail[-(KEPT_BYTES // 2) :]
        left_out = self.total - len(self._head) - len(tail)
        between = f"\n[{left_out} bytes left out]\n".encode() if left_out else b""
        return (self._head + between + tail).decode("utf-8", errors="replace").replace("\0", "\ufffd")


async def run_tool(argv: Sequence[str], *, directory: str, env: Mapping[str, str], timeout_seconds: float) -> Ended:
    """Run `argv` in `directory`; raises ToolBroke when it cannot be started, takes too long or is killed.

    May be cancelled. Either way nothing of it is left running when this returns or raises, and its output is closed.
    """
    started: list[_Tool] = []
    environment = {**env, OWNER_VARIABLE: directory}
    try:
        with anyio.move_on_after(timeout_seconds):
            # The list, and not a result: a cancellation must not lose a process that has just been made.
            await to_thread.run_sync(lambda: started.append(_start(argv, directory, environment)))
            return await _follow(started[0])
    finally:
        for tool in started:
            await _finish(tool, directory)
    raise ToolBroke(f"{_name(argv)} took longer than {timeout_seconds:g} s and was stopped.")


@dataclass(slots=True)
class _Tool:
    process: subprocess.Popen[bytes]
    pidfd: int
    quiet: bool = False
    """Its group is dead and its output closed: nothing of it can be left, unless it hides."""


def _start(argv: Sequence[str], directory: str, env: Mapping[str, str]) -> _Tool:
    try:
        process = subprocess.Popen(
            argv,
            bufsize=0,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=directory,
            env=env,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise ToolBroke(
            f"{_name(argv)} cannot be started: {why}. Install it where the daemon's PATH finds it, or correct the "
            "toolchain."
        ) from error
    try:
        return _Tool(process, os.pidfd_open(process.pid))
    except OSError as error:
        process.kill()
        process.communicate()
        raise ToolBroke(f"{_name(argv)} cannot be watched: {error.strerror}.") from error


async def _follow(tool: _Tool) -> Ended:
    assert tool.process.stdout is not None  # noqa: S101 - both are pipes, see above
    assert tool.process.stderr is not None  # noqa: S101
    stdout, stderr = Output(), Output()
    async with anyio.create_task_group() as readers:
        readers.start_soon(_read, tool.process.stdout.fileno(), stdout)
        readers.start_soon(_read, tool.process.stderr.fileno(), stderr)
        await anyio.wait_readable(tool.pidfd)
        # Until it is reaped it holds its group's number: this cannot hit anybody else.
        _kill_group(tool.process.pid)
        readers.cancel_scope.deadline = anyio.current_time() + _CLOSE_SECONDS
    tool.quiet = not readers.cancel_scope.cancelled_caught
    return Ended(tool.process.wait(), stdout.text(), stderr.text())


async def _read(fd: int, output: Output) -> None:
    os.set_blocking(fd, False)
    while True:
        await anyio.wait_readable(fd)
        try:
            data = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            continue
        if not data:
            return
        output.add(data)
        if output.overflows:
            await anyio.sleep(_FLOOD_PAUSE_SECONDS)


async def _finish(tool: _Tool, directory: str) -> None:
    with anyio.CancelScope(shield=True):
        if tool.process.returncode is None:
            _kill_group(tool.process.pid)
            with anyio.move_on_after(_DEATH_SECONDS):
                await anyio.wait_readable(tool.pidfd)
            tool.process.poll()
        if not tool.quiet:
            await to_thread.run_sync(lambda: hunt(lambda owner: owner == directory))
        for pipe in (tool.process.stdout, tool.process.stderr):
            if pipe is not None:
                pipe.close()
        os.close(tool.pidfd)


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def hunt(is_prey: Callable[[str], bool]) -> int:
    """Kill every process whose OWNER_VARIABLE `is_prey`, until there is none; returns how many. Blocks: looks at all.

    Goes round again as long as it finds any, since what was killed may just have started another.
    """
    killed = 0
    for _ in range(_HUNT_ROUNDS):
        found = sum(_kill_if(int(name), is_prey) for name in os.listdir("/proc") if name.isdecimal())
        if not found:
            break
        killed += found
        time.sleep(0.005)  # the dead keep their environment for a moment
    return killed


def _kill_if(pid: int, is_prey: Callable[[str], bool]) -> bool:
    mark = b"\0" + OWNER_VARIABLE.encode() + b"="
    try:
        # First the pidfd, then the look: whatever is killed is what was looked at.
        pidfd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            _, found, rest = (b"\0" + file.read()).partition(mark)
        if not found or not is_prey(os.fsdecode(rest.partition(b"\0")[0])):
            return False
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(pidfd)


def _name(argv: Sequence[str]) -> str:
    return f"The tool {argv[0]!r}" if argv else "The tool"
