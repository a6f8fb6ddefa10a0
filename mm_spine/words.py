"""Text for people: the nearest valid word for a wrong one, and a model's text made safe for a terminal."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# What a terminal would act on instead of showing: controls, and marks that turn the direction of text.
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def nearest(word: str, valid: Iterable[str]) -> str:
    """Return "did you mean ...?" with the closest of the `valid` words, if one is close, and the list of all."""
    words = sorted(valid)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return (f"did you mean {close[0]!r}? " if close else "") + f"valid: {', '.join(words)}"


def visible(text: str) -> str:
    """Write out, as escapes, the characters with which `text` could move a terminal's cursor or turn its direction."""
    return _UNSEEN.sub(lambda unseen: unseen[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """Return `text` on one line, without characters that cannot be printed."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
