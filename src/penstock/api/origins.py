"""Who may talk to the daemon from a browser: the rule for the `Host` and `Origin` headers.

Called by the middleware in `server.py` for every request. The API runs programs, and every web page that somebody
opens on this machine can send requests to loopback, also through a name of its own that it points there. So the name
that a request is addressed to, and the page that sends it, must be ours (design section 7).
"""

from __future__ import annotations

import socket
from collections.abc import Collection
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import cast
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from penstock.api.errors import ApiError

ANY = "*"
"""In either list: no restriction. For a daemon that asks everybody for credentials."""

_KEPT = 256
"""How many parsed names are kept: parsing took a third of a status request, and clients send few different ones."""


class Neighbours:
    """The names and pages that are ours, beside loopback and the address that a request came in on."""

    def __init__(self, hosts: Collection[str], origins: Collection[str]) -> None:
        """`hosts` are names or addresses without a port, `origins` as browsers send them: ``https://host:port``."""
        self._hosts = {host.lower() for host in hosts}
        self._origins = {origin.lower().rstrip("/") for origin in origins}

    def add_host(self, host: str) -> None:
        """Accept `host` too: the daemon listens there."""
        if host:
            self._hosts.add(host.lower())

    def check(self, request: web.Request) -> None:
        """Let `request` pass, or raise ApiError ForbiddenHost or ForbiddenOrigin."""
        here = _local_address(request)
        host = request.headers.get(hdrs.HOST)
        if host is not None and here is not None and not self._is_ours(_name_in(f"//{host}"), here):
            raise ApiError(
                "ForbiddenHost",
                f"The request is addressed to {host[:100]!r}, which is not a name of this daemon. Use "
                "its address, localhost, or its unix socket.",
                {"host": host[:100]},
            )
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is not None and not self._may_send(origin, here):
            raise ApiError(
                "ForbiddenOrigin",
                f"The request comes from a web page of {origin[:100]!r}, which may not use this daemon: it runs "
                "programs. Only pages from its own address may.",
                {"origin": origin[:100]},
            )

    def _may_send(self, origin: str, here: str | None) -> bool:
        known = ANY in self._origins or origin.lower() in self._origins
        return known or self._is_ours(_name_in(origin), here)

    def _is_ours(self, name: str | None, here: str | None) -> bool:
        if ANY in self._hosts:
            return True
        return name is not None and (name in self._hosts or name == here or _is_loopback(name))


@lru_cache(maxsize=_KEPT)
def _name_in(url: str) -> str | None:
    """The host of `url`, lower case, without brackets and port; None when there is none."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for a port that is no number
    except ValueError:
        return None
    return _plain_address(parts.hostname) if parts.hostname and "@" not in parts.netloc else None


def _local_address(request: web.Request) -> str | None:
    """The address that the connection came in on; None over a unix socket, where no browser can be."""
    transport = request.transport
    connection = None if transport is None else cast("socket.socket | None", transport.get_extra_info("socket"))
    if transport is None or connection is None or connection.family == socket.AF_UNIX:
        return None
    bound = cast("tuple[str, int] | None", transport.get_extra_info("sockname"))
    return None if bound is None else _plain_address(bound[0])


@lru_cache(maxsize=_KEPT)
def _plain_address(host: str) -> str:
    """One spelling for each address: no zone, no IPv4 dressed up as IPv6; names as they are."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)


@lru_cache(maxsize=_KEPT)
def _is_loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False
