"""What a pipeline was told, where it is, and who may touch its state now: the meeting place of its three threads.

The author's thread works on the state, and comes to rest between two records; the checkpointer captures the state while
it is at rest; the server shows and steers. Rules: contract.md sections 2.7, 7.3 and 7.4. Nothing here does I/O, and
nothing is done for long with the lock held.
"""

from __future__ import annotations

import threading
import time

from penstock.runtime.server import Reply, refusal

TYPE_CHECKING = False  # as typing's, whose import would take a quarter of the time that ours takes
if TYPE_CHECKING:
    from collections.abc import Callable

INITIALIZING, AWAITING_APPROVAL, ACTIVE, SUSPENDED = "Initializing", "AwaitingApproval", "Active", "Suspended"
"""The phases of a process. Initializing until its author's loop first comes to rest."""

RUNNING, PAUSED, STANDBY = "Running", "Paused", "Standby"
"""What it can be told to be, beside Suspended."""

BY_REQUEST, BY_SIGNAL, BY_AUTHOR = "request", "signal", "author"
"""Who wanted it to end: somebody who suspended it, somebody who sent a signal, or its own loop, which was done."""

PAUSE_SECONDS = 2.0
"""The answer to a pause is held back until the author's loop is at rest, but no longer: then "Paused" is true at once,
and nobody sees a pipeline that is neither."""


class Suspended(BaseException):
    """The pipeline ends here: unwinds the author's loop, up to the end of its ``with`` block.

    Like KeyboardInterrupt no Exception, so that nothing catches it by accident. Let it pass.
    """


