"""Begins a program so that its end is recorded though no daemon may live to see it, and so that it begins only once.

Called by the process executor, in a thread. One POSIX shell, without a line of the user's text in it, is the recorder:
in a session of its own it waits for the program and writes its exit code down (about 0.1 MB). Its child claims the
deployment, and becomes the program in another session. Must never be given a command line to interpret: programs are
words, passed through `"$@"`.

Why it is so: signals to the program's group do not reach the recorder, no trap changes what the program inherits, and
the claim is made by whoever is about to begin, with O_EXCL. So however many daemons die between deciding to spawn and
spawning, one program begins; and once the claim is made by a stop, none does.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LOST = 121
"""What a shell exits with that found the claim made, or could not make it."""
CLAIM_NOT_WRITTEN = 122
"""It made the claim, but could not fill it in (a full disk), and did not begin the program."""

_SHELL = "/bin/sh"

SCRIPT = f"""
exec 3>&2 2>/dev/null
ulimit -S -w "$3" || ulimit -S -x "$3"
(
  exec 2>&3 3>&-
  ulimit -S -n "$1"
  set -C
  {{ true >"$0/claim"; }} 2>/dev/null || exit {LOST}
  read -r PENSTOCK_CLAIM </proc/self/stat && echo "$PENSTOCK_CLAIM" >>"$0/claim" || exit {CLAIM_NOT_WRITTEN}
  [ "$2" = stopped ] && kill -STOP "${{PENSTOCK_CLAIM%% *}}"
  shift 3
  exec "$@"
)
code=$?
read -r pid name state parent rest <"$0/claim" && [ "$parent" = $$ ] && echo $code >"$0/exit"
exit $code
"""
"""$0: the deployment's directory, $1: the soft limit of descriptors, $2: `stopped` to stop before the program's first
instruction, $3: the mark of whatever descends from here (`procfs.mark`; the letter of that limit is -w to dash, -x to
bash); then setsid(1) and the program. The claim names the recorder that waits: one that lost the race records
nothing. The shell's own remarks ("Killed") are not the program's, so they go nowhere. Until the program's environment
is passed on, the one variable has a name that no pipeline may use, so that nothing of theirs is overwritten."""


class Recorder(subprocess.Popen[bytes]):
    """A recorder that this process has begun. It may be forgotten while it runs: it is there to survive."""

    def __del__(self) -> None:
        """Nothing: Popen would warn of a child that still runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """All that a program begins with. `descriptors` are passed on under their own numbers, which must be above 9."""

    directory: Path
    """The deployment's; the work directory is in it."""
    argv: Sequence[str]
    env: Mapping[str, str]
    output: int
    descriptors: Sequence[int]
    soft_nofile: str
    stopped: bool
    mark: int
    setsid: str
    """Path of setsid(1)."""


def spawn(launch: Launch) -> Recorder:
    """Begin a program. Blocks for about a millisecond; whether it begins is seen by its claim.

    Raises OSError, and ValueError for words that no process can have (a NUL in them).
    """
    stopped = "stopped" if launch.stopped else ""
    words = [launch.soft_nofile, stopped, str(launch.mark), launch.setsid, *_with_odd_names(launch.argv, launch.env)]
    return Recorder(
        [_SHELL, "-c", SCRIPT, str(launch.directory), *words],
        stdin=subprocess.DEVNULL,
        stdout=launch.output,
        stderr=launch.output,
        cwd=launch.directory / "work",
        env=dict(launch.env),
        pass_fds=tuple(launch.descriptors),
        start_new_session=True,
    )


def is_unbegun(command_line: bytes) -> bool:
    """Tell whether a process is a recorder, or a child of it that has not become the program yet."""
    words = command_line.split(b"\0")
    return len(words) > 2 and words[1] == b"-c" and words[2] == os.fsencode(SCRIPT)


def _with_odd_names(argv: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """Shells drop variables whose names are no identifiers (`a.b`); env(1) sets them again."""
    odd = [f"{name}={value}" for name, value in env.items() if not (name.isascii() and name.isidentifier())]
    return ["env", *odd, *argv] if odd else list(argv)
