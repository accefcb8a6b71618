"""A small program that speaks contract `http`, with the standard library only (contract.md sections 7.3 and 7.4).

Binds a free port of PENSTOCK_BIND_ADDRESS, writes it to PENSTOCK_PORT_FILE when it can answer, begins as
PENSTOCK_INITIAL says, and ends with 0 on SIGTERM. A test makes it misbehave with ``PUT /misbehave``, whose JSON body
may set: ``status`` [HTTP status, content type, body] as the answer to every /status; ``refuse`` [HTTP status, body]
as the answer to every command; ``suspended_after_seconds`` (0.05). ``{}`` makes it behave again.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

METRICS = '# TYPE records_processed_total counter\nrecords_processed_total{pipeline="http"} 7\n'


class Program:
    """What it does, and how it shall misbehave."""

    def __init__(self) -> None:
        self.desired = os.environ.get("PENSTOCK_INITIAL", "running").capitalize()
        self.runtime = self.desired
        self.suspended_at: float | None = None
        self.misbehaviour: dict[str, Any] = {}

    def status(self) -> dict[str, Any]:
        """The answer to /status."""
        if self.suspended_at is not None and time.monotonic() >= self.suspended_at:
            self.runtime = "Suspended"
        return {
            "runtime_status": self.runtime,
            "runtime_desired_status": self.desired,
            "runtime_status_details": {"connector_stats": {"num_errors": 0}},
            "storage_status_details": {"checkpoints": []},
        }

    def command(self, name: str) -> tuple[int, object]:
        """Be running, paused or suspended."""
        if refused := self.misbehaviour.get("refuse"):
            return refused[0], refused[1]
        if name == "suspend":
            if self.suspended_at is None:
                self.suspended_at = time.monotonic() + self.misbehaviour.get("suspended_after_seconds", 0.05)
                self.desired = "Suspended"
            return 202, "Pipeline is suspending"
        if self.desired == "Suspended":
            details = {"current": "Suspended", "desired": name}
            return 400, {"message": f"cannot {name}", "error_code": "InvalidTransition", "details": details}
        self.desired = self.runtime = "Running" if name == "start" else "Paused"
        return 202, f"Pipeline told to {name}"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    program: Program

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class named it
        """Say nothing."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/status":
            if forced := self.program.misbehaviour.get("status"):
                self._answer(forced[0], forced[2].encode(), forced[1])
            else:
                self._json(200, self.program.status())
        elif path in ("/start", "/pause"):
            self._json(*self.program.command(path[1:]))
        elif path == "/stats":
            self._json(200, {"global_metrics": {"state": self.program.runtime}, "inputs": [], "outputs": []})
        elif path == "/metrics" and "format=json" in self.path:
            self._json(200, [{"key": "records_processed_total", "value": 7}])
        elif path == "/metrics":
            self._answer(200, METRICS.encode(), "text/plain")
        else:
            self._json(404, {"message": "no such page", "error_code": "NotFound", "details": {"path": path}})

    def do_POST(self) -> None:
        self._body()
        if self.path == "/suspend":
            self._json(*self.program.command("suspend"))
        else:
            self._json(404, {"message": "no such page", "error_code": "NotFound", "details": {}})

    def do_PUT(self) -> None:
        self.program.misbehaviour = json.loads(self._body())
        self._json(200, {})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", "0")))

    def _json(self, status: int, body: object) -> None:
        self._answer(status, json.dumps(body).encode(), "application/json")

    def _answer(self, status: int, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    Handler.program = Program()
    server = ThreadingHTTPServer((os.environ.get("PENSTOCK_BIND_ADDRESS", "127.0.0.1"), 0), Handler)
    server.daemon_threads = True
    # shutdown() waits for serve_forever, which runs in the thread that the signal interrupts.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    port_file = os.environ.get("PENSTOCK_PORT_FILE")
    if port_file is None:
        print(server.server_port, flush=True)
    else:
        with open(port_file + ".new", "w", encoding="ascii") as file:
            file.write(f"{server.server_port}\n")
        os.replace(port_file + ".new", port_file)
    print("ready", file=sys.stderr, flush=True)
    server.serve_forever(poll_interval=0.05)


if __name__ == "__main__":
    main()
