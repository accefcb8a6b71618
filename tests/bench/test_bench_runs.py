"""The bench goes through all of its steps; its figures are nobody's business here."""

from __future__ import annotations

import pytest

from .__main__ import Bench, run


@pytest.mark.timeout(300)
def test_the_bench_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bench, "idle", lambda self: self.row("idle", "-", "left out"))
    rows = run(pipelines=10)
    assert len(rows) == 13
