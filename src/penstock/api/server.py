"""Puts the API together, frames every request, and serves it on a port or a socket.

Called by `wiring.py`. Its middleware is the one place of the API where exceptions become answers: whatever a handler
raises leaves as ``{message, error_code, details}``, the framework's own refusals too. Must know no resource.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
import time
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import asynccontextmanager, suppress

import anyio
import structlog
from aiohttp import hdrs, http_exceptions, web

from penstock.api import config, events, health, lifecycle, observe, pipelines
from penstock.api.connection import SERVER, connections, malformed
from penstock.api.context import CONTEXT, Context, Handler
from penstock.api.errors import ApiError
from penstock.api.origins import Neighbours
from penstock.api.representation import Encoder
from penstock.api.responses import error_response
from penstock.ports import StoreUnavailable

log = structlog.get_logger("penstock.api")

MAX_BODY_BYTES = 2 * 1024 * 1024
"""The reference refuses larger bodies too (contract.md section 5.0)."""

SHUTDOWN_SECONDS = 0.5
"""How long requests under way may go on when the daemon ends, before they are cancelled, and again after that."""

BACKLOG = 1024
"""How many connections may wait to be accepted."""

UNIX = "unix:"
"""What a listen address begins with that names a socket file."""

NEIGHBOURS = web.AppKey("neighbours", Neighbours)
_BEGUN = web.RequestKey("begun", web.StreamResponse)
"""The response whose head has been sent: too late for another."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def build_app(
    context: Context, *, allowed_hosts: Collection[str] = (), allowed_origins: Collection[str] = ()
) -> web.Application:
    """The application with all routes.

    `allowed_hosts` are names (without a port) that requests may be addressed to, `allowed_origins` web pages
    (``https://host:port``) that may send them, beside loopback and the listen address; ``*`` allows all.
    """
    app = web.Application(middlewares=[_frame], client_max_size=MAX_BODY_BYTES)
    app[CONTEXT] = context
    app[pipelines.ENCODER] = Encoder()
    app[NEIGHBOURS] = Neighbours(allowed_hosts, allowed_origins)
    app.on_response_prepare.append(_note_begun)
    for resource in (pipelines, events, lifecycle, observe, health, config):
        app.add_routes(resource.routes())
    return app


async def serve(app: web.Application, listen: str, *, ready: Callable[[str], None]) -> None:
    """Serve `app` at `listen` until cancelled; then end open requests and streams within about a second.

    `listen` is ``host:port`` (port 0: any free one; an IPv6 address in brackets) or ``unix:/path``, a socket that only
    the daemon's user may use. `ready` is told the address once connections are accepted. Raises ValueError for
    anything else, OSError when the address cannot be had; a socket file that nobody answers on is replaced.
    """
    # A reader that is gone ends its stream: its handler is cancelled.
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=SHUTDOWN_SECONDS)
    await runner.setup()
    try:
        make = connections(runner, _server_log())
        loop = asyncio.get_running_loop()
        if listen.startswith(UNIX):
            async with (
                _unix_listener(listen.removeprefix(UNIX)) as listener,
                _closing(await loop.create_unix_server(make, sock=listener, backlog=BACKLOG)),
            ):
                ready(listen)
                await anyio.sleep_forever()
        host, port = _host_and_port(listen)
        app[NEIGHBOURS].add_host(host)
        async with _closing(await loop.create_server(make, host or None, port, backlog=BACKLOG)) as server:
            ready(_bound(server))
            await anyio.sleep_forever()
    finally:
        with anyio.CancelScope(shield=True):
            await runner.cleanup()


@asynccontextmanager
async def _closing(server: asyncio.Server) -> AsyncGenerator[asyncio.Server]:
    """Accept connections until the block ends; what is under way then is the runner's to end."""
    try:
        yield server
    finally:
        server.close()


