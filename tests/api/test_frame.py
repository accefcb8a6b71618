"""What surrounds every request: errors, routing, hosts and origins, serving and its end."""

from __future__ import annotations

import gzip
import io
import json
import os
import socket
import stat
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest
import structlog
from aiohttp import web

from penstock.api.context import CONTEXT
from penstock.api.errors import STATUSES, WITHOUT_RETRY_AFTER, ApiError
from penstock.api.server import MAX_BODY_BYTES, build_app, serve
from penstock.ports import StoreUnavailable
from tests.api.house import House, listening, serving

JSON = {"Content-Type": "application/json"}
TEXT = {"Content-Type": "text/plain"}


# --- errors and routing ---------------------------------------------------------------------------------------------


async def test_T1_an_unknown_route_is_a_404_and_routes_are_case_sensitive(house: House) -> None:
    await house.create()
    for path in ("/v0/nothing", "/V0/pipelines", "/v0/pipelines/", "/v0/pipelines/p1/Start", "/", "/v0/pipelines/p1/"):
        answer = await house.post(path)
        assert (answer.status, answer.error_code) == (404, "UnknownRoute"), path


async def test_T2_credentials_are_not_needed_and_do_no_harm(house: House) -> None:
    answer = await house.get("/v0/pipelines", headers={"Authorization": "Bearer apikey:nonsense"})
    assert answer.status == 200


async def test_T3_every_error_has_the_one_shape(house: House) -> None:
    """`Answer.error_code` checks the shape; here: one of each kind, from the handlers and from the framework."""
    await house.create()
    cases: list[tuple[str, str, dict[str, Any], int, str]] = [
        ("GET", "/v0/pipelines/nobody", {}, 404, "UnknownPipelineName"),
        ("POST", "/v0/pipelines", {"data": b"{", "headers": JSON}, 400, "InvalidJson"),
        ("POST", "/v0/pipelines", {"data": b"[]", "headers": JSON}, 400, "InvalidJson"),
        ("POST", "/v0/pipelines", {"data": b"", "headers": JSON}, 400, "InvalidJson"),
        (
            "POST",
            "/v0/pipelines",
            {"data": b"{}", "headers": {"Content-Type": "text/plain"}},
            415,
            "UnsupportedMediaType",
        ),
        ("POST", "/v0/pipelines", {"data": b"{}"}, 415, "UnsupportedMediaType"),
        ("GET", "/v0/pipelines?selector=some", {}, 400, "InvalidQueryParam"),
        ("POST", "/v0/pipelines/p1/stop?force=1", {}, 400, "InvalidQueryParam"),
        ("PUT", "/v0/pipelines/p1/start", {}, 405, "MethodNotAllowed"),
        ("PROPFIND", "/v0/pipelines/p1", {}, 405, "MethodNotAllowed"),
        ("OPTIONS", "/v0/pipelines/p1", {}, 405, "MethodNotAllowed"),
    ]
    for method, path, options, status, code in cases:
        answer = await house.ask(method, path, **options)
        assert (answer.status, answer.error_code) == (status, code), (method, path)
        assert answer.headers["Content-Type"] == "application/json; charset=utf-8" or (
            answer.headers["Content-Type"] == "application/json"
        )


async def test_a_wrong_method_is_told_the_right_ones(house: House) -> None:
    answer = await house.ask("POST", "/v0/pipelines/p1")
    assert answer.error_code == "MethodNotAllowed"
    assert answer.headers["Allow"] == "DELETE, GET, HEAD, PATCH, PUT"
    assert answer.json["details"]["allowed"] == ["DELETE", "GET", "HEAD", "PATCH", "PUT"]


