"""Pipelines as resources, demand by demand of what existing clients rely on (sections 5 to 9)."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.api.configs import MAX_ENVIRONMENT_BYTES, MAX_VARIABLE_BYTES, _env_flaw
from penstock.api.pipelines import ENCODER
from penstock.api.responses import stamp
from penstock.model import Fault, PipelineId, ProgramStatus, StorageStatus
from penstock.ports import StaleRevision, StepFailed
from penstock.testing.fake_programs import FakeToolchains
from penstock.testing.memory_store import MemoryStore
from tests.api.house import House, serving


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ALL_KEYS = words(
    """
    id name description tags created_at version platform_version runtime_config program_code udf_rust udf_toml
    program_config program_version program_status program_status_since program_error program_info
    deployment_status deployment_status_since deployment_desired_status deployment_desired_status_since
    deployment_error refresh_version storage_status storage_status_details deployment_resources_status
    deployment_resources_status_details deployment_resources_status_since deployment_resources_desired_status
    deployment_resources_desired_status_since deployment_runtime_status deployment_runtime_status_details
    deployment_runtime_status_since deployment_runtime_desired_status deployment_runtime_desired_status_since
    deployment_initial deployment_id bootstrap_policy silent_bootstrap concurrent_bootstrap
    """
)
BOOTSTRAP_KEYS = frozenset({"bootstrap_policy", "silent_bootstrap", "concurrent_bootstrap"})
STATUS_KEYS = ALL_KEYS - words(
    """
    runtime_config program_code udf_rust udf_toml program_error program_info deployment_resources_status_details
    """
)
RESERVED = ("FELDERA_", "KUBERNETES_", "TOKIO_", "PENSTOCK_", "HOSTNAME", "RUST_LOG")
STAMPS = [key for key in ALL_KEYS if key.endswith(("_since", "_at"))]
COUNTERS = ("version", "program_version", "refresh_version")

RESOURCES = words(
    """
    cpu_cores_min cpu_cores_max memory_mb_min memory_mb_max storage_mb_max storage_class service_account_name namespace
    """
)
DEFAULT_RUNTIME_CONFIG: dict[str, Any] = {
    "workers": 8,
    "max_rss_mb": None,
    "datafusion_memory_mb": None,
    "hosts": 1,
    "storage": {
        "backend": {"name": "default"},
        "min_storage_bytes": None,
        "min_step_storage_bytes": None,
        "compression": "default",
        "cache_mib": None,
    },
    "fault_tolerance": {"model": "none", "checkpoint_interval_secs": 60},
    "cpu_profiler": True,
    "tracing": False,
    "tracing_endpoint_jaeger": "127.0.0.1:6831",
    "min_batch_size_records": 0,
    "max_buffering_delay_usecs": 0,
    "clock_resolution_usecs": 1000000,
    "clock_timezone_offset": None,
    "pin_cpus": [],
    "provisioning_timeout_secs": None,
    "max_parallel_connector_init": None,
    "init_containers": None,
    "checkpoint_during_suspend": True,
    "http_workers": None,
    "io_workers": None,
    "env": {},
    "dev_tweaks": {},
    "logging": None,
    "pipeline_template_configmap": None,
    "resources": dict.fromkeys(RESOURCES),
}
EXACTLY_ONCE = {"model": "exactly_once", "checkpoint_interval_secs": 60}
DEFAULT_PROGRAM_CONFIG = {"profile": None, "cache": True, "runtime_version": None, "use_platform_compiler": False}
SDK_RUNTIME_CONFIG = {
    "workers": 4,
    "hosts": 1,
    "storage": True,
    "cpu_profiler": True,
    "tracing": False,
    "tracing_endpoint_jaeger": "",
    "max_buffering_delay_usecs": 0,
    "min_batch_size_records": 0,
    "clock_resolution_usecs": 100_000,
    "provisioning_timeout_secs": 30,
    "resources": dict.fromkeys(DEFAULT_RUNTIME_CONFIG["resources"]),
    "logging": "debug",
    "env": {"TEST_ENV": "value"},
    "dev_tweaks": {"buffer_cache_strategy": "s3_fifo"},
    "fault_tolerance": None,
    "of_a_later_release": 1,
}
SDK_PROGRAM_CONFIG = {"profile": "optimized", "runtime_version": None, "use_platform_compiler": False}


def counters(pipeline: dict[str, Any]) -> tuple[int, ...]:
    return tuple(pipeline[key] for key in COUNTERS)


async def whole(house: House, name: str = "p1") -> dict[str, Any]:
    answer = await house.get(f"/v0/pipelines/{name}")
    assert answer.status == 200, answer.body
    return answer.json


async def names(house: House) -> list[str]:
    return [pipeline["name"] for pipeline in (await house.get("/v0/pipelines")).json]


# --- 5 POST ---------------------------------------------------------------------------------------------------------


async def test_PC1_a_post_answers_with_the_whole_pipeline_or_a_refusal(house: House) -> None:
    answer = await house.post("/v0/pipelines", body={"name": "p1", "program_code": "x"})
    assert answer.status == 201
    assert set(answer.json) == ALL_KEYS - BOOTSTRAP_KEYS
    assert answer.headers["Cache-Control"] == "no-cache"
    for body in (
        {},
        {"program_code": ""},
        {"name": "p2"},
        {"name": 1, "program_code": ""},
        {"name": "p2", "program_code": 1},
    ):
        answer = await house.post("/v0/pipelines", body=body)
        assert (answer.status, answer.error_code) == (400, "InvalidJson"), body
    assert await names(house) == ["p1"]


async def test_PC2_what_is_left_out_gets_its_default(house: House) -> None:
    made = await house.create()
    assert made["description"] == made["program_code"] == made["udf_rust"] == made["udf_toml"] == ""
    assert made["tags"] == []
    assert made["runtime_config"] == DEFAULT_RUNTIME_CONFIG
    assert made["program_config"] == DEFAULT_PROGRAM_CONFIG
    assert counters(made) == (1, 1, 1)
    assert made["platform_version"] == house.version


async def test_PC3_what_is_given_comes_back(house: House) -> None:
    given_fields: dict[str, Any] = {
        "description": "what it does",
        "tags": ["b", "a", "b"],
        "program_code": "not SQL;\n -- ü \t",
        "udf_rust": "rust",
        "udf_toml": "toml",
    }
    made = await house.create(**given_fields, runtime_config={"workers": 123}, program_config={"profile": "dev"})
    assert {key: made[key] for key in given_fields} == given_fields
    assert made["runtime_config"] == {**DEFAULT_RUNTIME_CONFIG, "workers": 123}
    assert made["program_config"] == {**DEFAULT_PROGRAM_CONFIG, "profile": "dev"}
    assert made["program_status"] == "Pending"


async def test_PC4_a_name_is_given_once(house: House) -> None:
    made = await house.create()
    answer = await house.post("/v0/pipelines", body={"name": "p1", "program_code": "other"})
    assert (answer.status, answer.error_code) == (409, "DuplicateName")
    assert (await whole(house))["id"] == made["id"]
    await house.create("P1")


@pytest.mark.parametrize(
    ("name", "code"), [("", "EmptyName"), ("a" * 101, "TooLongName"), ("%abc", "NameDoesNotMatchPattern")]
)
async def test_PC5_names_have_rules(house: House, name: str, code: str) -> None:
    answer = await house.post("/v0/pipelines", body={"name": name, "program_code": ""})
    assert (answer.status, answer.error_code) == (400, code)


@pytest.mark.parametrize("tag", ["bad,tag", "bad?tag", "", "a" * 51, "ü", "a\n"])
async def test_PC6_a_bad_tag_is_refused_and_leaves_nothing_behind(house: House, tag: str) -> None:
    answer = await house.post("/v0/pipelines", body={"name": "p1", "program_code": "", "tags": ["good", tag]})
    assert (answer.status, answer.error_code) == (400, "InvalidTag")
    assert answer.json["details"]["tag"] == tag
    assert await names(house) == []
    await house.create(tags=["good"])


async def test_PC6_a_put_that_creates_has_the_same_rules(house: House) -> None:
    for fields, code in (({"tags": ["bad,tag"]}, "InvalidTag"), ({"description": "d" * 301}, "TooLongDescription")):
        answer = await house.ask("PUT", "/v0/pipelines/p1", body=body_of(**fields))
        assert (answer.status, answer.error_code) == (400, code)
    assert await names(house) == []


async def test_PC6_good_tags_and_the_limits(house: House) -> None:
    tags = ["a-z_0/9", "with space", "pipe|sep", "back\\slash", "dot.dot", "prod|ef4444", "k:v=1", "a" * 50]
    assert (await house.create(tags=tags, description="d" * 300))["tags"] == tags
    for fields, code, details in (
        ({"description": "d" * 301}, "TooLongDescription", {"length": 301, "maximum": 300}),
        ({"tags": ["t"] * 51}, "TooManyTags", {"count": 51, "maximum": 50}),
    ):
        answer = await house.post("/v0/pipelines", body={"name": "p2", "program_code": "", **fields})
        assert (answer.status, answer.error_code, answer.json["details"]) == (400, code, details)
    await house.create("p2", tags=["t"] * 50)


async def test_PC7_configurations_may_be_null(house: House) -> None:
    made = await house.create(runtime_config=None, program_config=None, udf_rust=None, udf_toml=None)
    assert made["runtime_config"] == DEFAULT_RUNTIME_CONFIG
    assert made["program_config"] == DEFAULT_PROGRAM_CONFIG
    assert made["udf_rust"] == made["udf_toml"] == ""


async def test_T10_nulls_and_unknown_keys_as_the_clients_send_them(house: House) -> None:
    body = {"name": "p1", "program_code": "", "udf_rust": "", "udf_toml": "", "description": "", "tags": []}
    configs = {"runtime_config": SDK_RUNTIME_CONFIG, "program_config": SDK_PROGRAM_CONFIG, "unknown": {"a": 1}}
    answer = await house.post("/v0/pipelines", body={**body, **configs})
    assert answer.status == 201
    expected = {
        **DEFAULT_RUNTIME_CONFIG,
        **{key: SDK_RUNTIME_CONFIG[key] for key in DEFAULT_RUNTIME_CONFIG if key in SDK_RUNTIME_CONFIG},
        "storage": DEFAULT_RUNTIME_CONFIG["storage"],
        "fault_tolerance": DEFAULT_RUNTIME_CONFIG["fault_tolerance"],
    }
    assert answer.json["runtime_config"] == expected
    assert answer.json["program_config"] == {**SDK_PROGRAM_CONFIG, "cache": True}
    keys = ("program_code", "udf_rust", "udf_toml", "program_config", "runtime_config", "description", "tags")
    untouched = await house.ask("PATCH", "/v0/pipelines/p1", body=dict.fromkeys(keys))
    assert (untouched.status, untouched.json) == (200, {**answer.json, **_moved_by_compiler(untouched.json)})
    answer = await house.post("/v0/pipelines", body={"name": "p2", "program_code": "", "description": None})
    assert (answer.status, answer.error_code) == (400, "InvalidJson")


def _moved_by_compiler(pipeline: dict[str, Any]) -> dict[str, Any]:
    return {key: pipeline[key] for key in pipeline if key.startswith("program_") and key != "program_config"} | {
        "refresh_version": pipeline["refresh_version"]
    }


@pytest.mark.parametrize(
    "text",
    ['"a\\u0000b"', '"\\ud800"', '"\\udc00\\ud800"', '"\\ud800x"'],
)
async def test_what_no_store_could_give_back_is_refused(house: House, text: str) -> None:
    for body in (
        f'{{"name": "p1", "program_code": {text}}}',
        f'{{"name": "p1", "program_code": "", "runtime_config": {{"env": {{"A": {text}}}}}}}',
        f'{{"name": "p1", "program_code": "", "runtime_config": {{"dev_tweaks": {{{text}: 1}}}}}}',
    ):
        answer = await house.post("/v0/pipelines", data=body.encode(), headers={"Content-Type": "application/json"})
        assert (answer.status, answer.error_code) == (400, "InvalidJson"), body
    assert await names(house) == []


@pytest.mark.parametrize(
    "value", ["[" * 5000, "[" * 200 + "]" * 200, "1" * 5000, str(2**64), str(-(2**63) - 1), "1e400"]
)
async def test_numbers_and_nesting_have_limits(house: House, value: str) -> None:
    body = f'{{"name": "p1", "program_code": "", "runtime_config": {{"dev_tweaks": {{"x": {value}}}}}}}'
    answer = await house.post("/v0/pipelines", data=body.encode(), headers={"Content-Type": "application/json"})
    assert (answer.status, answer.error_code) == (400, "InvalidJson")


# --- 6 GET ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nobody", "@", "a.b", "a" * 64, "-", "%20", "p1%2Fp1"])
async def test_PG1_a_name_that_is_unknown_or_illegal_is_a_404(house: House, name: str) -> None:
    await house.create()
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/start"), ("POST", "/stop"), ("POST", "/clear")):
        answer = await house.ask(method, f"/v0/pipelines/{name}{path}")
        assert (answer.status, answer.error_code) == (404, "UnknownPipelineName"), (method, path)
    answer = await house.ask("PATCH", f"/v0/pipelines/{name}", body={})
    assert (answer.status, answer.error_code) == (404, "UnknownPipelineName")


async def test_PG1_no_store_is_asked_for_a_name_that_cannot_be(house: House) -> None:
    """A back-end may refuse to look for some text at all, NUL for one; that must not become a mistake of ours."""

    def asked() -> None:
        raise AssertionError

    house.store.fault = asked
    for name in ("%00", "a.b", "a" * 64):
        assert (await house.get(f"/v0/pipelines/{name}")).error_code == "UnknownPipelineName"
        assert (await house.ask("PUT", f"/v0/pipelines/{name}", body=body_of())).error_code == (
            "CannotRenameNonExistingPipeline"
        )
    house.store.fault = None


@pytest.mark.parametrize("selector", ["", "?selector=all"])
async def test_PG2_the_whole_pipeline_has_exactly_its_keys(house: House, selector: str) -> None:
    await house.create("p1")
    await house.running("p2")
    for name in ("p1", "p2"):
        answer = await house.get(f"/v0/pipelines/{name}{selector}")
        assert answer.status == 200
        assert set(answer.json) == ALL_KEYS
        assert answer.headers["Cache-Control"] == "no-cache"
        assert answer.headers["Content-Type"] == "application/json"
    listed = await house.get(f"/v0/pipelines{selector}")
    assert [set(pipeline) for pipeline in listed.json] == [ALL_KEYS, ALL_KEYS]
    assert listed.headers["Cache-Control"] == "no-cache"


async def test_PG3_the_status_form_has_exactly_its_keys(house: House) -> None:
    await house.create("p1")
    await house.running("p2")
    for name in ("p1", "p2"):
        assert set(await house.status(name)) == STATUS_KEYS
    listed = await house.get("/v0/pipelines?selector=status")
    assert [set(pipeline) for pipeline in listed.json] == [STATUS_KEYS, STATUS_KEYS]


async def test_PG3_connectors_are_shown_where_they_are_known(house: House) -> None:
    await house.running()
    path = "/v0/pipelines/p1?selector=status_with_connectors"
    assert set((await house.get(path)).json) == STATUS_KEYS
    await house.rewrite(runtime_status_details={"connector_stats": {"num_errors": 3}})
    answer = await house.get(path)
    assert set(answer.json) == STATUS_KEYS | {"connectors"}
    assert answer.json["connectors"] == {"num_errors": 3}


async def test_PG4_the_list_is_complete_and_in_order_of_creation(house: House) -> None:
    assert (await house.get("/v0/pipelines")).json == []
    made = [(await house.create(name, program_code=f"code of {name}"))["id"] for name in ("b", "a", "c")]
    for _ in range(2):
        listed = (await house.get("/v0/pipelines")).json
        assert [p["id"] for p in listed] == made == sorted(made)
        assert [p["program_code"] for p in listed] == ["code of b", "code of a", "code of c"]
        assert [p["id"] for p in (await house.get("/v0/pipelines?selector=status")).json] == made


async def test_PG5_program_info_is_null_or_trimmed(house: House) -> None:
    await house.create()
    await house.until(program_status="Success")
    assert (await whole(house))["program_info"] is None
    await house.rewrite(program_info={"schema": {"inputs": [1], "outputs": []}, "main_rust": "secret", "dataflow": {}})
    assert (await whole(house))["program_info"] == {
        "schema": {"inputs": [1], "outputs": []},
        "udf_stubs": "",
        "input_connectors": {},
        "output_connectors": {},
    }


async def test_PG6_program_error_is_always_an_object_of_three(house: House) -> None:
    made = await house.create()
    assert made["program_error"] == {"sql_compilation": None, "rust_compilation": None, "system_error": None}
    await house.until(program_status="Success")
    error = (await whole(house))["program_error"]
    assert error["sql_compilation"]["exit_code"] == error["rust_compilation"]["exit_code"] == 0
    assert error["system_error"] is None


async def test_PG7_deployment_error_is_null_or_an_error(house: House) -> None:
    assert (await house.create())["deployment_error"] is None
    await house.rewrite(deployment_error=Fault("PipelineProcessExited", "It ended.", {"exit_code": 3}))
    error = {"message": "It ended.", "error_code": "PipelineProcessExited", "details": {"exit_code": 3}}
    assert (await whole(house))["deployment_error"] == error
    assert (await house.status())["deployment_error"] == error


async def test_PG8_bootstrap_flags_are_there(house: House) -> None:
    await house.create()
    pipeline = await whole(house)
    shown = {key: pipeline[key] for key in BOOTSTRAP_KEYS}
    assert shown == {"bootstrap_policy": None, "silent_bootstrap": False, "concurrent_bootstrap": False}


async def test_PG9_resources_are_exactly_eight(house: House) -> None:
    resources = {"cpu_cores_min": 3, "cpu_cores_max": 2, "memory_mb_min": 500, "memory_mb_max": 300, "gpu": 1}
    made = await house.create(runtime_config={"resources": resources})
    expected = {**DEFAULT_RUNTIME_CONFIG["resources"], **resources}
    del expected["gpu"]
    assert made["runtime_config"]["resources"] == expected
    assert made["runtime_config"]["workers"] == 8
    assert (await whole(house))["runtime_config"]["resources"] == expected


async def test_T12_T13_statuses_and_stamps_are_spelled_as_clients_parse_them(house: House) -> None:
    await house.running("p1", initial="paused")
    pipeline = await whole(house)
    assert pipeline["deployment_status"] == pipeline["deployment_runtime_status"] == "Paused"
    assert pipeline["deployment_desired_status"] == pipeline["deployment_initial"] == "Paused"
    assert pipeline["deployment_resources_status"] == pipeline["deployment_resources_desired_status"] == "Provisioned"
    assert (pipeline["storage_status"], pipeline["bootstrap_policy"]) == ("InUse", "await_approval")
    for key in STAMPS:
        assert pipeline[key].endswith("Z"), key
        assert len(pipeline[key]) == len("2026-01-01T00:00:00.000000Z"), key
        assert datetime.fromisoformat(pipeline[key]).tzinfo is not None
    await house.post("/v0/pipelines/p1/resume")
    status = await house.until(deployment_status="Running", deployment_desired_status="Running")
    assert status["deployment_resources_status_since"] == pipeline["deployment_resources_status_since"]
    assert status["deployment_runtime_status_since"] > pipeline["deployment_resources_status_since"]
    assert status["deployment_status_since"] == status["deployment_runtime_status_since"]
    assert status["deployment_desired_status_since"] == status["deployment_runtime_desired_status_since"]


def test_T13_a_stamp_has_six_digits_in_utc_always() -> None:
    assert stamp(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)) == "2026-01-02T03:04:05.000000Z"
    east = timezone(timedelta(hours=2))
    assert stamp(datetime(2026, 1, 2, 3, 4, 5, 60, tzinfo=east)) == "2026-01-02T01:04:05.000060Z"


async def test_runtime_details_of_old_processes_are_put_where_clients_look(house: House) -> None:
    await house.running()
    for details, shown in (
        ({}, {}),
        ({"reason": "r"}, {"reason": "r"}),
        ({"program_diff": {"a": 1}}, {"approval_diff": {"program_diff": {"a": 1}}}),
    ):
        await house.rewrite(runtime_status_details=details)
        assert (await house.status())["deployment_runtime_status_details"] == shown


async def test_a_poll_for_what_is_known_costs_no_body(house: House) -> None:
    await house.create()
    await house.until(program_status="Success")
    for path in ("/v0/pipelines/p1", "/v0/pipelines/p1?selector=status"):
        etag = (await house.get(path)).headers["ETag"]
        answer = await house.get(path, headers={"If-None-Match": f'"other", W/{etag}'})
        assert (answer.status, answer.body, answer.headers["ETag"]) == (304, b"", etag)
    await house.ask("PATCH", "/v0/pipelines/p1", body={"tags": ["new"]})
    answer = await house.get("/v0/pipelines/p1", headers={"If-None-Match": etag})
    assert (answer.status, answer.json["tags"]) == (200, ["new"])


async def test_a_change_may_be_made_to_depend_on_what_was_read(house: House) -> None:
    await house.create()
    await house.until(program_status="Success")
    read = (await house.get("/v0/pipelines/p1")).headers["ETag"]
    answer = await house.ask("PATCH", "/v0/pipelines/p1", body={"tags": ["mine"]}, headers={"If-Match": read})
    assert (answer.status, answer.json["tags"]) == (200, ["mine"])
    for method, path in (("PATCH", ""), ("DELETE", ""), ("POST", "/start")):
        options = {"body": {"tags": ["lost"]}} if method == "PATCH" else {}
        late = await house.ask(method, f"/v0/pipelines/p1{path}", headers={"If-Match": read}, **options)
        assert (late.status, late.error_code) == (412, "PreconditionFailed")
    assert (await whole(house))["tags"] == ["mine"]
    assert answer.headers["ETag"] == (await house.get("/v0/pipelines/p1")).headers["ETag"]


# --- 7 PUT, raced ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["find", "commit"])
async def test_a_put_that_races_a_delete_creates(house: House, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Whenever in between the pipeline vanishes: a PUT ends as a creation or as a replacement."""
    before = await house.create()
    await house.until(program_status="Success")
    original = getattr(house.store, step)
    vanished: list[object] = []

    async def vanishing(*arguments: Any, **options: Any) -> Any:
        if step == "commit" and options.get("cause") != "edited":
            return await original(*arguments, **options)
        if step == "find":
            found = await original(*arguments, **options)
        if not vanished:
            vanished.append(await house.store.delete(await house.row_of(before["id"])))
        return found if step == "find" else await original(*arguments, **options)

    monkeypatch.setattr(house.store, step, vanishing)
    answer = await house.ask("PUT", "/v0/pipelines/p1", body=body_of(code="new"))
    assert vanished
    assert answer.status == 201, answer.body
    assert answer.json["id"] != before["id"]
    assert answer.json["version"] == 1


