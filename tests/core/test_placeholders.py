"""The ``{names}`` of argv templates: what is known is filled in once, everything else stays as it was written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.placeholders import fill_in

PLACES = {"python": "/usr/bin/python3", "port_file": "/run/x y", "empty": "", "nested": "{python} {nested}"}


@pytest.mark.parametrize(
    ("word", "filled"),
    [
        ("{python}", "/usr/bin/python3"),
        ("--port={port_file}", "--port=/run/x y"),
        ("{python}{empty}{python}", "/usr/bin/python3/usr/bin/python3"),
        ("{nested}", "{python} {nested}"),
        ("{unknown}", "{unknown}"),
        ("{}", "{}"),
        ("{{python}}", "{/usr/bin/python3}"),
        ("{ python }", "{ python }"),
        ("{python", "{python"),
        ("python}", "python}"),
        ("{Python}", "{Python}"),
        ("{python!r}", "{python!r}"),
        ("{python:>9}", "{python:>9}"),
        ("{0}", "{0}"),
        ("${HOME} %s $(id) `id` \\1 \\g<0>", "${HOME} %s $(id) `id` \\1 \\g<0>"),
        ('{"a": {"python": 1}}', '{"a": {"python": 1}}'),
        ("", ""),
    ],
)
def test_a_word(word: str, filled: str) -> None:
    assert fill_in([word], PLACES) == (filled,)


PIECES = st.sampled_from(["{", "}", "{}", "a", " ", "{python}", "{nested}", "{empty}", "{nobody}", "\\1", "é"])
WORDS = st.lists(PIECES, max_size=8).map("".join)


def naive(word: str) -> str:
    """The same without regular expressions: left to right, what was written is not read again."""
    out = ""
    while word:
        known = next((name for name in PLACES if word.startswith(f"{{{name}}}")), None)
        taken = 1 if known is None else len(known) + 2
        out += word[:1] if known is None else PLACES[known]
        word = word[taken:]
    return out


@given(st.lists(WORDS, max_size=5))
def test_like_the_naive_one(template: list[str]) -> None:
    assert fill_in(template, PLACES) == tuple(naive(word) for word in template)


@given(st.lists(st.text(), max_size=5), st.dictionaries(st.from_regex(r"[A-Z]+[a-z_]*", fullmatch=True), st.text()))
def test_names_that_no_placeholder_can_have_change_nothing(template: list[str], values: dict[str, str]) -> None:
    assert fill_in(template, values) == tuple(template)


def test_only_lower_case_names_are_placeholders() -> None:
    word = "{Python} {x1} {x-y} {} { x }"
    values = dict.fromkeys(["Python", "x1", "x-y", "", " x "], "no")
    assert fill_in([word], values) == (word,)


@given(st.text())
def test_a_value_comes_through_untouched_as_one_word(value: str) -> None:
    assert fill_in(["{here}", "-{here}-"], {"here": value}) == (value, f"-{value}-")
