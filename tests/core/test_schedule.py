"""The delay queue against a naive one: never lost, never doubled, never taken twice, the earliest wins."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from penstock.schedule import BACKOFF_FIRST_SECONDS, BACKOFF_LONGEST_SECONDS, Schedule, backoff_seconds

KEYS = st.sampled_from("abcd")
TIMES = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0, 3.0, 10.0, math.inf])


class AgainstANaiveQueue(RuleBasedStateMachine):
    """The model: when each waiting key is due, and for each taken one when it is wanted again."""

    def __init__(self) -> None:
        super().__init__()
        self.real: Schedule[str] = Schedule()
        self.waiting: dict[str, float] = {}
        self.taken: dict[str, float | None] = {}

    @rule(key=KEYS, at=TIMES)
    def add(self, key: str, at: float) -> None:
        self.real.add(key, at)
        if key in self.taken:
            again = self.taken[key]
            self.taken[key] = at if again is None else min(again, at)
        else:
            self.waiting[key] = min(at, self.waiting.get(key, math.inf))

    @rule(now=TIMES.filter(math.isfinite))
    def take(self, now: float) -> None:
        got = self.real.take(now)
        due = {key: at for key, at in self.waiting.items() if at <= now}
        assert len(got) == len(set(got))
        assert set(got) == set(due)
        assert [due[key] for key in got] == sorted(due.values()), "the one that waited longest comes first"
        assert not set(got) & set(self.taken)
        for key in got:
            del self.waiting[key]
            self.taken[key] = None

    @rule(key=KEYS)
    def done(self, key: str) -> None:
        """Also for a key that was never taken: then it means nothing."""
        self.real.done(key)
        again = self.taken.pop(key, None)
        if again is not None:
            self.waiting[key] = again

    @rule(key=KEYS)
    def forget(self, key: str) -> None:
        self.real.forget(key)
        self.waiting.pop(key, None)
        if key in self.taken:
            self.taken[key] = None

    @invariant()
    def they_agree(self) -> None:
        assert len(self.real) == len(self.waiting)
        assert self.real.next_at() == min(self.waiting.values(), default=None)
        for key in "abcd":
            assert self.real.is_taken(key) is (key in self.taken)

    def teardown(self) -> None:
        """Whatever happened before: once everything is given back, each wanted key comes exactly once."""
        wanted = set(self.waiting)
        for key, again in self.taken.items():
            self.real.done(key)
            wanted |= {key} if again is not None else set()
        assert sorted(self.real.take(math.inf)) == sorted(wanted)
        assert self.real.take(math.inf) == []


@pytest.mark.parametrize("seed", range(10))
def test_long_walks(seed: int) -> None:
    """Evener than hypothesis' search: a thousand steps over few keys and few times."""
    chance = random.Random(seed)
    queues = AgainstANaiveQueue()
    for _ in range(1000):
        key, at = chance.choice("abcd"), float(chance.randint(0, 6))
        step = chance.choice(["add", "add", "add", "take", "done", "done", "forget"])
        if step == "add":
            queues.add(key, at)
        elif step == "take":
            queues.take(at)
        elif step == "done":
            queues.done(key)
        elif chance.random() < 0.3:
            queues.forget(key)
        queues.they_agree()
    queues.teardown()


TestAgainstANaiveQueue = AgainstANaiveQueue.TestCase


def test_an_empty_queue() -> None:
    queue: Schedule[str] = Schedule()
    assert (len(queue), queue.next_at(), queue.take(math.inf), queue.is_taken("a")) == (0, None, [], False)


def test_due_at_its_time_and_not_before() -> None:
    queue: Schedule[str] = Schedule()
    queue.add("a", 1.0)
    assert queue.take(math.nextafter(1.0, 0.0)) == []
    assert queue.take(1.0) == ["a"]


def test_keys_of_one_moment_come_in_the_order_they_were_added() -> None:
    queue: Schedule[object] = Schedule()
    keys = [object() for _ in range(20)]  # not comparable: only time and order may decide
    for key in keys:
        queue.add(key, 1.0)
    assert queue.take(1.0) == keys


def test_postponing_a_key_that_is_due_earlier_changes_nothing() -> None:
    queue: Schedule[str] = Schedule()
    queue.add("a", 1.0)
    queue.add("a", 5.0)
    assert queue.next_at() == 1.0
    assert queue.take(1.0) == ["a"]
    queue.done("a")
    assert queue.take(10.0) == []


@pytest.mark.parametrize(
    ("failures", "seconds"),
    [(-3, 0.05), (0, 0.05), (1, 0.05), (2, 0.1), (3, 0.2), (10, 25.6), (11, 30.0), (10_000, 30.0)],
)
def test_backoff(failures: int, seconds: float) -> None:
    assert backoff_seconds(failures) == pytest.approx(seconds)


@given(st.integers(), st.integers())
def test_backoff_is_monotone_and_bounded(fewer: int, more: int) -> None:
    fewer, more = sorted((fewer, more))
    assert BACKOFF_FIRST_SECONDS <= backoff_seconds(fewer) <= backoff_seconds(more) <= BACKOFF_LONGEST_SECONDS


def test_backoff_doubles_until_it_rests() -> None:
    waits = [backoff_seconds(n) for n in range(1, 40)]
    for shorter, longer in itertools.pairwise(waits):
        assert longer == min(2 * shorter, BACKOFF_LONGEST_SECONDS)
