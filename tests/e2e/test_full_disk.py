"""A pipeline fills the disk that holds the daemon's state: it can be stopped and cleared all the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.disks import KINDS, free_bytes, small_disk

from .daemon import Daemon

GREEDY = """
import os
path = os.environ["PENSTOCK_STORAGE_DIR"] + "/data"
while True:
    try:
        with open(path, "ab", buffering=0) as file:
            for size in (1 << 20, 1 << 10, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    pass
    except OSError:
        pass
"""


@pytest.fixture(params=KINDS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path, request.param, 48) as mounted:
        yield mounted


@pytest.mark.parametrize(("restart", "force"), [("none", True), ("none", False), ("killed", True), ("ended", False)])
def test_what_fills_the_disk_can_be_stopped_and_cleared(
    make_daemon: Callable[..., Daemon], disk: Path, restart: str, force: bool
) -> None:
    daemon = make_daemon(home=disk)
    daemon.start()
    daemon.create("greedy", GREEDY)
    daemon.create("other", "sleep 600", program_config={"toolchain": "command"})
    daemon.start_pipeline("greedy")
    daemon.until("greedy", lambda _: free_bytes(disk) < 1 << 16)
    if restart == "killed":
        daemon.kill()
    elif restart == "ended":
        assert daemon.terminate() == 0
    if restart != "none":
        daemon.start()
    assert daemon.ask("GET", "/readyz").status == 200
    for method, path, body in (
        ("POST", "/v0/pipelines", {"name": "new", "program_code": ""}),
        ("POST", "/v0/pipelines/other/start", None),
    ):
        refused = daemon.ask(method, path, body)
        assert refused.status == 503
        assert "its disk is full" in refused.body["message"]
    assert daemon.ask("DELETE", "/v0/pipelines/other").status == 200

    daemon.stop_pipeline("greedy", force=force)
    assert daemon.pipeline("greedy")["deployment_error"] is None
    daemon.post("greedy", "clear")
    daemon.until("greedy", lambda row: row["storage_status"] == "Cleared")
    told = [(event["deployment_resources_status"], event["storage_status"]) for event in daemon.events("greedy")]
    for step in (("Stopping", "InUse"), ("Stopped", "InUse"), ("Stopped", "Clearing"), ("Stopped", "Cleared")):
        assert step in told
    assert free_bytes(disk) > 8 << 20
    assert daemon.ask("GET", "/readyz").status == 200
    daemon.create("new", "sleep 600", program_config={"toolchain": "command"})
    daemon.start_pipeline("new")
    daemon.stop_pipeline("new")
