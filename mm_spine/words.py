"""Texts for messages and terminals: the nearest valid word for a wrong one, and text without control characters."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# Characters that a terminal acts on instead of showing: control characters, marks that change the direction of text,
# and halves of surrogate pairs, which cannot be encoded.
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


_LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")


PLUGIN_HINT = "if a plugin adds it, give --plugin FILE"
"""What a message about an unknown method, benchmark or answer kind says too."""


def nearest(word: str, valid: Iterable[str]) -> str:
    """Return "did you mean ...?" with the closest of the `valid` words, if one is close, and the list of all."""
    words = sorted(valid)
    close = closest(word, words)
    return (f"did you mean {close!r}? " if close else "") + f"valid: {', '.join(words)}"


def closest(word: str, valid: Iterable[str], cutoff: float = 0.5) -> str | None:
    """Return the closest of the `valid` words, None if none is at least `cutoff` (0 to 1) alike.

    A word of the same letters comes first: two that are interchanged are the commonest slip.
    """
    close = difflib.get_close_matches(word, list(valid), n=3, cutoff=cutoff)
    return next((found for found in close if sorted(found) == sorted(word)), close[0] if close else None)


def visible(text: str) -> str:
    """Replace characters that could move a terminal's cursor or change the direction of text by their escapes.

    Line breaks and tabs are kept.
    """
    return _UNSEEN.sub(_escape, text)


def visible_line(text: str) -> str:
    """Replace the characters that `visible` does, and line breaks and tabs too, by their escapes."""
    return re.sub(r"[\t\n\u2028\u2029]", _escape, visible(text))


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


def check_characters(what: str, *texts: str) -> None:
    """Raise ValueError if a text holds half of a surrogate pair, which no file, hash or tokenizer accepts."""
    for text in texts:
        if _LONE_SURROGATE.search(text):
            raise ValueError(f"{what} holds half a character (a lone surrogate escape); write it out")


def one_line(text: str) -> str:
    """Return `text` on one line: white space and characters that cannot be printed become single spaces."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