class Control:
    """See the module. Everything but `attention` is read and written with `changed` held."""

    def __init__(self, *, desired: str, wake: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self.changed = threading.Condition(self._lock)
        self.attention = True
        """Whether the author's thread has to do more at its next rest than to go on. Read without the lock."""
        self.phase = INITIALIZING
        self.desired = desired
        self.ending: str | None = None
        self.signal = 0
        self.fault: Reply | None = None
        """What /status answers from now on: nothing goes on after it."""
        self.working = True
        self.capture_wanted = False
        self.capturing = False
        self.requested = 0
        """How many checkpoints were asked for; the number of the last one."""
        self.final = False
        """What had to be kept is kept: the author's loop ends."""
        self.left = False
        """The author's block has been left."""
        self.asked = False
        """Somebody has asked for the status: there is a daemon, and it speaks our contract."""
        self.approval_diff: object = None
        self.interrupt: Callable[[], None] | None = None
        """Gets the author's thread out of waiting for its source; set while it waits."""
        self._before_end = RUNNING
        self._paused_at = 0.0
        self._wake = wake

    # --- the author's thread ------------------------------------------------------------------------------------------

    def rest(self) -> None:
        """The state is whole, and is not touched before `go_on`."""
        with self._lock:  # the condition's own, and four calls less for each record
            self.working = False
            if self.phase == INITIALIZING:
                self.phase = ACTIVE
            if self.attention:
                self.tell()

    def go_on(self) -> None:
        """Work on the state again, as soon as that may be; raises Suspended when it is over."""
        with self._lock:
            while self.attention:
                if self.final:
                    raise Suspended
                if not self._held():
                    break
                self.changed.wait()
            self.working = True

    def await_leave(self) -> None:
        """Wait until `go_on` would not; the caller is any thread that may be kept waiting."""
        with self.changed:
            self.changed.wait_for(lambda: self.final or not self._held())

    def break_off(self) -> None:
        """Go on after an exception: nobody waits for a pause any more, but a capture is not disturbed."""
        with self.changed:
            self.changed.wait_for(lambda: not self.capturing)
            self.working = True

    def await_approval(self, diff: object) -> None:
        """Wait until somebody approves; raises Suspended when it ends instead."""
        with self.changed:
            self.phase, self.approval_diff, self.working = AWAITING_APPROVAL, diff, False
            self.tell()
            while self.phase == AWAITING_APPROVAL:
                if self.final:
                    raise Suspended
                self.changed.wait()
            self.working = True

    def fail(self, fault: Reply) -> None:
        """Have /status tell that it is over; the first fault stays."""
        with self.changed:
            self.fault = self.fault or fault
            self.tell()

    def _held(self) -> bool:
        idle = self.desired in (PAUSED, STANDBY)
        return idle or self.capture_wanted or self.capturing or self.ending is not None

    def tell(self) -> None:
        """Have everybody look again. With the lock held."""
        self.attention = self.phase != ACTIVE or self._held() or self.final
        self.changed.notify_all()
        self._wake()

    # --- the server's thread ------------------------------------------------------------------------------------------

    def status(self, checkpoints: list[dict[str, object]] | None, errors: int) -> Reply:
        """The answer to /status; `checkpoints` None when there is no storage."""
        with self.changed:
            self.asked = True
            if self.fault is not None:
                return self.fault
            status, desired = self._shown()
            details: dict[str, object] = {}
            if status == AWAITING_APPROVAL:
                details = {"approval_diff": self.approval_diff}
            elif status in (RUNNING, PAUSED):
                details = {"connector_stats": {"num_errors": errors}}
        return Reply(
            200,
            {
                "runtime_status": status,
                "runtime_desired_status": desired,
                "runtime_status_details": details,
                "storage_status_details": None if checkpoints is None else {"checkpoints": checkpoints},
            },
        )

    def shown(self) -> tuple[str, str]:
        """Runtime status and desired status, as /status tells them; those of a failure are "Failed"."""
        with self.changed:
            return self._shown() if self.fault is None else ("Failed", "Failed")

    def _shown(self) -> tuple[str, str]:
        """Runtime status and desired status."""
        if self.phase == SUSPENDED:
            return SUSPENDED, SUSPENDED
        if self.phase != ACTIVE:
            return self.phase, self.desired
        if self.desired == SUSPENDED:
            return self._before_end, SUSPENDED
        if self.desired == PAUSED and self.working:
            is_new = time.monotonic() - self._paused_at < PAUSE_SECONDS
            return RUNNING, RUNNING if is_new else PAUSED
        return self.desired, self.desired

    def steer(self, target: str) -> Reply | float:
        """Be Running or Paused; a number = the answer waits for the author's loop, for so many seconds at the most."""
        with self.changed:
            if (over := self._over(target)) is not None:
                return over
            if self.desired == STANDBY:
                return self._invalid(target)
            self._become(target)
            left = self._paused_at + PAUSE_SECONDS - time.monotonic()
            if target == PAUSED and self.phase == ACTIVE and self.working and left > 0:
                return left
            return Reply(202, f"The pipeline was told to be {target}.")

    def activate(self, initial: str) -> Reply:
        """Be what `initial` says, also from Standby."""
        target = {"running": RUNNING, "paused": PAUSED}.get(initial)
        with self.changed:
            if target is None:
                message = f"A pipeline can be activated to be running or paused, not {initial!r}."
                return refusal(400, "InvalidActivateStatus", message, initial=initial)
            if (over := self._over(target)) is not None:
                return over
            self._become(target)
            return Reply(202, f"The pipeline was told to be {target}.")

    def suspend(self) -> Reply:
        """Take a last checkpoint and end."""
        with self.changed:
            over = self._over(SUSPENDED)
            if over is not None and over.status != 400:
                return over
            if self.desired == STANDBY:
                return self._invalid(SUSPENDED)
            if self.ending is None:
                self._before_end = self._shown()[0] if self.phase == ACTIVE else RUNNING
                self.desired, self.ending = SUSPENDED, BY_REQUEST
                self.tell()
            return Reply(202, "The pipeline is being suspended.")

    def approve(self) -> Reply:
        """Go on with a changed program."""
        with self.changed:
            if self.phase == AWAITING_APPROVAL and self.ending is None:
                self.phase = INITIALIZING
                self.tell()
            return Reply(200, "The pipeline is not waiting for an approval any more.")

    def ask_checkpoint(self) -> Reply | int:
        """Want a checkpoint; its number, or why there can be none."""
        with self.changed:
            if (over := self._over(SUSPENDED)) is not None:
                gone = refusal(503, "Suspended", "The pipeline is suspended, or is about to be.")
                return gone if over.status == 400 else over
            if self.phase == AWAITING_APPROVAL:
                return refusal(503, "AwaitingApproval", "The pipeline has no state before its changes are approved.")
            if self.phase != ACTIVE:
                return refusal(503, "Initializing", "The pipeline has no state before it has initialized.")
            return self.want_checkpoint()

    def want_checkpoint(self) -> int:
        """Have the state captured at the next rest. With the lock held."""
        self.requested += 1
        self.tell()
        return self.requested

    def end(self, by: str, number: int = 0) -> None:
        """End after a last checkpoint. A signal that comes when it is ending already has it end without lingering."""
        with self.changed:
            self.signal = self.signal or number
            if self.ending is None:
                self.ending = by
            self.tell()

    def _become(self, target: str) -> None:
        if self.desired != target:
            self.desired = target
            self._paused_at = time.monotonic()
        self.tell()

    def _over(self, target: str) -> Reply | None:
        """Why it can be told nothing any more, if so."""
        if self.fault is not None:
            return self.fault
        if self.ending == BY_SIGNAL:
            return refusal(410, "Terminating", "The pipeline process was told by a signal to end.")
        if self.desired == SUSPENDED or self.ending is not None or self.phase == SUSPENDED:
            message = f"The pipeline is suspended, or is about to be; it cannot become {target} any more."
            return refusal(400, "InvalidTransition", message, current=SUSPENDED, desired=target)
        return None

    def _invalid(self, target: str) -> Reply:
        message = f"A pipeline that is {self.desired} cannot become {target}; activate it first."
        return refusal(400, "InvalidTransition", message, current=self.desired, desired=target)
