"""Integers (AIME, AMC). "7", "7.0", "07" and "+7" have one key; a decimal or a fraction is no integer.

A response is read as `maths` reads it, so that the two kinds agree on every text.
"""

from __future__ import annotations

import re

from mm_spine.processors.answers import maths
from mm_spine.processors.answers.kind import keyed
from mm_spine.types import Answer, AnswerSpec

_INTEGER = re.compile(r"(?P<sign>[+-]?)(?P<digits>[0-9]+)")


def read(text: str, spec: AnswerSpec) -> str | None:
    r"""Return the integer that `text` spells, which may have a unit ("7 apples"); None for several, or for \sqrt{7}."""
    return _integer(maths.read(text))


def find(response: str, spec: AnswerSpec) -> str | None:
    """Return the boxed integer, else the announced one (the result of an equation), else the last number."""
    return _integer(maths.find(response))


def _integer(answer: Answer | None) -> str | None:
    """Return the integer without sign +, separators and leading zeros; None if the answer is no integer."""
    # All on text: int() refuses more than 4,300 digits.
    match = _INTEGER.fullmatch((answer.key or "").replace(",", "")) if answer else None
    if match is None:
        return None
    digits = match["digits"].lstrip("0") or "0"
    return "-" + digits if match["sign"] == "-" and digits != "0" else digits


KIND = keyed(find, read)
