"""The same calls, whatever they are, on the store in memory and on the one in a file, which closes and opens between.

Both answer alike, hold the same rows and tell the same history. Events are compared but for their ids, which come from
two clocks.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from penstock import program, requests
from penstock.model import (
    DEFAULT_TENANT,
    Author,
    Bootstrap,
    BootstrapPolicy,
    Fault,
    Initial,
    MonitorEvent,
    Pipeline,
    PipelineId,
    ProgramError,
    ResourcesStatus,
    Spec,
)
from penstock.moves import IllegalMove
from penstock.ports import Store, StoreError
from penstock.stores.sqlite import SqliteStore, open_sqlite
from penstock.testing.memory_store import MemoryStore
from penstock.testing.store_contract import OTHER_TENANT, RETENTION
from penstock.testing.virtual import ManualClock

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
OBJECT = st.dictionaries(TEXT, JSON, max_size=3)
NAME = st.sampled_from(["a", "b", "c", "A"])
TENANT = st.sampled_from([DEFAULT_TENANT, OTHER_TENANT])
FAULT = st.none() | st.builds(Fault, TEXT, TEXT, OBJECT)

Call = Callable[[Store], Awaitable[object]]
Change = Callable[[Pipeline, ManualClock], tuple[Sequence[Pipeline], Author]]


def _toggle(row: Pipeline, clock: ManualClock) -> tuple[Sequence[Pipeline], Author]:
    asked = requests.StartRequest(initial=Initial.PAUSED, bootstrap=Bootstrap(BootstrapPolicy.ALLOW, silent=True))
    started = requests.start(row, asked, now=clock.now())
    stopped = requests.stop(row, force=True, grace_seconds=0, now=clock.now())
    return (stopped if stopped != row or not isinstance(started, Pipeline) else started,), Author.USER


def _twice(row: Pipeline, clock: ManualClock) -> tuple[Sequence[Pipeline], Author]:
    ((first,), _), ((second,), _) = (a := _toggle(row, clock)), _toggle(a[0][0], clock)
    return (first, second), Author.USER


def _check_begun(row: Pipeline, clock: ManualClock) -> tuple[Sequence[Pipeline], Author]:
    return (program.begin_check(row, clock.now()) or row,), Author.COMPILER


def _reset(row: Pipeline, clock: ManualClock) -> tuple[Sequence[Pipeline], Author]:
    return (program.reset(row, clock.now()),), Author.COMPILER  # illegal from some statuses


def _leap(row: Pipeline, clock: ManualClock) -> tuple[Sequence[Pipeline], Author]:
    return (replace(row, resources_status=ResourcesStatus.STOPPING),), Author.USER


def _edited(**members: object) -> Change:
    return lambda row, clock: ((replace(row, spec=replace(row.spec, **members)),), Author.USER)  # type: ignore[arg-type]


def _observed(**members: object) -> Change:
    return lambda row, clock: ((replace(row, **members),), Author.DAEMON)  # type: ignore[arg-type]


CHANGE = st.one_of(
    st.sampled_from([_toggle, _toggle, _twice, _check_begun, _reset, _leap]),
    st.builds(_edited, name=NAME),
    st.builds(_edited, description=TEXT, tags=st.lists(TEXT, max_size=2).map(tuple), program_code=TEXT),
    st.builds(_edited, runtime_config=OBJECT, program_config=OBJECT),
    st.builds(_observed, resources_status_details=st.none() | OBJECT, deployment_error=FAULT),
    st.builds(_observed, program_info=st.none() | OBJECT, program_error=st.builds(ProgramError, OBJECT, OBJECT, TEXT)),
)


class StoresAgree(RuleBasedStateMachine):
    """Every rule does to both what a user or a daemon would do to one."""

    ids = Bundle("ids")

    @initialize()
    def begin(self) -> None:
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory()
        self.clocks = (ManualClock(), ManualClock())
        self.model = MemoryStore(self.clocks[0], retention=RETENTION)
        self.opened = AsyncExitStack()
        self.store = self._open()
        self.instance_id = self.store.instance_id
        self.named = 0

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.runner.run(self.opened.aclose())
            self.runner.close()
            self.directory.cleanup()

    def _open(self) -> SqliteStore:
        path = Path(self.directory.name) / "penstock.db"
        opening = open_sqlite(path, clock=self.clocks[1], retention=RETENTION)
        return self.runner.run(self.opened.enter_async_context(opening))

    @rule()
    def reopen(self) -> None:
        self.runner.run(self.opened.aclose())
        self.store = self._open()
        assert self.store.instance_id == self.instance_id

    @rule(seconds=st.sampled_from([0.000001, 1, 599, 600, -30]))
    def time_passes(self, seconds: float) -> None:
        for clock in self.clocks:
            clock.advance(seconds)

    @rule(target=ids, name=NAME, tenant=TENANT)
    def create(self, name: str, tenant: str) -> object:
        self.named += 1
        pipeline_id = PipelineId(f"00000000-0000-7000-8000-{self.named:012}")
        row = requests.new_pipeline(pipeline_id, Spec(name=name), platform_version="1", now=self.clocks[0].now())
        row = replace(row, tenant=tenant)
        answer = self._both([lambda store: store.create(row)])[0]
        return pipeline_id if isinstance(answer, Pipeline) else multiple()

    @rule(target=ids, pipeline_id=consumes(ids), stale=st.integers(0, 3))
    def delete(self, pipeline_id: PipelineId, stale: int) -> object:
        row = self._row(pipeline_id)
        before = replace(row, revision=row.revision - (stale == 1))
        (answer,) = self._both([lambda store: store.delete(before)])
        return multiple() if answer is None else pipeline_id

    @rule(pipeline_id=ids, change=CHANGE, stale=st.integers(0, 5))
    def commit(self, pipeline_id: PipelineId, change: Change, stale: int) -> None:
        self._both([self._commit(self._row(pipeline_id), change, stale == 1)])

    @rule(pipeline_ids=st.lists(ids, min_size=2, max_size=8), changes=st.lists(CHANGE, min_size=8, max_size=8))
    def commit_many(self, pipeline_ids: list[PipelineId], changes: list[Change]) -> None:
        """At once: one transaction, in which some are refused."""
        rows = [self._row(pipeline_id) for pipeline_id in pipeline_ids]
        self._both([self._commit(row, change, False) for row, change in zip(rows, changes, strict=False)])

    @rule(pipeline_id=ids)
    def commit_to_the_deleted(self, pipeline_id: PipelineId) -> None:
        row = replace(self._row(pipeline_id), id=PipelineId("gone"))
        self._both([self._commit(row, _toggle, False), lambda store: store.delete(row)])

    @rule(pipeline_id=ids, after=st.integers(-2, 60), limit=st.none() | st.integers(0, 7))
    def list_events(self, pipeline_id: PipelineId, after: int, limit: int | None) -> None:
        self._both([lambda store: store.events(pipeline_id, after=after, limit=limit)])

    @invariant()
    def they_agree(self) -> None:
        if not hasattr(self, "store"):
            return
        calls: list[Call] = [lambda store: store.pipelines(), lambda store: store.pipelines(OTHER_TENANT)]
        for row in self.runner.run(self.model.pipelines()):
            calls += [
                lambda store, row=row: store.get(row.id),
                lambda store, row=row: store.find(row.tenant, row.spec.name),
                lambda store, row=row: store.events(row.id),
                lambda store, row=row: store.latest_event(row.id),
            ]
        self._both(calls)

    def _row(self, pipeline_id: PipelineId) -> Pipeline:
        row = self.runner.run(self.model.get(pipeline_id))
        assert row is not None
        return row

    def _commit(self, before: Pipeline, change: Change, stale: bool) -> Call:
        rows, by = change(before, self.clocks[0])
        read = replace(before, revision=before.revision - stale)
        now = self.clocks[0].now()
        return lambda store: store.commit(read, rows, by=by, cause="some reason", now=now)

    def _both(self, calls: Sequence[Call]) -> list[object]:
        """Make the calls on both stores, on the real one all at once, and see to it that the answers are the same."""

        async def at_once() -> list[object]:
            return await asyncio.gather(*(_answer(call(self.store)) for call in calls))

        async def in_turn() -> list[object]:
            return [await _answer(call(self.model)) for call in calls]

        real, expected = self.runner.run(at_once()), self.runner.run(in_turn())
        for ours, theirs in zip(real, expected, strict=True):
            assert _without_ids(ours) == _without_ids(theirs)
        return real


async def _answer(call: Awaitable[object]) -> object:
    try:
        return await call
    except (StoreError, IllegalMove) as error:
        return type(error)


def _without_ids(answer: object) -> object:
    if isinstance(answer, MonitorEvent):
        return replace(answer, event_id="")
    if isinstance(answer, list):
        events = [item for item in answer if isinstance(item, MonitorEvent)]
        ids = [event.event_id for event in events]
        assert ids == sorted(set(ids), reverse=True)
        return [_without_ids(item) for item in answer]
    return answer


TestStoresAgree = StoresAgree.TestCase
TestStoresAgree.settings = settings(stateful_step_count=25)
TestStoresAgree.pytestmark = [pytest.mark.timeout(3600 if os.environ.get("HYPOTHESIS_PROFILE") == "long" else 300)]