async def test_a_put_that_races_a_creation_replaces(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    create = house.store.create

    async def late(row: Any, **options: Any) -> Any:
        await create(replace(row, id=PipelineId(house.clock.new_id())), **options)
        monkeypatch.setattr(house.store, "create", create)
        return await create(row, **options)

    monkeypatch.setattr(house.store, "create", late)
    answer = await house.ask("PUT", "/v0/pipelines/p1", body=body_of(code="new"))
    assert (answer.status, answer.json["version"]) == (200, 1)


async def test_a_put_that_names_what_it_replaces_creates_nothing(house: House) -> None:
    row = await house.get("/v0/pipelines/nobody")
    assert row.status == 404
    for etag in ('"x.1"', "*"):
        answer = await house.ask("PUT", "/v0/pipelines/p1", body=body_of(), headers={"If-Match": etag})
        assert (answer.status, answer.error_code) == (412, "PreconditionFailed")
    assert (await house.get("/v0/pipelines/p1")).status == 404


async def test_many_puts_and_deletes_at_once(house: House) -> None:
    """Real races, with the answers that may be: never a 404 to a PUT."""
    found: list[tuple[int, str]] = []

    async def put(number: int) -> None:
        for turn in range(20):
            answer = await house.ask("PUT", "/v0/pipelines/p1", body=body_of(code=f"{number} {turn}"))
            found.append((answer.status, "" if answer.status < 300 else answer.error_code))

    async def delete() -> None:
        for _ in range(60):
            await house.ask("DELETE", "/v0/pipelines/p1")

    async with anyio.create_task_group() as tasks:
        for number in range(4):
            tasks.start_soon(put, number)
        tasks.start_soon(delete)
    assert {status for status, _ in found} <= {200, 201}, found


# --- 7 PUT ----------------------------------------------------------------------------------------------------------


def body_of(name: str = "p1", code: str = "", **fields: object) -> dict[str, object]:
    return {"name": name, "program_code": code, **fields}


async def test_PU1_a_put_creates_or_replaces(house: House) -> None:
    house.compiles = False
    created = await house.ask("PUT", "/v0/pipelines/p1", body=body_of())
    assert created.status == 201
    assert set(created.json) == ALL_KEYS - BOOTSTRAP_KEYS
    replaced = await house.ask("PUT", "/v0/pipelines/p1", body=body_of(code="x"))
    assert (replaced.status, replaced.json["id"], counters(replaced.json)) == (200, created.json["id"], (2, 2, 2))
    assert set(replaced.json) == ALL_KEYS - BOOTSTRAP_KEYS


async def test_PU1_a_put_is_possible_at_every_stage_of_compilation(house: House) -> None:
    await house.create()
    for status in ProgramStatus:
        await house.rewrite(program_status=status)
        answer = await house.ask("PUT", "/v0/pipelines/p1", body=body_of(code=f"after {status}"))
        assert (answer.status, answer.json["program_status"]) == (200, "Pending"), status


async def test_PU2_what_a_put_leaves_out_is_reset(house: House) -> None:
    await house.create(
        tags=["t"], description="d", udf_rust="r", runtime_config={"workers": 2}, program_config={"cache": False}
    )
    replaced = (await house.ask("PUT", "/v0/pipelines/p1", body=body_of())).json
    assert (replaced["tags"], replaced["description"], replaced["udf_rust"]) == ([], "", "")
    assert replaced["runtime_config"] == DEFAULT_RUNTIME_CONFIG
    assert replaced["program_config"] == DEFAULT_PROGRAM_CONFIG


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"workers": "not-a-number"}, "DeserializationFailed"),
        ({"workers": "4"}, "DeserializationFailed"),
        ({"workers": 4.5}, "DeserializationFailed"),
        ({"workers": True}, "DeserializationFailed"),
        ({"workers": -1}, "DeserializationFailed"),
        ({"workers": 65536}, "DeserializationFailed"),
        ({"workers": None}, "DeserializationFailed"),
        ({"resources": {"storage_mb_max": "not-a-number"}}, "DeserializationFailed"),
        ({"resources": []}, "DeserializationFailed"),
        ({"storage": "yes"}, "DeserializationFailed"),
        ({"storage": {"backend": {"name": "tape"}}}, "DeserializationFailed"),
        ({"storage": {"backend": {"name": "object", "config": {}}}}, "DeserializationFailed"),
        ({"fault_tolerance": "yes"}, "DeserializationFailed"),
        ({"fault_tolerance": {"model": "most_of_the_time"}}, "DeserializationFailed"),
        ({"env": {"A": 1}}, "DeserializationFailed"),
        ("text", "DeserializationFailed"),
        ([], "DeserializationFailed"),
        (5, "DeserializationFailed"),
        ({"env": {"TOKIO_WORKER_THREADS": "1"}}, "InvalidPipelineEnv"),
        ({"env": {"HOSTNAME": "1"}}, "InvalidPipelineEnv"),
        ({"env": {"RUST_LOG": "1"}}, "InvalidPipelineEnv"),
        ({"env": {"FELDERA_X": "1"}}, "InvalidPipelineEnv"),
        ({"env": {"KUBERNETES_X": "1"}}, "InvalidPipelineEnv"),
        ({"env": {"TOKIO_X": "1"}}, "InvalidPipelineEnv"),
        ({"env": {"PENSTOCK_PIPELINE_ID": "1"}}, "InvalidPipelineEnv"),
        ({"env": {"": "1"}}, "InvalidPipelineEnv"),
        ({"env": {"A=B": "1"}}, "InvalidPipelineEnv"),
        ({"env": {"A": "x" * 131_070}}, "InvalidPipelineEnv"),
        ({"env": {"A": "é" * 65_535}}, "InvalidPipelineEnv"),
        ({"env": {"x" * 131_071: ""}}, "InvalidPipelineEnv"),
        ({"env": {f"A{number}": "x" * 100_000 for number in range(16)}}, "InvalidPipelineEnv"),
        ({"env": {f"A{number}": "" for number in range(100_000)}}, "InvalidPipelineEnv"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sending a large body")
async def test_PU3_a_wrong_runtime_config_is_refused(house: House, config: object, kind: str) -> None:
    for method, path in (("PUT", "/v0/pipelines/p1"), ("POST", "/v0/pipelines")):
        answer = await house.ask(method, path, body=body_of(runtime_config=config))
        assert (answer.status, answer.error_code) == (400, "InvalidRuntimeConfig")
        assert set(answer.json["details"]) == {"value", "error"}
        assert answer.json["details"]["value"] == config
        assert list(answer.json["details"]["error"]) == [kind]
        assert len(answer.json["message"]) < 500
        if kind == "InvalidPipelineEnv":
            (name, *_), text = config["env"], answer.json["message"]  # type: ignore[index]
            assert ("reserved and cannot be overridden" in text) is name.startswith(RESERVED), text
    assert await names(house) == []
    await house.create()
    answer = await house.ask("PATCH", "/v0/pipelines/p1", body={"runtime_config": config})
    assert (answer.status, answer.error_code) == (400, "InvalidRuntimeConfig")


def test_the_kernel_is_of_the_same_opinion() -> None:
    """What is just allowed can be passed on, one byte more cannot."""
    for size, fits in ((MAX_VARIABLE_BYTES, True), (MAX_VARIABLE_BYTES + 1, False)):
        env = {"A": "x" * (size - len("A="))}
        assert (_env_flaw(env) is None) is fits
        if fits:
            subprocess.run(["true"], env=env, check=True)
        else:
            with pytest.raises(OSError, match="Argument list too long"):
                subprocess.run(["true"], env=env, check=True)
    env = {f"A{number:05}": "x" * 1000 for number in range(MAX_ENVIRONMENT_BYTES // 1016)}
    assert _env_flaw(env) is None
    subprocess.run(["true"], env=env, check=True)
    env |= {f"B{number}": "x" * 1000 for number in range(10)}
    assert _env_flaw(env) is not None


@pytest.mark.parametrize(
    ("given_config", "key", "kept"),
    [
        ({"env": {"TEST_ENV": "value", "TOKI": ""}}, "env", {"TEST_ENV": "value", "TOKI": ""}),
        ({"storage": True}, "storage", DEFAULT_RUNTIME_CONFIG["storage"]),
        ({"storage": False}, "storage", None),
        ({"storage": None}, "storage", None),
        ({"storage": {}}, "storage", DEFAULT_RUNTIME_CONFIG["storage"]),
        (
            {"storage": {"compression": "snappy", "cache_mib": 5, "min_storage_bytes": 2**64 - 1, "x": 1}},
            "storage",
            {
                "backend": {"name": "default"},
                "min_storage_bytes": 2**64 - 1,
                "min_step_storage_bytes": None,
                "compression": "snappy",
                "cache_mib": 5,
            },
        ),
        ({"fault_tolerance": None}, "fault_tolerance", {"model": "none", "checkpoint_interval_secs": 60}),
        ({"fault_tolerance": {}}, "fault_tolerance", EXACTLY_ONCE),
        ({"fault_tolerance": {"model": "none"}}, "fault_tolerance", {"model": "none", "checkpoint_interval_secs": 60}),
        (
            {"fault_tolerance": {"model": "at_least_once", "checkpoint_interval_secs": None}},
            "fault_tolerance",
            {"model": "at_least_once", "checkpoint_interval_secs": None},
        ),
        ({"fault_tolerance": "latest_checkpoint"}, "fault_tolerance", EXACTLY_ONCE),
        (
            {"pipeline_template_configmap": {"name": "n"}},
            "pipeline_template_configmap",
            {"name": "n", "key": "pipelineTemplate"},
        ),
        ({"init_containers": [{"any": "thing"}]}, "init_containers", [{"any": "thing"}]),
        ({"pin_cpus": [0, 3]}, "pin_cpus", [0, 3]),
    ],
)  # fmt: skip
async def test_PU3_a_runtime_config_comes_back_with_its_defaults(
    house: House, given_config: dict[str, Any], key: str, kept: object
) -> None:
    made = (await house.ask("PUT", "/v0/pipelines/p1", body=body_of(runtime_config=given_config))).json
    assert made["runtime_config"] == {**DEFAULT_RUNTIME_CONFIG, key: kept}
    again = await house.ask("PUT", "/v0/pipelines/p1", body=body_of(runtime_config=made["runtime_config"]))
    assert (again.status, again.json["version"]) == (200, 1)


async def test_storage_back_ends_keep_their_settings(house: House) -> None:
    sync = {"bucket": "b", "standby": True, "nested": {"any": [1]}}
    for backend, kept in (
        ({"name": "file"}, {"name": "file", "config": {"async_threads": None, "ioop_delay": None, "sync": None}}),
        (
            {"name": "file", "config": {"sync": sync}},
            {"name": "file", "config": {"async_threads": None, "ioop_delay": None, "sync": sync}},
        ),
        ({"name": "object", "config": {"url": "s3://b"}}, {"name": "object", "config": {"url": "s3://b"}}),
    ):
        config = {"storage": {"backend": backend}}
        made = (await house.ask("PUT", "/v0/pipelines/p1", body=body_of(runtime_config=config))).json
        assert made["runtime_config"]["storage"]["backend"] == kept


@pytest.mark.parametrize(
    "config",
    [
        {"profile": "does-not-exist"},
        {"profile": 123},
        {"cache": 123},
        {"cache": None},
        {"profile": 123, "cache": 123},
        {"runtime_version": "1.2.3"},
        {"runtime_version": "v1.2.3\n"},
        {"use_platform_compiler": "yes"},
        {"toolchain": "nobody-has-it"},
        {"toolchain": 5},
        "text",
        [],
    ],
)
async def test_PU4_a_wrong_program_config_is_refused(house: House, config: object) -> None:
    await house.create("p2")
    for method, path, body in (
        ("PUT", "/v0/pipelines/p1", body_of(program_config=config)),
        ("POST", "/v0/pipelines", body_of(program_config=config)),
        ("PATCH", "/v0/pipelines/p2", {"program_config": config}),
    ):
        answer = await house.ask(method, path, body=body)
        assert (answer.status, answer.error_code) == (400, "InvalidProgramConfig")
        assert answer.json["details"]["value"] == config
        assert list(answer.json["details"]["error"]) == ["DeserializationFailed"]
    assert await names(house) == ["p2"]


async def test_PU4_right_program_configs_come_back(house: House) -> None:
    for config in (
        *({"profile": profile} for profile in ("dev", "unoptimized", "optimized", "optimized_symbols", None)),
        {"cache": True},
        {"cache": False},
        {"runtime_version": "v0.1.2"},
        {"runtime_version": "a" * 40},
        {"toolchain": "command", "contract": "process"},
        {"toolchain": "python"},
    ):
        made = (await house.ask("PUT", "/v0/pipelines/p1", body=body_of(program_config=config))).json
        assert made["program_config"] == {**DEFAULT_PROGRAM_CONFIG, **config}
    null = {"toolchain": None, "contract": None}
    made = (await house.ask("PUT", "/v0/pipelines/p1", body=body_of(program_config=null))).json
    assert made["program_config"] == DEFAULT_PROGRAM_CONFIG
    resources = {"cpu_cores_min": 5, "storage_mb_max": 2000, "storage_class": "normal"}
    made = (await house.ask("PUT", "/v0/pipelines/p1", body=body_of(runtime_config={"resources": resources}))).json
    assert made["runtime_config"]["resources"] == {**DEFAULT_RUNTIME_CONFIG["resources"], **resources}


async def test_PU5_names_have_rules(house: House) -> None:
    unfit = ["@", "a.", "a.b", "-", "_", "a_", "a-", "-a", "_a", "_a-", "-a_", "ü", "a\n"]
    for name, code in (
        ("a" * 64, "TooLongName"),
        ("ü" * 32, "TooLongName"),
        *((name, "NameDoesNotMatchPattern") for name in unfit),
    ):
        answer = await house.ask("PUT", "/v0/pipelines/p1", body=body_of(name))
        assert (answer.status, answer.error_code) == (400, code), name
        assert answer.json["details"]["name"] == name
    for name in ("a", "1", "A", "A-a", "A_a", "a1-_A", "a" * 62, "a" * 63):
        assert (await house.ask("PUT", f"/v0/pipelines/{name}", body=body_of(name))).status == 201, name


async def test_a_put_renames_what_exists_and_nothing_else(house: House) -> None:
    answer = await house.ask("PUT", "/v0/pipelines/p1", body=body_of("p2"))
    assert (answer.status, answer.error_code) == (400, "CannotRenameNonExistingPipeline")
    assert await names(house) == []
    made = await house.create()
    renamed = await house.ask("PUT", "/v0/pipelines/p1", body=body_of("p2"))
    assert (renamed.status, renamed.json["id"], renamed.json["name"]) == (200, made["id"], "p2")
    assert await names(house) == ["p2"]
    await house.create("p3")
    answer = await house.ask("PUT", "/v0/pipelines/p3", body=body_of("p2"))
    assert (answer.status, answer.error_code) == (409, "DuplicateName")


async def test_an_identical_put_changes_nothing_even_while_it_runs(house: House) -> None:
    await house.running()
    before, revision = await whole(house), (await house.row()).revision
    answer = await house.ask("PUT", "/v0/pipelines/p1", body=body_of())
    assert answer.status == 200
    assert await whole(house) == before
    assert (await house.row()).revision == revision, "nothing was written"


async def test_a_put_brings_the_platform_version_up(house: House) -> None:
    await house.create()
    await house.until(program_status="Success")
    await house.rewrite(platform_version="0.0.1")
    before = await whole(house)
    answer = await house.ask("PUT", "/v0/pipelines/p1", body=body_of())
    assert answer.json["platform_version"] == house.version
    assert (answer.json["program_status"], answer.json["program_version"]) == ("Pending", before["program_version"] + 1)


# --- 8 PATCH --------------------------------------------------------------------------------------------------------


async def patch(house: House, **fields: object) -> dict[str, Any]:
    answer = await house.ask("PATCH", "/v0/pipelines/p1", body=fields)
    assert answer.status == 200, answer.body
    assert set(answer.json) == ALL_KEYS - BOOTSTRAP_KEYS
    return answer.json


async def test_PA1_only_what_is_given_changes(house: House) -> None:
    await house.create(description="d", tags=["t"], program_config={"profile": "dev"}, runtime_config={"workers": 2})
    await house.until(program_status="Success")
    before = await whole(house)
    same = await patch(house)
    assert same == {key: before[key] for key in same}
    after = await patch(house, description="new")
    assert after == {**same, "description": "new"}


async def test_PA2_tags_and_description_are_independent(house: House) -> None:
    await house.create(description="d", tags=["t"])
    await patch(house, tags=["a", "b"])
    status = await house.status()
    assert (status["tags"], status["description"]) == (["a", "b"], "d")
    await patch(house, tags=[])
    assert (await house.status())["tags"] == []
    await patch(house, description="")
    assert (await house.status())["description"] == ""


async def test_PA3_configurations_are_replaced_as_a_whole(house: House) -> None:
    await house.create(runtime_config={"workers": 5, "env": {"A": "1"}}, program_config={"profile": "dev"})
    after = await patch(house, runtime_config={"workers": 1, "resources": {"storage_mb_max": 123}})
    resources = {**DEFAULT_RUNTIME_CONFIG["resources"], "storage_mb_max": 123}
    assert after["runtime_config"] == {**DEFAULT_RUNTIME_CONFIG, "workers": 1, "resources": resources}
    after = await patch(house, program_config={"cache": True})
    assert after["program_config"] == DEFAULT_PROGRAM_CONFIG
    assert (await patch(house, runtime_config={}))["runtime_config"] == DEFAULT_RUNTIME_CONFIG


async def test_PA4_metadata_moves_no_counter_in_any_state(house: House) -> None:
    await house.create()
    await house.until(program_status="Success")

    async def edits() -> None:
        before = await whole(house)
        for fields in ({"tags": ["t"]}, {"description": "d"}, {"tags": ["u"], "description": "e"}, {"tags": ["u"]}):
            assert counters(await patch(house, **fields)) == counters(before)
        await patch(house, tags=[], description="")

    await edits()
    await house.start()
    await edits()
    await house.post("/v0/pipelines/p1/pause")
    await house.until(deployment_status="Paused")
    await edits()
    await house.stop()
    await edits()


async def test_PA4_a_new_program_moves_each_counter_by_one_in_the_answer_itself(house: House) -> None:
    await house.create(description="d", tags=["t"])
    await house.until(program_status="Success")
    before = await whole(house)
    assert counters(before) == (1, 1, 3)
    after = await patch(house, program_code="new")
    assert counters(after) == (2, 2, 4)
    assert after["program_status"] == "Pending"
    assert after["program_error"] == {"sql_compilation": None, "rust_compilation": None, "system_error": None}
    assert (after["description"], after["tags"]) == ("d", ["t"])
    await house.until(program_status="Success", refresh_version=6)


async def test_a_new_runtime_config_is_no_new_program(house: House) -> None:
    await house.create()
    await house.until(program_status="Success")
    after = await patch(house, runtime_config={"workers": 3})
    assert (counters(after), after["program_status"]) == ((2, 1, 4), "Success")


async def test_PA5_only_metadata_changes_while_it_runs(house: House) -> None:
    await house.running()
    before = await whole(house)
    for fields in ({"program_code": "new"}, {"runtime_config": {"workers": 1}}, {"name": "p2"}, {"udf_rust": "r"}):
        answer = await house.ask("PATCH", "/v0/pipelines/p1", body=fields)
        assert (answer.status, answer.error_code) == (400, "UpdateRestrictedToStopped")
    assert await whole(house) == before
    await patch(house, tags=["t"])


async def test_PA6_the_program_may_change_while_storage_is_in_use(house: House) -> None:
    await house.running()
    await house.stop()
    after = await patch(house, program_code="new")
    assert (after["program_status"], after["storage_status"]) == ("Pending", "InUse")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("workers",), 11),
        (("hosts",), 2),
        (("fault_tolerance",), {"model": "exactly_once", "checkpoint_interval_secs": 60}),
        (("clock_timezone_offset",), "+01:00"),
        (("resources", "storage_mb_max"), 5000),
        (("resources", "namespace"), "n"),
        (("resources", "storage_class"), "fast"),
    ],
)
async def test_PA7_what_storage_depends_on_may_not_change(house: House, path: tuple[str, ...], value: object) -> None:
    await house.running(runtime_config={"resources": {"cpu_cores_min": 1}, "workers": 3})
    await house.stop()
    config = (await whole(house))["runtime_config"]
    await patch(house, runtime_config=config)
    edit = json.loads(json.dumps(config))
    (edit["resources"] if len(path) == 2 else edit)[path[-1]] = value
    answer = await house.ask("PATCH", "/v0/pipelines/p1", body={"runtime_config": edit})
    assert (answer.status, answer.error_code) == (400, "EditRestrictedToClearedStorage")
    assert answer.json["details"] == {"not_allowed": [f"`runtime_config.{'.'.join(path)}`"]}
    assert (await whole(house))["runtime_config"] == config
    if len(path) == 2:
        alone = {**config, "resources": {path[-1]: value}}
        answer = await house.ask("PATCH", "/v0/pipelines/p1", body={"runtime_config": alone})
        assert answer.json["details"] == {"not_allowed": [f"`runtime_config.{'.'.join(path)}`"]}
    await house.post("/v0/pipelines/p1/clear")
    await house.until(storage_status="Cleared")
    assert (await patch(house, runtime_config=edit))["runtime_config"] == edit


