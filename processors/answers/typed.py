"""MathVista's typed answers: an option, an integer, a float with a number of decimals, a list, or text.

The official pipeline (MathVista, evaluation/extract_answer.py and calculate_score.py) lets a language model extract the
answer, then compares strings: an option by its letter or the most similar text, `str(int(float(x)))` for integers,
`str(round(float(x), precision))` for floats. Here the answer is found by rule, without guessing:

- an option is a letter, its own text, or its own number ("125" is "125°"), never the most similar one;
- "3.7" to an integer question stays 3.7, which equals no integer; the official code cuts it to 3;
- a float is rounded to `precision` as in the official code; without a precision, numbers are equal if their values are;
- units are not compared, as in the official code: the question names the unit. "30%" is 30.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import islice

from mm_spine.processors.answers import choice
from mm_spine.processors.answers import text as free_text
from mm_spine.processors.answers.extraction import LOOKED_AT, announced, answerable, last_boxed, plain, ungrouped
from mm_spine.processors.answers.kind import UNPARSED, Kind, keyed, read_golds, verdict
from mm_spine.processors.answers.statements import refuses, unfinished
from mm_spine.types import Answer, AnswerSpec, Verdict
from mm_spine.words import nearest

_DECIMAL = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
# Indices and exponents are no numbers, and "9-2" holds no -2. The other lines: 1 1/2; 3, 3e5, 3/4; 3 x 10^5.
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.^])(?<![\^_]\{)(?P<sign>(?<![)\]])[+-])?"
    r"(?:(?P<whole>[0-9]+)\s+(?=[0-9]+\s*/\s*[0-9]))?"
    rf"(?P<top>{_DECIMAL})(?:[eE](?P<e>[+-]?[0-9]+)(?![\w.]))?(?:\s*/\s*(?P<bottom>{_DECIMAL}))?"
    r"(?:\s*[×x*·]\s*10\s*\^\s*\{?(?P<ten>[+-]?[0-9]+)\}?)?"
)
# Signs that make a number part of a formula: 2^3, 5√2, 2π, 3 + 4, 2:5, 1/2/3, 2x.
_BEFORE = re.compile(r"[\\√π±^]|[0-9]\s*[:/*×+]\s*$")
_AFTER = re.compile(r"\s*(?:[\\^²³√π!]|[*×+/:]\s*[0-9(]|[abknxyz]\b)")
_FRACTION = re.compile(
    r"(?P<whole>[0-9])?\s*\\[dt]?frac\s*"
    r"(?:\{\s*(?P<top>[0-9.]+)\s*\}\s*\{\s*(?P<bottom>[0-9.]+)\s*\}|(?P<a>[0-9])\s*(?P<b>[0-9]))"
)
_MACROS = {
    r"\times": "×",
    r"\cdot": "·",
    r"\approx": "≈",
    r"\simeq": "≈",
    r"\%": "%",
    r"\pi": "π",
    r"\sqrt": "√",
    r"^{\circ}": "°",
    r"^\circ": "°",
    r"\circ": "°",
    r"\degree": "°",
    "\N{MINUS SIGN}": "-",
    "{,}": ",",
    r"\,": " ",
    r"\left": "",
    r"\right": "",
    r"\{": "[",
    r"\}": "]",
    **dict.fromkeys((r"\ ", r"\;", r"\:", r"\!", "~", r"\quad", r"\qquad"), " "),
}
_MACRO = re.compile("|".join(re.escape(macro) for macro in sorted(_MACROS, key=len, reverse=True)))
_THIN = re.compile(r"(?<=[0-9])(?:\\[,!]|\{,\})(?=[0-9]{3})")
# "It is 3 or 4." names two candidates and commits to none.
_CANDIDATES = re.compile(
    rf"{_DECIMAL}\s*,?\s*(?:or|and/or)\s+(?:(?:maybe|perhaps|possibly|even)\s+)?\$?{_DECIMAL}|\bbetween\s+\$?{_DECIMAL}\s+and\s+\$?{_DECIMAL}",
    re.I,
)
_HAN_CUE = re.compile(r"答案\s*(?:是|为|:)")
_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_WORDS = {name: str(value) for value, name in enumerate(_NAMES)}
_WORD = re.compile(rf"\b(?:{'|'.join(_WORDS)})\b", re.IGNORECASE)
_WORDS_ALONE = re.compile(r"[^\W\d_]+(?:[ -][^\W\d_]+)*")
_GROUP = re.compile(r"\[([^\[\]]*)\]")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")

_LONGEST = 1000  # characters of a box that may hold a number, and digits of one
_LARGEST = 300  # powers of ten that a double holds
_TAIL = 4000  # characters from the end in which the last number is looked for
_ANNOUNCED = 50  # announcements that are looked at, from the end


def read(text: str, spec: AnswerSpec) -> str | None:
    """Return the key of a bare answer. ValueError: unknown `value_type`."""
    text = ungrouped(choice.straight(text))
    if spec.choices:
        return choice.read(text, spec) or _by_number(text, spec)
    kind = _value_type(spec)
    if kind == "text":
        return free_text.read(text, spec)
    return _list(text, spec) if kind == "list" else _number(text, spec)


def find(response: str, spec: AnswerSpec) -> str | None:
    """Return the boxed, else the announced answer, else the last number or list. ValueError: unknown `value_type`."""
    if spec.choices:
        return choice.find(response, spec) or _announced_number(response, spec)
    kind = _value_type(spec)
    if kind == "text":
        return free_text.find(response, spec)
    response = _HAN_CUE.sub("The answer is ", ungrouped(choice.straight(response)))
    # A sentence whose blank is still empty repeats the question.
    if "___ " in response:
        response = "\n".join(sentence for sentence in _SENTENCE.split(response) if "___ " not in sentence)
    box = last_boxed(response)
    if box is not None:
        return read(box, spec)
    said = [_tidy(statement[:_LONGEST]) for statement in islice(announced(response[-LOOKED_AT:]), _ANNOUNCED)]
    tail = _tidy(response[-_TAIL:])
    if kind == "list":
        return next((key for statement in [*said, tail] if (key := _last_list(statement, spec))), None)
    said = [answerable(statement) for statement in said if not refuses(statement)]
    if statement := next((statement for statement in said if _NUMBER.search(_result(statement))), None):
        return _first(_result(statement), spec)
    return _last_number(said, tail, spec)


def _value_type(spec: AnswerSpec) -> str:
    """Return the type of value, text by default. ValueError, naming the nearest: unknown type."""
    known = ("float", "integer", "list", "text")
    if spec.value_type is None or spec.value_type in known:
        return spec.value_type or "text"
    raise ValueError(f"unknown value_type {spec.value_type!r}; {nearest(spec.value_type, known)}")


def _tidy(text: str) -> str:
    """Replace LaTeX's signs by characters, and its fractions of numbers by a/b."""
    text = plain(_THIN.sub(",", text.replace("\\$", "")))
    if "\\" in text:
        text = _FRACTION.sub(_slash, text)
    return _MACRO.sub(lambda macro: _MACROS[macro[0]], text)


