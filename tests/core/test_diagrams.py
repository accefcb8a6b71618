"""The diagrams that people read are the tables that the daemon obeys."""

from __future__ import annotations

import re

import pytest

from .diagrams import DIAGRAMS, PAGES, redrawn


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_diagrams_are_what_the_tables_say(file) -> None:
    page = file.read_text("utf-8")
    assert redrawn(page) == page, "run: python -m tests.core.diagrams"


def test_every_machine_is_drawn() -> None:
    pages = "".join(file.read_text("utf-8") for file in PAGES)
    assert set(re.findall(r"<!-- diagram: (\w+) -->", pages)) == set(DIAGRAMS)
