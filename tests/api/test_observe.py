"""Logs, statistics and metrics of a pipeline (conformance.md section 18, contract.md sections 5.5, 7.5 and 8)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import anyio
import pytest
from anyio.abc import SocketStream
from prometheus_client.parser import text_string_to_metric_families

from penstock.answers import Answer as Said
from penstock.api import observe
from penstock.clock import SystemClock
from penstock.logfile import LogFiles
from penstock.model import PipelineId, RuntimeStatus
from penstock.ports import Reply, Usage
from tests.api.house import PATIENCE_SECONDS, House, serving

USAGE = Usage(
    rss_bytes=7_000_000,
    cpu_seconds=1.25,
    processes=2,
    threads=3,
    open_files=9,
    started_at=datetime(2026, 1, 1, tzinfo=UTC),
    storage_bytes=42,
)
STATUS = {
    "runtime_status": "Running",
    "runtime_desired_status": "Running",
    "runtime_status_details": {},
    "storage_status_details": None,
}


# --- logs -----------------------------------------------------------------------------------------------------------


@dataclass
class LoggedHouse(House):
    """A house whose logs are files."""

    def path(self, pipeline_id: str) -> str:
        return self.logs.path(PipelineId(pipeline_id))

    def streams(self) -> int:
        """How many log files are open in this process."""
        count = 0
        for fd in os.listdir("/proc/self/fd"):
            try:
                count += os.readlink(f"/proc/self/fd/{fd}").endswith("/pipeline.log")
            except FileNotFoundError:
                continue
        return count

    async def until_streams(self, count: int) -> None:
        with anyio.fail_after(PATIENCE_SECONDS):
            while self.streams() != count:
                await anyio.sleep(0.005)


@pytest.fixture
async def logged(tmp_path: Path) -> AsyncGenerator[LoggedHouse]:
    """A daemon that serves, with log files."""
    async with (
        LogFiles(state_dir=tmp_path, clock=SystemClock(), max_bytes=1 << 20) as logs,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(logs.run)
        async with serving(LoggedHouse(logs=logs)) as house:  # type: ignore[arg-type]
            yield house
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def stream(house: House, name: str = "p1", query: str = "") -> AsyncGenerator[aiohttp.ClientResponse]:
    """An open log, over a connection of its own."""
    url = f"http://{house.address}/v0/pipelines/{name}/logs{query}"
    async with aiohttp.ClientSession(read_bufsize=1 << 20) as session, session.get(url) as response:
        yield response


async def lines_of(house: House, name: str = "p1") -> list[str]:
    answer = await house.get(f"/v0/pipelines/{name}/logs?follow=false")
    assert answer.status == 200
    return answer.body.decode().splitlines()


def write(path: str, data: bytes) -> None:
    with open(path, "ab", buffering=0) as file:
        file.write(data)


async def test_RT3_unknown_is_404(logged: LoggedHouse) -> None:
    for query in ("", "?follow=false"):
        answer = await logged.get(f"/v0/pipelines/nobody/logs{query}")
        assert (answer.status, answer.error_code) == (404, "UnknownPipelineName")
    await logged.create()
    answer = await logged.get("/v0/pipelines/p1/logs?follow=1")
    assert (answer.status, answer.error_code) == (400, "InvalidQueryParam")


async def test_RT3_an_old_client_reads_until_the_connection_closes(logged: LoggedHouse) -> None:
    await logged.create()
    host, _, port = logged.address.rpartition(":")
    async with await anyio.connect_tcp(host, int(port)) as connection:
        await connection.send(b"GET /v0/pipelines/p1/logs?follow=false HTTP/1.0\r\nHost: localhost\r\n\r\n")
        answer = b""
        with anyio.fail_after(5):
            async for data in connection:
                answer += data
    assert answer.startswith(b"HTTP/1.0 200")
    assert b"Fresh start of pipeline logs" in answer


async def test_RT3_how_it_comes(logged: LoggedHouse) -> None:
    row = await logged.create()
    async with stream(logged) as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Transfer-Encoding"] == "chunked"
        assert response.headers["X-Accel-Buffering"] == "no"
        assert response.headers.get("Content-Encoding", "identity") == "identity"
        first = await response.content.readline()
        assert b"Fresh start of pipeline logs" in first
        assert row["id"].encode() in first


async def test_RT3_open_in_every_state_until_deleted(logged: LoggedHouse) -> None:
    row = await logged.create()
    path = logged.path(row["id"])
    got: list[bytes] = []

    async def follow(response: aiohttp.ClientResponse) -> None:
        got.extend([line async for line in response.content])

    async def opens() -> None:
        async with stream(logged) as another:
            assert another.status == 200
            assert b"Fresh start of pipeline log" in await another.content.readline()

    async with stream(logged) as response, anyio.create_task_group() as tasks:
        tasks.start_soon(follow, response)
        await logged.until(program_status="Success")
        await logged.start()
        write(path, b"says something\n")
        await opens()
        await logged.post("/v0/pipelines/p1/pause")
        await logged.until(deployment_status="Paused")
        await opens()
        await logged.stop()
        await opens()
        await logged.post("/v0/pipelines/p1/clear")
        await logged.until(storage_status="Cleared")
        await opens()
        began = time.perf_counter()
        assert (await logged.ask("DELETE", "/v0/pipelines/p1")).status == 200
        with anyio.fail_after(PATIENCE_SECONDS):
            while not got or b"deleted" not in got[-1]:
                await anyio.sleep(0.005)
        assert time.perf_counter() - began < 2.0
    text = b"".join(got).decode()
    for expected in (
        "says something\n",
        "resources transition stopped -> provisioning (desired provisioned)",
        "resources transition provisioning -> provisioned (desired provisioned)",
        "runtime transition running -> paused (desired paused)",
        "resources transition stopping -> stopped (desired stopped)",
        "storage transition clearing -> cleared",
    ):
        assert expected in text
    assert (await logged.get("/v0/pipelines/p1/logs")).status == 404
    await logged.until_streams(0)


async def test_RT3_discarded_lines_are_told(logged: LoggedHouse) -> None:
    row = await logged.create()
    path = logged.path(row["id"])
    write(path, b"x" * 99 + b"\n")
    write(path, (b"y" * 99 + b"\n") * 40_000)
    with anyio.fail_after(PATIENCE_SECONDS):
        while os.stat(path).st_blocks * 512 > 1 << 20:
            await anyio.sleep(0.01)
    async with stream(logged) as response:
        first = await response.content.readline()
        assert b"prior log lines were discarded due to buffer constraints" in first
        assert await response.content.readline() == b"y" * 99 + b"\n"


async def test_RT3_two_hundred_opened_and_abandoned(logged: LoggedHouse) -> None:
    await logged.create()
    for _ in range(200):
        async with stream(logged) as response:
            assert b"Fresh start" in await response.content.readline()
    await logged.until_streams(0)


async def test_RT3_sixty_unread(logged: LoggedHouse) -> None:
    row = await logged.create()
    host, port = logged.address.split(":")
    unread: list[SocketStream] = []
    request = f"GET /v0/pipelines/p1/logs HTTP/1.1\r\nHost: {logged.address}\r\n\r\n".encode()
    try:
        for _ in range(60):
            unread.append(await anyio.connect_tcp(host, int(port)))
            await unread[-1].send(request)
        await logged.until_streams(60)
        for _ in range(30):
            write(logged.path(row["id"]), b"z" * 99_999 + b"\n")
        write(logged.path(row["id"]), b"now\n")
        assert (await lines_of(logged))[-1] == "now"
        async with stream(logged) as response:
            assert b"discarded" in (first := await response.content.readline()) or b"Fresh start" in first
        await logged.status()
    finally:
        for connection in unread:
            await anyio.aclose_forcefully(connection)
    await logged.until_streams(0)


async def test_a_reader_that_never_reads_is_cut_off(logged: LoggedHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "STUCK_SECONDS", 0.2)
    row = await logged.create()
    host, port = logged.address.split(":")
    async with await anyio.connect_tcp(host, int(port)) as connection:
        await connection.send(f"GET /v0/pipelines/p1/logs HTTP/1.1\r\nHost: {logged.address}\r\n\r\n".encode())
        await logged.until_streams(1)
        path = logged.path(row["id"])
        with anyio.fail_after(PATIENCE_SECONDS):
            while logged.streams():
                write(path, (b"w" * 999 + b"\n") * 500)
                await anyio.sleep(0.01)
    await logged.status()


async def test_live_lines_come_at_once(logged: LoggedHouse) -> None:
    row = await logged.create()
    path = logged.path(row["id"])
    await logged.until(program_status="Success")
    latencies: list[float] = []
    async with stream(logged) as response:
        await response.content.readline()
        for _ in range(40):
            await anyio.sleep(0.012)
            began = time.perf_counter()
            write(path, b"tick\n")
            with anyio.fail_after(PATIENCE_SECONDS):
                assert await response.content.readline() == b"tick\n"
            latencies.append(time.perf_counter() - began)
    print(f"log line to client: p50 {sorted(latencies)[20] * 1e3:.2f} ms, max {max(latencies) * 1e3:.2f} ms")
    assert sorted(latencies)[20] < 0.1


async def test_garbage_is_valid_utf8_for_clients(logged: LoggedHouse) -> None:
    row = await logged.create()
    write(logged.path(row["id"]), b"\xff\xfe\0bad\n" + "grün\n".encode())
    assert (await lines_of(logged))[-2:] == ["��bad", "grün"]


async def test_deleted_before_its_log_was_opened(logged: LoggedHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    await logged.create()
    await logged.until(program_status="Success")
    row = await logged.row()

    async def outdated(*_: object) -> object:
        return row

    assert (await logged.ask("DELETE", "/v0/pipelines/p1")).status == 200
    monkeypatch.setattr(logged.store, "find", outdated)
    with anyio.fail_after(PATIENCE_SECONDS):
        assert (await logged.get("/v0/pipelines/p1/logs")).status == 200
    await logged.until_streams(0)


async def test_streams_do_not_delay_the_end_of_the_daemon(tmp_path: Path) -> None:
    async with LogFiles(state_dir=tmp_path, clock=SystemClock(), max_bytes=1 << 20) as logs:
        house = LoggedHouse(logs=logs)  # type: ignore[arg-type]
        async with aiohttp.ClientSession() as session:
            async with serving(house):
                await house.create()
                response = await session.get(f"http://{house.address}/v0/pipelines/p1/logs")
                await response.content.readline()
                began = time.perf_counter()
            assert time.perf_counter() - began < 3.0
            response.close()
        await house.until_streams(0)


# --- statistics and metrics of an opaque pipeline -------------------------------------------------------------------


async def test_RT1_stats_of_an_opaque_pipeline(house: House) -> None:
    house.usage.usage_now = USAGE
    row = await house.running()
    answer = await house.get("/v0/pipelines/p1/stats?include_connector_errors=true")
    assert answer.status == 200
    assert set(answer.json) == {"global_metrics", "inputs", "outputs"}
    assert answer.json["inputs"] == answer.json["outputs"] == []
    found = answer.json["global_metrics"]
    schema = json.loads((Path(__file__).parent / "stats_keys.json").read_text())
    assert set(schema["required"]) <= set(found) <= set(schema["known"])
    assert all(found[key] is not None for key in schema["required"])
    assert found["state"] == "Running"
    assert (found["rss_bytes"], found["cpu_msecs"], found["storage_bytes"]) == (7_000_000, 1250, 42)
    assert found["start_time"] == int(USAGE.started_at.timestamp())
    assert found["uptime_msecs"] > 0
    assert found["incarnation_uuid"] == row["deployment_id"]
    assert found["transaction_status"] == "NoTransaction"
    assert found["pipeline_complete"] is False
    await house.post("/v0/pipelines/p1/pause")
    await house.until(deployment_status="Paused")
    assert (await house.get("/v0/pipelines/p1/stats")).json["global_metrics"]["state"] == "Paused"


@pytest.mark.parametrize("query", ["", "?format=prometheus"])
async def test_RT2_metrics_as_text(house: House, query: str) -> None:
    house.usage.usage_now = USAGE
    row = await house.running(initial="paused")
    answer = await house.get(f"/v0/pipelines/p1/metrics{query}")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/plain", "T5: exactly"
    text = answer.body.decode()
    assert "# TYPE records_processed_total counter" in text.splitlines()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    (memory,) = families["process_resident_memory_bytes"].samples
    assert memory.value == 7_000_000
    assert memory.labels == {"pipeline": row["id"], "pipeline_name": "p1"}


async def test_RT2_metrics_as_json(house: House) -> None:
    house.usage.usage_now = USAGE
    await house.running(initial="paused")
    answer = await house.get("/v0/pipelines/p1/metrics?format=json")
    assert answer.headers["Content-Type"] == "application/json"
    assert "records_processed_total" in [element["key"] for element in answer.json]
    answer = await house.get("/v0/pipelines/p1/metrics?format=xml")
    assert (answer.status, answer.error_code) == (400, "InvalidQueryParam")


@pytest.mark.parametrize("path", ["stats", "metrics"])
async def test_not_deployed(house: House, path: str) -> None:
    await house.create()
    answer = await house.get(f"/v0/pipelines/p1/{path}")
    assert (answer.status, answer.error_code) == (503, "PipelineInteractionNotDeployed")
    assert answer.json["details"] == {"pipeline_name": "p1", "status": "Stopped", "desired_status": "Stopped"}
    assert "Retry-After" not in answer.headers
    assert (await house.get(f"/v0/pipelines/nobody/{path}")).error_code == "UnknownPipelineName"


@pytest.mark.parametrize("path", ["stats", "metrics"])
async def test_unavailable(house: House, path: str) -> None:
    house.usage.usage_now = USAGE
    house.world.location = "127.0.0.1:1"
    house.probe.answers = [Said(200, STATUS)]
    await house.running()
    await house.rewrite(runtime_status=RuntimeStatus.UNAVAILABLE)
    house.probe.answers = []
    answer = await house.get(f"/v0/pipelines/p1/{path}")
    assert (answer.status, answer.error_code) == (503, "PipelineUnavailable")
    assert answer.json["details"] == {"pipeline_name": "p1"}
    assert "Retry-After" not in answer.headers


@pytest.mark.parametrize("path", ["stats", "metrics"])
async def test_T11_gone_a_moment_ago(house: House, path: str) -> None:
    await house.running()
    answer = await house.get(f"/v0/pipelines/p1/{path}")
    assert (answer.status, answer.error_code) == (503, "PipelineInteractionUnreachable")
    assert set(answer.json["details"]) == {"pipeline_name", "request", "error"}
    assert answer.headers["Retry-After"] == "5"


# --- the same of a pipeline that speaks contract `http` -------------------------------------------------------------


@pytest.fixture
async def speaking(house: House) -> House:
    """A pipeline p1 that speaks contract `http`; `house.probe.replies` is what it answers."""
    house.world.location = "127.0.0.1:1"
    house.probe.answers = [Said(200, STATUS)]
    await house.running()
    return house


async def test_stats_are_passed_on(speaking: House) -> None:
    speaking.probe.replies["/stats?x=%2F"] = Reply(200, "application/json", b'{"global_metrics":{}}')
    answer = await speaking.get("/v0/pipelines/p1/stats?x=%2F")
    assert (answer.status, answer.json) == (200, {"global_metrics": {}})
    assert answer.headers["Content-Type"] == "application/json"


async def test_metrics_are_passed_on(speaking: House) -> None:
    speaking.probe.replies["/metrics?format=prometheus"] = Reply(200, "text/plain", b"# nothing\n")
    answer = await speaking.get("/v0/pipelines/p1/metrics")
    assert answer.headers["Content-Type"] == "text/plain"
    assert answer.body == b"# nothing\n"


async def test_its_errors_are_passed_on(speaking: House) -> None:
    body = b'{"message":"not yet","error_code":"Initializing","details":{}}'
    speaking.probe.replies["/stats?"] = Reply(503, "application/json", body)
    answer = await speaking.get("/v0/pipelines/p1/stats")
    assert (answer.status, answer.body) == (503, body)
    assert "Retry-After" not in answer.headers
    speaking.probe.replies["/stats?"] = Reply(101, "", b"")
    answer = await speaking.get("/v0/pipelines/p1/stats")
    assert (answer.status, answer.error_code) == (500, "PipelineInteractionInvalidResponse")


async def test_T11_not_reached(speaking: House) -> None:
    answer = await speaking.get("/v0/pipelines/p1/stats")
    assert (answer.status, answer.error_code) == (503, "PipelineInteractionUnreachable")
    assert answer.json["details"]["pipeline_name"] == "p1"
    assert answer.headers["Retry-After"] == "5"
