"""What an answer to ``GET /status`` means: each row of contract.md section 3.5, to the last detail.

`tests/probe` has the same rows over HTTP; here are the whole reports, the edges of the grace, and any JSON at all.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.answers import STARTUP_GRACE_SECONDS, Answer, NoAnswer, interpret
from penstock.model import (
    Failed,
    Fault,
    Initial,
    Pipeline,
    Report,
    ResourcesDesired,
    ResourcesStatus,
    RuntimeDesired,
    RuntimeStatus,
    StorageStatus,
)

from .rows import EPOCH, corner

RUNS = corner(StorageStatus.IN_USE, ResourcesStatus.PROVISIONED, ResourcesDesired.PROVISIONED)
YOUNG = replace(RUNS, runtime_status=RuntimeStatus.INITIALIZING)
SOON, LATER = EPOCH + timedelta(seconds=1), EPOCH + timedelta(hours=1)
R, D = RuntimeStatus, RuntimeDesired
OBJECT: dict[str, Any] = {
    "runtime_status": "Replaying",
    "runtime_desired_status": "Running",
    "runtime_status_details": {"a": 1},
    "storage_status_details": {"checkpoints": []},
}


def error(code: str, **more: Any) -> dict[str, Any]:
    return {"message": "it says", "error_code": code, "details": {"worker": 3}} | more


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in OBJECT.items() if name != key}


REPORTS: list[tuple[int, Any, Report]] = [
    (200, OBJECT, Report(R.REPLAYING, D.RUNNING, {"a": 1}, {"checkpoints": []})),
    (200, OBJECT | {"unknown_key": 1}, Report(R.REPLAYING, D.RUNNING, {"a": 1}, {"checkpoints": []})),
    (200, OBJECT | {"storage_status_details": None}, Report(R.REPLAYING, D.RUNNING, {"a": 1}, None)),
    (200, without("storage_status_details"), Report(R.REPLAYING, D.RUNNING, {"a": 1}, None)),
    (200, OBJECT | {"runtime_status_details": None}, Report(R.REPLAYING, D.RUNNING, {}, {"checkpoints": []})),
    (200, OBJECT | {"runtime_status_details": ""}, Report(R.REPLAYING, D.RUNNING, {}, {"checkpoints": []})),
    *[
        (200, OBJECT | {"runtime_status_details": odd}, Report(R.REPLAYING, D.RUNNING, {}, {"checkpoints": []}))
        for odd in (17, True, [1])
    ],
    (
        200,
        OBJECT | {"runtime_status_details": "busy"},
        Report(R.REPLAYING, D.RUNNING, {"reason": "busy"}, {"checkpoints": []}),
    ),
    (200, "Paused", Report(R.PAUSED, D.PAUSED)),
    (200, "Running", Report(R.RUNNING, D.RUNNING)),
    (200, "Initializing", Report(R.INITIALIZING, D.PAUSED)),
    (503, error("Initializing"), Report(R.INITIALIZING, D.PAUSED, {"reason": "it says"})),
    (503, error("Suspended"), Report(R.SUSPENDED, D.SUSPENDED)),
    (503, error("Initializing", details=None), Report(R.INITIALIZING, D.PAUSED, {"reason": "it says"})),
]
UNAVAILABLE: list[tuple[int, Any]] = [
    *[(200, body) for body in ({}, [], [OBJECT], 0, 17, 1.5, True, False, None, "", "running", "Dreaming")],
    *[(200, without(key)) for key in ("runtime_status", "runtime_desired_status", "runtime_status_details")],
    *[(200, OBJECT | {"runtime_status": bad}) for bad in ("running", "Dreaming", None, 1, [], {}, True)],
    *[(200, OBJECT | {"runtime_desired_status": bad}) for bad in ("paused", "Initializing", None, 1, [], {})],
    *[(200, OBJECT | {"storage_status_details": bad}) for bad in ("x", 1, [], True)],
    *[(503, body) for body in (None, "", "Initializing", [], {}, error("WorkerPanic"), error("initializing"))],
    *[(503, error("Initializing", message=bad)) for bad in (None, 1)],
    *[(503, error("Suspended", error_code=bad)) for bad in (None, ["Suspended"])],
]
FATAL = (100, 199, 201, 202, 204, 301, 400, 401, 404, 410, 429, 500, 502, 504, 599)


@pytest.mark.parametrize(("status", "body", "report"), REPORTS, ids=str)
@pytest.mark.parametrize("now", [SOON, LATER], ids=["soon", "later"])
@pytest.mark.parametrize("row", [YOUNG, RUNS], ids=["young", "running"])
def test_an_answer_is_taken_as_it_is(row: Pipeline, now: Any, status: int, body: Any, report: Report) -> None:
    assert interpret(row, Answer(status, body), now) == report


@pytest.mark.parametrize("status", RuntimeStatus)
def test_every_status_a_process_can_have(status: RuntimeStatus) -> None:
    for desired in RuntimeDesired:
        body = OBJECT | {"runtime_status": status.value, "runtime_desired_status": desired.value}
        got = interpret(RUNS, Answer(200, body), LATER)
        assert got == Report(status, desired, {"a": 1}, {"checkpoints": []})


@pytest.mark.parametrize(("status", "body"), UNAVAILABLE, ids=str)
def test_nonsense_is_unavailable_and_says_why_even_within_the_grace(status: int, body: Any) -> None:
    got = interpret(YOUNG, Answer(status, body), SOON)
    assert got == interpret(RUNS, Answer(status, body), LATER)
    assert isinstance(got, Report)
    assert (got.status, got.desired, got.storage_details) == (R.UNAVAILABLE, D.UNAVAILABLE, None)
    assert got.details["reason"]
    assert len(str(got.details["reason"])) < 300


@pytest.mark.parametrize("status", FATAL)
def test_any_other_http_status_is_fatal_once_it_is_confirmed(status: int) -> None:
    own = Failed(Fault("WorkerPanic", "it says", {"worker": 3}), confirmed=False)
    assert interpret(RUNS, Answer(status, error("WorkerPanic")), SOON) == own
    assert interpret(YOUNG, Answer(status, error("Initializing")), SOON) == replace(
        own, fault=replace(own.fault, code="Initializing")
    )
    for body in (None, {}, "Running", [1], OBJECT, error("X", message=None), error("X", error_code=7)):
        got = interpret(RUNS, Answer(status, body), LATER)
        assert isinstance(got, Failed)
        assert not got.confirmed
        assert got.fault.code == "PipelineInteractionInvalidResponse"
        assert got.fault.details["pipeline_name"] == "p1"
        assert str(status) in str(got.fault.details["error"])


@pytest.mark.parametrize("details", [None, "text", [], 3])
def test_an_error_with_odd_details_is_still_the_process_own(details: Any) -> None:
    got = interpret(RUNS, Answer(500, error("WorkerPanic", details=details)), LATER)
    assert got == Failed(Fault("WorkerPanic", "it says", {}), confirmed=False)


def test_terminated_is_fatal() -> None:
    got = interpret(YOUNG, Answer(200, "Terminated"), SOON)
    assert isinstance(got, Failed)
    assert not got.confirmed
    assert got.fault.code == "PipelineInteractionInvalidResponse"


# --- no answer ------------------------------------------------------------------------------------------------------

EDGE = timedelta(seconds=STARTUP_GRACE_SECONDS)
TICK = timedelta(microseconds=1)


@pytest.mark.parametrize("status", [None, *RuntimeStatus])
def test_the_grace_and_its_edges(status: RuntimeStatus | None) -> None:
    """20 s from Provisioned, over as soon as anything else than Initializing was written; never fatal."""
    ages = (timedelta(0), EDGE - TICK, EDGE, timedelta(days=1))
    for age, initial in itertools.product(ages, [None, *Initial]):
        row = replace(RUNS, runtime_status=status, deployment_initial=initial)
        got = interpret(row, NoAnswer("refused"), EPOCH + age)
        if age < EDGE and status is R.INITIALIZING and initial is not None:
            assert got == Report(R.INITIALIZING, initial.desired, {"reason": "refused"})
        else:
            assert got == Report(R.UNAVAILABLE, D.UNAVAILABLE, {"reason": "refused"})


def test_the_grace_is_that_of_the_contract() -> None:
    assert STARTUP_GRACE_SECONDS == 20


# --- whatever a process may say -------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["Running", "Terminated"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(), inner, max_size=3)
        | st.fixed_dictionaries({}, optional=dict.fromkeys(OBJECT, inner))
        | st.fixed_dictionaries({}, optional={"message": inner, "error_code": inner, "details": inner})
    ),
    max_leaves=8,
)


@given(st.sampled_from([200, 503]) | st.integers(100, 599), JSON, st.sampled_from([YOUNG, RUNS]))
def test_whatever_it_says_it_is_understood(status: int, body: Any, row: Pipeline) -> None:
    """Never an exception; one answer alone never kills; only the statuses that the contract names can."""
    got = interpret(row, Answer(status, body), SOON)
    if status == 503 or (status == 200 and body != "Terminated"):
        assert isinstance(got, Report)
    else:
        assert isinstance(got, Failed)
        assert not got.confirmed
        assert got.fault.code
