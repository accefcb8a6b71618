"""Begins a program so that its end is recorded though no daemon may live to see it, and so that it begins only once.

Called by the process executor, in a thread. Two shells, both POSIX `sh` without a line of the user's text in them:
the recorder, in a session of its own, waits for the program and writes its exit code down (about 0.1 MB); the other
one claims the deployment and becomes the program. Must never be given a command line to interpret: programs are
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

RECORD = """
exec 3>&2 2>/dev/null
"$@"
code=$?
read -r pid name state parent rest <"$0/claim" && [ "$parent" = $$ ] && echo $code >"$0/exit"
exit $code
"""
"""$0: the deployment's directory. The claim names the recorder that waits: one that lost the race records nothing.
The shell's own remarks ("Killed") are not the program's, so they go nowhere."""

BEGIN = f"""
exec 2>&3 3>&-
ulimit -S -n "$2"
set -C
{{ true >"$1"; }} 2>/dev/null || exit {LOST}
read -r PENSTOCK_CLAIM </proc/self/stat && echo "$PENSTOCK_CLAIM" >>"$1" || exit {CLAIM_NOT_WRITTEN}
[ "$3" = stopped ] && kill -STOP $$
shift 3
exec "$@"
"""
"""$1: the claim, $2: the soft limit of descriptors, $3: `stopped` to stop before the program's first instruction.
The one variable has a name that no environment of a pipeline may use, so nothing of theirs is overwritten."""


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
    setsid: str
    """Path of setsid(1)."""


def spawn(launch: Launch) -> Recorder:
    """Begin a program. Blocks for about a millisecond; whether it begins is seen by its claim.

    Raises OSError, and ValueError for words that no process can have (a NUL in them).
    """
    directory = str(launch.directory)
    begin = [_SHELL, "-c", BEGIN, "penstock", f"{directory}/claim", launch.soft_nofile]
    stopped = "stopped" if launch.stopped else ""
    return Recorder(
        [_SHELL, "-c", RECORD, directory, launch.setsid, *begin, stopped, *_with_odd_names(launch.argv, launch.env)],
        stdin=subprocess.DEVNULL,
        stdout=launch.output,
        stderr=launch.output,
        cwd=launch.directory / "work",
        env=dict(launch.env),
        pass_fds=tuple(launch.descriptors),
        start_new_session=True,
    )


def is_unbegun(command_line: bytes) -> bool:
    """Tell whether a process is one of the two shells, not yet or never a program."""
    words = command_line.split(b"\0")
    return len(words) > 2 and words[1] == b"-c" and words[2] in (os.fsencode(RECORD), os.fsencode(BEGIN))


def _with_odd_names(argv: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """Shells drop variables whose names are no identifiers (`a.b`); env(1) sets them again."""
    odd = [f"{name}={value}" for name, value in env.items() if not (name.isascii() and name.isidentifier())]
    return ["env", *odd, *argv] if odd else list(argv)
