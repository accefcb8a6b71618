"""Start, stop, clear and their kin, demand by demand of what existing clients rely on (sections 11 to 15)."""

from __future__ import annotations

import itertools
import json
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.answers import Answer as Said
from penstock.model import Exit, Fault, ProgramStatus, ResourcesStatus, RuntimeStatus, StorageStatus
from penstock.ports import ExecutorError, Reply
from tests.api.house import Answer, House

BAD = Fault("PipelineProcessExited", "It ended.", {"exit_code": 3})
POLICIES = ("allow", "reject", "await_approval")
SYNCED = {"storage": {"backend": {"name": "file", "config": {"sync": {"bucket": "b"}}}}}


async def start(house: House, query: str = "", name: str = "p1") -> Answer:
    return await house.post(f"/v0/pipelines/{name}/start{query}")


async def refusal(house: House, query: str = "") -> tuple[int, str]:
    answer = await start(house, query)
    return answer.status, answer.error_code


async def events(house: House) -> int:
    return len(await house.store.events((await house.row()).id))


async def crash(house: House, name: str = "p1") -> dict[str, Any]:
    """Let the running process die, and wait until that is recorded."""
    [deployment] = house.world.alive((await house.row(name)).id)
    house.world.die(deployment, Exit(pid=1, code=3))
    return await house.until(name, deployment_status="Stopped")


# --- 11 start -------------------------------------------------------------------------------------------------------


async def test_ST1_a_start_is_accepted_and_may_be_repeated(house: House) -> None:
    await house.create()
    for _ in range(2):
        answer = await start(house)
        assert answer.status == 202
        assert isinstance(answer.json, str)
        assert "Cache-Control" not in answer.headers
    await house.until(deployment_status="Running")
    before = await events(house)
    assert (await start(house, "?initial=running&bootstrap_policy=await_approval&dismiss_error=false")).status == 202
    assert (await start(house, "?silent_bootstrap=false&concurrent_bootstrap=false")).status == 202
    assert await events(house) == before


@pytest.mark.parametrize("initial", ["running", "paused"])
async def test_ST1_it_begins_as_asked(house: House, initial: str) -> None:
    status = await house.running(initial=initial)
    assert status["deployment_initial"] == status["deployment_desired_status"] == initial.capitalize()


async def test_ST2_a_start_may_come_before_the_program_is_ready(house: House) -> None:
    house.compiles = False
    await house.create()
    for stage in (ProgramStatus.PENDING, ProgramStatus.SQL_COMPILED, ProgramStatus.COMPILING_RUST):
        await house.rewrite(program_status=stage)
        assert (await start(house, "?initial=paused")).status == 202
        status = await house.status()
        assert (status["deployment_status"], status["deployment_desired_status"]) == ("Stopped", "Paused")
    await house.rewrite(program_status=ProgramStatus.PENDING)
    await house.compile()
    await house.until(deployment_status="Paused")


@pytest.mark.parametrize("status", [ProgramStatus.SQL_ERROR, ProgramStatus.RUST_ERROR, ProgramStatus.SYSTEM_ERROR])
async def test_ST3_a_failed_program_is_not_started(house: House, status: ProgramStatus) -> None:
    await house.create()
    await house.until(program_status="Success")
    await house.rewrite(program_status=status)
    assert await refusal(house) == (400, "CannotStartWithCompilationError")
    assert (await house.status())["deployment_desired_status"] == "Stopped"


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(["running", "paused"])))
async def test_ST4_the_beginning_is_fixed_until_it_is_stopped(house: House, first: str, second: str) -> None:
    await house.running(initial=first)
    assert await refusal(house, f"?initial={second}") == (400, "InitialImmutableUnlessStopped")
    action = "pause" if first == "running" else "resume"
    await house.post(f"/v0/pipelines/p1/{action}")
    await house.until(deployment_status=second.capitalize())
    assert await refusal(house, f"?initial={second}") == (400, "InitialImmutableUnlessStopped")
    assert (await start(house, f"?initial={first}")).status == 202
    assert (await house.status())["deployment_status"] == second.capitalize()


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(POLICIES, 2)))
async def test_ST4_the_policy_is_fixed_until_it_is_stopped(house: House, first: str, second: str) -> None:
    await house.create()
    assert (await start(house, f"?bootstrap_policy={first}")).status == 202
    code = "BootstrapPolicyImmutableUnlessStopped"
    assert await refusal(house, f"?bootstrap_policy={second}") == (400, code)
    assert await refusal(house, f"?bootstrap_policy={first}&silent_bootstrap=true") == (400, code)


