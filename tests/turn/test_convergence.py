"""A user, a world and a daemon that dies anywhere: whatever happens, nothing runs twice and no status lies.

The three patterns of faults that find bugs in reconcilers are all here: a crash between any two steps of a turn, a lost
wake-up (turns happen only when the machine says so), and a stale read (a turn that decides on an old row).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import TypeVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from penstock import history, machine, moves, program, requests
from penstock.faults import HOST_RESTARTED
from penstock.machine import Policy
from penstock.model import (
    Author,
    Bootstrap,
    DeploymentId,
    Effect,
    Exit,
    Fault,
    Initial,
    Pipeline,
    PipelineId,
    Provision,
    Refusal,
    ResourcesDesired,
    ResourcesStatus,
    RuntimeDesired,
    Spec,
    StorageStatus,
)
from penstock.ports import ExecutorError, StaleRevision
from penstock.testing.fake_executor import FakeExecutor
from penstock.testing.virtual import ManualClock

T = TypeVar("T")
P1 = PipelineId("p-1")
FAULT = Fault("Broken", "it broke")
STEPS = ("look", "record", "act", "none")


def finish(coroutine: Coroutine[object, None, T]) -> T:
    """Run something that never really waits."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("the fake world made somebody wait")


class Convergence(RuleBasedStateMachine):
    """One pipeline; `step` follows the reconciler's five steps so that the daemon can die after each."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.world = FakeExecutor()
        self.policy = Policy()
        made = requests.new_pipeline(P1, Spec(name="p1"), platform_version="1", now=self.clock.now())
        self.row: Pipeline = replace(made, program_status=program.ProgramStatus.SUCCESS, artifact="a")
        self.old: Pipeline = self.row
        self.acknowledged: ResourcesDesired = ResourcesDesired.STOPPED
        self.late: list[Pipeline] = []

    # --- the store -----------------------------------------------------------------------------------------------

    def commit(self, before: Pipeline, rows: tuple[Pipeline, ...], by: Author) -> Pipeline:
        if before.revision != self.row.revision:
            raise StaleRevision
        change = history.record(
            before,
            rows,
            by=by,
            cause="test",
            now=self.clock.now(),
            new_id=self.clock.new_id,
            details_interval_seconds=600,
        )
        self.old, self.row = self.row, change.row
        return change.row

    # --- the daemon ----------------------------------------------------------------------------------------------

    def turn(self, *, die_after: str = "none", stale: bool = False) -> machine.Decision | None:
        row = self.old if stale else self.row
        seen = finish(self.world.look(row)) if machine.needs_look(row) else None
        if die_after == "look":
            return None
        new_id = DeploymentId(self.clock.new_id())
        decision = machine.step(row, seen, now=self.clock.now(), new_id=new_id, policy=self.policy)
        recorded = row
        if decision.rows:
            try:
                recorded = self.commit(row, decision.rows, Author.DAEMON)
            except StaleRevision:
                return decision
        elif row.revision != self.row.revision and decision.effect is not None:
            # An effect without a record, decided on an old row: it is keyed by the deployment it saw.
            recorded = row
        if die_after == "act" and isinstance(decision.effect, Provision):
            self.late.append(recorded)
            return decision
        if die_after == "record" or decision.effect is None:
            return decision
        self.act(recorded, decision.effect)
        return decision

    def act(self, row: Pipeline, effect: Effect) -> None:
        try:
            finish(self.world.perform(row, effect))
        except ExecutorError:
            return

    @initialize(running=st.booleans(), slow=st.booleans(), stubborn=st.booleans())
    def begin(self, running: bool, slow: bool, stubborn: bool) -> None:
        """Half of the stories begin with a pipeline that runs."""
        self.world.stubborn = stubborn
        if running:
            self.start(Initial.RUNNING)
            self.take_turns(["none"] * 4, deaf=False)
        self.world.slow_start = slow

    @rule(deaths=st.lists(st.sampled_from(STEPS), min_size=1, max_size=4), deaf=st.booleans())
    def take_turns(self, deaths: list[str], deaf: bool) -> None:
        """Some turns in a row, the daemon dying in each after a step; a deaf world cannot be seen meanwhile."""
        self.world.deaf = deaf
        for die_after in deaths:
            self.turn(die_after=die_after)
        self.world.deaf = False

    @rule()
    def a_late_spawn_lands(self) -> None:
        """A daemon was killed while it spawned; what it began comes to life only now."""
        while self.late:
            self.act(self.late.pop(), Provision())

    @rule()
    def turn_on_a_stale_row(self) -> None:
        """Only a record guards against it: an effect alone must be harmless."""
        if self.old.revision != self.row.revision and self.old.deployment_id != self.row.deployment_id:
            return  # the look would concern a deployment of long ago; the world refuses it by its id
        self.turn(stale=True)

    # --- the user ------------------------------------------------------------------------------------------------

    def ask(self, after: Pipeline | Refusal) -> bool:
        if isinstance(after, Refusal):
            return False
        if after != self.row:
            self.commit(self.row, (after,), Author.USER)
        return True

    @rule(initial=st.sampled_from([Initial.RUNNING, Initial.PAUSED]))
    def start(self, initial: Initial) -> None:
        asked = requests.StartRequest(initial=initial, bootstrap=Bootstrap())
        if self.ask(requests.start(self.row, asked, now=self.clock.now())):
            self.acknowledged = ResourcesDesired.PROVISIONED

    @rule(force=st.booleans())
    def stop(self, force: bool) -> None:
        assert self.ask(requests.stop(self.row, force=force, grace_seconds=30, now=self.clock.now()))
        self.acknowledged = ResourcesDesired.STOPPED

    @rule()
    def clear(self) -> None:
        self.ask(requests.clear(self.row))

    @rule()
    def dismiss(self) -> None:
        self.ask(requests.dismiss_error(self.row))

    @rule(wanted=st.sampled_from([RuntimeDesired.RUNNING, RuntimeDesired.PAUSED]))
    def steer(self, wanted: RuntimeDesired) -> None:
        self.ask(requests.steer(self.row, wanted))

    # --- the world -----------------------------------------------------------------------------------------------

    @rule(end=st.sampled_from([Exit(pid=1, code=0), Exit(pid=1, code=3), Exit(pid=1, signal=11)]))
    def die(self, end: Exit) -> None:
        for deployment in self.world.alive(P1):
            self.world.die(deployment, end)

    @rule()
    def reboot(self) -> None:
        for deployment in self.world.alive(P1):
            self.world.die(deployment, Exit(pid=1), Fault(HOST_RESTARTED, "the host went down"))

    @rule(retry=st.booleans())
    def next_effect_fails(self, retry: bool) -> None:
        self.world.refusals = [ExecutorError(FAULT, retry=retry)]

    @rule()
    def become_ready(self) -> None:
        for deployment in self.world.alive(P1):
            self.world.make_ready(deployment)

    @rule(seconds=st.sampled_from([0.1, 1.0, 11.0, 31.0, 700.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    # --- what must hold ------------------------------------------------------------------------------------------

    @invariant()
    def never_two_at_once(self) -> None:
        assert len(self.world.alive(P1)) <= 1
        assert all(count == 1 for count in self.world.spawned.values())

    @invariant()
    def stopped_means_nothing_runs(self) -> None:
        if self.row.resources_status is ResourcesStatus.STOPPED:
            assert not self.world.alive(P1)

    @invariant()
    def cleared_means_nothing_is_stored(self) -> None:
        if self.row.storage_status is StorageStatus.CLEARED:
            assert P1 not in self.world.storage

    @invariant()
    def what_runs_is_the_rows_own(self) -> None:
        for deployment in self.world.alive(P1):
            assert deployment == self.row.deployment_id

    @invariant()
    def the_row_is_sound(self) -> None:
        assert moves.flaw_of(self.row) is None

    @invariant()
    def a_stop_is_never_forgotten(self) -> None:
        if self.acknowledged is ResourcesDesired.STOPPED and self.row.resources_status is ResourcesStatus.PROVISIONED:
            assert self.row.stop_mode is not None

    @rule()
    def it_converges_when_faults_stop(self) -> None:
        """Driven only by what the machine itself asks for (revisits and retries), it reaches the goal."""
        self.a_late_spawn_lands()
        self.world.slow_start = False
        self.world.refusals = []
        self.become_ready()
        for _ in range(40):
            decision = self.turn()
            assert decision is not None
            if decision.retry:
                self.clock.advance(1)
            elif decision.revisit_seconds is not None:
                self.clock.advance(decision.revisit_seconds)
            else:
                break
        else:
            raise AssertionError("still busy after 40 turns")
        settled = self.row
        assert settled.stop_mode is None
        assert settled.resources_status.value == settled.resources_desired.value
        assert settled.storage_status is not StorageStatus.CLEARING
        if settled.resources_status is ResourcesStatus.PROVISIONED:
            assert self.world.alive(P1) == [settled.deployment_id]
            assert settled.runtime_desired is settled.runtime_intent


TestConvergence = Convergence.TestCase

ENDS = (Exit(pid=1, code=0), Exit(pid=1, code=3), Exit(pid=1, signal=11))


def wander(story: Convergence, chance: random.Random, steps: int) -> None:
    """A long random walk over the rules, evener than hypothesis' search; every invariant is checked after each step."""
    story.begin(running=False, slow=False, stubborn=chance.random() < 0.3)
    rules: list[tuple[int, Callable[[], object]]] = [
        (
            12,
            lambda: story.take_turns(chance.choices(STEPS, k=chance.randint(1, 3)), deaf=chance.random() < 0.3),
        ),
        (4, lambda: story.start(chance.choice([Initial.RUNNING, Initial.PAUSED]))),
        (3, lambda: story.stop(chance.random() < 0.5)),
        (2, story.clear),
        (1, story.dismiss),
        (1, lambda: story.steer(chance.choice([RuntimeDesired.RUNNING, RuntimeDesired.PAUSED]))),
        (1, lambda: story.die(chance.choice(ENDS))),
        (1, story.reboot),
        (1, lambda: story.next_effect_fails(chance.random() < 0.5)),
        (1, story.become_ready),
        (2, lambda: story.wait(chance.choice([0.1, 1.0, 11.0, 31.0]))),
        (2, story.turn_on_a_stale_row),
        (1, story.a_late_spawn_lands),
        (1, story.it_converges_when_faults_stop),
    ]
    weights = [weight for weight, _ in rules]
    for _ in range(steps):
        chance.choices(rules, weights)[0][1]()
        story.never_two_at_once()
        story.stopped_means_nothing_runs()
        story.cleared_means_nothing_is_stored()
        story.what_runs_is_the_rows_own()
        story.the_row_is_sound()
        story.a_stop_is_never_forgotten()


@pytest.mark.parametrize("seed", range(20))
def test_long_walks(seed: int) -> None:
    for story in range(10):
        wander(Convergence(), random.Random(seed * 1000 + story), 100)