def _slash(match: re.Match[str]) -> str:
    """Write a LaTeX fraction as "a/b", or "1 a/b" for a mixed number."""
    whole = f"{match['whole']} " if match["whole"] else ""
    return f"{whole}{match['top'] or match['a']}/{match['bottom'] or match['b']}"


def _result(statement: str) -> str:
    """Return what follows the last equals sign if it holds a number, else all of `statement`."""
    result = re.split("[=≈]", statement)[-1]
    return result if _NUMBER.search(result) else statement


def _value(number: re.Match[str]) -> Fraction | None:
    """Return the exact value; None for a division by zero, or for one beyond the range of a double."""
    parts = {name: (part or "").replace(",", "") for name, part in number.groupdict().items()}
    power = int(parts["e"][:9] or 0) + int(parts["ten"][:9] or 0)
    if len(number[0]) > _LARGEST or abs(power) > _LARGEST or (parts["bottom"] and not Fraction(parts["bottom"])):
        return None
    value = Fraction(parts["whole"] or 0) + Fraction(parts["top"]) / Fraction(parts["bottom"] or 1)
    value *= Fraction(10) ** power
    return (-value if parts["sign"] == "-" else value) if abs(value) < 10**_LARGEST else None


def _canonical(value: Fraction) -> str:
    """Write the value as an integer or a finite decimal, else as a fraction in lowest terms."""
    bottom, places = value.denominator, 0
    while bottom % 10 == 0 or bottom % 5 == 0 or bottom % 2 == 0:
        bottom, places = bottom // (10 if bottom % 10 == 0 else 5 if bottom % 5 == 0 else 2), places + 1
    if bottom != 1:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    sign = "-" if value < 0 else ""
    return sign + (f"{digits[:-places]}.{digits[-places:]}".rstrip("0").rstrip(".") if places else digits)


def _key(number: re.Match[str], text: str, spec: AnswerSpec) -> str | None:
    """Return the key of a number of `text`; None if it is part of a formula."""
    if _BEFORE.search(text[: number.start()]) or _AFTER.match(text, number.end()):
        return None
    value = _value(number)
    if value is None or spec.value_type != "float" or spec.precision is None:
        return None if value is None else _canonical(value)
    # Rounded as in the official code; adding 0.0 turns -0.0 into 0.0.
    return str(round(float(value), spec.precision) + 0.0)


def _first(text: str, spec: AnswerSpec) -> str | None:
    """Return the key of the first number of `text`; None for "3 or 4"."""
    number = None if _CANDIDATES.search(text) else _NUMBER.search(text)
    return _key(number, text, spec) if number else None


