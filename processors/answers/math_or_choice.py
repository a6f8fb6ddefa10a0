"""MATH-Vision's answers: a letter for a question with options, else a value.

An option's value is read as its letter, so that votes for either merge. Where options are themselves letters, a bare
letter is read as a label; the grade also accepts the option's text, as the official one does (K. Wang et al. 2024,
github.com/mathllm/MATH-V).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from mm_spine.processors.answers import checker, choice, maths
from mm_spine.processors.answers import text as free_text
from mm_spine.processors.answers.extraction import last_boxed
from mm_spine.processors.answers.kind import Kind, read_golds
from mm_spine.processors.answers.math_keys import listed
from mm_spine.types import Answer, AnswerSpec, Verdict

_LETTERS = re.compile(r"[^A-Za-z0-9\\]*[A-Z](?:(?:\W|and|or)+[A-Z])*\W*")
_MEASURE = re.compile(r"\$?(?P<number>-?\d[\d.,]*)[\s~]*\$?[\s~]*(?P<unit>[mgshlvanjwkcf])\$?")


def parse(response: str, spec: AnswerSpec) -> Answer | None:
    """Return the letter that `response` commits to by label, text or value, else its value; None without either."""
    if not spec.choices:
        return maths.find(response)
    box = last_boxed(response)
    if box is not None:
        answer = read(box, spec)
        if answer and is_letter(answer, spec):
            return answer
        letter = choice.after_box(response, box, spec)
        return Answer(letter, letter) if letter else answer
    letter = choice.find(response, spec) or _announced_option(response, spec)
    if letter:
        return Answer(letter, letter)
    # Letters that `choice` does not take for an answer, such as "A or B", are no value either.
    rest = choice.without_echo(response, spec)
    if choice.names_several(rest):
        return None
    answer = maths.find(rest)
    return None if answer is None or _is_of_labels(answer.text, spec) else _by_value(answer, spec)


def _is_of_labels(text: str, spec: AnswerSpec) -> bool:
    """Return whether `text` is labels of options and nothing else: "A", "A or B"."""
    labels = choice.LABELS[: len(spec.choices)]
    return _LETTERS.fullmatch(text) is not None and all(letter in labels for letter in re.findall(r"[A-Z]", text))


def _announced_option(response: str, spec: AnswerSpec) -> str | None:
    """Return the option that is all of the response after its last "answer"."""
    # An option of MATH-Vision 521 is "... be 4 or 5.": its full stops would end the sentence elsewhere.
    _, cue, rest = response.lower().rpartition("answer")
    rest = response[len(response) - len(rest) :].strip(" :*_\n")
    rest = rest.removeprefix("is").lstrip(" :*_\n")
    # A letter is `choice.find`'s to accept: it knows what is only supposed.
    return choice.read(rest, spec) if cue and len(rest) < 300 and not _is_of_labels(rest, spec) else None


def read(text: str, spec: AnswerSpec) -> Answer | None:
    """Read a bare answer: "B", "(B) 12", an option's text, a value equal to exactly one option, or another value."""
    letter = choice.read(text, spec) if spec.choices else None
    return Answer(letter, letter) if letter else _by_value(maths.read(text), spec)


def _by_value(answer: Answer | None, spec: AnswerSpec) -> Answer | None:
    """Return the letter of the option that has the answer's value, else the answer."""
    if answer is None or not spec.choices:
        return answer
    if _are_orders(spec):
        answer = _in_order(answer)
    letter = _letter_of(answer.text, spec)
    return Answer(letter, letter) if letter else answer


def _letter_of(value: str, spec: AnswerSpec) -> str | None:
    """Return the label of the one option that equals `value`; None for none or several."""
    for options in (_values(spec), _measures(spec)):
        with checker.one_item():
            fits = [i for i, option in enumerate(options) if option and maths.equal(*sorted((option, value)))]
        if fits:
            return choice.LABELS[fits[0]] if len(fits) == 1 and fits[0] < len(choice.LABELS) else None
    return None


@lru_cache(maxsize=1 << 12)
def _values(spec: AnswerSpec) -> tuple[str | None, ...]:
    """Return the options as values, without their own labels; lists as tuples where the options are orders."""
    values = [value and (_in_order(value) if _are_orders(spec) else value) for value in _read_options(spec)]
    return tuple(value and value.text for value in values)


def _read_options(spec: AnswerSpec) -> list[Answer | None]:
    texts = (choice.option_text(spec, i) for i in range(len(spec.choices)))
    return [maths.read(text) if text else None for text in texts]


@lru_cache(maxsize=1 << 12)
def _measures(spec: AnswerSpec) -> tuple[str | None, ...]:
    """Return the numbers of options that are all in one unit of a single letter, as in "11 m" and "12 m"; else ()."""
    texts = [choice.option_text(spec, i) or "" for i in range(len(spec.choices))]
    found = [_MEASURE.fullmatch(text) for text in texts]
    if not all(found) or len({match["unit"] for match in found if match}) != 1:
        return ()
    return tuple(match and match["number"] for match in found)


@lru_cache(maxsize=1 << 12)
def _are_orders(spec: AnswerSpec) -> bool:
    """Return whether the options are orders of the same things: as sets, two of them are equal."""
    keys = [value.key for value in _read_options(spec) if value and value.key and value.key.startswith(r"\{")]
    texts = {choice.option_text(spec, i) for i in range(len(spec.choices))}
    return len(set(keys)) < len(keys) and len(texts) == len(spec.choices)


def _in_order(answer: Answer) -> Answer:
    """Return a list without brackets as a tuple, whose order counts; any other answer as it is."""
    items = listed(answer.text)
    bare = items is not None and not items.ordered and not answer.text.startswith(r"\{")
    return (maths.read(f"({answer.text})") or answer) if bare else answer


def is_letter(answer: Answer, spec: AnswerSpec) -> bool:
    """Return whether the answer is the label of an option."""
    return len(answer.text) == 1 and answer.text in choice.LABELS[: len(spec.choices)]


def same(a: Answer, b: Answer, spec: AnswerSpec) -> bool:
    """Return whether labels or values are equal; a value that is no option's equals no label."""
    if is_letter(a, spec) or is_letter(b, spec):
        return a.text == b.text
    return maths.same(a, b, spec)


def grade(answer: Answer | None, golds: Sequence[str], spec: AnswerSpec) -> Verdict:
    """Grade right if it is the gold's label, value or option text. ValueError: no gold that can be read."""
    if not spec.choices:
        return maths.grade(answer, golds, spec)
    return maths.judge(answer, read_golds(golds, spec, read), lambda gold, given: _accepts(gold, given, spec))


def _accepts(gold: Answer, answer: Answer, spec: AnswerSpec) -> bool:
    if not is_letter(gold, spec):
        return not is_letter(answer, spec) and maths.accepts(gold.text, answer.text)
    option = choice.LABELS.index(gold.text)
    if gold.text == answer.text or free_text.normal(answer.text) == choice.option_text(spec, option):
        return True
    value = _values(spec)[option]
    return not is_letter(answer, spec) and value is not None and maths.accepts(value, answer.text)


KIND = Kind(parse, same, grade, keyed=False)
