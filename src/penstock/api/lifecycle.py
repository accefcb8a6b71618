"""Start, stop, clear and the rest of what a user may ask of a pipeline: thin handlers over `penstock.requests`.

Each records what is wanted and answers at once; the loop makes it true (contract.md section 5.3).
"""

from __future__ import annotations

from aiohttp import web

from penstock import requests
from penstock.api import query
from penstock.api.context import PIPELINE, Handler, context_of, pipeline_of
from penstock.api.errors import ApiError
from penstock.api.interaction import check_reachable, tell
from penstock.api.responses import json_response
from penstock.api.writing import change
from penstock.model import Bootstrap, BootstrapPolicy, Initial, Pipeline, RuntimeDesired


def routes() -> list[web.RouteDef]:
    """The routes of this resource."""
    return [
        web.post(f"{PIPELINE}/start", start),
        web.post(f"{PIPELINE}/stop", stop),
        web.post(f"{PIPELINE}/clear", clear),
        web.post(f"{PIPELINE}/dismiss_error", dismiss_error),
        web.post(f"{PIPELINE}/pause", _steering(RuntimeDesired.PAUSED)),
        web.post(f"{PIPELINE}/resume", _steering(RuntimeDesired.RUNNING)),
        web.post(f"{PIPELINE}/approve", approve),
        web.post(f"{PIPELINE}/activate", activate),
    ]


async def start(request: web.Request) -> web.Response:
    """Want the pipeline provisioned."""
    asked = _start_request(request)
    clock = context_of(request).clock
    await change(request, lambda row: requests.start(row, asked, now=clock.now()), cause="start requested")
    return json_response(
        "Pipeline is starting; its deployment_status tells when it has reached the wanted state.", status=202
    )


async def stop(request: web.Request) -> web.Response:
    """Want the pipeline stopped: at once with force, else after it had time to end by itself."""
    force = query.flag(request, "force", default=False)
    context = context_of(request)
    grace = context.stop_grace_seconds()

    def rule(row: Pipeline) -> Pipeline:
        return requests.stop(row, force=force, grace_seconds=grace, now=context.clock.now())

    await change(request, rule, cause="forced stop requested" if force else "stop requested")
    return json_response("Pipeline is stopping; deployment_status will be Stopped when it has stopped.", status=202)


async def clear(request: web.Request) -> web.Response:
    """Want the pipeline's storage cleared."""
    await change(request, requests.clear, cause="clear requested")
    return json_response("Storage is being cleared; storage_status will be Cleared when it is gone.", status=202)


async def dismiss_error(request: web.Request) -> web.Response:
    """Forget the error of the last run."""
    await change(request, requests.dismiss_error, cause="error dismissed")
    return json_response("The deployment error is dismissed.")


async def approve(request: web.Request) -> web.Response:
    """Let a process that awaits approval go on with a changed program; answered once it has."""
    bootstrap = _bootstrap(request, BootstrapPolicy.ALLOW)
    row, location = await _speaking(request, "approve", "the pipeline's process never waits for an approval")
    flags = f"silent_bootstrap={_word(bootstrap.silent)}&concurrent_bootstrap={_word(bootstrap.concurrent)}"
    answer = await tell(request, row, location, f"/approve?{flags}")
    return answer if answer.status >= 300 else json_response("The pipeline's changes are approved.")


async def activate(request: web.Request) -> web.Response:
    """Let a process that is on standby become what `initial` says."""
    initial = _initial(request, "activate", (Initial.RUNNING, Initial.PAUSED))
    row, location = await _speaking(request, "activate", "the pipeline's process is never on standby")
    answer = await tell(request, row, location, f"/activate?initial={initial.value}")
    if answer.status >= 300:
        return answer
    await change(request, lambda row: requests.activated(row, initial.desired), cause="activation requested")
    return json_response(f"Pipeline was told to be {initial.desired.value}.", status=202)


def _steering(target: RuntimeDesired) -> Handler:
    """The handler that wants a provisioned pipeline to be `target`."""
    cause = "pause requested" if target is RuntimeDesired.PAUSED else "resume requested"

    async def steer(request: web.Request) -> web.Response:
        await change(request, lambda row: requests.steer(row, target), cause=cause)
        return json_response(f"Pipeline was told to be {target.value}.", status=202)

    return steer


def _start_request(request: web.Request) -> requests.StartRequest:
    initial = _initial(request, "start", tuple(Initial))
    policy = BootstrapPolicy(
        query.choice(request, "bootstrap_policy", tuple(BootstrapPolicy), BootstrapPolicy.AWAIT_APPROVAL)
    )
    bootstrap = _bootstrap(request, policy)
    dismiss = query.flag(request, "dismiss_error", default=True)
    return requests.StartRequest(initial=initial, bootstrap=bootstrap, dismiss_error=dismiss)


def _initial(request: web.Request, action: str, choices: tuple[Initial, ...]) -> Initial:
    value = request.query.get("initial", Initial.RUNNING)
    if value not in choices:
        reason = f"initial={value[:100]!r} is not one of {', '.join(choices)}"
        raise ApiError(
            "UnsupportedPipelineAction", f"{action} refused: {reason}.", {"action": action, "reason": reason}
        )
    return Initial(value)


def _bootstrap(request: web.Request, policy: BootstrapPolicy) -> Bootstrap:
    silent = query.flag(request, "silent_bootstrap", default=False)
    concurrent = query.flag(request, "concurrent_bootstrap", default=False)
    if silent and concurrent:
        reason = "silent_bootstrap and concurrent_bootstrap exclude each other"
        raise ApiError("InvalidBootstrapConfig", f"The bootstrap parameters do not fit: {reason}.", {"reason": reason})
    return Bootstrap(policy, silent=silent, concurrent=concurrent)


async def _speaking(request: web.Request, action: str, why_not: str) -> tuple[Pipeline, str]:
    """The pipeline, and where its process is. Raises ApiError if it cannot be told anything, or never `action`."""
    row = await pipeline_of(request)
    check_reachable(row)
    if row.deployment_location is None:
        raise _unsupported(action, why_not)
    return row, row.deployment_location


def _word(flag: bool) -> str:
    return "true" if flag else "false"


def _unsupported(action: str, reason: str) -> ApiError:
    return ApiError("UnsupportedPipelineAction", f"{action} refused: {reason}.", {"action": action, "reason": reason})
