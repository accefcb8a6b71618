"""Logs over the API (conformance.md section 18, contract.md section 8)."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import aiohttp
import anyio
import pytest
from aiohttp import web
from anyio.abc import SocketStream
from structlog.testing import capture_logs

from penstock.api import observe
from penstock.clock import SystemClock
from penstock.logfile import LogFiles
from penstock.model import PipelineId
from penstock.reconciler import Reconciler
from tests.api.house import PATIENCE_SECONDS, House, serving


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
        "resources transition provisioned -> stopping (desired stopped): stop requested pipeline-id=",
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
    with capture_logs() as noticed:
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
    assert not [event for event in noticed if event["log_level"] == "error"], "who goes in mid-stream is no failure"


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


async def test_runs_are_set_apart(logged: LoggedHouse) -> None:
    await logged.create()
    await logged.until(program_status="Success")
    runs: list[str] = []
    for _ in range(2):
        await logged.start()
        runs.append((await logged.status())["deployment_id"])
        await logged.stop()
    text = "\n".join(await lines_of(logged))
    said = re.findall(r"INFO penstock: (---- run \S+ \w+ ----) pipeline-id", text)
    assert said == [f"---- run {run} {what} ----" for run in runs for what in ("begins", "ended")]
    assert text.index("begins ----") < text.index("stopped -> provisioning")
    assert text.rindex("stopping -> stopped") < text.rindex("ended ----")


async def test_a_new_daemon_says_that_it_goes_on(logged: LoggedHouse) -> None:
    await logged.create()
    await logged.until(program_status="Success")
    await logged.start()
    assert "adopted" not in "\n".join(await lines_of(logged))
    reconciler = logged.loop._reconciler
    successor = Reconciler(
        store=logged.store,
        executor=logged.world,
        toolchains=logged.toolchains,
        probe=logged.probe,
        logs=logged.logs,
        clock=logged.clock,
        policy=reconciler.policy,
    )
    row = await logged.row()
    for _ in range(2):
        await successor.turn(row.id)
    said = [line for line in await lines_of(logged) if "adopted" in line]
    assert len(said) == 1
    assert f"run {row.deployment_id} goes on, adopted by a new daemon" in said[0]


# --- the cursor protocol --------------------------------------------------------------------------------------------

STRANGER = "0199c3f1-2d0a-7e84-b711-6f2c9a1d4e08"
POSITION = ("feldera-logs-epoch", "feldera-logs-seq", "feldera-logs-gap")


async def resumed(house: House, query: str, *, follow: bool = False) -> tuple[str, int, int, list[str]]:
    """Epoch, seq, gap, and the lines, as the newest client reads them."""
    answer = await house.get(f"/v0/pipelines/p1/logs?{query}" + ("" if follow else "&follow=false"))
    assert answer.status == 200, answer.body
    epoch, seq, gap = (answer.headers[name] for name in POSITION)
    return epoch, int(seq), int(gap), answer.body.decode().split("\n")[:-1]


async def test_a_cursor_brings_what_is_missing(logged: LoggedHouse) -> None:
    row = await logged.create()
    await logged.until(program_status="Success")
    path = logged.path(row["id"])
    write(path, b"two\n\nfour\r\nfive\n")
    epoch, seq, gap, whole = await resumed(logged, "cursor=")
    assert (seq, gap) == (0, 0)
    assert whole[1:] == ["two", "", "four\r", "five"]
    for read in range(6):
        assert await resumed(logged, f"cursor={epoch}:{read}") == (epoch, read, 0, whole[read:])
    assert await resumed(logged, f"cursor={epoch.upper()}%3A3") == (epoch, 3, 0, whole[3:])
    assert await resumed(logged, f"cursor={STRANGER}:3") == (epoch, 0, 0, whole)
    assert await resumed(logged, f"cursor={epoch}:{2**64 - 1}") == (epoch, 5, 0, [])
    assert await resumed(logged, "tail=2") == (epoch, 3, 0, whole[3:])
    assert await resumed(logged, f"cursor={epoch}:2&tail=4") == (epoch, 2, 0, whole[2:])
    old = await logged.get("/v0/pipelines/p1/logs?follow=false")
    assert not set(POSITION) & {name.lower() for name in old.headers}
    assert old.body.decode().split("\n")[:-1] == whole


async def test_the_position_comes_before_any_line(logged: LoggedHouse) -> None:
    row = await logged.create()
    path = logged.path(row["id"])
    async with stream(logged, query="?tail=0") as response:
        assert int(response.headers["feldera-logs-seq"]) >= 1
        write(path, b"unfin")
        write(path, b"ished\n")
        with anyio.fail_after(PATIENCE_SECONDS):
            assert await response.content.readline() == b"unfinished\n"


async def test_lines_that_are_gone_are_counted(logged: LoggedHouse) -> None:
    row = await logged.create()
    path = logged.path(row["id"])
    write(path, b"".join(b"%d %s\n" % (number, b"y" * 90) for number in range(2, 40_000)))
    with anyio.fail_after(PATIENCE_SECONDS):
        while os.stat(path).st_blocks * 512 > 1 << 20:
            await anyio.sleep(0.01)
    epoch, seq, gap, lines = await resumed(logged, "cursor=")
    assert seq == gap > 20_000
    assert lines[0].startswith(f"{seq + 1} ")
    assert (await resumed(logged, f"cursor={epoch}:100"))[1:3] == (seq, seq - 100)
    assert (await resumed(logged, f"cursor={STRANGER}:100"))[1:3] == (seq, seq)
    old = await lines_of(logged)
    assert f"penstock: {seq} prior log lines were discarded due to buffer constraints" in old[0]
    assert old[1:] == lines


async def test_since(logged: LoggedHouse) -> None:
    row = await logged.create()
    path = logged.path(row["id"])
    await logged.until(program_status="Success")
    write(path, b"before\n")
    file = logged.logs._files[PipelineId(row["id"])]  # type: ignore[attr-defined]
    with anyio.fail_after(PATIENCE_SECONDS):
        while not file.resting:
            await anyio.sleep(0.01)
    now = logged.clock.now()
    write(path, b"after\n")
    for text in (now.isoformat(), now.isoformat().replace("+00:00", "Z"), now.isoformat().replace("+", "%2B")):
        assert (await resumed(logged, f"since={text}"))[3] == ["after"]
    assert "before" in (await resumed(logged, f"since={(now - timedelta(hours=1)).isoformat()}"))[3]
    assert (await resumed(logged, "since=2026-01-01t00:00:00.5-11:30"))[1] == 0


@pytest.mark.parametrize(
    "query",
    [
        "tail=-1",
        "tail=",
        "tail=1e3",
        "tail=%D9%A3",
        "tail=1000000000000001",
        "since=",
        "since=yesterday",
        "since=2026-01-01",
        "since=2026-01-01T00:00:00",
        "since=2026-02-30T00:00:00Z",
        "since=2026-01-01T24:00:01Z",
        "cursor=nonsense",
        "cursor=:1",
        "cursor=41272",
        "cursor=0199c3f1-2d0a-7e84-b711-6f2c9a1d4e08",
        "cursor=0199c3f1-2d0a-7e84-b711-6f2c9a1d4e08:",
        "cursor=0199c3f1-2d0a-7e84-b711-6f2c9a1d4e08:-1",
        "cursor=0199c3f1-2d0a-7e84-b711-6f2c9a1d4e08:1.5",
        "cursor=0199c3f1-2d0a-7e84-b711-6f2c9a1d4e08:18446744073709551616",
        "cursor=not-a-uuid:1",
        "follow=yes",
    ],
)
async def test_what_cannot_be_asked(logged: LoggedHouse, query: str) -> None:
    await logged.create()
    answer = await logged.get(f"/v0/pipelines/p1/logs?{query}")
    assert (answer.status, answer.error_code) == (400, "InvalidQueryParam")
    assert answer.json["details"]["parameter"] == query.partition("=")[0]


async def test_three_hundred_readers_come_and_go(logged: LoggedHouse) -> None:
    row = await logged.create()
    host, port = logged.address.split(":")
    path = logged.path(row["id"])
    readers: list[SocketStream] = []
    try:
        for number in range(300):
            query = ("", "?cursor=", "?tail=0")[number % 3]
            readers.append(await anyio.connect_tcp(host, int(port)))
            request = f"GET /v0/pipelines/p1/logs{query} HTTP/1.1\r\nHost: {logged.address}\r\n\r\n"
            await readers[-1].send(request.encode())
        await logged.until_streams(300)
        for reader in readers:  # told that they are served: their position is taken, what is written now is new
            got = b""
            while b"\r\n\r\n" not in got:
                got += await reader.receive()
        write(path, b"for all\n")
        for reader in readers:
            got = b""
            with anyio.fail_after(PATIENCE_SECONDS):
                while b"for all\n" not in got:
                    got += await reader.receive()
        began = time.perf_counter()
        for reader in readers[::2]:
            await anyio.aclose_forcefully(reader)
        await logged.until_streams(150)
        print(f"150 abandoned readers were gone after {(time.perf_counter() - began) * 1e3:.0f} ms")
    finally:
        for reader in readers:
            await anyio.aclose_forcefully(reader)
    await logged.until_streams(0)


async def test_a_stream_with_a_position_of_a_deleted_pipeline_ends(logged: LoggedHouse) -> None:
    await logged.create()
    await logged.until(program_status="Success")
    async with stream(logged, query="?tail=0") as response:
        assert (await logged.ask("DELETE", "/v0/pipelines/p1")).status == 200
        with anyio.fail_after(PATIENCE_SECONDS):
            assert b"deleted; its logs end here" in await response.content.read()
    await logged.until_streams(0)


async def test_the_kernel_watches_over_quiet_streams(logged: LoggedHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client whose host is gone says nothing: keep-alive probes find out."""
    await logged.create()
    found: list[int] = []
    watch = observe._watch_over

    def watched(request: web.Request) -> None:
        watch(request)
        assert request.transport is not None
        connection = request.transport.get_extra_info("socket")
        names = ("SO_KEEPALIVE", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
        found.extend(
            connection.getsockopt(
                socket.SOL_SOCKET if name.startswith("SO") else socket.IPPROTO_TCP, getattr(socket, name)
            )
            for name in names
        )

    monkeypatch.setattr(observe, "_watch_over", watched)
    await lines_of(logged)
    assert found == [1, 60, 15, 4]