async def test_PA7_a_name_is_bound_to_storage_too(house: House) -> None:
    await house.running()
    await house.stop()
    answer = await house.ask("PATCH", "/v0/pipelines/p1", body={"name": "p2"})
    assert (answer.error_code, answer.json["details"]) == (
        "EditRestrictedToClearedStorage",
        {"not_allowed": ["`name`"]},
    )


async def test_PA8_metadata_has_rules_here_too(house: House) -> None:
    await house.create()
    for fields, code in (
        ({"tags": ["bad,tag"]}, "InvalidTag"),
        ({"description": "d" * 301}, "TooLongDescription"),
        ({"tags": ["t"] * 51}, "TooManyTags"),
        ({"tags": "t"}, "InvalidJson"),
        ({"name": ""}, "EmptyName"),
    ):
        answer = await house.ask("PATCH", "/v0/pipelines/p1", body=fields)
        assert (answer.status, answer.error_code) == (400, code)


async def test_PA8_names_and_configurations_are_checked_before_the_pipeline_is_looked_up(house: House) -> None:
    for fields, code in (
        ({"name": "@"}, "NameDoesNotMatchPattern"),
        ({"runtime_config": 1}, "InvalidRuntimeConfig"),
        ({"program_config": 1}, "InvalidProgramConfig"),
        ({"tags": ["bad,tag"]}, "UnknownPipelineName"),
    ):
        assert (await house.ask("PATCH", "/v0/pipelines/nobody", body=fields)).error_code == code


