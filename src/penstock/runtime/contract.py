"""Which question gets which answer: the routes of contract `http` (contract.md sections 6.8, 7.3 and 7.4).

Called in the server's thread. Nothing here blocks, and nothing touches the author's state.
"""

from __future__ import annotations

import time

from penstock.runtime.control import PAUSED, RUNNING
from penstock.runtime.metrics import rss_bytes, started_at, uptime_seconds
from penstock.runtime.server import Reply, Request, refusal

TYPE_CHECKING = False  # as typing's, whose import would take a quarter of the time that ours takes
if TYPE_CHECKING:
    from collections.abc import Callable

    from penstock.runtime.checkpointing import Checkpointer
    from penstock.runtime.checkpoints import Checkpoints
    from penstock.runtime.control import Control
    from penstock.runtime.metrics import Metrics


class Contract:
    """Answers questions about one pipeline. `progress` tells how many steps were done, `complete` whether all were."""

    def __init__(
        self,
        *,
        control: Control,
        checkpointer: Checkpointer,
        store: Checkpoints | None,
        metrics: Metrics,
        incarnation: str,
        progress: Callable[[], int],
        is_complete: Callable[[], bool],
    ) -> None:
        self._control = control
        self._checkpointer = checkpointer
        self._store = store
        self._metrics = metrics
        self._incarnation = incarnation
        self._progress = progress
        self._is_complete = is_complete
        self._routes: dict[str, tuple[str, Callable[[Request], Reply | float]]] = {
            "/status": ("GET", self._status),
            "/start": ("GET, POST", lambda _: control.steer(RUNNING)),
            "/pause": ("GET, POST", lambda _: control.steer(PAUSED)),
            "/activate": ("POST", lambda request: control.activate(request.query.get("initial", "running"))),
            "/approve": ("POST", self._approve),
            "/suspend": ("POST", lambda _: control.suspend()),
            "/suspendable": ("GET", self._suspendable),
            "/stats": ("GET", self._stats),
            "/metrics": ("GET", self._show_metrics),
            "/checkpoint": ("POST", self._checkpoint),
            "/checkpoint_status": ("GET", self._checkpoint_status),
            "/checkpoints": ("GET", lambda _: Reply(200, [] if store is None else store.listed())),
            "/checkpoints/remote": ("GET", lambda _: Reply(200, [])),
        }

    def answer(self, request: Request) -> Reply | float:
        """The answer, or for how many seconds at the most it has to wait for a change."""
        if "origin" in request.headers or request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return refusal(403, "ForeignOrigin", "Pages of other places may not ask a pipeline anything.")
        if request.path not in self._routes:
            return refusal(404, "UnknownRoute", f"A pipeline has no {request.path[:200]}.", path=request.path[:200])
        methods, handler = self._routes[request.path]
        if request.method not in methods.split(", "):
            refused = refusal(405, "MethodNotAllowed", f"{request.path} answers {methods} only.", allowed=methods)
            refused.allow = methods
            return refused
        return handler(request)

    def _status(self, request: Request) -> Reply:
        listed = None if self._store is None else self._store.listed()
        return self._control.status(listed, int(self._metrics.errors.value))

    def _approve(self, request: Request) -> Reply:
        if request.query.get("silent_bootstrap") == request.query.get("concurrent_bootstrap") == "true":
            reason = "silent_bootstrap and concurrent_bootstrap exclude each other"
            return refusal(400, "InvalidBootstrapConfig", f"The approval does not fit: {reason}.", reason=reason)
        return self._control.approve()

    def _suspendable(self, request: Request) -> Reply:
        reasons = [] if self._store is not None else ["NoStorage"]
        return Reply(200, {"suspendable": not reasons, "reasons": reasons})

    def _checkpoint(self, request: Request) -> Reply:
        if self._store is None:
            return refusal(400, "StorageNotConfigured", "The pipeline process was given no storage directory.")
        number = self._control.ask_checkpoint()
        if isinstance(number, Reply):
            return number
        return Reply(200, {"checkpoint_sequence_number": number, "incarnation_uuid": self._incarnation})

    def _checkpoint_status(self, request: Request) -> Reply:
        requested = request.query.get("incarnation_uuid", self._incarnation)
        if requested != self._incarnation:
            return refusal(
                400,
                "IncarnationUuidMismatch",
                "The pipeline process is not the one that was asked for the checkpoint; ask this one for another.",
                requested=requested,
                expected=self._incarnation,
            )
        return Reply(200, self._checkpointer.outcome())

    def _show_metrics(self, request: Request) -> Reply:
        wanted = request.query.get("format", "prometheus")
        if wanted == "prometheus":
            return Reply(200, self._metrics.text())
        if wanted == "json":
            return Reply(200, self._metrics.listed())
        return refusal(400, "InvalidParam", f"Metrics come as prometheus or json, not as {wanted!r}.", format=wanted)

    def _stats(self, request: Request) -> Reply:
        """The members that clients expect; a pipeline of ours has no connectors and no transactions of their kind."""
        processed, steps = int(self._metrics.records.value), self._progress()
        began = int(started_at())
        figures: dict[str, object] = {
            "state": self._control.shown()[0],
            "bootstrap_in_progress": False,
            "transaction_status": "NoTransaction",
            "transaction_id": 0,
            "transaction_msecs": None,
            "transaction_records": None,
            "transaction_initiators": {
                "transaction_id": None,
                "initiated_by_api": None,
                "initiated_by_connectors": {},
            },
            "commit_progress": None,
            "concurrent_bootstrap_phase": "Inactive",
            "concurrent_bootstrap_progress": None,
            "rss_bytes": rss_bytes(),
            "memory_pressure": "low",
            "memory_pressure_epoch": 0,
            "cpu_msecs": int(time.process_time() * 1000),
            "uptime_msecs": int(uptime_seconds() * 1000),
            "start_time": began,
            "incarnation_uuid": self._incarnation,
            "initial_start_time": began,
            "storage_bytes": 0 if self._store is None else self._store.size_bytes(),
            "storage_mb_secs": 0,
            "runtime_elapsed_msecs": 0,
            "buffered_input_records": 0,
            "buffered_input_bytes": 0,
            "total_input_records": processed,
            "total_input_bytes": 0,
            "total_processed_records": processed,
            "total_processed_bytes": 0,
            "total_completed_records": processed,
            "output_stall_msecs": 0,
            "total_initiated_steps": steps,
            "total_completed_steps": steps,
            "pipeline_complete": self._is_complete(),
        }
        return Reply(200, {"global_metrics": figures, "inputs": [], "outputs": []})
