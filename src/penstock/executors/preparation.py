"""From a row and its toolchain's plan to what exactly is begun: words, environment, configuration.

Called by the process executor, in a thread. Everything that a program gets is decided here (design: environment is an
allow-list). Must never begin anything.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from penstock.executors.records import Records
from penstock.executors.storage import Home
from penstock.model import BootstrapPolicy, Fault, Initial, Pipeline
from penstock.placeholders import fill_in
from penstock.ports import ExecutorError, RunPlan

CONTRACTS = ("process", "http")

LONGEST_STRING_BYTES = 32 * os.sysconf("SC_PAGE_SIZE") - 1
"""Of one word, or of one variable as `NAME=value`: MAX_ARG_STRLEN, without the NUL."""
_POINTER_BYTES = 8

_INHERITED = frozenset({"PATH", "HOME", "LANG", "LANGUAGE", "TZ", "USER", "LOGNAME", "SHELL", "TMPDIR"})
_INHERITED_PREFIX = "LC_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What is begun for one deployment."""

    argv: tuple[str, ...]
    env: dict[str, str]
    config: dict[str, Any]
    contract: str


def prepare(
    row: Pipeline,
    plan: RunPlan,
    *,
    home: Home,
    records: Records,
    instance_id: str,
    bind_address: str,
    environment: Mapping[str, str],
) -> Prepared:
    """Work out what to begin; the program's environment adds to `environment`.

    Raises ExecutorError (no retry) when it cannot be begun.
    """
    if plan.contract not in CONTRACTS:
        raise cannot(f"Contract {plan.contract!r} is unknown; it must be one of {', '.join(CONTRACTS)}.", retry=False)
    policy = row.bootstrap.policy if row.bootstrap is not None else BootstrapPolicy.AWAIT_APPROVAL
    facts = {
        "deployment_id": str(row.deployment_id),
        "initial": (row.deployment_initial or Initial.RUNNING).value,
        "storage_dir": str(home.storage),
        "work_dir": str(records.work),
        "config_file": str(records.config_file),
        "port_file": str(records.port_file),
        "bind_address": bind_address,
        "bootstrap_policy": policy.value,
    }
    places = {**facts, "program_file": plan.program_file, "artifact_dir": plan.artifact_dir}
    argv = fill_in(plan.argv, places)
    own = {f"PENSTOCK_{name.upper()}": value for name, value in facts.items()}
    own |= {
        "PENSTOCK_INSTANCE_ID": instance_id,
        "PENSTOCK_PIPELINE_ID": row.id,
        "PENSTOCK_PIPELINE_NAME": row.spec.name,
    }
    env = {**environment, **dict(plan.env), **_of_the_user(row), **own}
    _check_executable(argv, env, records)
    return Prepared(argv=argv, env=env, config=_config(row, home), contract=plan.contract)


def too_big(prepared: Prepared) -> ExecutorError:
    """The error of a program whose words or environment Linux has refused as too long (execve(2), E2BIG)."""
    words = {f"word {place} of its command": os.fsencode(word) for place, word in enumerate(prepared.argv, 1)}
    variables = {f"its variable {name}": os.fsencode(f"{name}={value}") for name, value in prepared.env.items()}
    sizes = sorted(((len(text), name) for name, text in {**words, **variables}.items()), reverse=True)
    size, name = sizes[0]
    if size > LONGEST_STRING_BYTES:
        flaw = f"{name} has {size} bytes; the longest that Linux takes has {LONGEST_STRING_BYTES}"
    else:
        total = sum(size + 1 + _POINTER_BYTES for size, _ in sizes)
        largest = ", ".join(f"{name} with {size}" for size, name in sizes[:3])
        limit = "a quarter of the daemon's stack limit, 6 MiB at most; a name like `a.b` counts twice"
        flaw = (
            f"there are {total} bytes of words and environment, more than Linux takes ({limit}); largest is {largest}"
        )
    return cannot(f"The program cannot be begun: {flaw}. Pass it in a file instead.", retry=False)


def cannot(message: str, *, retry: bool) -> ExecutorError:
    """The error of a deployment that cannot be begun (contract.md section 7.1)."""
    return ExecutorError(Fault("RunnerProvisionError", message, {"error": message}), retry=retry)


def _check_executable(argv: tuple[str, ...], env: dict[str, str], records: Records) -> None:
    if not argv or not argv[0]:
        raise cannot("The toolchain's run command is empty. Correct [toolchains] in the configuration.", retry=False)
    name = argv[0]
    if "/" not in name:
        if shutil.which(name, path=env.get("PATH", os.defpath)) is None:
            text = f"There is no executable {name!r} on the PATH of the pipeline ({env.get('PATH', os.defpath)})."
            raise cannot(f"{text} Install it, or name its full path in the program.", retry=False)
        return
    path = records.work / name  # an absolute name stays what it is
    if not path.is_file():
        text = f"The executable {str(path)!r} does not exist."
        raise cannot(f"{text} Install it, or correct its path in the program.", retry=False)
    if not os.access(path, os.X_OK):
        text = f"{str(path)!r} may not be executed by this user."
        raise cannot(f"{text} Set its executable bit (chmod +x), or name an interpreter in front of it.", retry=False)


def inherited() -> dict[str, str]:
    """What every program gets of the daemon's own environment."""
    return {n: value for n, value in os.environ.items() if n in _INHERITED or n.startswith(_INHERITED_PREFIX)}


def _of_the_user(row: Pipeline) -> dict[str, str]:
    own = row.spec.runtime_config.get("env")
    return {name: str(value) for name, value in own.items()} if isinstance(own, Mapping) else {}


def _config(row: Pipeline, home: Home) -> dict[str, Any]:
    """What config.json holds: the runtime configuration at top level, and who it is for (contract.md section 7.1)."""
    return {
        **row.spec.runtime_config,
        "name": f"pipeline-{row.id}",
        "given_name": row.spec.name,
        "pipeline_id": row.id,
        "deployment_id": row.deployment_id,
        "storage_config": {"path": str(home.storage), "cache": "page_cache"},
    }