async def test_PA9_a_rename_keeps_the_id(house: House) -> None:
    made = await house.create()
    assert (await patch(house, name="p2"))["id"] == made["id"]
    assert await names(house) == ["p2"]
    await house.create("p1")
    answer = await house.ask("PATCH", "/v0/pipelines/p1", body={"name": "p2"})
    assert (answer.status, answer.error_code) == (409, "DuplicateName")


async def test_edits_that_meet_are_all_made(house: House) -> None:
    """Contention is ours to resolve: nobody sees a 409, nothing is lost."""
    await house.create()
    await house.until(program_status="Success")
    async with anyio.create_task_group() as tasks:
        for n in range(20):
            tasks.start_soon(lambda n=n: patch(house, program_code=f"v{n}"))
            tasks.start_soon(lambda n=n: patch(house, tags=[f"t{n}"]))
    assert (await whole(house))["program_version"] == 21


async def test_endless_contention_is_given_up_as_something_to_repeat() -> None:
    house = House()
    async with serving(house):
        await house.create()
        await house.until(program_status="Success")

        async def always_late(*_: object, **__: object) -> None:
            raise StaleRevision("late")

        house.store.commit = always_late  # type: ignore[method-assign]
        answer = await house.ask("PATCH", "/v0/pipelines/p1", body={"tags": ["t"]})
        assert (answer.status, answer.error_code, answer.headers["Retry-After"]) == (503, "StoreUnavailable", "5")
        house.store.commit = MemoryStore.commit.__get__(house.store)  # type: ignore[method-assign]