async def test_a_body_has_a_largest_size(house: House) -> None:
    whole = json.dumps({"name": "fits", "program_code": "x" * (MAX_BODY_BYTES - 100)}).encode()
    assert (await house.post("/v0/pipelines", data=io.BytesIO(whole), headers=JSON)).status == 201
    padded = whole + b" " * (MAX_BODY_BYTES + 1 - len(whole))
    answer = await house.post("/v0/pipelines", data=io.BytesIO(padded), headers=JSON)
    assert (answer.status, answer.error_code) == (413, "PayloadTooLarge")

    async def unannounced() -> AsyncGenerator[bytes]:
        for _ in range(3):
            yield b" " * (MAX_BODY_BYTES // 2)

    answer = await house.post("/v0/pipelines", data=unannounced(), headers=JSON)
    assert (answer.status, answer.error_code) == (413, "PayloadTooLarge")


async def test_a_compressed_body_is_refused(house: House) -> None:
    headers = {**JSON, "Content-Encoding": "gzip"}
    for body in (gzip.compress(b'{"name": "packed", "program_code": ""}'), b"this is not gzip"):
        answer = await house.post("/v0/pipelines", data=body, headers=headers)
        assert (answer.status, answer.error_code) == (415, "UnsupportedMediaType")


async def test_T4_a_refusal_that_lasts_is_no_5xx_that_clients_repeat() -> None:
    """Both exceptions are 503 for the clients' sake, and come without Retry-After."""
    repeated = {code for code, status in STATUSES.items() if status in (408, 429, 502, 503, 504)}
    passing = {"StoreUnavailable", "PipelineInteractionUnreachable", "NotReady"}
    assert repeated - passing == WITHOUT_RETRY_AFTER
    for code in repeated:
        assert ("Retry-After" in ApiError(code, "").headers) == (code not in WITHOUT_RETRY_AFTER)


async def test_T6_a_post_without_a_body_may_claim_any_type(house: House) -> None:
    await house.create()
    for headers in (JSON, TEXT, {}):
        for action in ("dismiss_error", "clear", "stop"):
            answer = await house.post(f"/v0/pipelines/p1/{action}", headers={**headers, "Content-Length": "0"})
            assert answer.status in (200, 202), (action, headers)
    assert (await house.post("/v0/pipelines/p1/stop", data=b"{not json", headers=JSON)).status == 202


async def test_T7_each_request_may_have_its_own_connection(house: House) -> None:
    for _ in range(3):
        answer = await house.get("/v0/pipelines", headers={"Connection": "close", "Accept-Encoding": "gzip, deflate"})
        assert answer.status == 200
        assert answer.headers["Connection"] == "close"


async def test_T9_segments_are_split_before_they_are_decoded() -> None:
    house = House()
    async with serving(house):
        app = build_app(house.context)
        seen: list[tuple[str, str]] = []

        async def stats(request: web.Request) -> web.Response:
            seen.append((request.match_info["table"], request.match_info["connector"]))
            return web.Response()

        app.add_routes([web.get("/v0/tables/{table}/connectors/{connector}/stats", stats)])
        async with anyio.create_task_group() as tasks:
            house.address = await listening(tasks.start_soon, app)
            path = "/v0/tables/%22numbers%20%2BC0_-%2C.%21%25%28%29%26%2F%22/connectors/a%23A0_-%252F/stats"
            assert (await house.get(path)).status == 200
            tasks.cancel_scope.cancel()
        assert seen == [('"numbers +C0_-,.!%()&/"', "a#A0_-%2F")]


async def test_a_name_in_the_path_is_decoded_once(house: House) -> None:
    await house.create("p-1")
    assert (await house.get("/v0/pipelines/p%2D1")).status == 200
    for path in (
        "/v0/pipelines/p%252D1",
        "/v0/pipelines/p%2F1",
        "/v0/pipelines/p-1%00",
        "/v0/pipelines/%FF",
        "/v0/pipelines/%7B",
    ):
        answer = await house.get(path)
        assert (answer.status, answer.error_code) == (404, "UnknownPipelineName"), path


async def test_a_request_line_need_not_be_text(house: House) -> None:
    host, port = house.address.split(":")
    for target in (
        b"/v0/pipelines/\xff\xfe",
        b"/\xff",
        b"/v0/pipelines?selector=\xff",
        b"/v0/pipelines?selector=%ED%A0%80",
    ):
        async with await anyio.connect_tcp(host, int(port)) as stream:
            await stream.send(b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = b"".join([part async for part in stream])
        assert answer.split(b" ")[1] in (b"400", b"404"), (target, answer)


async def test_what_is_not_even_http_is_refused_and_no_error_of_ours(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    host, port = house.address.split(":")
    with structlog.testing.capture_logs() as logs:
        for noise in (
            b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
            b"GET /v0/pipelines HTTP/1.1\r\nbad header\r\n\r\n",
            b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\n\r\n",
        ):
            async with await anyio.connect_tcp(host, int(port)) as stream:
                await stream.send(noise)
                answer = b"".join([part async for part in stream])
            assert answer.split(b" ")[1] in (b"400", b"414"), answer
    assert [entry for entry in logs if entry["log_level"] != "debug"] == []
    assert caplog.records == []


async def test_a_get_may_be_a_head(house: House) -> None:
    await house.create()
    for path in ("/v0/pipelines", "/v0/pipelines/p1"):
        answer = await house.ask("HEAD", path)
        assert (answer.status, answer.body) == (200, b"")
        assert int(answer.headers["Content-Length"]) > 1000


async def test_a_mistake_of_ours_is_logged_once_and_not_shown() -> None:
    house = House()
    async with serving(house):

        def crash() -> None:
            raise ValueError("secret")

        house.store.fault = crash
        with structlog.testing.capture_logs() as logs:
            answer = await house.get("/v0/pipelines/p1")
        house.store.fault = None
        assert (answer.status, answer.error_code) == (500, "InternalError")
        assert b"secret" not in answer.body
        assert b"Traceback" not in answer.body
        crashes = [entry for entry in logs if entry["event"] == "request crashed"]
        assert [(entry["log_level"], entry["path"]) for entry in crashes] == [("error", "/v0/pipelines/p1")]


async def test_a_store_outage_is_a_503_that_says_when_to_come_back(house: House) -> None:
    await house.create()

    def outage() -> None:
        raise StoreUnavailable("disk full")

    house.store.fault = outage
    for method, path in (("GET", "/v0/pipelines"), ("POST", "/v0/pipelines/p1/start"), ("DELETE", "/v0/pipelines/p1")):
        answer = await house.ask(method, path)
        assert (answer.status, answer.error_code, answer.headers["Retry-After"]) == (503, "StoreUnavailable", "5")
    house.store.fault = None
    assert (await house.get("/v0/pipelines/p1")).status == 200


async def test_requests_are_counted_by_route_never_by_path(house: House) -> None:
    await house.create()
    await house.get("/v0/pipelines/p1")
    await house.get("/v0/pipelines/p2")
    await house.get("/v0/whatever/p3")
    await house.ask("PROPFIND", "/v0/pipelines")
    labels = {
        (sample.labels["method"], sample.labels["route"], sample.labels["code"]): sample.value
        for family in house.metrics.registry.collect()
        for sample in family.samples
        if sample.name == "penstock_api_request_seconds_count"
    }
    assert labels == {
        ("POST", "/v0/pipelines", "201"): 1,
        ("GET", "/v0/pipelines/{pipeline_name}", "200"): 1,
        ("GET", "/v0/pipelines/{pipeline_name}", "404"): 1,
        ("GET", "unknown", "404"): 1,
        ("other", "unknown", "405"): 1,
    }


async def test_a_stream_that_breaks_is_cut_off_and_not_ended() -> None:
    """Its reader must not take what it got for the whole."""
    house = House()

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first\n")
        raise ApiError("InternalError", "broken")

    app = build_app(house.context)
    app.add_routes([web.get("/stream", stream)])
    async with anyio.create_task_group() as tasks, aiohttp.ClientSession() as client:
        address = await listening(tasks.start_soon, app)
        with pytest.raises(aiohttp.ClientError):
            async with client.get(f"http://{address}/stream") as response:
                await response.read()
        tasks.cancel_scope.cancel()


# --- hosts and origins ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:99", "app.localhost:8080", "127.0.0.1", "127.8.8.8:1", "[::1]:8080", "[::ffff:127.0.0.1]"],
)
async def test_loopback_may_have_any_name_of_loopback(house: House, host: str) -> None:
    assert (await house.get("/v0/pipelines", headers={"Host": host})).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "10.0.0.1",
        "",
        "a@127.0.0.1",
        "127.0.0.1:x",
        "[",
        "\u00ff",
    ],
)
async def test_a_foreign_host_is_refused(house: House, host: str) -> None:
    answer = await house.get("/v0/pipelines", headers={"Host": host})
    assert (answer.status, answer.error_code) == (403, "ForbiddenHost")


