"""What the bench asks of every program that it measures. One module beside this one implements it for each."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar, Literal

from tests.bench.measuring import command_lines, until

State = Literal["running", "stopped", "changing"]
"""`stopped` is also what has ended by itself; `changing` is whatever is neither."""


class Peer(ABC):
    """One supervisor with its services, all of them `sleep`; everything of it is in `home`.

    `prepare` once, then `boot`; between the two, and after `end`, no supervisor runs. Never restarts a service that
    died, so that the death can be seen.
    """

    name: ClassVar[str]
    autostarts: ClassVar[bool] = True
    """Whether `autostart` means anything: that a boot starts the services. Without, it keeps what runs."""

    def __init__(self, home: Path, services: Sequence[str], *, autostart: bool = False) -> None:
        self.home = home
        self.services = list(services)
        self.autostart = autostart
        self.sleep = ("sleep", f"86400000.{secrets.randbelow(10**12):012d}")
        """What each service is: nothing else on this machine sleeps for so long."""

    @abstractmethod
    def prepare(self) -> None:
        """Write down the services where `boot` finds them, all stopped."""

    @abstractmethod
    def boot(self) -> None:
        """Run the supervisor; returns as soon as it has answered its first question."""

    @abstractmethod
    def end(self, number: signal.Signals) -> None:
        """Send the supervisor a signal, and wait until it has ended; nothing when none runs."""

    @property
    @abstractmethod
    def pid(self) -> int:
        """The process id of the supervisor."""

    @abstractmethod
    def start(self, service: str) -> None:
        """Ask for a start; it need not be done yet."""

    @abstractmethod
    def stop(self, service: str) -> None:
        """Ask for a stop; it need not be done yet."""

    @abstractmethod
    def start_all(self) -> None:
        """Ask for the start of all, in the quickest way that there is."""

    @abstractmethod
    def stop_all(self) -> None:
        """Ask for the stop of all, in the quickest way that there is."""

    @abstractmethod
    def state(self, service: str) -> State:
        """Ask for the state of one."""

    @abstractmethod
    def states(self) -> dict[str, State]:
        """Ask for the states of all, in one request."""

    @abstractmethod
    def process(self, service: str) -> int | None:
        """Ask for the process id of one; None when it says that there is none."""

    @abstractmethod
    def obituary(self, service: str) -> str:
        """What it says of how the service ended; `nothing` when it does not know that it did."""

    def processes(self) -> list[int]:
        """Every process that is a service of this peer, whether the supervisor knows it or not."""
        mark = self.sleep[1].encode()
        lines = command_lines().items()
        return [pid for pid, line in lines if line[1:] == [mark] and line[0].endswith(b"sleep")]

    def close(self) -> None:
        """Kill the supervisor, the services, and whatever else was started for them. Not to be interrupted."""
        with undisturbed():
            self.end(signal.SIGKILL)
            until(lambda: not self._kill_remains(), f"the end of {self.name}'s processes")

    def _kill_remains(self) -> bool:
        """Kill what is of this peer; tells whether there was anything, since it may have begun more meanwhile."""
        marks = (str(self.home).encode(), self.sleep[1].encode())
        found = [
            pid
            for pid, line in command_lines().items()
            if pid != os.getpid() and any(mark in argument for argument in line for mark in marks)
        ]
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(found)


class Process:
    """A supervisor in a session of its own, so that Ctrl-C at the terminal is the bench's alone."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._popen is not None
        return self._popen.pid

    def run(self, argv: Sequence[str | Path]) -> None:
        """Run it; what it says goes to the log."""
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def ended(self) -> bool:
        """Tell whether it has ended by itself."""
        return self._popen is None or self._popen.poll() is not None

    def end(self, number: signal.Signals) -> None:
        """Send it a signal and wait; nothing when it does not run."""
        if self._popen is not None:
            self._popen.send_signal(number)
            self._popen.wait(60)
            self._popen = None


@contextmanager
def undisturbed() -> Generator[None]:
    """Put off what would interrupt; it is done when the block has ended."""
    held = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