# --- 9 DELETE -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", list(ProgramStatus))
async def test_DE1_a_delete_is_possible_at_every_stage_of_compilation(house: House, status: ProgramStatus) -> None:
    house.compiles = False
    made = await house.create()
    await house.rewrite(program_status=status)
    answer = await house.ask("DELETE", "/v0/pipelines/p1")
    assert (answer.status, answer.body) == (200, b"")
    assert (await house.get("/v0/pipelines/p1")).status == 404
    assert (await house.ask("DELETE", "/v0/pipelines/p1")).error_code == "UnknownPipelineName"
    house.compiles = True
    assert (await house.create())["id"] != made["id"]
    await house.until(program_status="Success")


async def test_DE2_a_delete_needs_stopped_and_cleared(house: House) -> None:
    await house.running()
    answer = await house.ask("DELETE", "/v0/pipelines/p1")
    assert (answer.status, answer.error_code) == (400, "DeleteRestrictedToFullyStopped")
    await house.stop()
    for storage in (StorageStatus.IN_USE, StorageStatus.CLEARING):
        house.world.hung = anyio.Event()
        await house.rewrite(storage_status=storage)
        answer = await house.ask("DELETE", "/v0/pipelines/p1")
        assert (answer.status, answer.error_code) == (400, "DeleteRestrictedToClearedStorage")
    house.world.hung.set()


