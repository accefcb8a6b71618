"""What an author of a pipeline holds in hand: `serve` and the `Pipeline` that it gives.

`__init__.py` tells how to use it. Three threads: the author's, which works; one that answers the daemon (`server.py`,
`contract.py`); one that takes checkpoints (`checkpointing.py`). They meet in `control.py`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from contextlib import suppress

from penstock.runtime.checkpointing import Checkpointer, new_uuid
from penstock.runtime.checkpoints import Checkpoint, Checkpoints
from penstock.runtime.codec import decode as from_json
from penstock.runtime.codec import encode as to_json
from penstock.runtime.contract import Contract
from penstock.runtime.control import (
    BY_AUTHOR,
    BY_SIGNAL,
    INITIALIZING,
    PAUSED,
    RUNNING,
    STANDBY,
    SUSPENDED,
    Control,
    Suspended,
)
from penstock.runtime.metrics import Counter, Gauge, Metrics
from penstock.runtime.rest import Rest
from penstock.runtime.server import Reply, Request, Server, refusal

TYPE_CHECKING = False  # as typing's, whose import would take a quarter of the time that ours takes
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import FrameType, TracebackType
    from typing import Any, NoReturn, Self, TypeVar

    State = TypeVar("State")
    Record = TypeVar("Record")

FAULT_SECONDS = 10.0
"""How long a pipeline that failed stays to tell it: longer than the daemon takes to ask twice (contract.md 3.5)."""

UNASKED_SECONDS = 10.0
"""How long one that has ended stays for a daemon that never asked: it is none that speaks contract `http`."""

TRACEBACK_LIMIT = 8000
"""Characters of a traceback that are told on /status: its end, which is where it went wrong."""

_INITIAL = {"running": RUNNING, "paused": PAUSED, "standby": STANDBY}


class CheckpointError(Exception):
    """What had to be kept could not be."""


class BootstrapRejected(Exception):
    """The program is of another version than its newest checkpoint, and was started with the policy ``reject``."""


def serve(
    *,
    checkpoint_seconds: float | None = 60.0,
    keep_checkpoints: int = 3,
    storage_dir: str | None = None,
    port: int = 0,
    environ: Mapping[str, str] = os.environ,
) -> Pipeline:
    """Make a pipeline of the ``with`` block that uses this.

    A checkpoint is taken every `checkpoint_seconds` in which something was done (None = only when asked, and at the
    end); `fault_tolerance.checkpoint_interval_secs` of the pipeline's runtime_config says otherwise. The newest
    `keep_checkpoints` stay. `storage_dir` and `port` are for runs without a daemon: with one, the environment tells
    (PENSTOCK_STORAGE_DIR, and a free port). Without any storage directory nothing is kept.
    """
    return Pipeline(
        checkpoint_seconds=checkpoint_seconds,
        keep_checkpoints=keep_checkpoints,
        storage_dir=environ.get("PENSTOCK_STORAGE_DIR") or storage_dir,
        port=port,
        environ=environ,
    )


class Pipeline:
    """The pipeline that runs in this process, within ``with serve() as pipeline:``. One thread drives it.

    Leaving the block is the end: by itself, it is done and takes a last checkpoint; by an exception, it has failed and
    takes none. Either way the daemon is told, and stops what is left of the process.
    """

    def __init__(
        self,
        *,
        checkpoint_seconds: float | None,
        keep_checkpoints: int,
        storage_dir: str | None,
        port: int,
        environ: Mapping[str, str],
    ) -> None:
        self.name = environ.get("PENSTOCK_PIPELINE_NAME", "")
        """What its user calls it; empty without a daemon."""
        self.storage_dir = storage_dir
        """Where to keep what shall be there at the next start; ``checkpoints`` in it is ours. None = nowhere."""
        self.config = _config(environ.get("PENSTOCK_CONFIG_FILE"))
        """The pipeline's runtime_config; empty without a daemon."""
        self._environ = environ
        self._port_file = environ.get("PENSTOCK_PORT_FILE")
        """None = there is no daemon."""
        self._port = port
        self._pid = os.getpid()
        self._state: object = None
        self._encode: Callable[[object], bytes] | None = None
        self._version = ""
        self._restored = False
        self._steps = 0
        self._at_first: tuple[int, bytes] | None = None
        self._complete = False
        self._begun = False
        self._signalled = 0
        self._interrupt: Callable[[], None] | None = None
        self._interrupting = False
        self._handlers: dict[int, object] = {}
        self._deployment = environ.get("PENSTOCK_DEPLOYMENT_ID", "")
        initial = environ.get("PENSTOCK_INITIAL", "running")
        if initial not in _INITIAL:
            raise ValueError(f"PENSTOCK_INITIAL is {initial!r}; it must be one of {', '.join(_INITIAL)}")
        whose = {"pipeline": environ.get("PENSTOCK_PIPELINE_ID", ""), "pipeline_name": self.name}
        self._metrics = Metrics({name: value for name, value in whose.items() if value})
        self.records = self._metrics.records
        """Counts records; `each` does so by itself."""
        self.errors = self._metrics.errors
        """Counts what went wrong without ending the pipeline; shown in its status."""
        directory = None if storage_dir is None else os.path.join(storage_dir, "checkpoints")
        self._store = None if directory is None else Checkpoints(directory, keep=keep_checkpoints, say=_say)
        self._server = Server(answer=self._answer, woken=self._woken)
        self._control = Control(desired=_INITIAL[initial], wake=self._server.wake)
        self._announced = self._control.shown()
        self._checkpointer = Checkpointer(
            control=self._control,
            store=self._store,
            metrics=self._metrics,
            describe=self._describe,
            progress=self._progress,
            every_seconds=_interval(self.config, checkpoint_seconds),
            say=_say,
            die=self._die,
        )
        self._contract = Contract(
            control=self._control,
            checkpointer=self._checkpointer,
            store=self._store,
            metrics=self._metrics,
            incarnation=new_uuid(),
            progress=self._progress,
            is_complete=lambda: self._complete,
        )

    # --- what an author calls -----------------------------------------------------------------------------------------

    def restore(
        self,
        default: State,
        *,
        version: str = "",
        encode: Callable[[State], bytes] = to_json,
        decode: Callable[[bytes], State] | None = None,
    ) -> State:
        """The state of the newest checkpoint that is whole, or `default` when there is none.

        The very object that is returned is what checkpoints hold from now on: change it in place. `encode` and
        `decode` make it bytes and back; by default they are JSON's, for a state of dict, list, str, numbers, True,
        False and None. Give `version` another value when this program cannot go on from checkpoints of the former one:
        then, as the pipeline was started, it begins with `default` (bootstrap policy ``allow``), fails (``reject``),
        or waits for an approval and then begins with `default` (``await_approval``).

        Call it once, before the first record. Raises TypeError when `default` cannot be encoded,
        `checkpoints.Damaged` when there are checkpoints and none is whole, and whatever `decode` raises.
        """
        if self._restored:
            raise RuntimeError("restore() can be called once")
        data = encode(default)
        back: Callable[[bytes], State] = decode or _decoder(encode)
        state = default
        newest = None if self._store is None else self._store.newest()
        if newest is None:
            back(data)  # what cannot be read again must be known now, and not at the next start
        elif newest[0].version != version:
            self._bootstrap(newest[0].version, version)
        else:
            state = back(newest[1])
            self._steps = newest[0].steps
            self.records.add(newest[0].processed_records)
            _say(f"goes on from checkpoint {newest[0].uuid}, {newest[0].processed_records} records")
        with self._control.changed:
            self._state, self._version, self._encode = state, version, encode  # type: ignore[assignment]
            self._at_first = self._steps, data if newest is None or state is default else newest[1]
            self._restored = True
            kept = None if newest is None else newest[0]
            is_same = kept is not None and kept.deployment_id == self._deployment != ""
            if kept is not None and is_same and kept.desired in (RUNNING, PAUSED) and self._control.ending is None:
                # The same deployment once more: what it was told meanwhile counts, and not how it was started.
                self._control.desired = kept.desired
                self._control.tell()
        return state

    def each(self, source: Iterable[Record], *, weigh: Callable[[Record], int] | None = None) -> Iterator[Record]:
        """Yield the records of `source`, at rest between one and the next: that is where it pauses and ends.

        Between two of them the state must be whole: changed by all of the former record and nothing of the next.
        While `source` lets itself be waited for, checkpoints can be taken. Each record counts as `weigh` says, or as
        one. The loop ends when `source` does; a pipeline that is suspended leaves it by an exception (`Suspended`).
        """
        records, end = iter(source), object()
        rest = self.waiting()
        while True:
            with rest:
                record = next(records, end)
            if record is end:
                return
            self.records.add(1 if weigh is None else weigh(record))  # type: ignore[arg-type]
            self._steps += 1
            yield record  # type: ignore[misc]

    def step(self) -> None:
        """Come to rest for a moment: the state is whole here. For loops that `each` does not fit.

        Returns at once if nothing is wanted; waits while the pipeline is paused; raises `Suspended` at the end.
        """
        self._steps += 1
        if self._control.attention:
            with Rest(self._control):
                pass

    async def astep(self) -> None:
        """`step` for a coroutine: other tasks go on meanwhile."""
        self._steps += 1
        if self._control.attention:
            async with Rest(self._control):
                pass

    def waiting(self) -> Rest:
        """``with pipeline.waiting():`` is at rest as long as the block lasts; ``async with`` in a coroutine.

        For waiting for the next record; the state must be whole, and not be touched within.
        """
        return Rest(self._control, self._interrupt)

    def stay(self) -> NoReturn:
        """All there is to do is done: stay, until the pipeline is told to end. Never returns."""
        self._complete = True
        control = self._control
        with Rest(control), control.changed:
            control.changed.wait_for(lambda: control.final)
        raise Suspended

    def checkpoint(self) -> None:
        """Take a checkpoint now; returns when it is on disk. Raises CheckpointError when it could not be written."""
        if self._store is None:
            raise CheckpointError("the pipeline was given no storage directory")
        with Rest(self._control):
            with self._control.changed:
                number = self._control.want_checkpoint()
            error = self._checkpointer.wait_for(number)
        if error is not None:
            raise CheckpointError(error)

    def counter(self, name: str, text: str) -> Counter:
        """A counter of your own, shown with the metrics; `text` tells what it counts."""
        return self._metrics.counter(name, text)

    def gauge(self, name: str, text: str) -> Gauge:
        """A gauge of your own, shown with the metrics; `text` tells what it measures."""
        return self._metrics.gauge(name, text)

    # --- its beginning and its end ------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._port = self._server.start(self._environ.get("PENSTOCK_BIND_ADDRESS", "127.0.0.1"), self._port)
        os.register_at_fork(after_in_child=self._server.abandon)
        self._catch_signals()
        try:
            self._announce()
            if self._port_file is None:
                _say(f"answers on port {self._port}")
            if self._store is None:
                _say("has no PENSTOCK_STORAGE_DIR: nothing is kept")
            else:
                self._store.open()
            self._checkpointer.start()
            self._begun = True
        except Exception as error:
            self._fail(error)
            raise
        finally:
            if not self._begun:
                self._close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if os.getpid() != self._pid:  # a child that was forked in the block
            return False
        control = self._control
        try:
            if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
                self._finish()
            elif not _is_suspended(error):
                if not isinstance(error, KeyboardInterrupt):
                    self._fail(error)
                return False
            with control.changed:
                control.left = True
                control.tell()
                if control.fault is not None:
                    self._linger(FAULT_SECONDS)
                    raise CheckpointError(control.fault.message) from None
                if control.ending == BY_SIGNAL:
                    raise SystemExit(128 + control.signal) from None
                control.phase = SUSPENDED
                control.tell()
                self._linger(None)
            return True
        finally:
            self._close()

    def _finish(self) -> None:
        """The block was left by itself: all is done, and is kept."""
        control = self._control
        self._complete = True
        control.rest()
        control.end(BY_AUTHOR)
        with control.changed:
            control.changed.wait_for(lambda: control.final)

    def _fail(self, error: BaseException) -> None:
        """Tell on /status and in the log what went wrong, and give the daemon time to ask."""
        import traceback

        text = "".join(traceback.format_exception(error))
        _write(text)
        with self._control.changed:
            code = "InitializationError" if self._control.phase == INITIALIZING else "RuntimeError.WorkerPanic"
        kind = type(error).__name__
        details = {"exception": kind, "traceback": text[-TRACEBACK_LIMIT:]}
        self._control.fail(refusal(500, code, f"The pipeline failed: {kind}: {error}"[:2000], **details))
        with self._control.changed:
            self._linger(FAULT_SECONDS)

    def _linger(self, seconds: float | None) -> None:
        """Stay for the daemon, which ends the process; return at a signal. With the lock held."""
        control = self._control
        if self._port_file is None:
            return
        if seconds is None and not control.changed.wait_for(lambda: control.asked or control.signal, UNASKED_SECONDS):
            return
        control.changed.wait_for(lambda: control.signal, seconds)

    def _close(self) -> None:
        self._checkpointer.close()
        self._server.close()
        if self._store is not None:
            self._store.close()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._handlers.clear()

    def _announce(self) -> None:
        """Tell the daemon where we listen; the same again when our status has changed: who watches need not poll."""
        path = self._port_file
        if path is None:
            return
        with open(path + ".new", "w", encoding="ascii") as file:
            file.write(f"{self._port}\n")
        os.replace(path + ".new", path)

    # --- what the other threads call ----------------------------------------------------------------------------------

    def _answer(self, request: Request) -> Reply | float:
        return self._contract.answer(request)

    def _woken(self) -> None:
        number, self._signalled = self._signalled, 0
        if number:
            _say(f"ends, after a last checkpoint: {signal.Signals(number).name}")
            self._control.end(BY_SIGNAL, number)
        shown = self._control.shown()
        if shown != self._announced:
            self._announced = shown
            with suppress(OSError):  # no room on the disk; whoever polls will see it too
                self._announce()

    def _progress(self) -> int:
        return self._steps

    def _describe(self) -> tuple[bytes | None, Checkpoint]:
        """The state, encoded, and what is told of it. The state is at rest."""
        checkpoint = Checkpoint(
            sequence=0,
            uuid=new_uuid(),
            version=self._version,
            steps=self._steps,
            processed_records=int(self.records.value),
            deployment_id=self._deployment,
            desired=self._control.desired,
        )
        if self._encode is None:
            return None, checkpoint
        data = self._encode(self._state)
        if self._at_first is not None and self._steps > self._at_first[0]:
            if data == self._at_first[1]:
                _say(
                    f"the state is what it was at the beginning, {self._steps - self._at_first[0]} steps ago. What "
                    "restore() returned is what is kept: change it in place, another object under its name is lost."
                )
            self._at_first = None
        return data, checkpoint

    def _bootstrap(self, kept: str, own: str) -> None:
        """Decide what becomes of a program whose state has another version than what was kept."""
        text = f"The newest checkpoint is of version {kept!r}, the program of version {own!r}"
        policy = self._environ.get("PENSTOCK_BOOTSTRAP_POLICY", "await_approval")
        if policy == "reject":
            raise BootstrapRejected(f"{text}, and the pipeline was started with bootstrap_policy=reject.")
        if policy == "allow":
            _say(f"{text}: begins anew")
        else:
            _say(f"{text}: waits for an approval to begin anew")
            self._control.await_approval({"program_diff": None, "program_diff_error": f"{text}."})

    # --- signals ------------------------------------------------------------------------------------------------------

    def _catch_signals(self) -> None:
        """SIGTERM and SIGINT end the pipeline as a suspension does. In the main thread only: no other can."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._handlers[number] = signal.signal(number, self._on_signal)
            self._interrupt = self._interrupt_main

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Runs between two instructions of the main thread, which may hold any lock: takes none."""
        if os.getpid() != self._pid:
            self._die(number)
        elif self._interrupting:
            self._interrupting = False
            if self._control.interrupt is not None:
                raise Suspended
        elif self._control.signal or self._signalled:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            self._die(number)
        else:
            self._signalled = number
            self._server.wake()

    def _die(self, number: int) -> None:
        """End now. Only the main thread can have a signal end it as signals do, and it may be busy for ever."""
        if threading.current_thread() is not threading.main_thread():
            os._exit(128 + number)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def _interrupt_main(self) -> None:
        """Get the author's code out of what it waits in: its source, which cannot know of an end."""
        main = threading.main_thread().ident
        if main is not None and signal.getsignal(signal.SIGTERM) == self._on_signal:  # and not its author's own
            self._interrupting = True
            signal.pthread_kill(main, signal.SIGTERM)


