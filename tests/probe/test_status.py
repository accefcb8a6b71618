"""Every row of contract.md section 3.5: what a process answers, through the probe and `answers.interpret`."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import aiohttp
import pytest

from penstock.answers import Answer, NoAnswer, interpret
from penstock.model import (
    Failed,
    Pipeline,
    Report,
    ResourcesDesired,
    ResourcesStatus,
    RuntimeDesired,
    RuntimeStatus,
    StorageStatus,
)
from penstock.ports import ExecutorError, Reply
from penstock.probe import HttpProbe
from tests.core.rows import EPOCH, corner

RUNNING = corner(StorageStatus.IN_USE, ResourcesStatus.PROVISIONED, ResourcesDesired.PROVISIONED)
YOUNG = replace(RUNNING, runtime_status=RuntimeStatus.INITIALIZING)
LATER = EPOCH + timedelta(seconds=60)

ERROR: dict[str, object] = {"message": "it broke", "error_code": "WorkerPanic", "details": {"worker": 3}}
OBJECT: dict[str, object] = {
    "runtime_status": "Replaying",
    "runtime_desired_status": "Running",
    "runtime_status_details": {"a": 1},
    "storage_status_details": {"checkpoints": []},
}


async def misbehave(location: str, **how: Any) -> None:
    """Tell the small program what to answer."""
    async with aiohttp.ClientSession() as session, session.put(f"http://{location}/misbehave", json=how) as response:
        assert response.status == 200


async def seen(probe: HttpProbe, location: str, row: Pipeline, *answer: object, later: bool = True) -> Report | Failed:
    """What the daemon makes of (HTTP status, content type, body)."""
    await misbehave(location, status=answer)
    got = await probe.status(location)
    return interpret(row, got, LATER if later else EPOCH)


async def test_status_as_it_is(probe: HttpProbe, program: str) -> None:
    await misbehave(program)
    got = interpret(RUNNING, await probe.status(program), LATER)
    assert got == Report(
        RuntimeStatus.RUNNING,
        RuntimeDesired.RUNNING,
        {"connector_stats": {"num_errors": 0}},
        {"checkpoints": []},
    )


JSON = "application/json"
UNAVAILABLE = (RuntimeStatus.UNAVAILABLE, RuntimeDesired.UNAVAILABLE)


@pytest.mark.parametrize(
    ("http_status", "body", "expected"),
    [
        (200, json.dumps(OBJECT), (RuntimeStatus.REPLAYING, RuntimeDesired.RUNNING)),
        (200, json.dumps(OBJECT | {"runtime_status": "Dreaming"}), UNAVAILABLE),
        (200, "{}", UNAVAILABLE),
        (200, "[1]", UNAVAILABLE),
        (200, "17", UNAVAILABLE),
        (200, "null", UNAVAILABLE),
        (200, '"Dreaming"', UNAVAILABLE),
        (200, '"Paused"', (RuntimeStatus.PAUSED, RuntimeDesired.PAUSED)),
        (200, '"Running"', (RuntimeStatus.RUNNING, RuntimeDesired.RUNNING)),
        (200, '"Initializing"', (RuntimeStatus.INITIALIZING, RuntimeDesired.PAUSED)),
        (503, json.dumps(ERROR | {"error_code": "Initializing"}), (RuntimeStatus.INITIALIZING, RuntimeDesired.PAUSED)),
        (503, json.dumps(ERROR | {"error_code": "Suspended"}), (RuntimeStatus.SUSPENDED, RuntimeDesired.SUSPENDED)),
        (503, json.dumps(ERROR), UNAVAILABLE),
        (503, "{}", UNAVAILABLE),
        # Not JSON, whatever the HTTP status: as if it had not answered.
        (200, "hello", UNAVAILABLE),
        (200, "", UNAVAILABLE),
        (404, "<html>", UNAVAILABLE),
        (500, "Internal Server Error", UNAVAILABLE),
        (503, "busy", UNAVAILABLE),
        (200, '{"a":' * 100_000, UNAVAILABLE),
        (200, "9" * 10_000, UNAVAILABLE),
        (200, '"' + "x" * 1_000_000 + '"', UNAVAILABLE),
    ],
)
async def test_report(
    probe: HttpProbe, program: str, http_status: int, body: str, expected: tuple[RuntimeStatus, RuntimeDesired]
) -> None:
    got = await seen(probe, program, RUNNING, http_status, JSON, body)
    assert isinstance(got, Report)
    assert (got.status, got.desired) == expected
    if expected == UNAVAILABLE:
        assert got.details.get("reason")


@pytest.mark.parametrize(
    ("http_status", "body", "code"),
    [
        (200, '"Terminated"', "PipelineInteractionInvalidResponse"),
        (500, json.dumps(ERROR), "WorkerPanic"),
        (404, json.dumps(ERROR), "WorkerPanic"),
        (410, "{}", "PipelineInteractionInvalidResponse"),
        (301, '"moved"', "PipelineInteractionInvalidResponse"),
    ],
)
async def test_fatal(probe: HttpProbe, program: str, http_status: int, body: str, code: str) -> None:
    got = await seen(probe, program, RUNNING, http_status, JSON, body)
    assert isinstance(got, Failed)
    assert got.fault.code == code
    assert not got.confirmed


async def test_not_json_within_grace(probe: HttpProbe, program: str) -> None:
    got = await seen(probe, program, YOUNG, 500, "text/html", "<html>", later=False)
    assert isinstance(got, Report)
    assert (got.status, got.desired) == (RuntimeStatus.INITIALIZING, RuntimeDesired.RUNNING)


async def test_503_knows_no_grace(probe: HttpProbe, program: str) -> None:
    got = await seen(probe, program, YOUNG, 503, JSON, json.dumps(ERROR), later=False)
    assert isinstance(got, Report)
    assert got.status is RuntimeStatus.UNAVAILABLE


async def test_content_type_is_not_asked_for(probe: HttpProbe, program: str) -> None:
    got = await seen(probe, program, RUNNING, 200, "text/plain", '"Paused"')
    assert isinstance(got, Report)
    assert got.status is RuntimeStatus.PAUSED


async def test_steering(probe: HttpProbe, program: str) -> None:
    await misbehave(program, suspended_after_seconds=0.0)
    for target in (RuntimeDesired.PAUSED, RuntimeDesired.PAUSED, RuntimeDesired.RUNNING):
        await probe.steer(program, target)
        answer = await probe.status(program)
        assert isinstance(answer, Answer)
        assert answer.body["runtime_status"] == target.value  # type: ignore[index, call-overload]


async def test_steering_refused_in_its_own_words(probe: HttpProbe, program: str) -> None:
    await misbehave(program, refuse=[400, ERROR])
    with pytest.raises(ExecutorError) as raised:
        await probe.steer(program, RuntimeDesired.PAUSED)
    assert not raised.value.retry
    assert (raised.value.fault.code, raised.value.fault.message) == ("WorkerPanic", "it broke")
    assert raised.value.fault.details == {"worker": 3}


@pytest.mark.parametrize(("http_status", "retry"), [(404, False), (429, True), (500, True), (503, True), (302, True)])
async def test_steering_refused_without_words(probe: HttpProbe, program: str, http_status: int, *, retry: bool) -> None:
    await misbehave(program, refuse=[http_status, "no"])
    with pytest.raises(ExecutorError) as raised:
        await probe.steer(program, RuntimeDesired.RUNNING)
    assert raised.value.retry is retry
    assert raised.value.fault.code == "PipelineInteractionInvalidResponse"


async def test_get(probe: HttpProbe, program: str) -> None:
    await misbehave(program)
    got = await probe.get(program, "/metrics?format=prometheus")
    assert isinstance(got, Reply)
    assert (got.http_status, got.content_type) == (200, "text/plain")
    assert b"# TYPE records_processed_total counter" in got.body
    missing = await probe.get(program, "/nothing%20here?x=%2F")
    assert isinstance(missing, Reply)
    assert missing.http_status == 404
    assert json.loads(missing.body)["details"] == {"path": "/nothing%20here"}


async def test_suspend_ends_in_suspended(probe: HttpProbe, program: str) -> None:
    # The last test of this module: a suspended program does not come back.
    await misbehave(program, suspended_after_seconds=0.0)
    await probe.steer(program, RuntimeDesired.SUSPENDED)
    await probe.steer(program, RuntimeDesired.SUSPENDED)
    answer = await probe.status(program)
    assert interpret(RUNNING, answer, LATER) == Report(
        RuntimeStatus.SUSPENDED,
        RuntimeDesired.SUSPENDED,
        {"connector_stats": {"num_errors": 0}},
        {"checkpoints": []},
    )
    with pytest.raises(ExecutorError) as raised:
        await probe.steer(program, RuntimeDesired.RUNNING)
    assert raised.value.fault.code == "InvalidTransition"
    assert not isinstance(answer, NoAnswer)
