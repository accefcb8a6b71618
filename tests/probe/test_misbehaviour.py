"""What the other side may do to the probe: hang, never end, answer nonsense, send it elsewhere."""

from __future__ import annotations

import gzip
import resource
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.abc import SocketStream

from penstock import probe as module
from penstock.answers import NoAnswer
from penstock.model import Fault, RuntimeDesired
from penstock.ports import ExecutorError
from penstock.probe import HttpProbe

Behaviour = Callable[[SocketStream], Awaitable[None]]


@asynccontextmanager
async def listener(behave: Behaviour) -> AsyncGenerator[str]:
    """Serve each connection, once its request was read, by `behave`; then close it."""

    async def serve(stream: SocketStream) -> None:
        async with stream:
            try:
                await stream.receive()
                await behave(stream)
            except (anyio.BrokenResourceError, anyio.EndOfStream, anyio.ClosedResourceError):
                pass

    server = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    async with server, anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, serve)
        yield f"127.0.0.1:{server.extra(anyio.abc.SocketAttribute.local_port)}"
        tasks.cancel_scope.cancel()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bounds, sooner reached."""
    monkeypatch.setattr(module, "STATUS_TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr(module, "GET_TIMEOUT_SECONDS", 0.3)


async def silent(stream: SocketStream) -> None:
    await anyio.sleep_forever()


async def half(stream: SocketStream) -> None:
    await stream.send(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"Run')
    await anyio.sleep_forever()


async def dripping(stream: SocketStream) -> None:
    await stream.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        await stream.send(b"1\r\nx\r\n")
        await anyio.sleep(0.05)


async def slow_head(stream: SocketStream) -> None:
    await stream.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        await stream.send(b"X: y\r\n")
        await anyio.sleep(0.05)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("behaviour", [silent, half, dripping, slow_head])
async def test_hanging_is_bounded(probe: HttpProbe, behaviour: Behaviour) -> None:
    async with listener(behaviour) as location:
        began = time.monotonic()
        got = await probe.status(location)
        assert isinstance(got, NoAnswer)
        assert "0.3 s" in got.reason
        assert isinstance(await probe.get(location, "/stats"), Fault)
        with pytest.raises(ExecutorError) as raised:
            await probe.steer(location, RuntimeDesired.PAUSED)
        assert raised.value.retry
        assert raised.value.fault.code == "PipelineInteractionUnreachable"
        assert time.monotonic() - began < 3.0


async def endless_body(stream: SocketStream) -> None:
    await stream.send(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        await stream.send(b"[" * 65536)


async def endless_head(stream: SocketStream) -> None:
    await stream.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        await stream.send(b"X-Long: " + b"y" * 4000 + b"\r\n")


async def endless_header(stream: SocketStream) -> None:
    await stream.send(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while True:
        await stream.send(b"y" * 65536)


async def says_huge(stream: SocketStream) -> None:
    await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")
    while True:
        await stream.send(b" " * 65536)


@pytest.mark.parametrize("behaviour", [endless_body, endless_head, endless_header, says_huge])
async def test_endless_answers_cost_little(probe: HttpProbe, behaviour: Behaviour) -> None:
    async with listener(behaviour) as location:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.monotonic()
        assert isinstance(await probe.status(location), NoAnswer)
        assert time.monotonic() - began < 2.0
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64_000, "kB more at the peak"


async def test_a_long_reply_is_refused_not_held(probe: HttpProbe) -> None:
    async with listener(endless_body) as location:
        got = await probe.get(location, "/stats")
        assert isinstance(got, Fault)
        assert got.code == "PipelineInteractionInvalidResponse"


async def closes(stream: SocketStream) -> None:
    await stream.aclose()


async def short(stream: SocketStream) -> None:
    await stream.send(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"Running"')


async def no_http(stream: SocketStream) -> None:
    await stream.send(b"220 mail.example ESMTP\r\n")


async def zipped(stream: SocketStream) -> None:
    await stream.send(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00")


async def zipped_whole(stream: SocketStream) -> None:
    body = gzip.compress(b'"Running"')
    await stream.send(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


async def bad_bytes(stream: SocketStream) -> None:
    await stream.send(b'HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"\xff\xfe"')


@pytest.mark.parametrize("behaviour", [closes, short, no_http, zipped, zipped_whole, bad_bytes])
async def test_nonsense_is_no_answer(probe: HttpProbe, behaviour: Behaviour) -> None:
    async with listener(behaviour) as location:
        got = await probe.status(location)
        assert isinstance(got, NoAnswer)
        assert got.reason


@pytest.mark.parametrize("location", ["127.0.0.1:1", "127.0.0.1:99999", "no host:80", "", "[::1:80", "a..b:1"])
async def test_nobody_there(probe: HttpProbe, location: str) -> None:
    assert isinstance(await probe.status(location), NoAnswer)
    assert isinstance(await probe.get(location, "/stats"), Fault)


async def test_redirects_are_not_followed(probe: HttpProbe) -> None:
    asked: list[bytes] = []

    async def redirecting(stream: SocketStream) -> None:
        asked.append(b"")
        await stream.send(b"HTTP/1.1 302 Found\r\nLocation: /status\r\nContent-Length: 0\r\n\r\n")

    async with listener(redirecting) as location:
        assert isinstance(await probe.status(location), NoAnswer)
        assert len(asked) == 1


async def test_no_proxy_of_the_environment(probe: HttpProbe, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert not isinstance(await probe.status(program), NoAnswer)


async def test_cancelled_at_once(probe: HttpProbe) -> None:
    async with listener(silent) as location:
        began = time.monotonic()
        with anyio.move_on_after(0.1):
            await probe.status(location)
        assert time.monotonic() - began < 1.0


async def test_a_hundred_hung_ones_do_not_delay_another(probe: HttpProbe, program: str) -> None:
    async with listener(silent) as location, anyio.create_task_group() as tasks:
        for _ in range(100):
            tasks.start_soon(probe.status, location)
        await anyio.wait_all_tasks_blocked()
        began = time.monotonic()
        assert not isinstance(await probe.status(program), NoAnswer)
        assert time.monotonic() - began < 1.0
        tasks.cancel_scope.cancel()
