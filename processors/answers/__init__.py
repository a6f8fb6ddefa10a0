"""Turn responses into comparable answers. A new kind of answer is one module and one entry of `KINDS`.

A plugin adds one with `register_kind`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mm_spine.processors.answers import (
    box,
    choice,
    integer,
    math_or_choice,
    maths,
    medical,
    named,
    text,
    typed,
    vqa,
    yes_no,
    yes_no_maybe,
)
from mm_spine.processors.answers.extraction import announced, before_open_box, last_boxed, unwrapped
from mm_spine.processors.answers.kind import Kind
from mm_spine.processors.answers.statements import without_small_talk
from mm_spine.types import Answer, AnswerSpec, Verdict
from mm_spine.words import PLUGIN_HINT, nearest

KINDS: dict[str, Kind] = {
    "box": box.KIND,
    "choice": choice.KIND,
    "integer": integer.KIND,
    "math": maths.KIND,
    "math_or_choice": math_or_choice.KIND,
    "medical": medical.KIND,
    "named": named.KIND,
    "text": text.KIND,
    "typed": typed.KIND,
    "vqa": vqa.KIND,
    "yes_no": yes_no.KIND,
    "yes_no_maybe": yes_no_maybe.KIND,
}

# End-of-text tokens, which some engines leave in the text.
_END = re.compile(r"(?:\s*(?:</s>|<eos>|<end_of_turn>|<\|[a-z_]{2,20}\|>))+\s*\Z")
_REACH = 200  # characters at the end in which end-of-text tokens are looked for


def known_kinds() -> tuple[str, ...]:
    """Return the names that a spec's `kind` may have, in alphabetical order."""
    return tuple(sorted(KINDS))


def kind_of(spec: AnswerSpec) -> Kind:
    """Return the entry of `spec.kind`. ValueError, naming the nearest kind: unknown kind."""
    if spec.kind not in KINDS:
        raise ValueError(f"unknown answer kind {spec.kind!r}; {nearest(spec.kind, KINDS)}; {PLUGIN_HINT}")
    return KINDS[spec.kind]


def register_kind(name: str, kind: Kind) -> None:
    """Add an answer kind. Raises ValueError where the name is taken, TypeError for what is no `Kind`."""
    if not isinstance(kind, Kind):
        raise TypeError(
            f"register_kind({name!r}, ...) takes a Kind, found {type(kind).__name__}; make one with keyed()"
        )
    if name in KINDS:
        raise ValueError(f"answer kind {name!r} exists already; choose another name")
    KINDS[name] = kind


def parse(response: str, spec: AnswerSpec) -> Answer | None:
    """Return the answer that `response` commits to, None if it commits to none. ValueError: unknown kind."""
    kind = kind_of(spec)
    said = unwrapped(_finished(response))
    if "\\boxed" not in said:
        return kind.parse(without_small_talk(said), spec)
    if (before := before_open_box(said)) is None:
        return kind.parse(said, spec)
    # The box was to be the answer. Without it, only an answer that was announced before counts.
    statement = next(announced(before), "")
    return kind.parse(f"The answer is {statement}.", spec) if re.search(r"\w", statement) else None


def parse_all(responses: Sequence[str], spec: AnswerSpec) -> tuple[Answer | None, ...]:
    """Parse every response, each distinct text once. ValueError: unknown kind."""
    parsed = {text: parse(text, spec) for text in dict.fromkeys(responses)}
    return tuple(parsed[text] for text in responses)


def closes_answer(response: str) -> bool:
    r"""Return whether the answer of a response that was cut off is complete: its last `\boxed{}` closes, and not empty.

    The box must stand in the part of the response that `parse` reads.
    """
    said = unwrapped(_finished(response))
    at = said.rfind("\\boxed")
    return at >= 0 and bool((last_boxed(said[at:]) or "").strip())


def _finished(response: str) -> str:
    r"""Remove end-of-text tokens such as "</s>", and write \fbox as \boxed."""
    # Some solutions of MATH put the answer in \fbox.
    response = response.replace("\\fbox{", "\\boxed{")
    tail = response[-_REACH:]
    return response[:-_REACH] + _END.sub("", tail) if ">" in tail else response


def same(a: Answer, b: Answer, spec: AnswerSpec) -> bool:
    """Return whether two answers mean the same; transitive only for kinds with keys. ValueError: unknown kind."""
    return kind_of(spec).same(a, b, spec)


def grade(answer: Answer | None, gold: str | Sequence[str], spec: AnswerSpec) -> Verdict:
    """Grade `answer` against one gold or several, of which it needs to match one; None scores 0.

    ValueError: unknown kind, or no gold that is an answer of this kind.
    """
    return kind_of(spec).grade(answer, (gold,) if isinstance(gold, str) else tuple(gold), spec)


def grade_all(answers: Sequence[Answer | None], gold: str | Sequence[str], spec: AnswerSpec) -> tuple[Verdict, ...]:
    """Grade every answer, each distinct one once. ValueError: as `grade`."""
    verdicts = {answer: grade(answer, gold, spec) for answer in dict.fromkeys(answers)}
    return tuple(verdicts[answer] for answer in answers)


__all__ = [
    "KINDS",
    "Kind",
    "closes_answer",
    "grade",
    "grade_all",
    "kind_of",
    "known_kinds",
    "parse",
    "parse_all",
    "register_kind",
    "same",
]
