"""One connection of a client: what is sent that is not proper HTTP is answered like every other error.

Made by `server.py` for each connection. aiohttp would answer in plain text, and log a traceback for what a client did.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import structlog
from aiohttp import hdrs, http_exceptions, web

from penstock.api.errors import ApiError
from penstock.api.responses import error_response

log = structlog.get_logger("penstock.api")

MAX_LINE_BYTES, MAX_FIELD_BYTES = 8190, 16_384
"""How long the address of a request and each header may be. They differ, as only that tells which was too long."""

MAX_HEADERS = 128

_LAST = {"Connection": "close"}

SERVER = "penstock"
"""What answers say they come from: which libraries it is made of is nobody's business."""

QUOTED_CHARACTERS = 200
"""How much of what the parser has to say is passed on; it quotes what it read."""


def connections(runner: web.AppRunner, logger: logging.Logger) -> Callable[[], web.RequestHandler]:
    """What makes the protocol of each connection to the application of `runner`, which is set up. On the loop."""
    loop, server = asyncio.get_running_loop(), runner.server
    if server is None:
        raise RuntimeError("the runner is not set up")

    def make() -> web.RequestHandler:
        # A compressed body is refused, or passed on as it is.
        return _Connection(
            server,
            loop=loop,
            access_log=None,  # pyright: ignore[reportArgumentType] - there is none
            auto_decompress=False,
            logger=logger,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_FIELD_BYTES,
            max_headers=MAX_HEADERS,
        )

    return make


class _Connection(web.RequestHandler):
    __slots__ = ()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send `resp`. An Expect header is looked at before any middleware, and refused in plain text."""
        if isinstance(resp, web.HTTPExpectationFailed):
            text = "The header Expect may say 100-continue, and nothing else."
            resp = error_response(ApiError("ExpectationFailed", text))
        return await super().finish_response(request, resp, start_time)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The last answer on this connection: `exc` is what the parser found, or a bug that no frame caught."""
        if isinstance(exc, ConnectionError):
            log.debug("client gone", error=str(exc))
            raise exc
        if isinstance(exc, http_exceptions.HttpProcessingError):
            log.debug("malformed request", error=str(exc))
            error = malformed(exc)
        else:
            log.error("http server failed", status=status, text=message, exc_info=exc)
            error = ApiError("InternalError", "The daemon made a mistake; its log tells more.")
        if request.writer.output_size > 0:
            raise ConnectionError("an answer is under way already")
        response = error_response(error)
        response.headers[hdrs.SERVER] = SERVER
        response.force_close()
        return response


def malformed(error: Exception) -> ApiError:
    """The answer to what is not proper HTTP, as the parser or the reader of a body found."""
    text = error.message if isinstance(error, http_exceptions.HttpProcessingError) else str(error)
    found = " ".join(text.split())[:QUOTED_CHARACTERS]
    if text.startswith("Too many headers"):
        return ApiError("HeadersTooLarge", f"There are too many headers; {MAX_HEADERS} are allowed.", headers=_LAST)
    if isinstance(error, http_exceptions.LineTooLong):
        if MAX_LINE_BYTES in error.args:
            return ApiError("UriTooLong", f"The address is too long: {found}", headers=_LAST)
        return ApiError("HeadersTooLarge", f"The headers are too large: {found}", headers=_LAST)
    return ApiError("MalformedRequest", f"This is not a proper HTTP/1.1 request: {found}", headers=_LAST)