async def test_DE2_a_start_that_is_owed_forbids_a_delete(house: House) -> None:
    house.compiles = False
    await house.create()
    await house.post("/v0/pipelines/p1/start")
    assert (await house.ask("DELETE", "/v0/pipelines/p1")).error_code == "DeleteRestrictedToFullyStopped"


async def test_what_is_kept_of_a_pipeline_goes_with_it(house: House) -> None:
    for selector in ("all", "status"):
        await house.create()
        await house.until(program_status="Success")
        await house.get(f"/v0/pipelines/p1?selector={selector}")
        assert house.app[ENCODER].kept_bytes > 0
        await house.ask("DELETE", "/v0/pipelines/p1")
        assert house.app[ENCODER].kept_bytes == 0


# --- 10 and 16, what of it meets here -------------------------------------------------------------------------------


async def test_CO2_CO3_counters_on_the_way_to_success(house: House) -> None:
    assert counters(await house.create()) == (1, 1, 1)
    await house.until(program_status="Success", refresh_version=3, program_version=1)


class Strict(FakeToolchains):
    """Finds every program wrong."""

    async def check(self, row: object) -> StepFailed:
        return StepFailed({"exit_code": 1, "messages": [{"message": "no"}]})


async def test_CO10_a_failed_program_can_be_stopped_and_cleared(house: House) -> None:
    house.toolchains = Strict()
    await house.create()
    await house.until(program_status="SqlError", refresh_version=2)
    assert (await house.post("/v0/pipelines/p1/stop?force=true")).status == 202
    assert (await house.post("/v0/pipelines/p1/clear")).status == 202
    assert (await whole(house))["program_error"]["sql_compilation"]["messages"] == [{"message": "no"}]


