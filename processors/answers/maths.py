r"""Mathematical values (MATH, AMC, MATH-Vision). Numbers and words have keys; formulas are compared by `checker`.

What counts as the same, where graders differ:
- A unit, a degree sign, a currency and a percent sign carry no value: "12 cm" is 12, "50\%" is 50. A grade takes
  "50\%" for 0.5 as well; a vote never merges 50 with 0.5.
- "x=5" is 5, but an equation is not its right side: "x+2y=1" is not 1 in a vote. A grade follows math-verify there.
- (1,2) and [1,2) keep their order and their brackets; "1,2", "1 and 2" and \{2,1\} are sets. A grade takes a bare list
  for a tuple in the same order. "25_8" is not 25 in a vote, nor 1:2 one half; in a grade the other form will do.
- Decimals are exact in keys; a grade, and a decimal against a formula, hold to six decimals, as math-verify does.
- Words are compared as text, without case.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from mm_spine.processors.answers import checker
from mm_spine.processors.answers.extraction import announced, answerable, last_boxed, plain, ungrouped
from mm_spine.processors.answers.kind import UNPARSED, Kind, read_golds, verdict
from mm_spine.processors.answers.latex import COMMAND, FUNCTION, NAME, RELATION, normal, wordy
from mm_spine.processors.answers.math_keys import Listed, key, listed, number
from mm_spine.processors.answers.statements import refuses, unfinished
from mm_spine.types import Answer, AnswerSpec, Verdict

# Finding the answer of a response.

# Where the answer of a sentence ends: "The answer is 12 because 3 times 4 is 12 and not 13."
_CUT = re.compile(
    r"\s*[,;(]?\s+(?:not|because|since|so|which|as|when|for|where|if|but|that|and (?:so|thus|therefore))\b.*", re.DOTALL
)
_REACH = 300  # characters of a sentence in which its answer is looked for
_LAST = 20_000  # characters at the end of a response in which an answer without a box is looked for
# $...$ or \(...\), with a percent sign behind it.
_SEGMENT = re.compile(r"\$([^$\n]+)\$(\s*\\?%)?|\\\((.{1,300}?)\\\)(\s*\\?%)?")
_DISPLAY = re.compile(r"\\\[(.{1,300}?)\\\]|\$\$(.{1,300}?)\$\$", re.DOTALL)
# A number in prose: 7, -7, 3.5, 3/4, 1,234, 1{,}234, \frac{3}{4}, 50\%. "9-2" holds 9 and 2, no -2.
_SAID = re.compile(
    r"(?<![\w.\\^])(?<!\^\{)(?<!\^[+-])(?:(?<![)\]}])[+-])?"
    r"(?:(?:\d+\s*)?\\[dt]?frac\s*(?:\{[^{}]*\}|\d)\s*(?:\{[^{}]*\}|\d)"
    r"|\.?\d(?:[\d.]|,(?=\d{3}(?!\d))|\{,\}|\\[,!](?=\d{3}))*(?:/\d+(?![\d/]))?"
    r"(?:[eE][+-]?\d{1,3}(?![\w.])|\^\{?-?\d+\}?)?)(?:\s?\\?%)?"
)
# "The length is 4+2+4+2+4": a sum that was not worked out has no last number to read.
_OPERAND = re.compile(r"\d\s*[+*/×]\s*\Z")
# One-word responses that are no answer, and words that judge one: "the answer is correct".
_REFUSALS = frozenset(("unknown", "unsure", "undetermined", "unclear", "dunno", "idk", "sorry", "none", "null", "nan"))
_JUDGEMENTS = frozenset(("correct", "right", "wrong", "incorrect", "verified", "confirmed", "reasonable", "valid"))
# "It is 3 or 4." names two candidates and commits to none.
_ANOTHER = re.compile(
    r"(?:\d|\$|\))\s*,?\s*(?:\bor\b|\band/or\b|或者?|还是)\s*(?:maybe|perhaps|possibly|even)?\s*\$?\s*\Z|\bbetween\s+\S+\s+and\s+\$?\Z",
    re.IGNORECASE,
)
_OR_ANOTHER = re.compile(r"\s*\$?\s*,?\s*(?:or|and/or)\s+(?:(?:maybe|perhaps|possibly|even)\s+)?\$?-?\d", re.IGNORECASE)
# "The value of $x$ is 5": what follows the last "is" is the answer, if it names a value.
_IS = re.compile(
    r"\s(?:is|are|was|were|equals|equal to|becomes|totals|comes to|=)\s+(?:equal to\s+|exactly\s+)?", re.IGNORECASE
)
# In prose a single letter behind a number is a unit: "12 m".
_PROSE_UNIT = re.compile(r"\$?(-?[\d.,]*\d)\$?\s+[mgshlLVANJWKCF](?:\^\{?[23]\}?)?")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


def read(text: str) -> Answer | None:
    """Read a bare answer, such as a gold; None if it holds no letter or digit."""
    return _read(text) if len(text) <= checker.LONGEST else _read.__wrapped__(text)


@lru_cache(maxsize=1 << 14)
def _read(text: str) -> Answer | None:
    clean = normal(text)
    if not re.search(r"\w", clean):
        return None
    found = key(clean)
    value = number(clean) if found is not None else None
    whole = value is not None and value.denominator == 1 and not clean.endswith("%")
    return Answer(str(value) if whole else clean, found)


def find(response: str) -> Answer | None:
    """Return the last balanced box, else the last announced answer, else a bare formula, else the last number."""
    box = last_boxed(response)
    if box is not None:
        # "\boxed{The answer is 7}" has a statement in its box.
        inner = (
            (_statement(said) for said in announced(plain(box[:_REACH]))) if "answer" in box[:_REACH].lower() else ()
        )
        return next((answer for answer in inner if answer), read(box))
    # A box that never closes was cut off: what it holds is no answer, nor is a number before it.
    response, cut, _ = ungrouped(response[-_LAST:].replace("\N{MINUS SIGN}", "-")).partition(r"\boxed{")
    flat = _DISPLAY.sub(lambda m: f"${' '.join((m[1] or m[2]).split())}$", response)
    for said in announced(flat):
        if answer := _statement(said):
            return answer
    return None if cut else _bare(flat.strip()) or _last(flat)


def _statement(said: str) -> Answer | None:
    """Return the answer of a sentence: all of it if it is a formula, else the formula or number that it states."""
    clause = _CUT.sub("", said[:_REACH])
    if unit := _PROSE_UNIT.fullmatch(clause.strip(" .*")):
        return read(unit[1])
    if not wordy(normal(clause)):
        return read(clause)
    if refuses(clause) or normal(clause).casefold() in _REFUSALS | _JUDGEMENTS:
        return None
    # "The value of $x$ is 5": what stands behind the last "is" comes first.
    *_, last = _IS.split(clause)
    for part in (last, clause) if last != clause else (clause,):
        if answer := _stated(part):
            return answer
    # Nothing but names, as in "point $P$".
    if segment := _SEGMENT.search(clause):
        return read(_inside(segment))
    return read(clause) if len(clause.split()) <= 5 else None


def _stated(clause: str) -> Answer | None:
    """Return the first formula of `clause` that is more than a name, else its first number."""
    segments = [segment for segment in _SEGMENT.finditer(clause) if not NAME.fullmatch(_inside(segment).strip())]
    spelled = _SAID.search(clause)
    if segments:
        return read(_inside(segments[0]))
    return read(spelled[0]) if spelled and not _OR_ANOTHER.match(clause, spelled.end()) else None


def _inside(segment: re.Match[str]) -> str:
    """Return the formula of a segment, with the percent sign behind it."""
    return (segment[1] or segment[3]) + (segment[2] or segment[4] or "")


def _bare(response: str) -> Answer | None:
    """Read a response that consists of its answer: a formula, or one word."""
    if not response or "\n" in response or len(response) > 200 or refuses(response):
        return None
    clean = normal(response)
    if unit := _PROSE_UNIT.fullmatch(response.rstrip(". ")):
        return read(unit[1])
    if re.fullmatch(r"[A-Za-z]+", clean):
        return read(response) if clean.lower() not in _REFUSALS else None
    rest = FUNCTION.sub(" ", COMMAND.sub(" ", clean))
    said_in_words = re.search(r"[A-Za-z]{3}|[A-Za-z]{2} | [A-Za-z]{2}", rest) is not None
    if said_in_words and not re.fullmatch(r"\s*\$?\\(?:text|mbox|textbf|mathrm)\s*\{[^{}]*\}\$?\.?", response):
        return None
    return read(response)


def _last(response: str) -> Answer | None:
    """Return the last number, or the formula in dollars that it stands in.

    None for a response that breaks off, a sum that was not worked out, "3 or 4", or a sentence that refuses.
    """
    response = answerable(response)
    numbers = list(_SAID.finditer(response))
    if not numbers or unfinished(response):
        return None
    start, end = numbers[-1].span()
    if refuses(_sentence_around(response, start)):
        return None
    if _ANOTHER.search(response, max(0, start - 30), start) or _OR_ANOTHER.match(response, end):
        return None
    for segment in _SEGMENT.finditer(response):
        if segment.start() <= start < segment.end():
            return read(_inside(segment))
    return None if _OPERAND.search(response, max(0, start - 9), start) else read(numbers[-1][0])


def _sentence_around(text: str, place: int) -> str:
    """Return the sentence of `text` that holds `place`, at most `_REACH` characters to either side."""
    before = _SENTENCE.split(text[max(0, place - _REACH) : place])[-1]
    return before + _SENTENCE.split(text[place : place + _REACH])[0]


# Comparing two answers in a vote.


def equal(a: str, b: str) -> bool:
    """Return whether two normal texts are the same in a vote: symmetric; in doubt they differ."""
    key_a, key_b = key(a), key(b)
    if a == b or (key_a is not None and key_b is not None):
        return a == b or key_a == key_b
    list_a, list_b = listed(a), listed(b)
    if list_a and list_b:
        return _equal_lists(list_a, list_b)
    if any(map(_stands_alone, (a, b))) or any(_is_tuple(x) and not RELATION.search(y) for x, y in ((a, b), (b, a))):
        return False
    # To math-verify "x+2y=1" is its right side, 1.
    if any(_is_equation(x) and not RELATION.search(y) for x, y in ((a, b), (b, a))):
        return False
    return checker.equal(a.rstrip("%"), b.rstrip("%"))


def _stands_alone(text: str) -> bool:
    """Return whether `text` is words, "25_8" or "1:2": it has a key, and equals nothing without a key."""
    found = key(text)
    return found is not None and number(text) is None and listed(text) is None


def _is_tuple(text: str) -> bool:
    items = listed(text)
    return items is not None and items.ordered


def _is_equation(text: str) -> bool:
    """Return whether `text` is an equation whose left side is more than a name, so that it is not its right side."""
    left, equals, _ = text.partition("=")
    return bool(equals) and not NAME.fullmatch(left)


def _equal_lists(a: Listed, b: Listed) -> bool:
    """Compare tuples and intervals in order, sets element by element in any order."""
    if a.left != b.left or a.right != b.right:
        return False
    if a.ordered:
        return len(a.items) == len(b.items) and all(map(_equal_items, a.items, b.items))
    return all(any(_equal_items(x, y) for y in b.items) for x in a.items) and all(
        any(_equal_items(x, y) for x in a.items) for y in b.items
    )


def _equal_items(a: str, b: str) -> bool:
    (name_a, _, value_a), (name_b, _, value_b) = a.rpartition("="), b.rpartition("=")
    return name_a == name_b and equal(*sorted((value_a, value_b)))


def same(a: Answer, b: Answer, spec: AnswerSpec) -> bool:
    """Return whether keys or normal texts are equal, or the checker finds them so: the same for (a, b) and (b, a)."""
    if a.key is not None and b.key is not None:
        return a.key == b.key
    with checker.one_item():
        return equal(*sorted((a.text, b.text)))


# Grading against a gold.


def accepts(gold: str, answer: str) -> bool:
    """Return whether `answer` is right for `gold`: if `equal` merges them, or one is another form of the other."""
    if equal(*sorted((gold, answer))) or _near(gold, answer) or _rebased(gold, answer):
        return True
    if _is_equation(gold) and not RELATION.search(answer):
        return False
    list_gold, list_answer = listed(gold), listed(answer)
    if list_gold and list_answer:
        braces = any(text.startswith(r"\{") for text in (gold, answer))
        return _alike(list_gold, list_answer, braces) and all(map(accepts, list_gold.items, list_answer.items))
    if any(wordy(x) or key(x) not in (None, str(number(x))) or _is_tuple(x) for x in (gold, answer)):
        return False
    return checker.accepts(gold.rstrip("%"), answer.rstrip("%"))


def _alike(a: Listed, b: Listed, braces: bool) -> bool:
    """Return whether two lists are compared in order: they have the same brackets, or are a bare list and a tuple."""
    ends = {(a.left, a.right), (b.left, b.right)}
    return len(a.items) == len(b.items) and (len(ends) == 1 or (not braces and ends == {("(", ")"), (r"\{", r"\}")}))


def _near(gold: str, answer: str) -> bool:
    """Return whether two numbers are equal to six decimals, also if a percent sign on one side divides by 100."""
    x, y = number(gold), number(answer)
    if x is None or y is None:
        return False
    if gold.endswith("%") != answer.endswith("%"):
        x, y = (x / 100, y) if gold.endswith("%") else (x, y / 100)
    return x == y or (round(x, 6) == round(y, 6) and abs(x - y) <= abs(x) / 10**5)


def _rebased(gold: str, answer: str) -> bool:
    """Return whether one of the two is "25_8" or "1:2" and the other is 25 or 1/2, without base or colon."""
    forms = [re.sub(r"^(\d+)_\{?\d+\}?$", r"\1", text).replace(":", "/") for text in (gold, answer)]
    changed = [form != text for form, text in zip(forms, (gold, answer), strict=True)]
    return any(changed) and not all(changed) and number(forms[0]) is not None and number(forms[0]) == number(forms[1])


def grade(answer: Answer | None, golds: Sequence[str], spec: AnswerSpec) -> Verdict:
    """Grade by `accepts`. ValueError: no gold that can be read."""
    wanted = read_golds(golds, spec, lambda gold, _: read(gold))
    return judge(answer, wanted, lambda gold, given: accepts(gold.text, given.text))


def judge(answer: Answer | None, golds: Sequence[Answer], accepted: Callable[[Answer, Answer], bool]) -> Verdict:
    """Grade right if `accepted(gold, answer)` for one of the golds; `why` says where the checker gave up."""
    if answer is None:
        return UNPARSED
    with checker.one_item() as reasons:
        correct = any(accepted(gold, answer) for gold in golds)
    found = verdict(correct, answer.text, [gold.text for gold in golds])
    stopped = f" The checker stopped: {reasons[0]}." if reasons and not correct else ""
    return found._replace(why=found.why + stopped)


def parse(response: str, spec: AnswerSpec) -> Answer | None:
    """Return the answer that `response` commits to."""
    return find(response)


KIND = Kind(parse, same, grade, keyed=False)
