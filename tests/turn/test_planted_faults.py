"""Rules broken on purpose: each must make the convergence test fail, or that test proves nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from penstock import machine, requests
from penstock.machine import Decision
from penstock.model import (
    Absent,
    DeploymentId,
    Ended,
    Exit,
    Failed,
    Provision,
    Ready,
    ResourcesDesired,
    ResourcesStatus,
    StorageStatus,
    Unseen,
)

from .test_convergence import Convergence, wander

Rule = Callable[..., Any]
OVER = Ended(Exit(pid=None))


def walk_on(story: type[Convergence]) -> None:
    """Many walks; `test_long_walks` shows that the same find nothing when nothing is broken."""
    for seed in range(400):
        wander(story(), random.Random(seed), 100)


def unseen_counts_as_stopped(original: Rule) -> Rule:
    return lambda row, seen, now: original(row, OVER if isinstance(seen, Unseen) else seen, now)


def never_spawned_counts_as_stopped(original: Rule) -> Rule:
    return lambda row, seen, now: original(row, OVER if isinstance(seen, Absent) else seen, now)


def unseen_counts_as_cleared(original: Rule) -> Rule:
    return lambda row, seen, now: original(row, Absent() if isinstance(seen, Unseen) else seen, now)


def provisioned_before_it_is_recorded(original: Rule) -> Rule:
    def start(row, seen, now, new_id):
        decision = original(row, seen, now, new_id)
        return replace(decision, rows=decision.rows[:-1]) if decision.effect else decision

    return start


def a_fresh_id_for_every_attempt(original: Rule) -> Rule:
    def await_ready(row, seen, now, policy):
        if isinstance(seen, Absent):
            again = replace(row, deployment_id=DeploymentId(f"again-{row.revision}"))
            return Decision(reason="fresh id", rows=(again,), effect=Provision(), revisit_seconds=0)
        return original(row, seen, now, policy)

    return await_ready


def provisioning_is_not_repeated(original: Rule) -> Rule:
    def await_ready(row, seen, now, policy):
        return Decision(reason="hoping") if isinstance(seen, Absent) else original(row, seen, now, policy)

    return await_ready


def an_end_is_overlooked(original: Rule) -> Rule:
    def observe(row, seen, now, policy):
        return Decision(reason="fine") if isinstance(seen, Ended) else original(row, seen, now, policy)

    return observe


def the_grace_never_ends(original: Rule) -> Rule:
    return lambda row, seen, now, policy: original(replace(row, stop_deadline=None), seen, now, policy)


def nobody_comes_back_after_a_kill(original: Rule) -> Rule:
    def stop(*args):
        return replace(original(*args), revisit_seconds=None)

    return stop


def stopped_is_recorded_while_it_lives(original: Rule) -> Rule:
    def finish_stop(row, seen, now):
        alive = isinstance(seen, Ready | Failed)
        return original(row, OVER if alive else seen, now)

    return finish_stop


def a_graceful_stop_is_forgotten(original: Rule) -> Rule:
    def stop(row, *, force, grace_seconds, now):
        graceful = not force and row.resources_status is ResourcesStatus.PROVISIONED
        return row if graceful else original(row, force=force, grace_seconds=grace_seconds, now=now)

    return stop


def cleared_without_looking(original: Rule) -> Rule:
    def clear(row):
        after = original(row)
        if getattr(after, "storage_status", None) is StorageStatus.CLEARING:
            return replace(after, storage_status=StorageStatus.CLEARED)
        return after

    return clear


def a_reboot_starts_what_was_told_to_stop(original: Rule) -> Rule:
    def stopped(row, now):
        return replace(original(row, now), resources_desired=ResourcesDesired.PROVISIONED)

    return stopped


@pytest.mark.parametrize(
    ("module", "rule", "fault"),
    [
        (machine, "_finish_stop", unseen_counts_as_stopped),
        (machine, "_finish_stop", never_spawned_counts_as_stopped),
        (machine, "_finish_stop", stopped_is_recorded_while_it_lives),
        (machine, "_clear", unseen_counts_as_cleared),
        (machine, "_start", provisioned_before_it_is_recorded),
        (machine, "_await_ready", a_fresh_id_for_every_attempt),
        (machine, "_await_ready", provisioning_is_not_repeated),
        (machine, "_observe", an_end_is_overlooked),
        (machine, "_observe", the_grace_never_ends),
        (machine, "_stop", nobody_comes_back_after_a_kill),
        (machine, "_stopped", a_reboot_starts_what_was_told_to_stop),
        (requests, "stop", a_graceful_stop_is_forgotten),
        (requests, "clear", cleared_without_looking),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_broken_rule_is_caught(module: Any, rule: str, fault: Callable[[Rule], Rule], monkeypatch) -> None:
    monkeypatch.setattr(module, rule, fault(getattr(module, rule)))
    with pytest.raises(Exception):  # noqa: B017, PT011 - however it shows, it must show
        walk_on(Convergence)


class ActsFirst(Convergence):
    """Performs the effect before it is recorded, and may die in between."""

    def turn(self, *, die_after: str = "none", stale: bool = False) -> Decision | None:
        row = self.old if stale else self.row
        decision = super().turn(die_after="look") if die_after == "look" else None
        if decision is None and die_after == "record":
            peek = machine.step(
                row,
                Absent(),
                now=self.clock.now(),
                new_id=DeploymentId(self.clock.new_id()),
                policy=self.policy,
            )
            if peek.rows and peek.effect is not None:
                self.act(peek.rows[-1], peek.effect)
            return None
        return super().turn(die_after=die_after, stale=stale)


def test_acting_before_recording_is_caught() -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011
        walk_on(ActsFirst)
