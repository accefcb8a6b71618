"""When the daemon that is put together says that it is ready."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from structlog.testing import capture_logs

from penstock import wiring
from penstock.service import Notifier
from penstock.settings import load
from tests.stores.files import write_locked


@pytest.fixture
def anyio_backend() -> str:
    """A daemon runs on asyncio."""
    return "asyncio"


async def test_ready_is_said_once_the_store_can_be_used(tmp_path: Path) -> None:
    settings = load(None, environ={"STATE_DIRECTORY": str(tmp_path)}, overrides={})
    async with wiring.build(settings) as daemon, anyio.create_task_group() as tasks:
        daemon.store._writer._connection.execute("PRAGMA busy_timeout = 10")
        daemon.loop.caught_up.set()
        serving = anyio.Event()
        serving.set()
        with capture_logs() as logged:
            with write_locked(tmp_path / "penstock.db"):
                tasks.start_soon(wiring._tell_when_ready, daemon, serving, Notifier({}))
                with anyio.fail_after(10):
                    while not logged:
                        await anyio.sleep(0.01)
                assert [line["event"] for line in logged] == ["not ready, store unavailable"]
                await anyio.sleep(0.1)
                assert len(logged) == 1
            with anyio.fail_after(10):
                while len(logged) < 2:
                    await anyio.sleep(0.01)
            assert logged[1]["event"] == "ready"