async def test_ST5_no_start_while_storage_is_cleared(house: House) -> None:
    await house.create()
    await house.until(program_status="Success")
    house.world.hung = anyio.Event()
    await house.rewrite(storage_status=StorageStatus.CLEARING)
    assert await refusal(house) == (400, "CannotStartWhileClearingStorage")
    house.world.hung.set()


async def test_ST5_no_start_while_it_stops(house: House) -> None:
    await house.running()
    house.world.hung = anyio.Event()
    await house.post("/v0/pipelines/p1/stop?force=true")
    answer = await start(house)
    assert (answer.status, answer.error_code) == (400, "IllegalPipelineAction")
    details = answer.json["details"]
    assert set(details) == {"status", "current_desired_status", "new_desired_status", "hint"}
    assert details["status"] in ("Provisioned", "Stopping")
    assert (details["current_desired_status"], details["new_desired_status"]) == ("Stopped", "Provisioned")
    house.world.hung.set()
    await house.until(deployment_status="Stopped")
    await house.start()


async def test_ST5_no_start_during_a_graceful_stop(house: House) -> None:
    house.world.stubborn = True
    await house.running()
    await house.post("/v0/pipelines/p1/stop")
    assert await refusal(house) == (400, "IllegalPipelineAction")


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"storage": None},
        {"storage": {"backend": {"name": "default"}}},
        {"storage": {"backend": {"name": "file"}}},
        {"storage": {"backend": {"name": "file", "config": {"sync": None}}}},
        {"storage": {"backend": {"name": "object", "config": {"url": "s3://b", "sync": "x"}}}},
    ],
)
async def test_ST6_standby_needs_synchronised_storage(house: House, config: dict[str, Any]) -> None:
    house.compiles = False
    await house.create(runtime_config=config)
    assert await refusal(house, "?initial=standby") == (400, "InitialStandbyNotAllowed")
    assert (await house.status())["deployment_desired_status"] == "Stopped"


async def test_ST6_standby_is_accepted_with_it(house: House) -> None:
    house.compiles = False
    await house.create(runtime_config=SYNCED)
    assert (await start(house, "?initial=standby")).status == 202
    assert (await house.status())["deployment_desired_status"] == "Standby"


async def test_ST7_an_error_is_dismissed_by_a_start_or_in_its_way(house: House) -> None:
    await house.running()
    assert (await crash(house))["deployment_error"]["error_code"] == "PipelineProcessExited"
    assert await refusal(house, "?dismiss_error=false") == (400, "CannotStartWithUndismissedError")
    assert await refusal(house, "?initial=standby") == (400, "InitialStandbyNotAllowed")
    assert (await house.status())["deployment_error"] is not None, "a refused start dismisses nothing"
    assert (await start(house, "?dismiss_error=true")).status == 202
    assert (await house.status())["deployment_error"] is None
    await house.until(deployment_status="Running")


@pytest.mark.parametrize("policy", POLICIES)
async def test_ST8_bootstrap_and_initial_are_shown_from_start_to_stop(house: House, policy: str) -> None:
    await house.create()
    assert (await house.status())["bootstrap_policy"] is None
    for code in ("", "changed"):
        await house.ask("PATCH", "/v0/pipelines/p1", body={"program_code": code})
        await start(house, f"?bootstrap_policy={policy}&silent_bootstrap=true")
        for status in (await house.status(), await house.until(deployment_status="Running")):
            shown = [status[key] for key in ("bootstrap_policy", "silent_bootstrap", "concurrent_bootstrap")]
            assert (shown, status["deployment_initial"]) == ([policy, True, False], "Running")
        await house.stop()
        status = await house.status()
        shown = [status[key] for key in ("bootstrap_policy", "silent_bootstrap", "deployment_initial", "deployment_id")]
        assert shown == [None, False, None, None]


async def test_ST9_storage_is_in_use_no_later_than_running_is_shown(house: House) -> None:
    status = await house.running()
    assert (status["storage_status"], status["storage_status_details"]) == ("InUse", {"checkpoints": []})


async def test_ST10_a_failed_start_is_shown_whole(house: House) -> None:
    """Clients give up when they see Stopped, wanted Stopped, and an error: never two of them without the third."""
    await house.running()
    await house.stop()
    await house.rewrite(deployment_error=BAD)
    assert (await house.post("/v0/pipelines/p1/dismiss_error")).status == 200
    assert (await start(house, "?dismiss_error=false")).status == 202
    status = await house.status()
    assert status["deployment_error"] is None
    assert status["deployment_desired_status"] == "Running"


