"""Every state that a pipeline can be in has words, and what it is advised to be told is allowed."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import product

import click
import msgspec
import pytest
from click.testing import CliRunner

from penstock import cli, requests
from penstock.api.representation import Selector, represent
from penstock.api.responses import to_json
from penstock.cli.output import printable
from penstock.cli.wording import age, axes, can_be_told, evidence_of, for_people, look_of, remark, waits_for
from penstock.model import (
    Fault,
    Initial,
    Pipeline,
    PipelineId,
    ProgramStatus,
    Refusal,
    ResourcesDesired,
    ResourcesStatus,
    RuntimeDesired,
    RuntimeStatus,
    Spec,
    StopMode,
    StorageStatus,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FAULT = Fault("PipelineProcessExited", "The pipeline process exited with code 1. The whole log is at /v0/x.", {})


def rows() -> list[Pipeline]:
    """Every corner, whether it can occur or not."""
    made: list[Pipeline] = []
    runtimes = [(None, None), *product(RuntimeStatus, (RuntimeDesired.RUNNING, RuntimeDesired.SUSPENDED))]
    for resources, desired, storage, program, fault in product(
        ResourcesStatus, ResourcesDesired, StorageStatus, ProgramStatus, (None, FAULT)
    ):
        provisioned = resources is ResourcesStatus.PROVISIONED
        for runtime, steered in runtimes if provisioned else [(None, None)]:
            made.append(
                Pipeline(
                    id=PipelineId("x"),
                    created_at=NOW,
                    spec=Spec(name="p"),
                    platform_version="1",
                    program_status=program,
                    program_status_since=NOW,
                    resources_status=resources,
                    resources_status_since=NOW,
                    resources_desired=desired,
                    resources_desired_since=NOW,
                    deployment_initial=Initial.RUNNING,
                    runtime_status=runtime,
                    runtime_desired=steered,
                    runtime_status_details={"reason": "busy\nvery"} if runtime else None,
                    storage_status=storage,
                    deployment_error=fault,
                    stop_mode=StopMode.GRACEFUL if steered is RuntimeDesired.SUSPENDED else None,
                )
            )
    return made


def shown(row: Pipeline) -> dict[str, object]:
    return msgspec.json.decode(to_json(represent(row, Selector.ALL)))


def test_every_state_has_words() -> None:
    for row in rows():
        state = shown(row)
        assert look_of(state) in ("good", "bad", "busy", "calm", "dim")
        assert set(axes(state)) >= {"program", "resources", "storage"}
        assert "\n" not in remark(state)[0]
        moving = row.resources_status not in (ResourcesStatus.STOPPED, ResourcesStatus.PROVISIONED)
        if moving or (row.resources_status is ResourcesStatus.STOPPED and row.storage_status is StorageStatus.CLEARING):
            assert waits_for(state), state


def test_what_is_advised_is_allowed() -> None:
    for row in rows():
        told = [command.split() for command, _ in can_be_told(shown(row))]
        assert told or row.storage_status is StorageStatus.CLEARING
        for command in told:
            match command[1:]:
                case ["start", _]:
                    after = requests.start(row, requests.StartRequest(), now=NOW)
                case ["clear", _]:
                    after = requests.clear(row)
                case ["dismiss-error", _]:
                    after = requests.dismiss_error(row)
                case ["pause", _]:
                    after = requests.steer(row, RuntimeDesired.PAUSED)
                case ["resume", _]:
                    after = requests.steer(row, RuntimeDesired.RUNNING)
                case ["delete", _]:
                    after = requests.delete(row)
                case _:
                    continue
            assert not isinstance(after, Refusal), (command, row)


def test_messages_for_people() -> None:
    assert for_people(FAULT.message) == "The pipeline process exited with code 1."
    assert for_people("Only /v0/ here.") == "Only /v0/ here."
    assert remark(shown(next(row for row in rows() if row.deployment_error)))[0] == (
        "PipelineProcessExited: The pipeline process exited with code 1."
    )


def test_evidence() -> None:
    details = {"exit_code": 3, "signal": None, "pid": 7, "log_tail": ["[manager] x", "last words"], "ended_at": None}
    assert evidence_of({"message": "It ended.", "details": details}) == [
        "exit code: 3",
        "pid: 7",
        "its last lines:",
        "  | last words",
    ]
    assert evidence_of({"message": "It ended.", "details": None}) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0s"), (0.9, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (1e6, "11d")],
)
def test_age(seconds: float, text: str) -> None:
    assert age(seconds) == text


def test_nothing_moves_the_cursor() -> None:
    assert printable("a\x1b[2Jb\tc\nd\x9be") == "a�[2Jb c d�e"


def test_every_command_has_help_and_every_exit_code_its_row() -> None:
    root = CliRunner().invoke(cli.penstock, ["--help"], prog_name="penstock").stdout
    for name in cli.penstock.list_commands(click.Context(cli.penstock)):
        done = CliRunner().invoke(cli.penstock, [name, "--help"], prog_name="penstock")
        assert done.exit_code == 0
        assert done.stdout.startswith(f"Usage: penstock {name} ")
        assert f"\n  {name} " in root
    codes = [value for name, value in vars(cli).items() if name.isupper() and isinstance(value, int)]
    table = root.partition("Exit codes:")[2]
    assert len(codes) == 11
    for code in codes:
        assert f"  {code} " in table or f"  {code}," in table
