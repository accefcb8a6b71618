"""One turn of one pipeline: read, look, decide, record, act.

Called by the loop, never twice at once for one pipeline. A crash or a cancellation between any two of the five is
repaired by the next turn: what was recorded is acted upon again, and every effect is idempotent. Must never decide
anything itself; that is `machine.step`'s.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

import anyio

from penstock import machine
from penstock.answers import Answer, NoAnswer, interpret
from penstock.machine import Decision, Policy
from penstock.model import (
    Author,
    DeploymentId,
    Effect,
    EffectFailed,
    Failed,
    Fault,
    Pipeline,
    PipelineId,
    Ready,
    ResourcesStatus,
    Sighting,
    SteerRuntime,
    Unbuilt,
    Unseen,
)
from penstock.ports import Clock, Executor, ExecutorError, Logs, Probe, Store, Toolchains

LOOK_TIMEOUT_SECONDS = 10.0
"""Longer than the probe's own 5 s, so that the probe's reason is the one that is shown."""

ACT_TIMEOUT_SECONDS = 60.0
"""An effect starts work and returns soon; one that does not is cut off and tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one turn came to. `rows` are the snapshots recorded, the first of them what was read."""

    reason: str
    rows: tuple[Pipeline, ...] = ()
    effect: Effect | None = None
    fault: Fault | None = None
    """Why the effect did not work."""
    revisit_seconds: float | None = None
    retry: bool = False
    exists: bool = True


class Reconciler:
    """Takes single turns; owns nothing but the ports."""

    def __init__(
        self,
        *,
        store: Store,
        executor: Executor,
        toolchains: Toolchains,
        probe: Probe,
        logs: Logs,
        clock: Clock,
        policy: Policy,
    ) -> None:
        self.policy = policy
        """May be replaced between turns: a reload of the settings does."""
        self._store = store
        self._executor = executor
        self._toolchains = toolchains
        self._probe = probe
        self._logs = logs
        self._clock = clock
        self._met: set[PipelineId] = set()
        """The pipelines that have had a turn."""

    async def turn(self, pipeline_id: PipelineId) -> Turn:
        """Take `pipeline_id` through one turn.

        Raises StaleRevision when somebody else wrote the row meanwhile (turn again), StoreUnavailable, and whatever is
        a bug. May be cancelled at any await; a commit is then either wholly applied or not at all.
        """
        row = await self._store.get(pipeline_id)
        if row is None:
            self._met.discard(pipeline_id)
            self._logs.forget(pipeline_id)
            await self._executor.forget(pipeline_id)
            return Turn(reason="gone", exists=False)
        seen = await self._look(row) if machine.needs_look(row) else None
        if pipeline_id not in self._met:
            self._met.add(pipeline_id)
            if isinstance(seen, Ready) and row.resources_status is ResourcesStatus.PROVISIONED:
                self._logs.note(row, "INFO", f"run {row.deployment_id} goes on, adopted by a new daemon")
        decision = self._decide(row, seen)
        recorded = await self._record(row, decision)
        if decision.effect is None:
            return _turn(row, decision)
        fault = await self._act(recorded, decision.effect)
        if fault is None:
            return _turn(row, decision)
        if isinstance(decision.effect, SteerRuntime) and not fault.retry:
            words = f"was told to be {_snake(decision.effect.target)}, and refuses: {fault.fault.code}"
            self._logs.note(recorded, "WARN", f"the process {words}: {fault.fault.message}")
        after = self._decide(recorded, EffectFailed(decision.effect, fault.fault, fault.retry))
        await self._record(recorded, after)
        return Turn(
            reason=after.reason,
            rows=(row, *decision.rows, *after.rows) if decision.rows or after.rows else (),
            effect=decision.effect,
            fault=fault.fault,
            revisit_seconds=after.revisit_seconds,
            retry=after.retry,
        )

    async def _look(self, row: Pipeline) -> Sighting:
        with anyio.move_on_after(LOOK_TIMEOUT_SECONDS):
            if row.resources_status is ResourcesStatus.STOPPED and row.resources_desired.value != row.resources_status:
                flaw = await self._toolchains.verify(row)
                if flaw is not None:
                    return Unbuilt(flaw)
            seen = await self._executor.look(row)
            if row.resources_status is not ResourcesStatus.PROVISIONED:
                return seen
            match seen:
                case Ready(location=str(location), report=None):
                    return await self._ask(row, seen, location)
                case _:
                    return seen
        return Unseen(f"looking took longer than {LOOK_TIMEOUT_SECONDS:g} s")

    async def _ask(self, row: Pipeline, seen: Ready, location: str) -> Sighting:
        answer: Answer | NoAnswer = NoAnswer("the grace of its stop was over before it had answered")
        with anyio.move_on_after(self._patience_seconds(row)):
            answer = await self._probe.status(location)
        if isinstance(answer, NoAnswer):
            # It may have died while it was asked; then its end is the truth, not its silence.
            again = await self._executor.look(row)
            if not isinstance(again, Ready):
                return again
        meaning = interpret(row, answer, self._clock.now())
        return meaning if isinstance(meaning, Failed) else replace(seen, report=meaning)

    def _decide(self, row: Pipeline, stimulus: Sighting | EffectFailed | None) -> Decision:
        new_id = DeploymentId(self._clock.new_id())
        return machine.step(row, stimulus, now=self._clock.now(), new_id=new_id, policy=self.policy)

    async def _record(self, row: Pipeline, decision: Decision) -> Pipeline:
        if not decision.rows:
            return row
        now = self._clock.now()
        recorded = await self._store.commit(row, decision.rows, by=Author.DAEMON, cause=decision.reason, now=now)
        before = row
        for after in decision.rows:
            self._note(before, after, decision.reason)
            before = after
        return recorded

    async def _act(self, row: Pipeline, effect: Effect) -> ExecutorError | None:
        seconds = min(ACT_TIMEOUT_SECONDS, self._patience_seconds(row))
        try:
            with anyio.fail_after(seconds):
                await self._executor.perform(row, effect)
        except ExecutorError as error:
            return error
        except TimeoutError:
            text = f"{type(effect).__name__} took longer than {seconds:.3g} s; it will be tried again."
            return ExecutorError(Fault("RunnerProvisionError", text, {"error": text}), retry=True)
        return None

    def _patience_seconds(self, row: Pipeline) -> float:
        """How long the process may hold up a turn: a stop is forced when its grace is over, whatever was asked."""
        return math.inf if row.stop_deadline is None else (row.stop_deadline - self._clock.now()).total_seconds()

    def _note(self, before: Pipeline, after: Pipeline, why: str) -> None:
        """Tell the pipeline's own log what moved (contract.md section 8), and of a stop, why."""
        desired = after.resources_desired
        was, status = before.resources_status, after.resources_status
        if was is ResourcesStatus.STOPPED and status is not was:
            self._logs.note(after, "INFO", f"---- run {after.deployment_id} begins ----")
        if status is not was:
            moved = f"{_snake(was)} -> {_snake(status)}"
            cause = f": {why}" if status is ResourcesStatus.STOPPING else ""
            self._logs.note(after, "INFO", f"resources transition {moved} (desired {_snake(desired)}){cause}")
        if before.runtime_status is not after.runtime_status and after.runtime_status is not None:
            moved = f"{_snake(before.runtime_status)} -> {_snake(after.runtime_status)}"
            self._logs.note(after, "INFO", f"runtime transition {moved} (desired {_snake(after.runtime_desired)})")
        if before.storage_status is not after.storage_status:
            moved = f"{_snake(before.storage_status)} -> {_snake(after.storage_status)}"
            self._logs.note(after, "INFO", f"storage transition {moved}")
        error = after.deployment_error
        if error is not None and error != before.deployment_error:
            self._logs.note(after, "ERROR", f"{error.code}: {error.message}")
        if status is ResourcesStatus.STOPPED and status is not was:
            self._logs.note(after, "INFO", f"---- run {before.deployment_id} ended ----")


def _snake(status: str | None) -> str:
    """A status as logs spell it (contract.md sections 1.1 and 8)."""
    return "(none)" if status is None else re.sub(r"(?<=[a-z])(?=[A-Z])", "_", status).lower()


def _turn(row: Pipeline, decision: Decision) -> Turn:
    return Turn(
        reason=decision.reason,
        rows=(row, *decision.rows) if decision.rows else (),
        effect=decision.effect,
        revisit_seconds=decision.revisit_seconds,
        retry=decision.retry,
    )
