"""Monitor events over the API, demand by demand (conformance.md section 17, contract.md section 4)."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any
from uuid import UUID

import anyio
import pytest

from penstock.model import Exit, Pipeline
from penstock.ports import StepFailed, StepResult
from penstock.testing.fake_programs import FakeToolchains
from tests.api.house import House, serving

STATUS_KEYS = [
    "event_id",
    "recorded_at",
    "deployment_resources_status",
    "deployment_resources_desired_status",
    "deployment_runtime_status",
    "deployment_runtime_desired_status",
    "deployment_has_error",
    "program_status",
    "storage_status",
]
ALL_KEYS = [
    "event_id",
    "recorded_at",
    "deployment_resources_status",
    "deployment_resources_status_details",
    "deployment_resources_desired_status",
    "deployment_runtime_status",
    "deployment_runtime_status_details",
    "deployment_runtime_desired_status",
    "deployment_has_error",
    "deployment_error",
    "program_status",
    "storage_status",
    "storage_status_details",
]


async def events(house: House, name: str = "p1", selector: str = "all") -> list[dict[str, Any]]:
    answer = await house.get(f"/v0/pipelines/{name}/events?selector={selector}")
    assert answer.status == 200
    assert answer.headers["Cache-Control"] == "no-cache"
    return answer.json


async def crash(house: House, name: str = "p1") -> None:
    """The pipeline's process dies."""
    row = await house.row(name)
    assert row.deployment_id is not None
    house.world.die(row.deployment_id, Exit(pid=1, code=3))
    await house.until(name, deployment_status="Stopped")


async def test_EV1_exact_keys_in_order(house: House) -> None:
    await house.running()
    await crash(house)
    for query, keys in (("", STATUS_KEYS), ("?selector=status", STATUS_KEYS), ("?selector=all", ALL_KEYS)):
        listed = (await house.get(f"/v0/pipelines/p1/events{query}")).json
        latest = (await house.get(f"/v0/pipelines/p1/events/latest{query}")).json
        for event in (*listed, latest):
            assert list(event) == keys
    answer = await house.get("/v0/pipelines/p1/events?selector=some")
    assert (answer.status, answer.error_code) == (400, "InvalidQueryParam")


async def test_EV2_order_and_agreement(house: House) -> None:
    await house.running()
    await house.stop()
    await house.until(deployment_status="Stopped")
    whole, light = await events(house), await events(house, selector="status")
    stamps = [event["recorded_at"] for event in whole]
    assert stamps == sorted(stamps, reverse=True)
    assert len({event["event_id"] for event in whole}) == len(whole)
    assert [event["event_id"] for event in whole] == [event["event_id"] for event in light]
    for selector, listed in (("all", whole), ("status", light)):
        latest = await house.get(f"/v0/pipelines/p1/events/latest?selector={selector}")
        assert latest.json == listed[0]
        assert latest.headers["Cache-Control"] == "no-cache"
        for event in listed:
            assert (await house.get(f"/v0/pipelines/p1/events/{event['event_id']}?selector={selector}")).json == event
    assert await events(house) == whole, "an idle pipeline makes no events"


async def test_EV3_details_go_with_their_status(house: House) -> None:
    await house.running()
    await crash(house)
    listed = await events(house)
    for event in listed:
        assert (event["deployment_runtime_status"] is None) == (event["deployment_runtime_status_details"] is None)
        assert event["deployment_has_error"] == (event["deployment_error"] is not None)
    error = next(event["deployment_error"] for event in listed if event["deployment_has_error"])
    assert set(error) == {"message", "error_code", "details"}
    assert error["error_code"] == "PipelineProcessExited"


