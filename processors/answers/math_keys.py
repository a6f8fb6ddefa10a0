"""Canonical keys of mathematical values: of numbers, words, ratios, numerals with a base, and lists of them."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from mm_spine.processors.answers import checker
from mm_spine.processors.answers.latex import NUMBER, encloses, normal, split, wordy

_DEEPEST = 20  # brackets in brackets; a list nested deeper is treated as a formula


def number(text: str) -> Fraction | None:
    """Return the rational that a normal text spells, its percent sign ignored; None for anything else."""
    match = NUMBER.fullmatch(text) if len(text) <= checker.LONGEST else None
    if match is None:
        return None
    if match["decimal"]:
        size = _fraction(match["decimal"]) * Fraction(10) ** (int(match["ten"] or 0) + int(match["e"] or 0))
        return -size if match["minus"] == "-" else size
    below = _fraction(match["under"] or match["below"])
    if below == 0:
        return None
    size = int(match["whole"] or 0) + _fraction(match["top"] or match["over"]) / below
    return -size if match["sign"] == "-" else size


def _fraction(digits: str) -> Fraction:
    return Fraction(digits.replace(",", "").rstrip("."))


def key(text: str) -> str | None:
    """Return the canonical key of a normal text, None for a formula.

    The key is a rational in lowest terms, words in lower case, "25_8", "1:2", or a list of keys; sets are sorted. A
    text above `checker.LONGEST` is its own key.
    """
    return text if len(text) > checker.LONGEST else _key(text)


@lru_cache(maxsize=1 << 14)
def _key(text: str) -> str | None:
    if (value := number(text)) is not None:
        return str(value)
    # A numeral with its base (MATH, number theory) and a ratio: math-verify reads 25_8 and 25_7 as 25.
    if re.fullmatch(r"\d+(?:_\{?\d+\}?|(?::\d+)+)", text):
        return re.sub(r"[{}]", "", text)
    if wordy(text):
        return text.casefold()
    items = listed(text)
    if items is None:
        return None
    keys = [_item_key(item) for item in items.items]
    known = [each for each in keys if each is not None]
    if len(known) < len(keys):
        return None
    return items.left + ",".join(known if items.ordered else sorted(set(known))) + items.right


def _item_key(item: str) -> str | None:
    """Return the key of an element, which may be named: "x=1.0" has the key "x=1"."""
    name, equals, value = item.rpartition("=")
    found = key(value)
    return None if found is None else name + equals + found


class Listed(NamedTuple):
    """A tuple, an interval or a set: its brackets and elements. A set, and a list without brackets, has braces."""

    left: str
    items: tuple[str, ...]
    right: str

    @property
    def ordered(self) -> bool:
        """Return whether the order of the elements counts."""
        return self.left != r"\{"


def listed(text: str) -> Listed | None:
    r"""Split "(1,2)", "[1,2)", "\{1,2\}" or a bare "1,2" into its elements; None for anything else."""
    left, inner, right = r"\{", text, r"\}"
    if text.startswith(r"\{") and text.endswith(r"\}") and encloses(text):
        inner = text[2:-2]
    elif text[:1] in ("(", "[") and text[-1:] in (")", "]") and encloses(text):
        left, inner, right = text[0], text[1:-1], text[-1]
    if len(text) > checker.LONGEST or checker.depth(text) > _DEEPEST:
        return None
    items = split(inner, thousands=inner == text)
    if not all(items) or r"\begin" in text or (len(items) == 1 and inner == text):
        return None
    # Several names tell the elements apart and stay ("x=1, y=2"); a single one goes ("x=1, x=2" is 1,2).
    names = {item.partition("=")[0] for item in items if "=" in item}
    return Listed(left, tuple(item if len(names) > 1 else normal(item) for item in items), right)
