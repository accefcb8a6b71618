"""Toolchains, a probe and logs that need no disk and no network: what stands around a fake executor."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from penstock.answers import Answer, NoAnswer
from penstock.model import Fault, Pipeline, PipelineId, RuntimeDesired, Spec
from penstock.ports import LogCursor, LogPosition, Reply, RunPlan, StepPassed, StepResult


@dataclass(slots=True)
class FakeToolchains:
    """Every program is right. `flaws` names artifacts that `verify` finds damaged."""

    flaws: dict[PipelineId, str] = field(default_factory=dict[PipelineId, str])

    def refuse(self, spec: Spec) -> str | None:
        named = spec.program_config.get("toolchain")
        return None if named in (None, "python", "command") else f"there is no toolchain {named!r}"

    async def check(self, row: Pipeline) -> StepResult:
        return StepPassed(outcome={"exit_code": 0, "messages": []})

    async def build(self, row: Pipeline) -> StepResult:
        return StepPassed(outcome={"exit_code": 0, "stdout": "", "stderr": ""}, artifact="a" * 64)

    async def verify(self, row: Pipeline) -> str | None:
        return self.flaws.get(row.id)

    def plan(self, row: Pipeline) -> RunPlan:
        return RunPlan(argv=("true",), contract="process", artifact_dir="", program_file="")

    async def sweep(self, rows: Sequence[Pipeline]) -> int:
        return 0


@dataclass(slots=True)
class FakeProbe:
    """Answers what it was given, in turn; the last for ever."""

    answers: list[Answer | NoAnswer] = field(default_factory=list[Answer | NoAnswer])
    steered: list[RuntimeDesired] = field(default_factory=list[RuntimeDesired])
    replies: dict[str, Reply] = field(default_factory=dict[str, Reply])
    """What `get` and `post` bring back, by path and query."""
    posted: list[str] = field(default_factory=list[str])

    async def status(self, location: str) -> Answer | NoAnswer:
        if not self.answers:
            return NoAnswer("nobody listens")
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    async def get(self, location: str, path: str) -> Reply | Fault:
        error = "nobody listens"
        unreachable = Fault("PipelineInteractionUnreachable", f"No answer: {error}.", {"request": path, "error": error})
        return self.replies.get(path, unreachable)

    async def post(self, location: str, path: str) -> Reply | Fault:
        self.posted.append(path)
        return await self.get(location, path)

    async def steer(self, location: str, target: RuntimeDesired) -> None:
        self.steered.append(target)


@dataclass(slots=True)
class FakeLogs:
    """Keeps control-plane lines; there is no other output."""

    notes: list[tuple[PipelineId, str, str]] = field(default_factory=list[tuple[PipelineId, str, str]])

    def path(self, pipeline_id: PipelineId) -> str:
        return "/dev/null"

    def note(self, row: Pipeline, level: str, message: str) -> None:
        self.notes.append((row.id, level, message))

    def tail(self, pipeline_id: PipelineId, lines: int) -> tuple[str, ...]:
        mine = [message for owner, _, message in self.notes if owner == pipeline_id]
        return tuple(mine[-lines:])

    def forget(self, pipeline_id: PipelineId) -> None:
        self.notes = [note for note in self.notes if note[0] != pipeline_id]

    async def position(
        self,
        pipeline_id: PipelineId,
        *,
        cursor: LogCursor | None = None,
        tail: int | None = None,
        since: datetime | None = None,
    ) -> LogPosition:
        return LogPosition(epoch="00000000-0000-7000-8000-000000000000", seq=0, gap=0, offset=0, torn=False)

    async def read(
        self, pipeline_id: PipelineId, *, follow: bool, position: LogPosition | None = None
    ) -> AsyncGenerator[bytes, None]:
        for owner, level, message in self.notes:
            if owner == pipeline_id:
                yield f"{level} {message}\n".encode()
