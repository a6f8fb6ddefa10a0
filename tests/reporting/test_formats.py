"""Numbers and long texts as the pages show them."""

from __future__ import annotations

import pytest

from mm_spine.intervals import Interval
from mm_spine.reporting import formats


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.04, "0.0 s"), (59.4, "59.4 s"), (60, "1 min 00 s"), (3599.6, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert formats.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (True, "–"),
        ("x", "–"),
        (12345, "12,345"),
        (0.123456, "0.1235"),
        (2e9, "2e+09"),
    ],
)
def test_numbers_in_tables(value: object, text: str) -> None:
    assert formats.compact(value) == text


def test_a_difference_that_rounds_to_zero_has_no_minus() -> None:
    assert formats.signed(-0.0004) == "+0.0"
    assert formats.points(Interval(-0.0004, -0.02, 0.01)) == "+0.0 points [-2.0, +1.0]"
    assert formats.points(Interval(0.5, None, None)) == "+50.0 points"
    assert formats.gain(Interval(0.5, None, None)) == "+50.0" and formats.gain(None) == "–"


def test_the_middle_of_a_long_text_is_counted() -> None:
    assert formats.shortened("abcdefgh", 3, 2) == "abc\n[... 3 characters left out ...]\ngh"
    assert formats.shortened("abcde", 3, 2) == "abcde"
