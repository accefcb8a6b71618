"""``penstock demo``: one pipeline's whole life, on a real daemon in a temporary directory, shown step by step.

A stranger runs this first. It must leave nothing behind: no process, no directory, whatever happens on the way.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Self, TypeAlias

from rich.console import Console
from rich.table import Table
from rich.text import Text

Json: TypeAlias = Any

PATIENCE_SECONDS = 30.0
NAME = "word-count"
WORDS = ("sluice", "weir", "gate", "turbine", "river", "penstock")
RESOURCES = ("Stopped", "Provisioning", "Provisioned", "Stopping")
STORAGE = ("Cleared", "InUse", "Clearing")


class DemoFailed(Exception):
    """Something did not come to pass as it should; the text says what."""


class Interrupted(Exception):
    """The demo was told to end by the signal `number`."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def run(*, keep: bool, console: Console) -> None:
    """Run the demo; with `keep`, serve on at its end until interrupted. Raises DemoFailed, Interrupted, OSError.

    Cleans up whatever it raises.
    """
    signals = _Signals()
    screen = _Screen(console, signals)
    with _home() as home, _Feed(home / "input.txt") as feed:
        daemon = _Daemon(home, signals)
        try:
            _show(daemon, feed, screen)
            if keep:
                _serve_on(daemon, screen)
        finally:
            # Whoever is impatient here would leave a daemon behind; each step of the clean-up is bounded.
            signals.ignore()
            daemon.end()


ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What tells the demo to end; SIGHUP comes of a terminal that is closed."""


class _Signals:
    """Remembers that the demo was told to end until that is asked for, so that nothing is cut off half made.

    As an exception in the midst of `Popen` it would leave a daemon behind that nobody knows of.
    """

    def __init__(self) -> None:
        self._told: int | None = None
        self._ignored = False
        for number in ENDS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._remember)

    def check(self) -> None:
        """Raise Interrupted if it was told to end."""
        if self._told is not None and not self._ignored:
            raise Interrupted(self._told)

    def ignore(self) -> None:
        """Never raise from now on."""
        self._ignored = True

    def _remember(self, number: int, _frame: object) -> None:
        self._told = number


class _Screen:
    """Where the demo shows what it does."""

    def __init__(self, console: Console, signals: _Signals) -> None:
        self._console = console
        self._signals = signals

    def say(self, text: str) -> None:
        """Show one step."""
        self.show(f"[bold cyan]>[/] {text}")

    def show(self, what: str | Text | Table, **options: Any) -> None:
        """Show something. Raises DemoFailed when it cannot be, Interrupted."""
        self._signals.check()
        try:
            self._console.print(what, **options)
        except OSError as error:
            # What is left to be written would be tried again at the end of the process, and fail again.
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)
            raise DemoFailed(f"nothing can be printed: {error.strerror}") from error


def _show(daemon: _Daemon, feed: _Feed, screen: _Screen) -> None:
    say = screen.say
    daemon.start()
    say(f"a daemon runs (pid {daemon.pid}), its state in a temporary directory")

    program = Path(__file__).with_name("demo_pipeline.py").read_text("utf-8")
    config = {"env": {"INPUT": str(feed.path)}}
    daemon.ask("POST", "/v0/pipelines", {"name": NAME, "program_code": program, "runtime_config": config})
    daemon.until(lambda row: row["program_status"] == "Success")
    say(f"pipeline [bold]{NAME}[/] created, checked and built: a Python program that counts words as they are produced")

    daemon.post("start")
    daemon.until(lambda row: row["deployment_status"] == "Running")
    pid = daemon.process()
    say(f"started: process {pid}")
    daemon.until_counted(feed, 300)

    daemon.post("pause")
    daemon.until(lambda row: row["deployment_status"] == "Paused")
    say("paused; input goes on being produced")
    daemon.post("resume")
    daemon.until(lambda row: row["deployment_status"] == "Running")
    say("resumed")
    daemon.until_counted(feed, 600)

    os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    row = daemon.until(lambda row: row["deployment_status"] == "Stopped")
    fault = row["deployment_error"]
    say(f"its process was killed from outside; {1000 * (time.monotonic() - began):.0f} ms later the pipeline says:")
    screen.show(f"    [red]{fault['error_code']}[/]: signal {fault['details']['signal_name']}; its last words:")
    for line in fault["details"]["log_tail"][-2:]:
        screen.show(Text(f"    | {line}", style="dim"))

    daemon.post("start")
    daemon.until(lambda row: row["deployment_status"] == "Running")
    pid = daemon.process()
    say(f"started again: process {pid}; it goes on where it stopped")
    daemon.until_counted(feed, 900)

    killed = daemon.pid
    daemon.kill()
    say(f"now the daemon itself: [bold]kill -9 {killed}[/]; the pipeline does not notice")
    daemon.start()
    if daemon.process() != pid:
        raise DemoFailed(f"the pipeline's process is {daemon.process()}, not {pid}")
    say(f"a new daemon (pid {daemon.pid}) has adopted it: still process {pid}")

    feed.end()
    total = daemon.until_counted(feed, feed.total())
    say(f"produced {feed.total()} words, counted {total}: none lost, none twice")

    daemon.post("stop", "?force=false")
    daemon.until(lambda row: row["deployment_status"] == "Stopped")
    say("stopped with grace")
    daemon.post("clear")
    daemon.until(lambda row: row["storage_status"] == "Cleared")
    say("its storage is cleared; every step is in its history:")
    screen.show(_history(daemon.ask("GET", f"/v0/pipelines/{NAME}/events?selector=all")))


def _serve_on(daemon: _Daemon, screen: _Screen) -> None:
    screen.show(
        f"\nServing. Try:\n  curl --unix-socket {daemon.socket} http://localhost/v0/pipelines/{NAME}/events/latest\n"
        "Ctrl-C ends it and removes everything.",
        soft_wrap=True,
    )
    with suppress(Interrupted):
        daemon.wait()


def _history(events: list[Json]) -> Table:
    """The events, oldest first; the resources axis and the storage axis are drawn downwards over time."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("at", justify="right", no_wrap=True)
    for name in ("resources", "wanted", "storage", "what it does"):
        table.add_column(name, no_wrap=True)
    events.reverse()
    began = datetime.fromisoformat(events[0]["recorded_at"])
    for event in events:
        after = (datetime.fromisoformat(event["recorded_at"]) - began).total_seconds()
        table.add_row(
            f"{after:.3f} s",
            _axis(RESOURCES, event["deployment_resources_status"], "green"),
            event["deployment_resources_desired_status"],
            _axis(STORAGE, event["storage_status"], "blue"),
            _activity(event),
        )
    return table


