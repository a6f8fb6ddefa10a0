"""Yes or no as whole words: "abnormal" and "know" hold no "no"; "cannot be determined" is neither."""

from __future__ import annotations

import re

from mm_spine.processors.answers import choice
from mm_spine.processors.answers.extraction import announced, last_boxed, plain
from mm_spine.processors.answers.kind import Read, keyed
from mm_spine.types import AnswerSpec

_REACH = 4000  # characters of a statement that are looked at for the word that it begins with
_LETTERS = AnswerSpec("choice")
# Statements that decide nothing.
UNDECIDED = re.compile(
    r"\b(?:can(?:not|'t|\u2019t| not)|could(?:n't|n\u2019t| not)|impossible to|unable to|not possible to|no way to) "
    r"(?:be )?(?:determined?|tell|told|say|said|known?|answer(?:ed)?|decided?|judged?|assess(?:ed)?)\b|\bno idea\b",
    re.IGNORECASE,
)
_UNDECIDED_ANSWER = re.compile(rf"\banswer\s+(?:is\s+)?(?:that\s+it\s+)?(?={UNDECIDED.pattern})", re.IGNORECASE)
# "no" that does not answer: "no clear conclusion", "no doubt".
_NO_ANSWER = r"\s+(?:(?:clear|firm|definite|definitive)\s+)?(?:way|idea|doubt|conclusions?|answer|information)\b"
_DENIED = re.compile(r"(?:\b(?:not|neither|nor|never)|n['\u2019]t)\s+(?:(?:an?|the|clear|simple|definite)\s+)*$", re.I)


def reading(*words: str) -> tuple[Read, Read]:
    """Make (find, read) for answers that are one of `words`; with choices, the letter of a choice stands for its word.

    `read` takes the word that a text begins with. `find` takes the boxed word; else the last announced; else a last
    line that consists of the word; else the word that the first, then the last line begins with; else the only one of
    the words in the response. A response that decides nothing ("it cannot be determined", several words) has no answer.
    """
    one = "|".join(words)
    word = rf"(?<![^\W_])({one})(?![^\W_]|-)(?!(?<=no){_NO_ANSWER})"
    # "yes or no" and "yes, no or maybe?" repeat the question.
    listed = rf"(?!\s*(?:/|or\b|and\b)\s*(?:{one})\b)(?!\s*,\s*(?:{one})\s*,?\s*(?:or|and)\b)"
    leading = re.compile(rf"[\W_]*{word}{listed}", re.IGNORECASE)
    alone = re.compile(rf"[\W_]*{word}[\W_]*", re.IGNORECASE)
    anywhere = re.compile(word, re.IGNORECASE)

    def begins(text: str, spec: AnswerSpec) -> str | None:
        match = leading.match(plain(text[:_REACH]))
        return match[1].lower() if match else None

    def read(text: str, spec: AnswerSpec) -> str | None:
        return begins(text, spec) or _chosen(choice.read, text[:_REACH], spec, begins)

    def committed_to(response: str, spec: AnswerSpec) -> str | None:
        if _UNDECIDED_ANSWER.search(response):
            return None
        lines = response.strip().splitlines()
        decided = [line for line in lines[-1:] if alone.fullmatch(plain(line[:_REACH]))]
        committed = [*announced(response), *decided, *lines[:1], *lines[-1:]]
        if key := next((key for text in committed if (key := begins(text, spec))), None):
            return key
        held = {match[1].lower() for match in anywhere.finditer(response) if not _denied(response, match.start())}
        return held.pop() if len(held) == 1 and not UNDECIDED.search(response) else None

    def find(response: str, spec: AnswerSpec) -> str | None:
        box = last_boxed(response)
        if box is not None and box.strip():
            return read(box, spec)
        return committed_to(response, spec) or _chosen(choice.find, response[-_REACH:], spec, begins)

    return find, read


def _denied(text: str, start: int) -> bool:
    """Return whether the word at `start` is denied: "not a yes"."""
    return _DENIED.search(text[max(0, start - 40) : start]) is not None


def _chosen(search: Read, text: str, spec: AnswerSpec, begins: Read) -> str | None:
    """Return the word of the choice whose letter `search` finds; None without choices."""
    letter = search(text, _LETTERS) if spec.choices else None
    index = len(spec.choices) if letter is None else choice.LABELS.index(letter)
    return begins(spec.choices[index], spec) if index < len(spec.choices) else None


find, read = reading("yes", "no")

KIND = keyed(find, read)
