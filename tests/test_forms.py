"""Flags that are typed, one a line: each becomes the value that was meant, and none breaks the page."""

from __future__ import annotations

from typing import Any

import pytest

from deployments.commands import checked
from deployments.web.forms import parse_flags


@pytest.mark.parametrize(("typed", "value"), [
    ("1", 1), ("-0.5", -0.5), ("true", True), ("[1, 2]", [1, 2]), ('{"a": [{"b": null}]}', {"a": [{"b": None}]}),
    ("{% if x %}", "{% if x %}"), ("[a", "[a"), ("1.2.3", "1.2.3"), ("007", "007"), ("\u0663", "\u0663"),
    ("NaN", "NaN"), ("", ""),
])
def test_a_value_is_read_as_what_it_looks_like(typed: str, value: Any) -> None:
    assert parse_flags(f"x={typed}") == {"x": value}


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_what_json_has_no_number_for_stays_text(number: str) -> None:
    for typed in (f"[{number}]", f'{{"a": {number}}}'):
        assert parse_flags(f"x={typed}") == {"x": typed}
    assert isinstance(parse_flags("x=" + "9" * 400 + ".0")["x"], str)


@pytest.mark.parametrize("typed", ["[" * 15_000, '{"a":' * 3_000, "[" * 900 + "]" * 900, "[" * 41 + "]" * 41])
def test_brackets_without_end_stay_text(typed: str) -> None:
    options = parse_flags(f"x={typed}")
    assert options == {"x": typed}
    assert checked(options) == options