async def test_ST11_start_and_stop_in_turns_converge(house: House) -> None:
    await house.create()
    await house.until(program_status="Success")
    for turn in range(14):
        assert (await start(house)).status == 202
        if turn % 2:
            await house.until(deployment_status="Running")
        await house.stop()
    assert not house.world.alive((await house.row()).id)


async def test_ST12_an_unknown_pipeline_is_a_404(house: House) -> None:
    for action in ("start", "stop", "clear", "dismiss_error", "pause", "resume", "approve", "activate"):
        answer = await house.post(f"/v0/pipelines/nobody/{action}")
        assert (answer.status, answer.error_code) == (404, "UnknownPipelineName"), action
        assert answer.json["details"] == {"pipeline_name": "nobody"}


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("?initial=stopped", 405, "UnsupportedPipelineAction"),
        ("?initial=Running", 405, "UnsupportedPipelineAction"),
        ("?initial=", 405, "UnsupportedPipelineAction"),
        ("?silent_bootstrap=true&concurrent_bootstrap=true", 400, "InvalidBootstrapConfig"),
        ("?bootstrap_policy=Allow", 400, "InvalidQueryParam"),
        ("?silent_bootstrap=yes", 400, "InvalidQueryParam"),
        ("?dismiss_error=", 400, "InvalidQueryParam"),
    ],
)
async def test_parameters_are_checked_before_the_pipeline_is_looked_up(
    house: House, query: str, status: int, code: str
) -> None:
    await house.create()
    for name in ("p1", "nobody"):
        answer = await start(house, query, name)
        assert (answer.status, answer.error_code) == (status, code)
        expected = {"UnsupportedPipelineAction": {"action", "reason"}, "InvalidBootstrapConfig": {"reason"}}
        assert set(answer.json["details"]) == expected.get(code, {"parameter", "value", "expected"})


async def test_the_checks_of_a_start_have_an_order(house: House) -> None:
    """contract.md section 2.3, each row with everything after it wrong as well."""
    await house.running()
    await house.stop()
    house.world.hung = anyio.Event()
    query = "?initial=standby&bootstrap_policy=reject&dismiss_error=false"
    await house.rewrite(
        deployment_error=BAD, storage_status=StorageStatus.CLEARING, program_status=ProgramStatus.SQL_ERROR
    )
    assert (await refusal(house, query))[1] == "CannotStartWithUndismissedError"
    await house.rewrite(deployment_error=None)
    assert (await refusal(house, query))[1] == "CannotStartWhileClearingStorage"
    await house.rewrite(storage_status=StorageStatus.IN_USE)
    assert (await refusal(house, query))[1] == "CannotStartWithCompilationError"
    await house.rewrite(program_status=ProgramStatus.SUCCESS)
    assert (await refusal(house, query))[1] == "InitialStandbyNotAllowed"
    assert (await start(house)).status == 202
    assert (await refusal(house, query))[1] == "InitialImmutableUnlessStopped"
    assert (await refusal(house, "?bootstrap_policy=reject"))[1] == "BootstrapPolicyImmutableUnlessStopped"
    house.world.hung.set()


# --- 12 stop --------------------------------------------------------------------------------------------------------


async def test_SP1_a_forced_stop_is_accepted_in_every_state(house: House) -> None:
    async def stopped() -> None:
        answer = await house.post("/v0/pipelines/p1/stop?force=true")
        assert (answer.status, type(answer.json)) == (202, str)

    house.compiles = False
    await house.create()
    await stopped()  # never started
    await start(house)
    await stopped()  # compiling
    status = await house.until(deployment_status="Stopped", deployment_desired_status="Stopped")
    assert (status["deployment_initial"], status["bootstrap_policy"]) == (None, None), "the early start is cancelled"
    await house.compile()
    house.world.slow_start = True
    await start(house)
    await house.until(deployment_status="Provisioning")
    await stopped()  # provisioning
    await house.until(deployment_status="Stopped")
    house.world.slow_start = False
    await house.start()
    await stopped()  # running
    await stopped()  # stopping, or stopped
    await house.until(deployment_status="Stopped")
    await house.start(initial="paused")
    await stopped()  # paused
    await house.until(deployment_status="Stopped")
    before = await events(house)
    await stopped()  # stopped
    assert await events(house) == before