def _axis(stops: tuple[str, ...], current: str, colour: str) -> Text:
    lane = [("●", colour) if name == current else ("·", "dim") for name in stops]
    return Text.assemble(*lane, f" {current}")


def _activity(event: Json) -> Text:
    if event["deployment_has_error"]:
        return Text(event["deployment_error"]["error_code"], style="red")
    if event["deployment_runtime_status"] is None:
        return Text("" if event["program_status"] == "Success" else event["program_status"], style="dim")
    wanted = event["deployment_runtime_desired_status"]
    return Text(event["deployment_runtime_status"] + (", told to end" if wanted == "Suspended" else ""))


@contextmanager
def _home() -> Generator[Path]:
    home = Path(tempfile.mkdtemp(prefix="penstock-demo-"))
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


class _Feed:
    """Appends lines to a file as long as the demo goes on: the input, produced while the pipeline reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._counts = Counter[str]()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._produce, name="feed", daemon=True)

    def __enter__(self) -> Self:
        self.path.touch()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Produce no more."""
        self._over.set()
        self._thread.join(PATIENCE_SECONDS)

    def total(self) -> int:
        """How many words were produced so far."""
        return self._counts.total()

    def _produce(self) -> None:
        number = 0
        with self.path.open("a", encoding="utf-8", buffering=1) as file:
            while not self._over.wait(0.005):
                number += 1
                words = [WORDS[(number * step) % len(WORDS)] for step in (1, 2, 3, 5)]
                file.write(" ".join(words) + "\n")
                self._counts.update(words)