async def test_EV4_events_of_others_are_not_mixed_in(house: House) -> None:
    await house.running("p1")
    await house.create("p2")
    await house.until("p2", program_status="Success")
    mine, others = await events(house, "p1"), await events(house, "p2")
    assert not {event["event_id"] for event in mine} & {event["event_id"] for event in others}
    answer = await house.get(f"/v0/pipelines/p1/events/{others[0]['event_id']}")
    assert (answer.status, answer.error_code) == (404, "UnknownPipelineMonitorEvent")
    assert answer.json["details"] == {"event_id": others[0]["event_id"]}
    assert mine[-1]["program_status"] == "Pending", "all events since creation"


class PickyToolchains(FakeToolchains):
    """A program that says ERROR is wrong."""

    async def check(self, row: Pipeline) -> StepResult:
        if "ERROR" in row.spec.program_code:
            return StepFailed(outcome={"exit_code": 1, "messages": []})
        return await super().check(row)


def seen(event: dict[str, Any]) -> tuple[Any, ...]:
    """What EV5 compares."""
    return (
        event["deployment_resources_status"],
        event["deployment_resources_desired_status"],
        event["deployment_runtime_status"],
        event["deployment_runtime_desired_status"],
        event["deployment_has_error"],
        event["program_status"],
        event["storage_status"],
    )


async def test_EV5_the_whole_sequence() -> None:
    async with serving(House(toolchains=PickyToolchains())) as house:
        await house.create()
        await house.until(program_status="Success")
        await house.start()
        for action, status in (("pause", "Paused"), ("resume", "Running")):
            assert (await house.post(f"/v0/pipelines/p1/{action}")).status == 202
            await house.until(deployment_status=status)
        await house.stop()
        assert (await house.post("/v0/pipelines/p1/clear")).status == 202
        await house.until(storage_status="Cleared")
        for code, status in (("ERROR", "SqlError"), ("good", "Success")):
            answer = await house.ask("PATCH", "/v0/pipelines/p1", body={"program_code": code})
            assert answer.status == 200
            await house.until(program_status=status)
            refused = await house.post("/v0/pipelines/p1/start") if status == "SqlError" else None
            assert refused is None or refused.status == 400, "records nothing new"
        await house.start()
        await crash(house)
        assert (await house.post("/v0/pipelines/p1/dismiss_error")).status == 200
        listed = [
            seen(event)
            for event in reversed(await events(house))
            if event["deployment_runtime_status"] != "Unavailable"
        ]
    distinct = [event for event, before in zip(listed, [None, *listed], strict=False) if event != before]

    stopped = ("Stopped", "Stopped", None, None, False)
    programs = ("Pending", "CompilingSql", "SqlCompiled", "CompilingRust", "Success")
    ok, cleared, used = "Success", "Cleared", "InUse"
    on = "Provisioned"
    starting = [
        ("Stopped", on, None, None, False, ok, cleared),
        ("Stopped", on, None, None, False, ok, used),
        ("Provisioning", on, None, None, False, ok, used),
        (on, on, "Initializing", "Running", False, ok, used),
        (on, on, "Running", "Running", False, ok, used),
    ]
    assert distinct == [
        *((*stopped, program, cleared) for program in programs),
        *starting,
        (on, on, "Paused", "Paused", False, ok, used),
        (on, on, "Running", "Running", False, ok, used),
        (on, "Stopped", "Running", "Running", False, ok, used),
        ("Stopping", "Stopped", None, None, False, ok, used),
        (*stopped, ok, used),
        (*stopped, ok, "Clearing"),
        (*stopped, ok, cleared),
        *((*stopped, program, cleared) for program in ("Pending", "CompilingSql", "SqlError")),
        *((*stopped, program, cleared) for program in programs),
        *starting,
        (on, "Stopped", "Running", "Running", False, ok, used),
        ("Stopping", "Stopped", None, None, True, ok, used),
        ("Stopped", "Stopped", None, None, True, ok, used),
        (*stopped, ok, used),
    ]