@pytest.mark.parametrize("origin", ["http://evil.example", "https://localhost.evil.example", "null", "", "file://"])
async def test_a_foreign_origin_is_refused_and_nothing_is_done(house: House, origin: str) -> None:
    body = {"name": "p1", "program_code": ""}
    answer = await house.post("/v0/pipelines", body=body, headers={"Origin": origin})
    assert (answer.status, answer.error_code) == (403, "ForbiddenOrigin")
    assert (await house.get("/v0/pipelines/p1")).status == 404


async def test_a_page_of_this_machine_may_send(house: House) -> None:
    for origin in ("http://localhost:3000", "https://127.0.0.1", f"http://{house.address}", "http://[::1]:1"):
        assert (await house.get("/v0/pipelines", headers={"Origin": origin})).status == 200


async def test_configured_hosts_and_origins_are_ours() -> None:
    house = House(allowed_hosts=("penstock.example",), allowed_origins=("https://console.example",))
    async with serving(house):
        assert (await house.get("/v0/pipelines", headers={"Host": "Penstock.Example:443"})).status == 200
        assert (await house.get("/v0/pipelines", headers={"Host": "other.example"})).status == 403
        assert (await house.get("/v0/pipelines", headers={"Origin": "https://console.example"})).status == 200
        assert (await house.get("/v0/pipelines", headers={"Origin": "https://penstock.example"})).status == 200
        assert (await house.get("/v0/pipelines", headers={"Origin": "https://console.example:1"})).status == 403


