"""What clients ask first (conformance.md section 1, contract.md section 5.7)."""

from __future__ import annotations

import json

from tests.api.house import House

KEYS = {
    "edition",
    "version",
    "revision",
    "runtime_revision",
    "changelog_url",
    "unstable_features",
    "license_validity",
    "update_info",
    "posthog",
    "conceptualhq",
    "product_fruits",
    "build_info",
    "build_source",
}
BUILD_KEYS = {
    "build_timestamp",
    "build_cpu",
    "build_os",
    "cargo_dependencies",
    "cargo_features",
    "cargo_debug",
    "cargo_opt_level",
    "cargo_target_triple",
    "rustc_version",
}


async def test_CFG1_an_edition_that_clients_accept(house: House) -> None:
    answer = await house.get("/v0/config")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json["edition"] == "Open source"


async def test_CFG2_a_version_and_exactly_the_known_keys(house: House) -> None:
    config = (await house.get("/v0/config")).json
    assert config["version"] == house.version
    assert set(config) == KEYS
    assert set(config["build_info"]) == BUILD_KEYS
    strings = KEYS - {"unstable_features", "license_validity", "update_info", "build_info"}
    assert all(isinstance(config[key], str) for key in strings)
    assert all(isinstance(value, str) for value in config["build_info"].values())


async def test_CFG3_cheap_it_needs_no_store(house: House) -> None:
    def fail() -> None:
        raise AssertionError("asked the store")

    house.store.fault = fail
    assert (await house.get("/v0/config")).status == 200
    house.store.fault = None


async def test_no_authentication_is_configured(house: House) -> None:
    answer = await house.get("/config/authentication")
    assert answer.status == 200
    assert json.loads(answer.body) == {}
