"""A program under test: its process, its port, its log."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

Json = Any
WAIT_SECONDS = 15.0
_numbers = itertools.count()

ENDLESS = """
    import os, time
    from penstock import runtime

    def numbers(start):
        while True:
            yield start
            start += 1
            time.sleep(0.001)

    with runtime.serve(checkpoint_seconds=None) as pipeline:
        state = pipeline.restore({"next": 0, "sum": 0})
        for number in pipeline.each(numbers(state["next"])):
            state["next"] += 1
            state["sum"] += number
"""
"""Adds up 0, 1, 2, ...: whatever happens, `sum` is next * (next - 1) / 2."""


class Program:
    """`text` = what the program is; none = ``python -m penstock.runtime``. `environment` None = variable not there."""

    def __init__(self, home: Path, text: str, environment: dict[str, str | None]) -> None:
        self.storage = home / "storage"
        self.storage.mkdir(exist_ok=True)
        work = home / f"work-{next(_numbers)}"
        work.mkdir()
        self.port_file = work / "port"
        self._log = work / "log"
        argv = [sys.executable, "-m", "penstock.runtime"]
        if text:
            script = work / "program.py"
            lines = text.strip("\n").splitlines()
            indent = len(lines[0]) - len(lines[0].lstrip())
            script.write_text("\n".join(line[indent:] for line in lines) + "\n")
            argv = [sys.executable, str(script)]
        env: dict[str, str | None] = {
            "PATH": os.environ["PATH"],
            "PYTHONUNBUFFERED": "1",
            "PENSTOCK_PORT_FILE": str(self.port_file),
            "PENSTOCK_BIND_ADDRESS": "127.0.0.1",
            "PENSTOCK_STORAGE_DIR": str(self.storage),
            "PENSTOCK_PIPELINE_ID": "id-1",
            "PENSTOCK_PIPELINE_NAME": 'na"me',
            "PENSTOCK_DEPLOYMENT_ID": f"deployment-{next(_numbers)}",
            "PENSTOCK_INITIAL": "running",
            "PENSTOCK_BOOTSTRAP_POLICY": "await_approval",
            **environment,
        }
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                argv,
                cwd=work,
                env={name: value for name, value in env.items() if value is not None},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def port(self) -> int:
        """Where it listens; waits until it does."""
        return int(self.until(lambda: self.port_file.exists() and self.port_file.read_text()))

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8", "replace")

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, Json]:
        """One question: HTTP status, and the body, decoded if it is JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_SECONDS)
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        kind = answer.headers["Content-Type"]
        assert kind in ("application/json", "text/plain")
        return answer.status, json.loads(body) if kind == "application/json" else body.decode()

    def status(self) -> tuple[str, str]:
        """Runtime status and desired status."""
        code, body = self.ask("/status")
        assert code == 200, body
        return body["runtime_status"], body["runtime_desired_status"]

    def until_status(self, *wanted: str) -> None:
        """Wait until runtime status and desired status are these, or the former is."""
        self.until(lambda: self.status()[: len(wanted)] == wanted)

    def records(self) -> int:
        return int(self.ask("/stats")[1]["global_metrics"]["total_processed_records"])

    def checkpoints(self) -> list[Json]:
        return self.ask("/checkpoints")[1]

    def take_checkpoint(self) -> None:
        """Ask for one and wait until it is there."""
        code, asked = self.ask("/checkpoint", "POST")
        assert code == 200, asked
        incarnation, number = asked["incarnation_uuid"], asked["checkpoint_sequence_number"]
        self.until(
            lambda: (self.ask(f"/checkpoint_status?incarnation_uuid={incarnation}")[1]["success"] or 0) >= number
        )

    def state(self) -> Json:
        """What the newest checkpoint on disk holds."""
        newest = max((self.storage / "checkpoints").glob("*.checkpoint"))
        return json.loads(newest.read_bytes().split(b"\n", 2)[2])

    def until(self, holds: Callable[[], Any]) -> Any:
        """Wait for something that is true; returns it."""
        give_up_at = time.monotonic() + WAIT_SECONDS
        while not (found := holds()):
            assert time.monotonic() < give_up_at, self.log
            assert self.process.poll() is None or holds(), self.log
            time.sleep(0.002)
        return found

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def wait(self) -> int:
        """Wait until it has ended; the exit code."""
        return self.process.wait(WAIT_SECONDS)

    def close(self) -> None:
        """End it, and its children."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
