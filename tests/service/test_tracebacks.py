"""What a crash leaves in the log: where it happened, and none of the values that were at hand."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
import structlog

from penstock.telemetry import set_up_logging


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_traceback_holds_no_locals(log_format: str) -> None:
    out = io.StringIO()
    set_up_logging(log_format, "info", out)

    def crash(planted: str) -> None:
        raise RuntimeError(len(planted))

    try:
        crash("".join(["top", "secret"]))
    except RuntimeError:
        structlog.get_logger().exception("it crashed")
    assert "RuntimeError" in out.getvalue()
    assert "topsecret" not in out.getvalue()
