"""Yes or no, as whole words: "abnormal" and "know" hold no "no"; "cannot be determined" is neither."""

from __future__ import annotations

import re

from mm_spine.processors.answers.boxed import announced, last_boxed, plain
from mm_spine.processors.answers.kind import keyed
from mm_spine.types import AnswerSpec

_LEADING = re.compile(
    r"\W*(yes|no)\b(?!-)(?!\s+(?:way|idea|doubt)\b)(?!\s*(?:/|or\b|and\b)\s*(?:yes|no)\b)", re.IGNORECASE
)
_WORD = re.compile(r"\b(yes|no)\b(?!-)", re.IGNORECASE)
_UNDECIDED = re.compile(
    r"\b(?:can(?:not|'t|\u2019t| not)|could(?:n't|n\u2019t| not)|impossible to|unable to|not possible to|no way to) "
    r"(?:be )?(?:determined?|tell|told|say|said|known?|answer(?:ed)?|decided?|judged?|assess(?:ed)?)\b|\bno idea\b",
    re.IGNORECASE,
)
_UNDECIDED_ANSWER = re.compile(rf"\banswer\s+(?:is\s+)?(?:that\s+it\s+)?(?={_UNDECIDED.pattern})", re.IGNORECASE)


def read(text: str, spec: AnswerSpec) -> str | None:
    """The yes or no that `text` begins with."""
    match = _LEADING.match(plain(text))
    return match[1].lower() if match else None


def find(response: str, spec: AnswerSpec) -> str | None:
    """Boxed; else announced; else what the response, then its last line, begins with; else the only one it holds.

    A response that decides nothing ("it cannot be determined", or both words) has no answer.
    """
    box = last_boxed(response)
    if box is not None:
        return read(box, spec)
    if _UNDECIDED_ANSWER.search(response):
        return None
    lines = response.strip().splitlines()
    committed = [*announced(response), *lines[:1], *lines[-1:]]
    if key := next((key for said in committed if (key := read(said, spec))), None):
        return key
    words = {word.lower() for word in _WORD.findall(response)}
    return words.pop() if len(words) == 1 and not _UNDECIDED.search(response) else None


KIND = keyed(find, read)