async def test_UR3_update_runtime_needs_a_stopped_pipeline(house: House) -> None:
    await house.running()
    await house.rewrite(platform_version="0.0.1")
    answer = await house.post("/v0/pipelines/p1/update_runtime")
    assert (answer.status, answer.error_code) == (400, "UpdateRestrictedToStopped")
    await house.stop()
    answer = await house.post("/v0/pipelines/p1/update_runtime")
    assert (answer.status, answer.json["platform_version"], answer.json["program_status"]) == (
        200,
        house.version,
        "Pending",
    )
    assert set(answer.json) == ALL_KEYS - BOOTSTRAP_KEYS
    await house.until(program_status="Success")
    before = await whole(house)
    assert (await house.post("/v0/pipelines/p1/update_runtime")).status == 200
    assert await whole(house) == before


async def test_UR4_a_new_program_brings_the_platform_version_up(house: House) -> None:
    await house.create()
    await house.rewrite(platform_version="0.0.1")
    assert (await patch(house, tags=["t"]))["platform_version"] == "0.0.1"
    assert (await patch(house, program_code="new"))["platform_version"] == house.version


async def test_UR1_the_tests_of_the_platform_itself_are_not_for_users(house: House) -> None:
    answer = await house.post("/v0/pipelines/p1/testing?set_platform_version=0.0.1")
    assert (answer.status, answer.error_code) == (405, "UnsupportedPipelineAction")
    assert set(answer.json["details"]) == {"action", "reason"}


