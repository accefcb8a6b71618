"""Being at rest: a block in which the author's thread leaves the state alone.

Made by `pipeline.py`. Entering says that the state is whole; leaving waits until the author may go on, and raises
`Suspended` when it is over. What waits for its source in such a block is got out of it at the end, if that can be.
"""

from __future__ import annotations

from contextlib import suppress

from penstock.runtime.control import Control, Suspended

TYPE_CHECKING = False  # as typing's, whose import would take a quarter of the time that ours takes
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from types import TracebackType


class Rest:
    """``with`` in a thread, ``async with`` in a task. `interrupt` gets the main thread out of what it waits in."""

    __slots__ = ("_control", "_interrupt", "_task")

    def __init__(self, control: Control, interrupt: Callable[[], None] | None = None) -> None:
        self._control = control
        self._interrupt = interrupt
        self._task: asyncio.Task[object] | None = None

    def __enter__(self) -> None:
        self._control.rest()
        self._control.interrupt = self._interrupt

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._control.interrupt = None
        if error is None:
            self._control.go_on()
        else:
            self._control.break_off()

    async def __aenter__(self) -> None:
        import asyncio

        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def cancel() -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._cancel)

        self._task = task
        self._control.rest()
        self._control.interrupt = cancel

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        import asyncio

        self._control.interrupt = None
        task, self._task = self._task, None
        if error is None:
            if self._control.attention:
                await asyncio.to_thread(self._control.await_leave)
            self._control.go_on()
        elif isinstance(error, asyncio.CancelledError) and task is None:
            raise Suspended from None  # it was not its author who cancelled
        else:
            self._control.break_off()

    def _cancel(self) -> None:
        """On the loop: get the task out of what it awaits, unless it is out already."""
        if self._task is not None:
            task, self._task = self._task, None
            task.cancel()
