"""Texts for messages and terminals: the nearest valid word for a wrong one, and text without control characters."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# Characters that a terminal acts on instead of showing: control characters, marks that change the direction of text,
# and halves of surrogate pairs, which cannot be encoded.
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def nearest(word: str, valid: Iterable[str]) -> str:
    """Return "did you mean ...?" with the closest of the `valid` words, if one is close, and the list of all."""
    words = sorted(valid)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return (f"did you mean {close[0]!r}? " if close else "") + f"valid: {', '.join(words)}"


def visible(text: str) -> str:
    """Replace characters that could move a terminal's cursor or change the direction of text by their escapes."""
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """Return `text` on one line: white space and characters that cannot be printed become single spaces."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
