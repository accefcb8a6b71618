"""What is not proper HTTP is answered like every other error: JSON of the one shape, a 4xx, nothing in the log."""

from __future__ import annotations

import json

import anyio
import pytest
from structlog.testing import capture_logs

from tests.api.house import PATIENCE_SECONDS, House

POST = b"POST /v0/pipelines HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
GET = b"GET /v0/pipelines HTTP/1.1\r\nHost: localhost\r\n"


async def answers(house: House, sent: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    """What comes until the daemon closes the connection: status, headers and body of each answer."""
    host, port = house.address.split(":")
    got = b""
    async with await anyio.connect_tcp(host, int(port)) as connection:
        await connection.send(sent)
        with anyio.fail_after(PATIENCE_SECONDS):
            try:
                while True:
                    got += await connection.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                pass
    found: list[tuple[int, dict[str, str], bytes]] = []
    while got:
        head, _, got = got.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(headers["content-length"])
        found.append((int(first.split()[1]), headers, got[:length]))
        got = got[length:]
    return found


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"nonsense\r\n\r\n", 400, "MalformedRequest"),
        (b"GET\r\n\r\n", 400, "MalformedRequest"),
        (b"GET  /v0/pipelines HTTP/1.1\r\n\r\n", 400, "MalformedRequest"),
        (b"G@T /v0/pipelines HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "MalformedRequest"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "MalformedRequest"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "MalformedRequest"),
        (b"GET /v0/pipelines HTTP/9.9\r\nHost: localhost\r\n\r\n", 400, "MalformedRequest"),
        (b"GET /v0/pipelines HTTP/1\r\nHost: localhost\r\n\r\n", 400, "MalformedRequest"),
        (b"GET http://[::1/v0/pipelines HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "MalformedRequest"),
        (GET + b"no colon\r\n\r\n", 400, "MalformedRequest"),
        (GET + b"bad name: x\r\n\r\n", 400, "MalformedRequest"),
        (GET + b"X-Y: a\0b\r\n\r\n", 400, "MalformedRequest"),
        (GET + b": empty\r\n\r\n", 400, "MalformedRequest"),
        (GET + b"X-Long: " + b"x" * 20_000 + b"\r\n\r\n", 431, "HeadersTooLarge"),
        (GET + b"".join(b"X-%d: y\r\n" % number for number in range(10_000)) + b"\r\n", 431, "HeadersTooLarge"),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414, "UriTooLong"),
        (POST + b"Content-Length: x\r\n\r\n", 400, "MalformedRequest"),
        (POST + b"Content-Length: -1\r\n\r\n", 400, "MalformedRequest"),
        (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}", 400, "MalformedRequest"),
        (POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}", 400, "MalformedRequest"),
        (CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n", 400, "MalformedRequest"),
        (CHUNKED + b"-1\r\n{}\r\n0\r\n\r\n", 400, "MalformedRequest"),
        (CHUNKED + b"2\r\n{}{}\r\n0\r\n\r\n", 400, "MalformedRequest"),
        (GET + b"Expect: the unexpected\r\nConnection: close\r\n\r\n", 417, "ExpectationFailed"),
        (
            b"GET /nothing HTTP/1.1\r\nHost: localhost\r\nExpect: x\r\nConnection: close\r\n\r\n",
            417,
            "ExpectationFailed",
        ),
    ],
)
async def test_it_is_an_error_like_any_other(house: House, sent: bytes, status: int, code: str) -> None:
    with capture_logs() as logged:
        ((found, headers, body),) = await answers(house, sent)
    assert (found, headers["content-type"].split(";")[0]) == (status, "application/json"), body
    answer = json.loads(body)
    assert set(answer) == {"message", "error_code", "details"}
    assert answer["error_code"] == code, answer
    assert answer["details"] == {}
    assert "aiohttp" not in headers.get("server", "").lower()
    assert headers["connection"] == "close"
    assert not [event for event in logged if event["log_level"] not in ("debug", "info")], logged


async def test_garbage_after_a_good_request(house: House) -> None:
    host, port = house.address.split(":")
    async with await anyio.connect_tcp(host, int(port)) as connection:
        with anyio.fail_after(PATIENCE_SECONDS):
            await connection.send(GET + b"\r\n")
            assert (await connection.receive()).startswith(b"HTTP/1.1 200")
            await connection.send(b"nonsense\r\n\r\n")
            assert b"MalformedRequest" in await connection.receive()
            with pytest.raises(anyio.EndOfStream):
                await connection.receive()


async def test_what_is_expected_is_granted(house: House) -> None:
    host, port = house.address.split(":")
    async with await anyio.connect_tcp(host, int(port)) as connection:
        await connection.send(POST + b"Content-Length: 34\r\nExpect: 100-continue\r\n\r\n")
        with anyio.fail_after(PATIENCE_SECONDS):
            assert await connection.receive() == b"HTTP/1.1 100 Continue\r\n\r\n"
            await connection.send(b'{"name": "p1", "program_code": ""}')
            assert (await connection.receive()).startswith(b"HTTP/1.1 201")


async def test_it_quotes_no_more_than_a_little(house: House) -> None:
    ((_, _, body),) = await answers(house, GET + b"bad name " + b"\xff<b>" * 1000 + b"\r\n\r\n")
    assert len(body) < 1000
