"""Define an answer kind by three functions, and derive them from canonical keys where a kind has such keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mm_spine.types import Answer, AnswerSpec, Verdict

T = TypeVar("T")
Read = Callable[[str, AnswerSpec], str | None]
"""(text, spec) -> canonical key, or None if the text holds no such answer."""


@dataclass(frozen=True)
class Kind:
    """How answers of one kind are parsed, compared and graded; an entry of `KINDS`.

    keyed: every answer has a canonical key, which is also its `text` and reads back as the same key. The name of a
    vote class can then be graded, and does not change while further samples arrive. False if some answers have no
    key and are compared pair by pair, or if a class is named by its shortest text.

    classes: for a kind whose `same` is not transitive, and must not be chained: (answers, spec) -> the class of each,
    named by the text of one of its answers, by which the vote is graded. A further answer may then move others to
    other classes, so that `votes.stop: decided` never ends such a vote early.
    """

    parse: Callable[[str, AnswerSpec], Answer | None]
    same: Callable[[Answer, Answer, AnswerSpec], bool]
    grade: Callable[[Answer | None, Sequence[str], AnswerSpec], Verdict]
    keyed: bool = True
    classes: Callable[[Sequence[Answer | None], AnswerSpec], list[str | None]] | None = None


def keyed(find: Read, read: Read) -> Kind:
    """Make a kind whose answers are equal if their keys are: `find` reads a response, `read` a bare answer or gold."""

    def parse(response: str, spec: AnswerSpec) -> Answer | None:
        key = find(response, spec)
        return None if key is None else Answer(key, key)

    def grade(answer: Answer | None, golds: Sequence[str], spec: AnswerSpec) -> Verdict:
        keys = read_golds(golds, spec, read)
        if answer is None:
            return UNPARSED
        return verdict(answer.key in keys, answer.text, keys)

    return Kind(parse, same_key, grade)


UNPARSED = Verdict(0.0, False, "No answer could be read from the response.")


def same_key(a: Answer, b: Answer, spec: AnswerSpec) -> bool:
    """Return whether the canonical keys are equal."""
    return a.key == b.key


def verdict(correct: bool, found: str, golds: Sequence[str]) -> Verdict:
    """Score 1 or 0, and name the two sides in `why`."""
    relation = "is" if correct else "is not"
    return Verdict(float(correct), correct, f"{found!r} {relation} {' or '.join(map(repr, golds))}.")


def read_golds(golds: Sequence[str], spec: AnswerSpec, read: Callable[[str, AnswerSpec], T | None]) -> tuple[T, ...]:
    """Read the golds, and drop those that cannot be read.

    ValueError: none can be read. The data are wrong then, so that no answer must be graded 0 for it.
    """
    found = tuple(each for gold in golds if (each := read(gold, spec)) is not None)
    if not found:
        raise ValueError(f"gold answer {list(golds)!r} is not of kind {spec.kind!r}: correct the answer or the kind")
    return found