async def test_SP2_start_stop_clear_at_once_end_stopped_and_clear(house: House) -> None:
    await house.create()
    await house.until(program_status="Success")
    house.world.hung = anyio.Event()
    assert (await start(house)).status == 202
    assert (await house.post("/v0/pipelines/p1/stop?force=true")).status == 202
    assert (await house.post("/v0/pipelines/p1/clear")).status == 202
    house.world.hung.set()
    await house.until(deployment_status="Stopped", deployment_desired_status="Stopped", storage_status="Cleared")
    assert not house.world.alive((await house.row()).id)


async def test_SP3_a_stop_without_force_is_graceful(house: House) -> None:
    """Ours does the work where the reference's open-source edition answers 501."""
    for query in ("", "?force=false"):
        await house.running(name := f"p{len(query)}")
        answer = await house.post(f"/v0/pipelines/{name}/stop{query}")
        assert (answer.status, type(answer.json)) == (202, str)
        status = await house.until(name, deployment_status="Stopped")
        assert status["deployment_error"] is None
        [process] = [p for p in house.world.processes.values() if p.pipeline_id == status["id"]]
        assert process.told_to_suspend


async def test_SP3_a_graceful_stop_waits_and_force_cuts_it_short(house: House) -> None:
    house.world.stubborn = True
    await house.running()
    assert (await house.post("/v0/pipelines/p1/stop")).status == 202
    row = await house.row()
    assert row.stop_deadline is not None
    assert abs((row.stop_deadline - house.clock.now()).total_seconds() - house.grace_seconds) < 5
    assert (await house.status())["deployment_resources_desired_status"] == "Provisioned"
    assert (await house.post("/v0/pipelines/p1/stop")).status == 202
    assert (await house.row()).stop_deadline == row.stop_deadline, "asking again does not begin again"
    await house.stop()


async def test_SP4_a_stop_keeps_error_and_storage(house: House) -> None:
    await house.running()
    await house.stop()
    status = await house.status()
    assert (status["deployment_error"], status["storage_status"]) == (None, "InUse")
    assert status["storage_status_details"] == {"checkpoints": []}
    await house.start()
    error = (await crash(house))["deployment_error"]
    await house.stop()
    assert (await house.status())["deployment_error"] == error


# --- 13 pause and resume --------------------------------------------------------------------------------------------


async def test_PR1_pause_and_resume_are_accepted_in_either_state(house: House) -> None:
    await house.running(initial="paused")
    for actions in (("pause",), ("resume", "pause"), ("resume", "resume"), ("pause", "resume"), ("pause",)):
        for action in actions:
            answer = await house.post(f"/v0/pipelines/p1/{action}")
            assert (answer.status, type(answer.json)) == (202, str)
        reached = "Paused" if actions[-1] == "pause" else "Running"
        await house.until(deployment_status=reached, deployment_desired_status=reached)


async def test_a_process_that_refuses_is_left_alone_and_its_log_says_why(house: House) -> None:
    await house.running()
    no = Fault("InvalidTransition", "Not while it moves.")
    house.world.refusals = [ExecutorError(no, retry=False)]
    assert (await house.post("/v0/pipelines/p1/pause")).status == 202
    with anyio.fail_after(5):
        while (await house.row()).runtime_intent is not None:
            await anyio.sleep(0.01)
    [said] = [text for _, level, text in house.logs.notes if level == "WARN"]
    assert said == "the process was told to be paused, and refuses: InvalidTransition: Not while it moves."
    assert (await house.row()).runtime_status is RuntimeStatus.RUNNING


@pytest.mark.parametrize("action", ["pause", "resume", "approve", "activate"])
async def test_PR1_what_is_not_deployed_cannot_be_asked(house: House, action: str) -> None:
    await house.create()
    answer = await house.post(f"/v0/pipelines/p1/{action}")
    assert (answer.status, answer.error_code) == (503, "PipelineInteractionNotDeployed")
    assert answer.json["details"] == {"pipeline_name": "p1", "status": "Stopped", "desired_status": "Stopped"}
    assert "Retry-After" not in answer.headers
    await house.start()
    house.world.hung = anyio.Event()
    await house.rewrite(runtime_status=RuntimeStatus.UNAVAILABLE)
    answer = await house.post(f"/v0/pipelines/p1/{action}")
    assert (answer.status, answer.error_code) == (503, "PipelineUnavailable")
    assert "Retry-After" not in answer.headers
    house.world.hung.set()


