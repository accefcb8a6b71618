"""How the daemon is, in every dialect (conformance.md H1, needs.md section 3.2)."""

from __future__ import annotations

import anyio
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from penstock.api import health
from penstock.ports import StoreUnavailable
from tests.api.house import House, serving


def down() -> None:
    """The store's fault."""
    raise StoreUnavailable("the disk is gone")


async def test_H1_healthy_is_exactly_that(house: House) -> None:
    answer = await house.get("/healthz")
    assert (answer.status, answer.json) == (200, {"status": "healthy"})


async def test_H1_unhealthy_is_exactly_that(house: House) -> None:
    house.store.fault = down
    answer = await house.get("/healthz")
    assert answer.status == 500
    assert answer.json == {"status": "unhealthy: unable to reach database (see logs for further details)"}
    house.store.fault = None
    assert (await house.get("/healthz")).status == 200


async def test_a_store_that_hangs_is_unhealthy(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(house.store, "check", anyio.sleep_forever)
    assert (await house.get("/healthz")).status == 500
    assert (await house.get("/readyz")).status == 503


async def test_alive_without_a_store(house: House) -> None:
    house.store.fault = down
    answer = await house.get("/livez")
    assert (answer.status, answer.json) == (200, {"status": "alive"})
    house.store.fault = None


async def test_ready(house: House) -> None:
    with anyio.fail_after(5):
        await house.loop.caught_up.wait()
    answer = await house.get("/readyz")
    assert (answer.status, answer.json) == (200, {"status": "ready"})
    for query in ("verbose", "verbose=true"):
        answer = await house.get(f"/readyz?{query}")
        assert answer.json == {"status": "ready", "checks": {"store": "ok", "caught_up": "ok"}}
    house.store.fault = down
    answer = await house.get("/readyz")
    assert (answer.status, answer.error_code) == (503, "NotReady")
    assert answer.headers["Retry-After"] == "5"
    assert answer.json["details"]["checks"] == {"store": "the disk is gone", "caught_up": "ok"}
    house.store.fault = None


async def test_not_ready_before_the_first_turns() -> None:
    house = House()
    object.__setattr__(house.context, "caught_up", lambda: False)
    async with serving(house):
        answer = await house.get("/readyz")
        assert (answer.status, answer.error_code) == (503, "NotReady")
        assert answer.json["details"]["checks"]["store"] == "ok"
        assert (await house.get("/healthz")).status == 200


async def test_metrics_parse(house: House) -> None:
    house.metrics.watch(lambda: list(house.store._rows.values()), lambda: {"penstock_up": ("Up.", 1.0)})
    await house.running()
    answer = await house.get("/metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(answer.body.decode())}
    statuses = {
        sample.labels["status"]: sample.value
        for sample in families["penstock_pipeline_status"].samples
        if sample.labels["pipeline_name"] == "p1"
    }
    assert statuses["Running"] == 1.0
    assert sum(statuses.values()) == 1.0
    assert {"penstock_build_info", "penstock_pipelines", "penstock_reconcile", "process_open_fds"} <= set(families)


async def test_metrics_in_the_format_asked_for(house: House) -> None:
    answer = await house.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=")
    assert list(openmetrics_families(answer.body.decode()))
