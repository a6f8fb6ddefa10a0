"""Integers (AIME, AMC). "7", "7.0", "07" and "+7" have one key; a decimal or a fraction is no integer."""

from __future__ import annotations

import re

from mm_spine.processors.answers.extraction import LOOKED_AT, announced, answerable, last_boxed, plain
from mm_spine.processors.answers.kind import keyed
from mm_spine.types import AnswerSpec

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
# Match a number with all that makes it something else (3.5, 3/4, 7cm, 1e5, 7^2), so that no integer is cut from it.
_NUMBER = re.compile(rf"(?<![\w.])(?:(?<![)\]])[+-])?\.?{_DIGITS}(?:\.[0-9]+|[/^:]\{{?[-+]?[0-9]+|\w+)*")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_INTEGER = re.compile(rf"(?P<sign>[+-]?)(?P<digits>{_DIGITS})(?:\.0+)?")


def _numbers(text: str) -> list[str]:
    """Return the numbers of `text`, fractions as a/b."""
    text = _FRACTION.sub(r"\1/\2", plain(text).replace("\N{MINUS SIGN}", "-"))
    return _NUMBER.findall(re.sub(r"\{,\}|\\[,!]", ",", text))


def _is_formula(text: str) -> bool:
    """Return whether `text` holds a LaTeX command other than spacing and the percent sign."""
    return "\\" in re.sub(r"\\[,!%]", "", plain(text))


def _canonical(number: str) -> str | None:
    """Return the integer without sign +, separators and leading zeros; None if `number` is no integer."""
    # All on text: int() refuses more than 4,300 digits.
    match = _INTEGER.fullmatch(number)
    if match is None:
        return None
    digits = match["digits"].replace(",", "").lstrip("0") or "0"
    return "-" + digits if match["sign"] == "-" and digits != "0" else digits


def read(text: str, spec: AnswerSpec) -> str | None:
    r"""Return the one integer of `text`, which may hold words ("7 apples"); None for several, or for \sqrt{7}."""
    numbers = _numbers(text)
    return _canonical(numbers[0]) if len(numbers) == 1 and not _is_formula(text) else None


def find(response: str, spec: AnswerSpec) -> str | None:
    """Return the boxed integer, else the announced one (the result of an equation), else the last number."""
    box = last_boxed(response)
    if box is not None:
        return read(box, spec)
    response = answerable(response[-LOOKED_AT:])
    for statement in announced(response):
        result = statement.rpartition("=")[2]
        if numbers := _numbers(result):
            return None if _is_formula(result) else _canonical(numbers[0])
    numbers = _numbers(response)
    return _canonical(numbers[-1]) if numbers else None


KIND = keyed(find, read)
