"""Takes checkpoints in a thread of its own: when asked, when it is time, and a last one at the end.

Used by `pipeline.py`. Only while the state is captured the author's loop is held; it goes on while the checkpoint is
written and synced. A checkpoint that cannot be written is told and counted, and the pipeline goes on, unless it was the
last one: then the end is a failure, and says so on /status (contract.md section 7.4).
"""

from __future__ import annotations

import os
import threading
import time

from penstock.runtime.checkpoints import Checkpoint, Checkpoints
from penstock.runtime.control import BY_REQUEST, SUSPENDED, Control
from penstock.runtime.server import refusal

TYPE_CHECKING = False  # as typing's, whose import would take a quarter of the time that ours takes
if TYPE_CHECKING:
    from collections.abc import Callable

    from penstock.runtime.metrics import Metrics

LEAVE_SECONDS = 5.0
"""How long the author's code may take to leave its block once everything is kept, to close what it has open."""


class Checkpointer:
    """See the module. `store` None = nothing is kept, and every end is as good as any other.

    `describe` is called while the state is at rest, and may not block; it returns the encoded state, or None if there
    is none yet, and what to tell of it.
    """

    def __init__(
        self,
        *,
        control: Control,
        store: Checkpoints | None,
        metrics: Metrics,
        describe: Callable[[], tuple[bytes | None, Checkpoint]],
        progress: Callable[[], int],
        every_seconds: float | None,
        say: Callable[[str], None],
        die: Callable[[int], None],
    ) -> None:
        self._control = control
        self._store = store
        self._metrics = metrics
        self._describe = describe
        self._progress = progress
        self._every = every_seconds if store is not None else None
        self._say = say
        self._die = die
        self._due = time.monotonic() + (every_seconds or 0)
        self._progress_kept = progress()
        self._covered = 0
        """Requests that were tried."""
        self._success: int | None = None
        self._failure: dict[str, object] | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="penstock-checkpoints", daemon=True)

    def start(self) -> None:
        """Begin to take checkpoints."""
        self._thread.start()

    def close(self) -> None:
        """Take none any more; one that is being written is finished."""
        with self._control.changed:
            self._closing = True
            self._control.changed.notify_all()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def outcome(self) -> dict[str, object]:
        """The answer to /checkpoint_status."""
        with self._control.changed:
            return {"success": self._success, "failure": self._failure}

    def wait_for(self, number: int) -> str | None:
        """Wait until the checkpoint that was asked for as `number` is written; why it is not, if so.

        The caller is the author's thread, at rest.
        """
        control = self._control
        with control.changed:
            control.changed.wait_for(lambda: self._covered >= number or control.final)
            if self._success is not None and self._success >= number:
                return None
            return "the pipeline has ended" if self._failure is None else str(self._failure["error"])

    def _run(self) -> None:
        while self._await_cause():
            if not self._await_rest():
                return
            if self._take():
                self._see_out()
                return

    def _await_cause(self) -> bool:
        """Wait until a checkpoint is wanted; False when none ever will be."""
        control = self._control
        with control.changed:
            while not self._closing:
                if control.ending is not None or control.requested > self._covered:
                    return True
                left = None
                if self._every is not None:
                    left = self._due - time.monotonic()
                    if left <= 0:
                        if self._progress() != self._progress_kept:
                            return True
                        left = self._every
                        self._due = time.monotonic() + left
                control.changed.wait(left)
        return False

    def _await_rest(self) -> bool:
        """Wait until the author's thread has come to rest, and keep it there."""
        control = self._control
        with control.changed:
            control.capture_wanted = True
            control.tell()
            control.changed.wait_for(lambda: self._closing or not control.working)
            control.capture_wanted, control.capturing = False, not self._closing
            control.tell()
            return control.capturing

    def _take(self) -> bool:
        """Take one; tells whether it was the last."""
        control, began = self._control, time.monotonic()
        with control.changed:
            last, covers, progress = control.ending is not None, control.requested, self._progress()
        error, checkpoint, state = None, None, None
        try:
            state, checkpoint = self._describe()
        except Exception as problem:  # noqa: BLE001 - encoding is the author's, and may fail in any way
            error = f"the state cannot be encoded: {_words(problem)}"
        with control.changed:
            control.capturing = False
            control.tell()
        if self._store is not None and state is not None and checkpoint is not None:
            try:
                self._store.write(state, checkpoint)
                self._metrics.checkpoints.add()
                self._metrics.checkpoint_seconds.set(time.monotonic() - began)
                self._metrics.checkpoint_bytes.set(checkpoint.size)
            except OSError as problem:
                error = _words(problem)
        self._due = time.monotonic() + (self._every or 0)
        if error is not None:
            self._metrics.failed_checkpoints.add()
            self._metrics.errors.add(kind="checkpoint")
            self._say(f"no checkpoint: {error}")
        with control.changed:
            nothing = None if state is not None else "the pipeline has no state to keep: it has not called restore()"
            self._note(covers, error or nothing)
            if error is None:
                self._progress_kept = progress
            if last:
                if error is not None:
                    text = f"The last checkpoint could not be written: {error}. The one before it is kept."
                    control.fault = control.fault or refusal(500, "CheckpointError", text, error=error)
                control.final = True
            control.tell()
        return last

    def _note(self, covers: int, error: str | None) -> None:
        """What became of the requests up to `covers`. With the lock held."""
        if covers > self._covered:
            if error is None:
                self._success = covers
            else:
                self._failure = {"sequence_number": covers, "error": error, "failed_at": _timestamp()}
        self._covered = covers

    def _see_out(self) -> None:
        """See to it that the end is told and happens, also when the author's code does not leave."""
        control = self._control
        with control.changed:
            interrupt = control.interrupt
        if interrupt is not None:
            interrupt()
        with control.changed:
            if control.changed.wait_for(lambda: control.left or self._closing, LEAVE_SECONDS):
                return
            if control.ending == BY_REQUEST and control.fault is None:
                control.phase = SUSPENDED
                control.tell()
            number = control.signal
        if number:
            self._die(number)


def new_uuid() -> str:
    """A random uuid (version 4); the standard library's module takes longer to import than all of this."""
    number = int.from_bytes(os.urandom(16), "big") & ~(0xF << 76) & ~(0x3 << 62) | 0x4 << 76 | 0x2 << 62
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _timestamp() -> str:
    now = time.time_ns()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 10**9)) + f".{now // 1000 % 10**6:06d}Z"


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:1000]