class _ServerLog(logging.Handler):
    """Passes on what aiohttp has to say; what a client sends that is not even HTTP is no error of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log `record` as an event."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, ConnectionError):
            log.debug("client gone", error=str(error))
        elif isinstance(error, http_exceptions.HttpProcessingError):
            log.debug("malformed request", error=str(error))
        else:
            log.error("http server failed", text=record.getMessage(), exc_info=error)


def _server_log() -> logging.Logger:
    """A logger outside the tree of all others: nothing but log events leaves the daemon."""
    logger = logging.Logger("penstock.api.http", logging.INFO)  # noqa: LOG001 - getLogger puts it into that tree
    logger.addHandler(_ServerLog())
    return logger


# --- the frame around every request ---------------------------------------------------------------------------------


@web.middleware
async def _frame(request: web.Request, handler: Handler) -> web.StreamResponse:
    began = time.perf_counter()
    response = await _answer(request, handler)
    if isinstance(response, web.Response):
        method = request.method if request.method in _METHODS else "other"
        resource = request.match_info.route.resource
        route = "unknown" if resource is None else resource.canonical
        request.app[CONTEXT].metrics.request_served(method, route, response.status, time.perf_counter() - began)
    return response


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        request.app[NEIGHBOURS].check(request)
        return await handler(request)
    except ApiError as error:
        return _failed(request, error)
    except StoreUnavailable as error:
        log.debug("request refused, store unavailable", error=str(error), **_which(request))
        text = f"The store cannot be used at the moment: {error}. Pipelines keep running; try again."
        return _failed(request, ApiError("StoreUnavailable", text))
    except web.HTTPException as refusal:
        return _failed(request, _of_framework(request, refusal))
    except (web.RequestPayloadError, http_exceptions.HttpProcessingError) as error:
        return _failed(request, malformed(error))
    except ConnectionError:
        raise  # the client is gone; aiohttp closes what is left
    except Exception:
        log.exception("request crashed", **_which(request))
        text = "The daemon made a mistake; its log tells more. The request may or may not have been carried out."
        return _failed(request, ApiError("InternalError", text))


def _failed(request: web.Request, error: ApiError) -> web.StreamResponse:
    begun = request.get(_BEGUN)
    if begun is not None:
        # An error in mid-stream: cut it off, so that the client does not take what it got for the whole.
        if request.transport is not None:
            request.transport.abort()
        return begun
    return error_response(error)


def _of_framework(request: web.Request, refusal: web.HTTPException) -> ApiError:
    match refusal:
        case web.HTTPNotFound():
            return ApiError(
                "UnknownRoute", f"There is nothing at {request.path[:200]!r}; paths are case-sensitive.", {}
            )
        case web.HTTPMethodNotAllowed():
            allow = ", ".join(sorted(refusal.allowed_methods))
            return ApiError(
                "MethodNotAllowed",
                f"{request.method[:20]} is not possible here; allowed: {allow}.",
                {"method": request.method[:20], "allowed": sorted(refusal.allowed_methods)},
                headers={hdrs.ALLOW: allow},
            )
        case web.HTTPRequestEntityTooLarge():
            return ApiError(
                "PayloadTooLarge", f"The body is larger than {MAX_BODY_BYTES} bytes.", {"maximum": MAX_BODY_BYTES}
            )
        case _:
            raise refusal


def _which(request: web.Request) -> dict[str, str]:
    """How a log tells which request; a request line need not be UTF-8, a log must be."""
    return {"method": request.method[:20], "path": request.path[:200].encode(errors="replace").decode()}


async def _note_begun(request: web.Request, response: web.StreamResponse) -> None:
    request[_BEGUN] = response
    response.headers[hdrs.SERVER] = SERVER


# --- where it listens -----------------------------------------------------------------------------------------------


def _host_and_port(listen: str) -> tuple[str, int]:
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535 or (":" in host and not host.startswith("[")):
        raise ValueError(f"{listen!r} is neither host:port nor {UNIX}/path (an IPv6 address stands in brackets)")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _bound(server: asyncio.Server) -> str:
    host, port = server.sockets[0].getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@asynccontextmanager
async def _unix_listener(path: str) -> AsyncGenerator[socket.socket]:
    """A socket file that only the daemon's user may use; it is taken away at the end."""
    await anyio.to_thread.run_sync(_remove_stale, path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        os.chmod(path, 0o600)  # nobody can connect yet: it does not listen
        mine = os.stat(path).st_ino
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    try:
        yield listener
    finally:
        listener.close()
        with suppress(FileNotFoundError):
            if os.stat(path).st_ino == mine:
                os.unlink(path)


def _remove_stale(path: str) -> None:
    """Remove a socket file that nobody answers on. Raises OSError when somebody does, or when it is no socket."""
    try:
        kind = os.stat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise OSError(errno.EEXIST, "exists and is not a socket", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.settimeout(1.0)
        try:
            caller.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise OSError(errno.EADDRINUSE, "somebody answers on this socket", path)