def _is_suspended(error: BaseException) -> bool:
    """Whether the exception is our own; task groups wrap it."""
    grouped: tuple[BaseException, ...] = getattr(error, "exceptions", ())
    return all(map(_is_suspended, grouped)) if grouped else isinstance(error, Suspended)


def _config(path: str | None) -> dict[str, object]:
    if path is None:
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            config: dict[str, object] = json.load(file)
    except FileNotFoundError:
        return {}
    return config


def _interval(config: dict[str, object], default: float | None) -> float | None:
    """Seconds between checkpoints: what the user says, else what the author says."""
    tolerance: Any = config.get("fault_tolerance")
    seconds: object = default
    if hasattr(tolerance, "get") and tolerance.get("model") != "none":
        seconds = tolerance.get("checkpoint_interval_secs", default)
    return float(seconds) if isinstance(seconds, int | float) and seconds > 0 else None


def _decoder(encode: Callable[[State], bytes]) -> Callable[[bytes], State]:
    if encode is not to_json:
        raise TypeError("restore() was given encode without decode")
    return from_json  # type: ignore[return-value]


def _say(text: str) -> None:
    """One line in the pipeline's log."""
    _write(f"penstock.runtime: {text}\n")


def _write(text: str) -> None:
    with suppress(OSError, ValueError, AttributeError):  # a log that is gone is no reason to end
        sys.stderr.write(text)
        sys.stderr.flush()
