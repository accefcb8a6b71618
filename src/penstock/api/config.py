"""What clients ask first: which platform this is, and how to authenticate (contract.md section 5.7)."""

from __future__ import annotations

import platform
from functools import lru_cache

from aiohttp import web

from penstock.api.context import context_of
from penstock.api.responses import encoded_response, to_json


def routes() -> list[web.RouteDef]:
    """The routes of this resource."""
    return [
        web.get("/v0/config", get_config),
        web.get("/config/authentication", get_authentication),
    ]


async def get_config(request: web.Request) -> web.Response:
    """Edition, versions, and that nothing is reported to anybody."""
    return encoded_response(_config(context_of(request).version))


async def get_authentication(request: web.Request) -> web.Response:
    """How to log in: not at all."""
    return encoded_response(b"{}")


@lru_cache(maxsize=1)
def _config(version: str) -> bytes:
    return to_json(
        {
            "edition": "Open source",  # one of the two that older clients accept
            "version": version,
            "revision": version,
            "runtime_revision": version,
            "changelog_url": "",
            "unstable_features": None,
            "license_validity": None,
            "update_info": None,
            "posthog": "",
            "conceptualhq": "",
            "product_fruits": "",
            "build_info": {
                "build_timestamp": "",
                "build_cpu": platform.machine(),
                "build_os": platform.system().lower(),
                "cargo_dependencies": "",
                "cargo_features": "",
                "cargo_debug": "",
                "cargo_opt_level": "",
                "cargo_target_triple": "",
                "rustc_version": "",
            },
            "build_source": "source",
        }
    )
