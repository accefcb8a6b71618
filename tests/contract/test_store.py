"""Every Store, one contract."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from penstock.ports import Store
from penstock.stores.sqlite import open_sqlite
from penstock.testing.memory_store import MemoryStore
from penstock.testing.store_contract import RETENTION, StoreContract
from penstock.testing.virtual import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self, clock: ManualClock) -> Store:
        return MemoryStore(clock, retention=RETENTION)


class TestSqliteStore(StoreContract):
    @pytest.fixture
    async def store(self, clock: ManualClock, tmp_path: Path) -> AsyncGenerator[Store, None]:
        async with open_sqlite(tmp_path / "penstock.db", clock=clock, retention=RETENTION) as store:
            yield store