async def test_a_star_lifts_the_restriction() -> None:
    house = House(allowed_hosts=("*",), allowed_origins=("*",))
    async with serving(house):
        headers = {"Host": "any.example", "Origin": "https://other.example"}
        assert (await house.get("/v0/pipelines", headers=headers)).status == 200


async def test_a_host_is_not_needed(house: House) -> None:
    host, port = house.address.split(":")
    async with await anyio.connect_tcp(host, int(port)) as stream:
        await stream.send(b"GET /v0/pipelines HTTP/1.0\r\n\r\n")
        answer = b"".join([part async for part in stream])
    assert b" 200 " in answer.splitlines()[0]


# --- serving --------------------------------------------------------------------------------------------------------


async def test_a_unix_socket_is_for_its_owner_and_takes_any_host(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    house = House()
    async with anyio.create_task_group() as tasks:
        assert await listening(tasks.start_soon, build_app(house.context), f"unix:{path}") == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as client:
            async with client.get("http://whatever.example/v0/pipelines") as response:
                assert (response.status, await response.json()) == (200, [])
            async with client.get("http://x/v0/pipelines", headers={"Origin": "http://evil.example"}) as response:
                assert response.status == 403
        tasks.cancel_scope.cancel()
    assert not path.exists()


async def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    house = House()
    async with anyio.create_task_group() as tasks:
        await listening(tasks.start_soon, build_app(house.context), f"unix:{path}")
        with pytest.raises(OSError, match="somebody answers"):
            await serve(build_app(house.context), f"unix:{path}", ready=lambda _: None)
        assert path.exists()
        tasks.cancel_scope.cancel()


async def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(FileExistsError):
        await serve(build_app(House().context), f"unix:{path}", ready=lambda _: None)
    assert path.read_text() == "data"


async def test_a_socket_that_somebody_else_put_there_meanwhile_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    async with anyio.create_task_group() as tasks:
        await listening(tasks.start_soon, build_app(House().context), f"unix:{path}")
        os.unlink(path)
        path.write_text("another's")
        tasks.cancel_scope.cancel()
    assert path.exists()


async def test_a_busy_address_is_an_error(house: House) -> None:
    with pytest.raises(OSError, match="in use"):
        await serve(build_app(house.context), house.address, ready=lambda _: None)


@pytest.mark.parametrize("listen", ["", "localhost", "localhost:", "localhost:x", "localhost:70000", "::1:80"])
async def test_an_address_that_is_none_is_an_error(listen: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        await serve(build_app(House().context), listen, ready=lambda _: None)


async def test_open_streams_and_slow_requests_end_with_the_daemon() -> None:
    house = House()
    cancelled: list[str] = []

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"line\n")
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.append("stream")
        return response

    app = build_app(house.context)
    assert app[CONTEXT] is house.context
    app.add_routes([web.get("/stream", stream)])
    async with aiohttp.ClientSession() as client, anyio.create_task_group() as tasks:
        address = await listening(tasks.start_soon, app)
        response = await client.get(f"http://{address}/stream")
        assert await response.content.readline() == b"line\n"
        began = anyio.current_time()
        tasks.cancel_scope.cancel()
    response.close()
    assert anyio.current_time() - began < 2.0
    assert cancelled == ["stream"]


async def test_a_reader_that_goes_away_ends_its_stream() -> None:
    house = House()
    ended = anyio.Event()

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"line\n")
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()
        return response

    app = build_app(house.context)
    app.add_routes([web.get("/stream", stream)])
    async with aiohttp.ClientSession() as client, anyio.create_task_group() as tasks:
        address = await listening(tasks.start_soon, app)
        response = await client.get(f"http://{address}/stream")
        await response.content.readline()
        response.close()
        with anyio.fail_after(5):
            await ended.wait()
        tasks.cancel_scope.cancel()
