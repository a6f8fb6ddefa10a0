"""Short free text, compared without case, repeated white space and surrounding punctuation."""

from __future__ import annotations

import re
import unicodedata

from mm_spine.processors.answers.extraction import announced, last_boxed, plain
from mm_spine.processors.answers.kind import keyed
from mm_spine.types import AnswerSpec

_MARKS = ",;:!?\"'*_“”‘’«»"
# Unicode composition takes quadratic time where combining marks pile up; a longer text is left as it is.
_COMPOSED = 2000
_PAIR = re.compile(r"\(([^()]*)\)|\[([^\[\]]*)\]|\{([^{}]*)\}")


def read(text: str, spec: AnswerSpec) -> str | None:
    return normal(text)


def normal(text: str) -> str | None:
    """Return the normalised text, None if nothing is left. A sign, a leading decimal point and a % stay."""
    text = " ".join(plain(text).casefold().split())
    while True:
        before = text
        text = unicodedata.normalize("NFC", text) if len(text) <= _COMPOSED else text
        text = text.lstrip(_MARKS + " ").rstrip(_MARKS + ". ")
        if pair := _PAIR.fullmatch(text):
            text = next(inner for inner in pair.groups() if inner is not None)
        if text == before:
            return text or None


def find(response: str, spec: AnswerSpec) -> str | None:
    """Return the boxed content, else the announced answer, else the whole response, normalised."""
    box = last_boxed(response)
    content = response if box is None else box
    return next((key for said in announced(content) if (key := read(said, spec))), read(content, spec))


KIND = keyed(find, read)