def _number(text: str, spec: AnswerSpec) -> str | None:
    """Return the only number of a bare answer, which may hold words and a unit; None for several."""
    if len(text) > _LONGEST:
        return None
    text = _result(_tidy(text))
    numbers = list(_NUMBER.finditer(text))
    if not numbers:
        return _in_words(text, spec)
    return _key(numbers[0], text, spec) if len(numbers) == 1 else None


def _in_words(text: str, spec: AnswerSpec) -> str | None:
    """Return the only number that `text` writes as a word: "two flocks"."""
    words = {word.lower() for word in _WORD.findall(text)}
    return _first(_WORDS[words.pop()], spec) if len(words) == 1 else None


def _last_number(said: Sequence[str], tail: str, spec: AnswerSpec) -> str | None:
    """Return a number in words if one is announced, else the last number of the last sentence that holds one.

    After an equals sign it is the first number; without any digits, the last sentence's number in words.
    """
    if key := next((key for statement in said if (key := _in_words(statement, spec))), None):
        return key
    if unfinished(tail):
        return None
    sentences = [sentence for sentence in _SENTENCE.split(tail) if sentence]
    sentence = next((sentence for sentence in reversed(sentences) if _NUMBER.search(sentence)), None)
    if refuses(sentence or (sentences or [""])[-1]):
        return None
    if sentence is None:
        return _in_words(sentences[-1], spec) if sentences else None
    sentence = answerable(sentence)
    if _CANDIDATES.search(sentence):
        return None
    result = _result(sentence)
    if result != sentence:
        return _first(result, spec)
    numbers = list(_NUMBER.finditer(sentence))
    return _key(numbers[-1], sentence, spec) if numbers else None


def _list(text: str, spec: AnswerSpec) -> str | None:
    """Return the elements of "[1, 2, 3]" or "1, 2 and 3" as a key: each a number's key or normalised text."""
    if len(text) > 10 * _LONGEST:
        return None
    text = _tidy(text).strip().strip("[](){} .")
    if "[" in text:
        return _last_list(text, spec)
    items = re.split(r"\s*[,;，、]\s*(?:and\b)?|\s+and\s+", text)
    keys = [_element(item, spec) for item in items if item.strip()]
    if not keys or None in keys:
        return None
    return f"[{', '.join(map(str, keys if spec.ordered else sorted(map(str, keys))))}]"


def _element(item: str, spec: AnswerSpec) -> str | None:
    """Return the key of an element: its only number, or plain words."""
    numbers = list(_NUMBER.finditer(item))
    if len(numbers) == 1:
        return _key(numbers[0], item, spec)
    word = free_text.normal(item)
    return word if word and not numbers and _WORDS_ALONE.fullmatch(word) else None


def _last_list(text: str, spec: AnswerSpec) -> str | None:
    """Return the last "[...]", else a short `text` itself if it holds several numbers."""
    groups = _GROUP.findall(text)
    if groups:
        return _list(groups[-1], spec)
    return _list(text, spec) if len(_NUMBER.findall(text)) > 1 and len(text) < 200 and "[" not in text else None


@lru_cache(maxsize=4096)
def _option_values(spec: AnswerSpec) -> tuple[str | None, ...]:
    """Return the number of each option, None where it holds no or several numbers."""
    return tuple(_number(choice.straight(option), AnswerSpec("typed")) for option in spec.choices)


def _by_number(text: str, spec: AnswerSpec) -> str | None:
    """Return the label of the only option with the number of `text`, units ignored."""
    wanted = _number(text, AnswerSpec("typed"))
    labels = [label for label, value in zip(choice.LABELS, _option_values(spec), strict=False) if value == wanted]
    return labels[0] if wanted is not None and len(labels) == 1 else None


def _announced_number(response: str, spec: AnswerSpec) -> str | None:
    """Return the option whose number is boxed or announced last."""
    text = _HAN_CUE.sub("The answer is ", choice.straight(response))
    box = last_boxed(text)
    statement = next(announced(text[-LOOKED_AT:]), None) if box is None else box
    return None if statement is None else _by_number(statement, spec)


def _grade(answer: Answer | None, golds: Sequence[str], spec: AnswerSpec) -> Verdict:
    """Grade by keys; with choices, the gold is an option's text or label, and a letter is a label, as officially."""
    if not spec.choices:
        return _KEYED.grade(answer, golds, spec)
    labels = read_golds(golds, spec, _gold_label)
    if answer is None:
        return UNPARSED
    return verdict(answer.text in labels, answer.text, golds)


def _gold_label(gold: str, spec: AnswerSpec) -> str | None:
    """Return the label of the option that equals the gold exactly, else the gold read as an answer."""
    if gold in spec.choices[: len(choice.LABELS)]:
        return choice.label_of(spec.choices.index(gold), spec)
    return read(gold, spec)


_KEYED = keyed(find, read)
KIND = Kind(_KEYED.parse, _KEYED.same, _grade)