class _Daemon:
    """A real ``penstock serve`` on a unix socket: no port to be in the way of."""

    def __init__(self, home: Path, signals: _Signals) -> None:
        self._signals = signals
        self.socket = home / "api.sock"
        self._state_dir = home / "state"
        self._log = home / "daemon.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The pid of the running daemon; 0 when none runs."""
        return 0 if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it, and wait until it has adopted what there is."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
        options = ("--config", os.devnull, "--state-dir", str(self._state_dir), "--listen", f"unix:{self.socket}")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "penstock", "serve", *options, "--log-format", "json"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environ,
                start_new_session=True,  # Ctrl-C is the demo's business
            )
        self._wait_for(self._is_ready, "the daemon to be ready")

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def wait(self) -> None:
        """Wait until it ends by itself. Raises Interrupted."""
        while self._process is not None and self._process.poll() is None:
            self._signals.check()
            time.sleep(0.1)

    def end(self) -> None:
        """End it and its pipeline, whatever state they are in."""
        if self._process is None and self._state_dir.exists():
            with suppress(DemoFailed):
                self.start()
        with suppress(DemoFailed, OSError, http.client.HTTPException):
            self._wait_for(self._is_ready, "the daemon to be ready")
            self.post("stop", "?force=true")
            self.until(lambda row: row["deployment_status"] == "Stopped")
        if self._process is not None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(PATIENCE_SECONDS)
            self.kill()

    def ask(self, method: str, path: str, body: Json = None) -> Json:
        """One request; raises DemoFailed if it is refused."""
        connection = _UnixConnection(self.socket)
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, {} if body is None else {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = json.loads(response.read() or "null")
        finally:
            connection.close()
        if response.status >= 400:
            raise DemoFailed(f"{method} {path}: {answer['message']}")
        return answer

    def post(self, action: str, query: str = "") -> None:
        """Ask for something to be done with the pipeline."""
        self.ask("POST", f"/v0/pipelines/{NAME}/{action}{query}")

    def process(self) -> int:
        """The pid of the pipeline's process."""
        return int(self.ask("GET", f"/v0/pipelines/{NAME}")["deployment_resources_status_details"]["process"])

    def until(self, holds: Callable[[Json], bool]) -> Json:
        """Wait until the pipeline is as `holds` wants it."""
        seen: list[Json] = []

        def look() -> bool:
            seen[:] = [self.ask("GET", f"/v0/pipelines/{NAME}?selector=status")]
            return holds(seen[0])

        self._wait_for(look, f"the pipeline, last seen as {seen}")
        return seen[0]

    def until_counted(self, feed: _Feed, words: int) -> int:
        """Wait until the pipeline has counted as many words; returns how many it has."""
        row = self.ask("GET", f"/v0/pipelines/{NAME}?selector=status")
        state = self._state_dir / "pipelines" / row["id"] / "storage" / "state.json"
        counted = 0

        def look() -> bool:
            nonlocal counted
            with suppress(FileNotFoundError):
                counted = sum(json.loads(state.read_text("utf-8"))["counts"].values())
            return counted >= words

        self._wait_for(look, f"{words} words to be counted")
        return counted

    def _is_ready(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise DemoFailed(f"the daemon ended with {self._process.returncode}:\n{self._log.read_text('utf-8')}")
        with suppress(OSError, http.client.HTTPException, DemoFailed):
            self.ask("GET", "/readyz")
            return True
        return False

    def _wait_for(self, holds: Callable[[], bool], what: str) -> None:
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        while not holds():
            self._signals.check()
            if time.monotonic() > give_up_at:
                raise DemoFailed(f"waited {PATIENCE_SECONDS:g} s for {what}")
            time.sleep(0.01)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE_SECONDS)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
