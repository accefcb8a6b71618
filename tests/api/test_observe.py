"""Logs, statistics and metrics of a pipeline (conformance.md section 18, contract.md sections 5.5, 7.5 and 8)."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from penstock.answers import Answer as Said
from penstock.model import RuntimeStatus
from penstock.ports import Reply, Usage
from tests.api.house import House

USAGE = Usage(
    rss_bytes=7_000_000,
    cpu_seconds=1.25,
    processes=2,
    threads=3,
    open_files=9,
    started_at=datetime(2026, 1, 1, tzinfo=UTC),
    storage_bytes=42,
)
STATUS = {
    "runtime_status": "Running",
    "runtime_desired_status": "Running",
    "runtime_status_details": {},
    "storage_status_details": None,
}


# --- statistics and metrics of an opaque pipeline -------------------------------------------------------------------


async def test_RT1_stats_of_an_opaque_pipeline(house: House) -> None:
    house.usage.usage_now = USAGE
    row = await house.running()
    answer = await house.get("/v0/pipelines/p1/stats?include_connector_errors=true")
    assert answer.status == 200
    assert set(answer.json) == {"global_metrics", "inputs", "outputs"}
    assert answer.json["inputs"] == answer.json["outputs"] == []
    found = answer.json["global_metrics"]
    schema = json.loads((Path(__file__).parent / "stats_keys.json").read_text())
    assert set(schema["required"]) <= set(found) <= set(schema["known"])
    assert all(found[key] is not None for key in schema["required"])
    assert found["state"] == "Running"
    assert (found["rss_bytes"], found["cpu_msecs"], found["storage_bytes"]) == (7_000_000, 1250, 42)
    assert found["start_time"] == int(USAGE.started_at.timestamp())
    assert found["uptime_msecs"] > 0
    assert found["incarnation_uuid"] == row["deployment_id"]
    assert found["transaction_status"] == "NoTransaction"
    assert found["pipeline_complete"] is False
    await house.post("/v0/pipelines/p1/pause")
    await house.until(deployment_status="Paused")
    assert (await house.get("/v0/pipelines/p1/stats")).json["global_metrics"]["state"] == "Paused"


@pytest.mark.parametrize("query", ["", "?format=prometheus"])
async def test_RT2_metrics_as_text(house: House, query: str) -> None:
    house.usage.usage_now = USAGE
    row = await house.running(initial="paused")
    answer = await house.get(f"/v0/pipelines/p1/metrics{query}")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/plain", "T5: exactly"
    text = answer.body.decode()
    assert "# TYPE records_processed_total counter" in text.splitlines()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    (memory,) = families["process_resident_memory_bytes"].samples
    assert memory.value == 7_000_000
    assert memory.labels == {"pipeline": row["id"], "pipeline_name": "p1"}


async def test_RT2_metrics_as_json(house: House) -> None:
    house.usage.usage_now = USAGE
    await house.running(initial="paused")
    answer = await house.get("/v0/pipelines/p1/metrics?format=json")
    assert answer.headers["Content-Type"] == "application/json"
    assert "records_processed_total" in [element["key"] for element in answer.json]
    answer = await house.get("/v0/pipelines/p1/metrics?format=xml")
    assert (answer.status, answer.error_code) == (400, "InvalidQueryParam")


@pytest.mark.parametrize("path", ["stats", "metrics"])
async def test_not_deployed(house: House, path: str) -> None:
    await house.create()
    answer = await house.get(f"/v0/pipelines/p1/{path}")
    assert (answer.status, answer.error_code) == (503, "PipelineInteractionNotDeployed")
    assert answer.json["details"] == {"pipeline_name": "p1", "status": "Stopped", "desired_status": "Stopped"}
    assert "Retry-After" not in answer.headers
    assert (await house.get(f"/v0/pipelines/nobody/{path}")).error_code == "UnknownPipelineName"


@pytest.mark.parametrize("path", ["stats", "metrics"])
async def test_unavailable(house: House, path: str) -> None:
    house.usage.usage_now = USAGE
    house.world.location = "127.0.0.1:1"
    house.probe.answers = [Said(200, STATUS)]
    await house.running()
    await house.rewrite(runtime_status=RuntimeStatus.UNAVAILABLE)
    house.probe.answers = []
    answer = await house.get(f"/v0/pipelines/p1/{path}")
    assert (answer.status, answer.error_code) == (503, "PipelineUnavailable")
    assert answer.json["details"] == {"pipeline_name": "p1"}
    assert "Retry-After" not in answer.headers


@pytest.mark.parametrize("path", ["stats", "metrics"])
async def test_T11_gone_a_moment_ago(house: House, path: str) -> None:
    await house.running()
    answer = await house.get(f"/v0/pipelines/p1/{path}")
    assert (answer.status, answer.error_code) == (503, "PipelineInteractionUnreachable")
    assert set(answer.json["details"]) == {"pipeline_name", "request", "error"}
    assert answer.headers["Retry-After"] == "5"


# --- the same of a pipeline that speaks contract `http` -------------------------------------------------------------


@pytest.fixture
async def speaking(house: House) -> House:
    """A pipeline p1 that speaks contract `http`; `house.probe.replies` is what it answers."""
    house.world.location = "127.0.0.1:1"
    house.probe.answers = [Said(200, STATUS)]
    await house.running()
    return house


async def test_stats_are_passed_on(speaking: House) -> None:
    speaking.probe.replies["/stats?x=%2F"] = Reply(200, "application/json", b'{"global_metrics":{}}')
    answer = await speaking.get("/v0/pipelines/p1/stats?x=%2F")
    assert (answer.status, answer.json) == (200, {"global_metrics": {}})
    assert answer.headers["Content-Type"] == "application/json"


async def test_metrics_are_passed_on(speaking: House) -> None:
    speaking.probe.replies["/metrics?format=prometheus"] = Reply(200, "text/plain", b"# nothing\n")
    answer = await speaking.get("/v0/pipelines/p1/metrics")
    assert answer.headers["Content-Type"] == "text/plain"
    assert answer.body == b"# nothing\n"


async def test_its_errors_are_passed_on(speaking: House) -> None:
    body = b'{"message":"not yet","error_code":"Initializing","details":{}}'
    speaking.probe.replies["/stats?"] = Reply(503, "application/json", body)
    answer = await speaking.get("/v0/pipelines/p1/stats")
    assert (answer.status, answer.body) == (503, body)
    assert "Retry-After" not in answer.headers
    speaking.probe.replies["/stats?"] = Reply(101, "", b"")
    answer = await speaking.get("/v0/pipelines/p1/stats")
    assert (answer.status, answer.error_code) == (500, "PipelineInteractionInvalidResponse")


async def test_T11_not_reached(speaking: House) -> None:
    answer = await speaking.get("/v0/pipelines/p1/stats")
    assert (answer.status, answer.error_code) == (503, "PipelineInteractionUnreachable")
    assert answer.json["details"]["pipeline_name"] == "p1"
    assert answer.headers["Retry-After"] == "5"
