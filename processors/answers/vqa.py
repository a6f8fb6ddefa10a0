"""The accuracy of visual question answering: ten annotators, and a score between 0 and 1.

S. Antol et al. (2015). VQA: Visual Question Answering. arXiv 1505.00468; the order of the rules is that of
`VQAEval` in GT-Vision-Lab/VQA, vqaEvaluation/vqaEval.py, which is what published figures were computed with.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from textwrap import shorten

from mm_spine.processors.answers.extraction import announced, last_boxed, plain
from mm_spine.processors.answers.kind import UNPARSED, Kind, same_key
from mm_spine.types import Answer, AnswerSpec, Verdict

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COUNTING = "zero one two three four five six seven eight nine ten"
NUMBERS = {"none": "0"} | {word: str(value) for value, word in enumerate(_COUNTING.split())}
ARTICLES = frozenset({"a", "an", "the"})

# Words whose apostrophe is put back, each written as it should be: the official table spells it without.
_ONE_APOSTROPHE = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's
    I'm I've isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't
    should've shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's
    there'd there're there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't
    y'all you'd you'll you're you've
"""
# Two apostrophes: the official table has the word without the first and without the second, never without both.
_TWO_APOSTROPHES = """
    couldn't've hadn't've he'd've I'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've
    something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've
"""
CONTRACTIONS = {
    **{word.replace("'", ""): word for word in _ONE_APOSTROPHE.split()},
    **{word.replace("'", "", 1): word for word in _TWO_APOSTROPHES.split()},
    **{"".join(word.rsplit("'", 1)): word for word in _TWO_APOSTROPHES.split()},
    **dict.fromkeys(["ow's'at", "'ows'at", "'ow'sat"], "'ow's'at"),
    **dict.fromkeys(["yall'd've", "y'alld've", "y'all'dve"], "y'all'd've"),
    # As released: two words that stay, and one that loses its apostrophe. Those with a capital never match.
    "let's": "let's",
    "she's": "she's",
    "somebody'd": "somebodyd",
}

_DIGIT_COMMA = re.compile(r"\d,\d")
# The official code hands re.UNICODE to sub() as its count, so a 33rd such period stays; here all of them go.
_PERIOD = re.compile(r"\.(?!\d)")
_SENTENCE_MARKS = ".!? "


def clean(text: str) -> str:
    """`text` on one line, without space at its ends: all that is done to a prediction where the annotators agree."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def normalise(text: str) -> str:
    """`text` by the official rules, which may leave nothing. No place for option letters: "A" is an article."""
    words = (NUMBERS.get(word, word) for word in _unpunctuated(clean(text)).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def accuracy(prediction: str, annotators: Sequence[str]) -> float:
    """The mean over annotators of min(1, matches among the others / 3).

    Ten annotators give 0, 0.3, 0.6, 0.9 or 1 where 0, 1, 2, 3 or more of them say the same. Texts are compared
    normalised only if the annotators differ: where they agree it is the text itself that counts. One annotator has
    no others (a gold answer of one's own): 1 where the normalised texts are equal, else 0. ValueError: no annotator.
    """
    said, given = [clean(text) for text in annotators], clean(prediction)
    if not any(said):
        raise ValueError(f"gold answer {list(annotators)!r} holds no text: correct the answer or the kind")
    if len(said) == 1:
        return float(_key(given) is not None and _key(given) == _key(said[0]))
    if len(set(said)) > 1:
        said, given = [normalise(text) for text in said], normalise(given)
    matches = said.count(given)
    return sum(min(1.0, (matches - (text == given)) / 3) for text in said) / len(said)


def _unpunctuated(text: str) -> str:
    """A mark goes where it stands next to a space anywhere, or where the text has digit-comma-digit; else a space."""
    numeric = _DIGIT_COMMA.search(text) is not None
    beside = {mark for mark in PUNCTUATION if numeric or f"{mark} " in text or f" {mark}" in text}
    return _PERIOD.sub("", text.translate({ord(mark): "" if mark in beside else " " for mark in PUNCTUATION}))


def _key(text: str) -> str | None:
    """The normalised text; of an answer that is nothing but articles ("which letter?", "a") the articles themselves."""
    key = normalise(text) or " ".join(_unpunctuated(clean(text)).lower().split())
    return key if any(character.isprintable() for character in key) else None


def _plain(boxed: str) -> str:
    r"""A boxed text without its LaTeX; `\$` and `\%` are signs that are meant."""
    text = plain(boxed.replace(r"\$", "\ufdd0")).replace("\ufdd0", "$")
    return re.sub(r"\\([%&#])", r"\1", text)


def _parse(response: str, spec: AnswerSpec) -> Answer | None:
    """The boxed content, else the announced answer, else the whole response, as written; its key is normalised."""
    box = last_boxed(response)
    content = _plain(box) if box is not None and box.strip() else response
    statements = (clean(text).lstrip("*").rstrip(_SENTENCE_MARKS + "*") for text in announced(content))
    whole = "" if content is response and box is not None else clean(content).strip("*").strip()
    text = next((text for text in statements if text), whole)
    key = _key(text)
    return None if key is None else Answer(text, key)


def _grade(answer: Answer | None, golds: Sequence[str], spec: AnswerSpec) -> Verdict:
    """The golds are the annotators. Correct is a score of one half or more: two of ten say the same."""
    score = accuracy("" if answer is None else answer.text, golds)
    if answer is None:
        return UNPARSED
    said = shorten(answer.text, 80, placeholder="...")
    return Verdict(score, score >= 0.5, f"{said!r} scores {score:.2f} among {len(golds)} annotators.")


# Not marked as keyed: equal keys are equal answers, but the official grade needs the text as it was written, so
# that a class is named by its shortest text, which a later sample may shorten: no tie is settled before the last.
KIND = Kind(_parse, same_key, _grade, keyed=False)