# --- whatever comes -------------------------------------------------------------------------------------------------

texts = st.text(st.characters(codec="utf-8") | st.sampled_from("\0\ud800\udfff"), max_size=20)
scalars = st.none() | st.booleans() | st.integers() | st.integers(-3, 3) | st.floats(allow_nan=False) | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
)
config_values = st.dictionaries(
    st.sampled_from([*DEFAULT_RUNTIME_CONFIG, "other"]),
    scalars | st.sampled_from([*DEFAULT_RUNTIME_CONFIG.values(), {"backend": {"name": "file"}}, {"A": "b"}]),
    max_size=4,
)
program_values = st.dictionaries(
    st.sampled_from([*DEFAULT_PROGRAM_CONFIG, "toolchain", "contract"]),
    values | st.sampled_from(["dev", "python", "process", "v1.2.3"]),
    max_size=3,
)


def mostly(good: st.SearchStrategy[Any], bad: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """One in twelve is bad, so that most bodies get past the first check."""
    return st.integers(0, 11).flatmap(lambda draw: good if draw else bad)


plain = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
bodies = st.fixed_dictionaries(
    {"name": mostly(st.sampled_from(["p1", "P_2", "x-3"]), values), "program_code": mostly(plain, texts | values)},
    optional={
        "description": mostly(plain, texts | values),
        "tags": mostly(st.lists(st.sampled_from(["t", "a b"]), max_size=3), st.lists(values, max_size=3) | values),
        "udf_rust": mostly(plain, texts | values),
        "udf_toml": mostly(plain, texts | values),
        "runtime_config": mostly(config_values, values),
        "program_config": mostly(program_values, values),
        "unknown": mostly(plain, values),
    },
)
FUZZ = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def encoded(body: object) -> bytes:
    return json.dumps(body).encode()


@FUZZ
@given(body=bodies)
async def test_a_post_succeeds_or_is_refused_and_then_leaves_nothing(house: House, body: dict[str, Any]) -> None:
    headers = {"Content-Type": "application/json"}
    answer = await house.post("/v0/pipelines", data=encoded(body), headers=headers)
    if answer.status != 201:
        assert answer.status == 400, answer.body
        assert answer.error_code
        assert await names(house) == []
        return
    name = answer.json["name"]
    given_back = {key: answer.json[key] for key in body if key in answer.json}
    again = await house.ask("PUT", f"/v0/pipelines/{name}", body={"name": name, "program_code": "", **given_back})
    assert (again.status, again.json["version"]) == (200, 1), "what comes back means the same"
    assert (await house.ask("DELETE", f"/v0/pipelines/{name}")).status == 200


@FUZZ
@given(body=bodies, dropped=st.sets(st.sampled_from(["name", "program_code"])))
async def test_a_patch_succeeds_or_is_refused_and_then_changes_nothing(
    house: House, body: dict[str, Any], dropped: set[str]
) -> None:
    house.compiles = False
    await house.ask("PUT", "/v0/pipelines/p1", body=body_of())
    before = await whole(house)
    changes = {key: value for key, value in body.items() if key not in dropped | {"name"}}
    answer = await house.ask(
        "PATCH", "/v0/pipelines/p1", data=encoded(changes), headers={"Content-Type": "application/json"}
    )
    assert answer.status in (200, 400), answer.body
    if answer.status == 400:
        assert await whole(house) == before


@FUZZ
@given(body=st.binary(max_size=40) | st.binary(max_size=20).map(lambda noise: b'{"name": "p1", ' + noise))
async def test_bytes_that_are_no_json_are_refused(house: House, body: bytes) -> None:
    answer = await house.post("/v0/pipelines", data=body, headers={"Content-Type": "application/json"})
    assert (answer.status, answer.error_code) == (400, "InvalidJson")


@FUZZ
@given(path=st.text(st.sampled_from("/%ab0F2p1.~{}?&=#\u00fc"), max_size=20))
async def test_any_path_has_an_answer(house: House, path: str) -> None:
    async with await anyio.connect_tcp(*house.address.split(":")) as stream:  # type: ignore[misc]
        target = b"/v0/pipelines/" + path.encode()
        await stream.send(b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = b"".join([part async for part in stream])
    assert answer.split(b" ")[1] in (b"404", b"400", b"200"), answer