async def test_what_opaque_processes_never_need_is_refused_for_good(house: House) -> None:
    await house.running()
    for action in ("approve", "activate", "activate?initial=paused"):
        answer = await house.post(f"/v0/pipelines/p1/{action}")
        assert (answer.status, answer.error_code) == (405, "UnsupportedPipelineAction")
        assert set(answer.json["details"]) == {"action", "reason"}
    query = "?silent_bootstrap=true&concurrent_bootstrap=true"
    answer = await house.post(f"/v0/pipelines/nobody/approve{query}")
    assert (answer.status, answer.error_code) == (400, "InvalidBootstrapConfig")
    answer = await house.post("/v0/pipelines/nobody/activate?initial=standby")
    assert (answer.status, answer.error_code) == (405, "UnsupportedPipelineAction")


def status(runtime: str, desired: str) -> Said:
    return Said(200, {"runtime_status": runtime, "runtime_desired_status": desired, "runtime_status_details": {}})


def said(code: int, body: object) -> Reply:
    return Reply(code, "application/json", json.dumps(body).encode())


async def test_a_standby_is_activated_by_its_process_and_stays_as_it_was_told(house: House) -> None:
    house.world.location = "127.0.0.1:1"
    house.probe.answers = [status("Standby", "Standby")]
    house.probe.replies["/activate?initial=paused"] = said(202, "ok")
    await house.create()
    await house.post("/v0/pipelines/p1/start")
    await house.until(deployment_runtime_status="Standby")
    house.probe.answers = [status("Paused", "Paused")]
    answer = await house.post("/v0/pipelines/p1/activate?initial=paused")
    assert (answer.status, type(answer.json)) == (202, str)
    assert house.probe.posted == ["/activate?initial=paused"]
    await house.until(deployment_runtime_status="Paused")  # seen at once
    [process] = house.world.processes.values()
    assert not process.paused  # by anybody but itself
    house.probe.answers = [status("Running", "Running")]  # it forgets what it was told
    with anyio.fail_after(10):
        while not process.paused:  # and is told again
            await anyio.sleep(0.01)


async def test_what_a_process_answers_to_an_approval_is_passed_on(house: House) -> None:
    house.world.location = "127.0.0.1:1"
    house.probe.answers = [status("AwaitingApproval", "Running")]
    await house.create()
    await house.post("/v0/pipelines/p1/start")
    await house.until(deployment_runtime_status="AwaitingApproval")
    path = "/approve?silent_bootstrap=true&concurrent_bootstrap=false"
    answer = await house.post("/v0/pipelines/p1/approve?silent_bootstrap=true")
    assert (answer.status, answer.error_code) == (503, "PipelineInteractionUnreachable")
    error = {"message": "no", "error_code": "InvalidTransition", "details": {}}
    house.probe.replies[path] = said(400, error)
    answer = await house.post("/v0/pipelines/p1/approve?silent_bootstrap=true")
    assert (answer.status, answer.json) == (400, error)
    house.probe.replies[path] = said(200, "approved")
    house.probe.answers = [status("Running", "Running")]
    answer = await house.post("/v0/pipelines/p1/approve?silent_bootstrap=true")
    assert (answer.status, type(answer.json)) == (200, str)
    assert house.probe.posted == [path] * 3  # never twice for one request
    await house.until(deployment_runtime_status="Running")


# --- 14 dismiss_error -----------------------------------------------------------------------------------------------


async def test_DI1_there_need_be_no_error_to_dismiss(house: House) -> None:
    house.compiles = False
    await house.create()

    async def dismissed() -> None:
        before = await events(house)
        answer = await house.post("/v0/pipelines/p1/dismiss_error")
        assert (answer.status, type(answer.json)) == (200, str)
        assert await events(house) == before

    await dismissed()
    await house.compile()
    await house.start()
    await dismissed()
    house.world.hung = anyio.Event()
    await house.post("/v0/pipelines/p1/stop?force=true")
    await dismissed()
    house.world.hung.set()


async def test_DI2_an_error_is_dismissed_when_all_is_stopped(house: House) -> None:
    await house.running()
    await crash(house)
    assert (await house.post("/v0/pipelines/p1/dismiss_error")).status == 200
    assert (await house.status())["deployment_error"] is None
    house.world.hung = anyio.Event()
    await house.rewrite(deployment_error=BAD, resources_status=ResourcesStatus.STOPPING)
    answer = await house.post("/v0/pipelines/p1/dismiss_error")
    assert (answer.status, answer.error_code) == (400, "DismissErrorRestrictedToFullyStopped")
    house.world.hung.set()


