"""Asks processes that speak contract `http` how they are, and tells them what to do (contract.md sections 7.3 and 7.4).

Called by the reconciler (status), executors (steer) and the API (get, post). What answers is a user's program: it may
hang, never end, or answer nonsense. So every exchange is bounded in time and size, follows no redirect, goes through no
proxy, keeps no cookie, and no failure of the other side is an exception. Must never decide what an answer means; that
is `answers.interpret`'s.
"""

from __future__ import annotations

import contextlib
from http import HTTPStatus
from types import TracebackType
from typing import Self, cast

import aiohttp
import msgspec
from yarl import URL

from penstock.answers import Answer, NoAnswer
from penstock.model import Fault, JsonObject, JsonValue, RuntimeDesired
from penstock.ports import ExecutorError, Reply

STATUS_TIMEOUT_SECONDS = 5.0
"""For /status, from connecting to the last byte (contract.md section 3.5)."""

STATUS_LIMIT_BYTES = 1_000_000
"""An answer to /status that is longer is no answer: it would be stored in the row, and in events."""

GET_TIMEOUT_SECONDS = 10.0
"""For what the API passes on, and for steering (contract.md section 5.5)."""

POST_TIMEOUT_SECONDS = 120.0
"""For commands that the API passes on: an approval is answered once the process has gone on (contract.md 5.5, 7.4)."""

GET_LIMIT_BYTES = 16 << 20
"""Statistics and metrics that are longer are refused: they are held in memory."""

_STEERING = {
    RuntimeDesired.RUNNING: ("GET", "/start"),
    RuntimeDesired.PAUSED: ("GET", "/pause"),
    RuntimeDesired.SUSPENDED: ("POST", "/suspend"),
}

_MAY_PASS = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})
"""Refusals below 500 that the same request may not meet again."""


class _TooLong(Exception):
    """The body is longer than its limit."""


class HttpProbe:
    """The Probe over one aiohttp session. Use as a context manager, on the loop."""

    def __init__(self) -> None:
        self._closing = contextlib.AsyncExitStack()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        session = aiohttp.ClientSession(
            # A new connection for each request: one that was kept may belong to a process that is gone.
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept-Encoding": "identity", "User-Agent": "penstock"},
            auto_decompress=False,
            trust_env=False,
        )
        self._session = await self._closing.enter_async_context(session)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._closing.aclose()
        self._session = None

    async def status(self, location: str) -> Answer | NoAnswer:
        """GET /status; takes at most STATUS_TIMEOUT_SECONDS; never raises for the world's failures."""
        try:
            reply = await self._exchange("GET", location, "/status", STATUS_TIMEOUT_SECONDS, STATUS_LIMIT_BYTES)
        except _TooLong:
            return NoAnswer(f"the answer to /status is longer than {STATUS_LIMIT_BYTES} bytes")
        if isinstance(reply, NoAnswer):
            return reply
        body = _json(reply.body)
        if isinstance(body, NoAnswer):
            return NoAnswer(f"the answer to /status, HTTP status {reply.http_status}, is not JSON: {body.reason}")
        return Answer(reply.http_status, body[0])

    async def get(self, location: str, path: str) -> Reply | Fault:
        """GET `path`, percent-encoded and with its query; takes at most GET_TIMEOUT_SECONDS.

        A Fault (PipelineInteractionUnreachable or PipelineInteractionInvalidResponse) when there is no usable answer.
        """
        return await self._pass_on("GET", location, path, GET_TIMEOUT_SECONDS)

    async def post(self, location: str, path: str) -> Reply | Fault:
        """POST to `path`, once and without a body; takes at most POST_TIMEOUT_SECONDS. Faults as `get`.

        One that got no answer may have been obeyed all the same.
        """
        return await self._pass_on("POST", location, path, POST_TIMEOUT_SECONDS)

    async def _pass_on(self, method: str, location: str, path: str, seconds: float) -> Reply | Fault:
        try:
            reply = await self._exchange(method, location, path, seconds, GET_LIMIT_BYTES)
        except _TooLong:
            error = f"the answer to {path} is longer than {GET_LIMIT_BYTES} bytes"
            return Fault("PipelineInteractionInvalidResponse", f"The pipeline cannot be shown: {error}.", _why(error))
        return _unreachable(path, reply.reason) if isinstance(reply, NoAnswer) else reply

    async def steer(self, location: str, target: RuntimeDesired) -> None:
        """Tell the process to be Running, Paused or Suspended; idempotent; takes at most GET_TIMEOUT_SECONDS.

        Raises ExecutorError: with the process' own words when it refused, else with PipelineInteractionUnreachable.
        """
        if target not in _STEERING:
            raise ValueError(f"no process can be told to be {target}")
        method, path = _STEERING[target]
        try:
            reply = await self._exchange(method, location, path, GET_TIMEOUT_SECONDS, STATUS_LIMIT_BYTES)
        except _TooLong:
            reply = NoAnswer(f"the answer is longer than {STATUS_LIMIT_BYTES} bytes")
        if isinstance(reply, NoAnswer):
            raise ExecutorError(_unreachable(path, reply.reason), retry=True)
        if not HTTPStatus(200) <= reply.http_status < HTTPStatus(300):
            refused = 400 <= reply.http_status < 500 and reply.http_status not in _MAY_PASS
            raise ExecutorError(_refusal(path, reply), retry=not refused)

    async def _exchange(
        self, method: str, location: str, path: str, seconds: float, limit_bytes: int
    ) -> Reply | NoAnswer:
        """One request and its whole answer. Raises _TooLong."""
        if self._session is None:
            raise RuntimeError("the probe is not open")
        try:
            async with self._session.request(
                method,
                URL(f"http://{location}{path}", encoded=True),
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=seconds),
            ) as response:
                body = bytearray()
                async for piece in response.content.iter_any():
                    body += piece
                    if len(body) > limit_bytes:
                        raise _TooLong
                return Reply(response.status, response.headers.get("Content-Type", ""), bytes(body))
        except TimeoutError:
            return NoAnswer(f"no complete answer within {seconds:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return NoAnswer(_words(error))


def _json(body: bytes) -> tuple[JsonValue] | NoAnswer:
    try:
        return (cast("JsonValue", msgspec.json.decode(body)),)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return NoAnswer(_words(error))


def _refusal(path: str, reply: Reply) -> Fault:
    """What the process answered instead of doing it, in its own words if it has any."""
    body = _json(reply.body)
    if not isinstance(body, NoAnswer) and isinstance(body[0], dict):
        said = cast("JsonObject", body[0])
        code, message, details = said.get("error_code"), said.get("message"), said.get("details")
        if isinstance(code, str) and isinstance(message, str):
            return Fault(code, message, cast("JsonObject", details) if isinstance(details, dict) else {})
    error = f"it answered {path} with HTTP status {reply.http_status} and no error body"
    return Fault("PipelineInteractionInvalidResponse", f"The pipeline process did not obey: {error}.", _why(error))


def _unreachable(path: str, reason: str) -> Fault:
    return Fault(
        "PipelineInteractionUnreachable",
        f"The pipeline process did not answer {path}: {reason}. Its log may tell more; trying again may help.",
        {"request": path, "error": reason},
    )


def _why(error: str) -> JsonObject:
    return {"error": error}


def _words(error: BaseException) -> str:
    return (str(error) or type(error).__name__)[:300]