async def test_every_spelling_of_a_uuid(house: House) -> None:
    await house.create()
    (event, *_) = await events(house, selector="status")
    plain = UUID(event["event_id"])
    for text in (str(plain), plain.hex, str(plain).upper(), f"%7B{plain}%7D", f"urn:uuid:{plain}"):
        answer = await house.get(f"/v0/pipelines/p1/events/{text}")
        assert answer.json == event, text
    hyphens = f"{plain.hex[:4]}-{plain.hex[4:]}"
    for text in ("", "Latest", "17", plain.hex[:-1], f"%7B{plain.hex}%7D", f"%7B{plain}", hyphens, f"{plain}%0A"):
        answer = await house.get(f"/v0/pipelines/p1/events/{text}")
        if not text:
            assert answer.error_code == "UnknownRoute"
            continue
        assert (answer.status, answer.error_code) == (400, "InvalidUuidParam"), text
        assert set(answer.json["details"]) == {"value", "error"}


async def test_unknown_ones(house: House) -> None:
    row = await house.create()
    for path in ("events", "events/latest", f"events/{row['id']}"):
        answer = await house.get(f"/v0/pipelines/nobody/{path}")
        assert (answer.status, answer.error_code) == (404, "UnknownPipelineName")
    answer = await house.get(f"/v0/pipelines/p1/events/{row['id']}")
    assert (answer.status, answer.error_code) == (404, "UnknownPipelineMonitorEvent")


async def test_none_retained(house: House) -> None:
    await house.create()
    await house.until(program_status="Success")
    house.store._events.clear()
    answer = await house.get("/v0/pipelines/p1/events/latest")
    assert (answer.status, answer.error_code) == (404, "NoPipelineMonitorEventsAvailable")
    assert (await house.get("/v0/pipelines/p1/events")).json == []


async def test_what_a_client_has_is_not_sent_again(house: House) -> None:
    await house.create()
    await house.until(program_status="Success")
    for path in ("events", "events/latest", "events?selector=all", "events/latest?selector=all"):
        first = await house.get(f"/v0/pipelines/p1/{path}")
        headers = {"If-None-Match": first.headers["ETag"]}
        again = await house.get(f"/v0/pipelines/p1/{path}", headers=headers)
        assert (again.status, again.body) == (304, b"")
        assert (await house.post("/v0/pipelines/p1/dismiss_error")).status == 200
        await house.post("/v0/pipelines/p1/start")
        await house.until(deployment_status="Running")
        changed = await house.get(f"/v0/pipelines/p1/{path}", headers=headers)
        assert changed.status == 200
        await house.stop()


async def test_a_list_of_720_is_quick(house: House) -> None:
    row = await house.create()
    await house.until(program_status="Success")
    kept = house.store._events[row["id"]]
    last = kept[-1]
    kept.extend(replace(last, event_id=house.clock.new_id(), sequence=last.sequence + n) for n in range(1, 720))
    del kept[:-720]
    began = time.perf_counter()
    listed = await events(house)
    first = time.perf_counter() - began
    began = time.perf_counter()
    assert await events(house) == listed
    print(f"720 events: {first * 1e3:.1f} ms, again {(time.perf_counter() - began) * 1e3:.1f} ms, client included")
    assert len(listed) == 720
    assert first < 0.5


@pytest.mark.parametrize("path", ["events/latest"])
async def test_requests_per_second(house: House, path: str) -> None:
    """One client on one connection, in the same process: a floor for what a daemon alone can do."""
    await house.create()
    await house.until(program_status="Success")
    host, port = house.address.split(":")
    count = 2_000
    async with await anyio.connect_tcp(host, int(port)) as stream:
        request = f"GET /v0/pipelines/p1/{path} HTTP/1.1\r\nHost: {house.address}\r\n\r\n".encode()
        await stream.send(request)
        size = len(await stream.receive())
        began = time.perf_counter()
        for _ in range(count):
            await stream.send(request)
            left = size
            while left > 0:
                left -= len(await stream.receive(left))
        took = time.perf_counter() - began
    print(f"GET {path}: {count / took:.0f} requests/s with the client in the same thread")
    assert count / took > 200