# --- 15 clear -------------------------------------------------------------------------------------------------------


async def test_CL1_a_clear_may_be_repeated(house: House) -> None:
    await house.create()
    await house.until(program_status="Success")
    before = await events(house)
    answer = await house.post("/v0/pipelines/p1/clear")
    assert (answer.status, type(answer.json)) == (202, str)
    assert await events(house) == before
    await house.start()
    await house.stop()
    house.world.hung = anyio.Event()
    for _ in range(2):
        assert (await house.post("/v0/pipelines/p1/clear")).status == 202
        assert (await house.status())["storage_status"] == "Clearing"
    house.world.hung.set()
    await house.until(storage_status="Cleared")


async def test_CL2_a_clear_needs_a_stopped_pipeline(house: House) -> None:
    house.compiles = False
    await house.create()
    await start(house)
    answer = await house.post("/v0/pipelines/p1/clear")
    assert (answer.status, answer.error_code) == (400, "StorageStatusImmutableUnlessStopped")
    assert answer.json["details"] == {
        "resources_status": "Stopped",
        "resources_desired_status": "Provisioned",
        "current_status": "Cleared",
        "new_status": "Clearing",
    }
    await house.compile()
    await house.until(deployment_status="Running")
    for action in ("pause", "resume"):
        await house.post(f"/v0/pipelines/p1/{action}")
        answer = await house.post("/v0/pipelines/p1/clear")
        assert (answer.status, answer.error_code) == (400, "StorageStatusImmutableUnlessStopped")


async def test_CL3_CL4_storage_from_creation_to_clear(house: House) -> None:
    async def storage() -> tuple[str, Any]:
        status = await house.status()
        return status["storage_status"], status["storage_status_details"]

    in_use = ("InUse", {"checkpoints": []})
    await house.create()
    assert await storage() == ("Cleared", None)
    await house.start()
    assert await storage() == in_use
    await house.post("/v0/pipelines/p1/pause")
    await house.until(deployment_status="Paused")
    assert await storage() == in_use
    await house.stop()
    assert await storage() == in_use
    await house.start()
    await house.stop()
    assert await storage() == in_use
    await house.post("/v0/pipelines/p1/clear")
    await house.until(storage_status="Cleared")
    assert await storage() == ("Cleared", None)
    assert not house.world.storage


async def test_users_who_meet_never_see_a_conflict(house: House) -> None:
    """Starts, stops and edits of one pipeline at once: each is done or refused for its own reason."""
    await house.create()
    await house.until(program_status="Success")
    refusals: set[str] = set()

    async def one(path: str) -> None:
        answer = await house.post(f"/v0/pipelines/p1/{path}")
        if answer.status not in (200, 202):
            refusals.add(answer.error_code)

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            for path in ("start", "stop?force=true", "dismiss_error", "pause", "clear", "stop"):
                tasks.start_soon(one, path)
    assert refusals <= {
        "IllegalPipelineAction",
        "PipelineInteractionNotDeployed",
        "StorageStatusImmutableUnlessStopped",
        "CannotStartWhileClearingStorage",
    }
    await house.stop()


ACTIONS = ["start", "stop", "clear", "dismiss_error", "pause", "resume", "approve", "activate", "update_runtime"]
PARAMETERS = ["initial", "bootstrap_policy", "silent_bootstrap", "concurrent_bootstrap", "dismiss_error", "force"]
VALUES = [
    "true",
    "false",
    "running",
    "paused",
    "standby",
    "allow",
    "",
    "1",
    "%00",
    "%FF",
    "%ED%A0%80",
    "a&b=c",
    "\u00fc",
]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    action=st.sampled_from(ACTIONS),
    parameters=st.lists(st.tuples(st.sampled_from(PARAMETERS), st.sampled_from(VALUES)), max_size=3),
)
async def test_any_request_is_accepted_or_refused(house: House, action: str, parameters: list[tuple[str, str]]) -> None:
    """Whatever was asked before: no mistake of ours, and it can always be stopped."""
    await house.ask("PUT", "/v0/pipelines/p1", body={"name": "p1", "program_code": ""})
    query = "&".join(f"{key}={value}" for key, value in parameters)
    answer = await house.post(f"/v0/pipelines/p1/{action}?{query}")
    if answer.status not in (200, 202):
        assert answer.status in (400, 405) or answer.error_code == "PipelineInteractionNotDeployed"
    await house.stop()
