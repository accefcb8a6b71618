"""The Toolchains port on this machine: tools run as children, results are kept on its disk.

Built by `wiring.py`; called by the compiler (check, build, sweep), the reconciler (verify), executors (plan) and the
API (refuse). Templates of tools may use `{python} {tools_dir} {work_dir} {program_file} {artifact_dir} {udf_rust_file}
{udf_toml_file} {program_config_file} {info_file} {environments_dir}`; in `run`, `{python}` is that of
`{artifact_dir}/environment` if the build made one. Must never run a program, only tools.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast
from weakref import WeakValueDictionary

import anyio
from anyio import to_thread

from penstock.model import Fault, JsonObject, Pipeline, Spec
from penstock.placeholders import fill_in
from penstock.ports import ExecutorError, RunPlan, StepBroke, StepFailed, StepPassed, StepResult
from penstock.toolchains.artifacts import Artifacts, Workspace
from penstock.toolchains.command import CommandLineFlawed, missing_executable, split_words
from penstock.toolchains.definition import CONTRACTS, EX_UNAVAILABLE, TOOLS_DIR, Toolchain
from penstock.toolchains.messages import check_outcome, flaw, skipped, summary
from penstock.toolchains.tool import Ended, ToolBroke, hunt, run_tool

INHERITED = ("PATH", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "TZ")
"""All that a tool gets of the daemon's environment; what else it needs is the toolchain's `env`."""

FOR_BUILDS = re.compile(
    r"PIP_.*|UV_.*|NETRC|SSL_CERT_(FILE|DIR)|(REQUESTS|CURL)_CA_BUNDLE|(HTTP|HTTPS|ALL|NO|http|https|all|no)_(PROXY|proxy)"
)
"""What a build, which may fetch packages, gets besides: where from, and how to get there. No program gets any of it."""

LONGEST_INFO_BYTES = 16 * 1024 * 1024
"""Of what a check writes to `{info_file}`: it becomes `program_info` on the row."""

BUILT_FROM = ("name", "check", "build", "run", "env", "program_name", "is_command")
"""What of a toolchain, when it is changed, has programs built again: not how long it may take or how it is read."""

DIGEST_FORMAT = 1
"""Counted up when what is kept means something else than before: everything is then built again."""


class LocalToolchains:
    """The configured toolchains. `default` names the one for programs that name none."""

    def __init__(
        self, *, toolchains: Mapping[str, Toolchain], default: str, state_dir: Path, python: str = sys.executable
    ) -> None:
        self.toolchains = toolchains
        """May be replaced, and `default` with it: a reload of the settings does. Steps under way go on as begun."""
        self.default = default
        self._python = python
        self._artifacts = Artifacts(state_dir.absolute())
        self._building: WeakValueDictionary[str, anyio.Lock] = WeakValueDictionary()
        self._fresh: set[str] = set()
        """Built or found whole since the last sweep: rows that a sweep was given may be older than them."""

    def refuse(self, spec: Spec) -> str | None:
        """Tell why `program_config` names no usable toolchain or contract; None when it is fine."""
        toolchain = self._choose(spec)
        if isinstance(toolchain, str):
            return toolchain
        contract = spec.program_config.get("contract")
        if contract is not None and contract not in CONTRACTS:
            return f"There is no contract {contract!r}; program_config.contract must be one of: {', '.join(CONTRACTS)}."
        return None

    async def check(self, row: Pipeline) -> StepResult:
        """Check the program. May be cancelled: then nothing of it is left running."""
        toolchain = self._choose(row.spec)
        if isinstance(toolchain, str):
            return StepBroke(toolchain)
        if not toolchain.check:
            if toolchain.is_command and not toolchain.run:
                return await to_thread.run_sync(self._check_command, row.spec, toolchain)
            return StepPassed(outcome=skipped())
        try:
            async with self._workspace(row.spec, toolchain, toolchain.check) as space:
                ended = await self._run(toolchain.check, toolchain, space)
                return await to_thread.run_sync(_checked, ended, row.spec, toolchain, space)
        except ToolBroke as error:
            return StepBroke(f"The check of the program could not be made. {error}")
        except OSError as error:
            return StepBroke(f"The check of the program could not be made: {_explain(error)}")

    async def build(self, row: Pipeline) -> StepResult:
        """Build the program; StepPassed.artifact is its digest. May be cancelled, as above.

        A program that was built before, the same way, is not built again as long as what was kept is whole.
        """
        toolchain = self._choose(row.spec)
        if isinstance(toolchain, str):
            return StepBroke(toolchain)
        digest = self._digest(row.spec, toolchain)
        try:
            async with self._building.setdefault(digest, anyio.Lock()):
                self._fresh.add(digest)
                outcome = await to_thread.run_sync(self._artifacts.outcome, digest)
                if outcome is None:
                    built = await self._build(row.spec, toolchain, digest)
                    if not isinstance(built, StepPassed):
                        return built
                    outcome = built.outcome
                return StepPassed(outcome=outcome, artifact=digest)
        except ToolBroke as error:
            return StepBroke(f"The program could not be built. {error}")
        except OSError as error:
            return StepBroke(f"The program could not be built: {_explain(error)}")

    async def verify(self, row: Pipeline) -> str | None:
        """Tell what is missing or damaged of `row.artifact`; None when it is whole.

        What was built before its toolchain was changed counts as missing. A toolchain that is gone is no reason to
        build again, which could only fail: `plan` tells of it.
        """
        if row.artifact is None:
            return "The program has not been built."
        toolchain = self._choose(row.spec)
        if isinstance(toolchain, Toolchain) and self._digest(row.spec, toolchain) != row.artifact:
            return f"The program was built before the toolchain {toolchain.name!r} was changed."
        return await to_thread.run_sync(self._artifacts.flaw, row.artifact, abandon_on_cancel=True)

    def plan(self, row: Pipeline) -> RunPlan:
        """How to start the row's program. Raises ExecutorError (no retry) when its toolchain is gone."""
        toolchain = self._choose(row.spec)
        if isinstance(toolchain, str):
            raise _unusable(toolchain)
        if row.artifact is None:
            raise _unusable("The program has not been built.")
        try:
            argv = toolchain.run or split_words(row.spec.program_code)
        except CommandLineFlawed as error:
            hint = f"The toolchain {toolchain.name!r} runs the text of the program as a command line."
            raise _unusable(f"{error} {hint}") from error
        kept = self._artifacts.path(row.artifact)
        own_python = kept / "artifact" / "environment" / "bin" / "python"
        contract = row.spec.program_config.get("contract")
        return RunPlan(
            argv=fill_in(argv, {"python": str(own_python) if own_python.is_file() else self._python}),
            contract=contract if isinstance(contract, str) else toolchain.contract,
            artifact_dir=str(kept / "artifact"),
            program_file=str(kept / toolchain.program_name),
            env=toolchain.env,
        )

    async def sweep(self, rows: Sequence[Pipeline]) -> int:
        """Remove what no row refers to; returns how many artifacts went.

        What was built since the last sweep stays for one more, since `rows` may be older. Processes that an earlier
        daemon's tools left behind are killed.
        """
        wanted = {row.artifact for row in rows if row.artifact is not None} | self._fresh | set(self._building)
        for row in rows:
            toolchain = self._choose(row.spec) if row.artifact is None else ""
            if isinstance(toolchain, Toolchain):
                wanted.add(self._digest(row.spec, toolchain))
        self._fresh = set(self._building)
        return await to_thread.run_sync(self._sweep, wanted)

    def _sweep(self, wanted: set[str]) -> int:
        hunt(self._artifacts.is_abandoned)
        return self._artifacts.sweep(wanted)

    def _choose(self, spec: Spec) -> Toolchain | str:
        """The toolchain of a program, or why there is none."""
        named = spec.program_config.get("toolchain")
        name = self.default if named is None else named
        if isinstance(name, str) and name in self.toolchains:
            return self.toolchains[name]
        near = difflib.get_close_matches(str(name), self.toolchains, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        configured = ", ".join(sorted(self.toolchains)) or "none"
        return f"There is no toolchain {name!r}; configured on this server: {configured}.{hint}"

    def _digest(self, spec: Spec, toolchain: Toolchain) -> str:
        """What the result of a build depends on. An interpreter of another version makes other results."""
        inputs: dict[str, object] = {
            "format": DIGEST_FORMAT,
            "interpreter": sys.implementation.cache_tag,
            "toolchain": [getattr(toolchain, name) for name in BUILT_FROM],
            "program": [spec.program_code, spec.udf_rust, spec.udf_toml, spec.program_config],
        }
        return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()

    def _check_command(self, spec: Spec, toolchain: Toolchain) -> StepResult:
        try:
            executable = split_words(spec.program_code)[0]
        except CommandLineFlawed as error:
            return StepFailed(outcome={"exit_code": 1, "messages": [flaw(str(error), "Command line error")]})
        env = {**_inherited(), **dict(toolchain.env)}
        own = spec.runtime_config.get("env")
        path = cast("JsonObject", own).get("PATH") if isinstance(own, Mapping) else None
        if isinstance(path, str):
            env["PATH"] = path
        reason = missing_executable(executable, env)
        return StepPassed(outcome=skipped()) if reason is None else StepBroke(reason)

    async def _build(self, spec: Spec, toolchain: Toolchain, digest: str) -> StepResult:
        async with self._workspace(spec, toolchain, toolchain.build) as space:
            ended = Ended(0, "", "")
            if toolchain.build:
                ended = await self._run(toolchain.build, toolchain, space)
            outcome: JsonObject = {"exit_code": ended.exit_code, "stdout": ended.stdout, "stderr": ended.stderr}
            if ended.exit_code:
                return StepFailed(outcome=outcome)
            await to_thread.run_sync(self._artifacts.keep, space, digest, outcome)
            return StepPassed(outcome=outcome)

    async def _run(self, template: Sequence[str], toolchain: Toolchain, space: Workspace) -> Ended:
        """Run a tool. Raises ToolBroke, also when the tool says that it is not the program's fault."""
        directory = str(space.work)
        argv = fill_in(
            template,
            {
                "python": self._python,
                "tools_dir": TOOLS_DIR,
                "work_dir": directory,
                "program_file": str(space.program_file),
                "artifact_dir": str(space.artifact),
                "udf_rust_file": str(space.input / "udf.rs"),
                "udf_toml_file": str(space.input / "udf.toml"),
                "program_config_file": str(space.input / "program_config.json"),
                "info_file": str(space.input / "info.json"),
                "environments_dir": str(self._artifacts.environments),
            },
        )
        env = {**_inherited(), "HOME": directory, "TMPDIR": directory, **dict(toolchain.env)}
        if template is toolchain.build:
            env = {name: value for name, value in os.environ.items() if FOR_BUILDS.fullmatch(name)} | env
        ended = await run_tool(argv, directory=directory, env=env, timeout_seconds=toolchain.timeout_seconds)
        if ended.exit_code == EX_UNAVAILABLE:
            raise ToolBroke(summary(ended.stderr) or f"The tool {argv[0]!r} says that it cannot work here.")
        if ended.exit_code < 0:
            raise ToolBroke(
                f"The tool {argv[0]!r} was killed by {_signal_name(-ended.exit_code)}, perhaps for want of memory. "
                + summary(ended.stderr)
            )
        return ended

    @asynccontextmanager
    async def _workspace(
        self, spec: Spec, toolchain: Toolchain, template: Sequence[str]
    ) -> AsyncGenerator[Workspace, None]:
        program = _encoded(spec.program_code)
        inputs = {
            "udf.rs": _encoded(spec.udf_rust),
            "udf.toml": _encoded(spec.udf_toml),
            "program_config.json": json.dumps(spec.program_config).encode(),
        }
        opened: list[Workspace] = []
        try:
            # The list, and not a result: a cancellation must not lose a directory that has just been made.
            await to_thread.run_sync(
                lambda: opened.append(
                    self._artifacts.open_workspace(toolchain.program_name, program, inputs if template else None)
                )
            )
            yield opened[0]
        finally:
            with anyio.CancelScope(shield=True):
                for space in opened:
                    await to_thread.run_sync(self._artifacts.close_workspace, space)


def _checked(ended: Ended, spec: Spec, toolchain: Toolchain, space: Workspace) -> StepResult:
    output = f"{ended.stdout}\n{ended.stderr}"
    outcome = check_outcome(ended.exit_code, output, toolchain.messages, spec.program_code)
    if ended.exit_code:
        return StepFailed(outcome=outcome)
    return StepPassed(outcome=outcome, info=_info(space.input / "info.json"))


def _info(path: Path) -> JsonObject | None:
    """What the check tells of the program, if it does. Raises ToolBroke when that makes no sense."""
    if not path.is_file():
        return None
    if path.stat().st_size > LONGEST_INFO_BYTES:
        raise ToolBroke(f"The tool wrote more than {LONGEST_INFO_BYTES} bytes to {{info_file}}.")
    try:
        info: object = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ToolBroke(f"What the tool wrote to {{info_file}} is not JSON: {error}.") from error
    if not isinstance(info, dict):
        raise ToolBroke("What the tool wrote to {info_file} is not a JSON object.")
    return cast("JsonObject", info)


def _inherited() -> dict[str, str]:
    return {name: os.environ[name] for name in INHERITED if name in os.environ}


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", errors="surrogatepass")


def _explain(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    todo = {
        errno.ENOSPC: " Free some space on the disk of the state directory.",
        errno.EDQUOT: " Free some space on the disk of the state directory.",
        errno.EACCES: " The daemon must be able to write to its state directory.",
        errno.EROFS: " The daemon must be able to write to its state directory.",
    }
    return f"{error.strerror or error}{where}.{todo.get(error.errno or 0, '')}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _unusable(reason: str) -> ExecutorError:
    return ExecutorError(Fault("RunnerConfigError", reason, {"error": reason}), retry=False)
