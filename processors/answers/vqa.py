"""Accuracy of VQAv2: a score between 0 and 1 against ten annotators.

S. Antol et al. (2015). VQA: Visual Question Answering. arXiv 1505.00468. The rules and their order are those of
`VQAEval` in GT-Vision-Lab/VQA, vqaEvaluation/vqaEval.py, which published figures are computed with.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from textwrap import shorten

from mm_spine.processors.answers import sentences
from mm_spine.processors.answers.extraction import announced, last_boxed, plain
from mm_spine.processors.answers.kind import UNPARSED, Kind, same_key
from mm_spine.processors.answers.statements import refuses, unfinished
from mm_spine.processors.answers.text import first_sentence
from mm_spine.types import Answer, AnswerSpec, Verdict

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COUNTING = "zero one two three four five six seven eight nine ten"
NUMBERS = {"none": "0"} | {word: str(value) for value, word in enumerate(_COUNTING.split())}
ARTICLES = frozenset({"a", "an", "the"})

# Contractions as they should be written. The official table maps each from its spelling without the apostrophe.
_ONE_APOSTROPHE = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's
    I'm I've isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't
    should've shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's
    there'd there're there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't
    y'all you'd you'll you're you've
"""
# With two apostrophes, the official table has the word without the first and without the second, but not without both.
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
    # As in the official table: two words that stay, and one that loses its apostrophe. Keys with a capital never match.
    "let's": "let's",
    "she's": "she's",
    "somebody'd": "somebodyd",
}

_DIGIT_COMMA = re.compile(r"\d,\d")
# The official code passes re.UNICODE to sub() as its count, so that it keeps a 33rd such period; here all of them go.
_PERIOD = re.compile(r"\.(?!\d)")
_SENTENCE_MARKS = ".!?。！？ "


def clean(text: str) -> str:
    """Put `text` on one line without space at its ends: all that the official script does if the annotators agree."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def normalise(text: str) -> str:
    """Normalise `text` by the official rules, which may leave nothing: "A" is an article."""
    words = (NUMBERS.get(word, word) for word in _unpunctuated(clean(text)).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def accuracy(prediction: str, annotators: Sequence[str], official: bool = False) -> float:
    """Return the mean over annotators of min(1, matches among the others / 3), all texts normalised.

    With ten annotators it is 0, 0.3, 0.6, 0.9 or 1 if 0, 1, 2, 3 or more of them say the same. With a single one, as
    in a folder of one's own, it is 1 if the normalised texts are equal, else 0. With `official` it is the figure of
    the official script, which normalises only if the annotators differ: "Yes" then scores 0 where all ten say "yes".
    ValueError: no annotator.
    """
    said, given = [clean(text) for text in annotators], clean(prediction)
    if not any(said):
        raise ValueError(f"gold answer {list(annotators)!r} holds no text: correct the answer or the kind")
    if len(said) == 1:
        return float(_key(given) is not None and _key(given) == _key(said[0]))
    if not official or len(set(said)) > 1:
        # What consists of articles normalises to nothing: "a" is then compared as it is.
        whole = not official and len(set(said)) == 1
        said, given = [_normal(text, whole) for text in said], _normal(given, whole)
    matches = said.count(given)
    return sum(min(1.0, (matches - (text == given)) / 3) for text in said) / len(said)


def _normal(text: str, whole: bool) -> str:
    return (_key(text) or "") if whole else normalise(text)


def _unpunctuated(text: str) -> str:
    """Remove each mark that stands next to a space anywhere, or all if the text has "1,2"; turn others into spaces."""
    numeric = _DIGIT_COMMA.search(text) is not None
    beside = {mark for mark in PUNCTUATION if numeric or f"{mark} " in text or f" {mark}" in text}
    return _PERIOD.sub("", text.translate({ord(mark): "" if mark in beside else " " for mark in PUNCTUATION}))


def _key(text: str) -> str | None:
    """Return the normalised text, None if nothing visible is left."""
    # An answer that consists of articles keeps them: "a" to "Which letter is it?".
    key = normalise(text) or " ".join(_unpunctuated(clean(text)).lower().split())
    return key if any(character.isprintable() for character in key) else None


def _plain(boxed: str) -> str:
    """Remove LaTeX markup from a boxed text."""
    # An escaped dollar is meant as a sign: it is hidden from `plain` behind a non-character.
    text = plain(boxed.replace(r"\$", "\ufdd0")).replace("\ufdd0", "$")
    return re.sub(r"\\([%&#])", r"\1", text)


def _parse(response: str, spec: AnswerSpec) -> Answer | None:
    """Return the boxed content, else the announced answer, else the whole response, as written, with its key."""
    box = last_boxed(response)
    content = _plain(box) if box is not None and box.strip() else response
    statements = (clean(text).lstrip("*").rstrip(_SENTENCE_MARKS + "*") for text in announced(content))
    whole = "" if content is response and box is not None else clean(content).strip("*").strip()
    text = next((text for text in statements if text), whole)
    # Annotators answer "unknown" too.
    if not text or refuses(first_sentence(text), in_a_word=False) or (text == whole and unfinished(whole)):
        return None
    text = clean(sentences.core(text, spec.question)).rstrip(_SENTENCE_MARKS) if spec.question else text
    key = _key(text)
    return None if key is None else Answer(text, key)


def _grade(answer: Answer | None, golds: Sequence[str], spec: AnswerSpec) -> Verdict:
    """Score against the golds as annotators. A score of at least one half is correct: two of ten say the same."""
    score = accuracy("" if answer is None else answer.text, golds)
    if answer is None:
        return UNPARSED
    said = shorten(answer.text, 80, placeholder="...")
    why = f"{said!r} scores {score:.2f} among {len(golds)} annotators"
    agree = len({clean(gold) for gold in golds}) == 1
    if agree and (official := accuracy(answer.text, golds, official=True)) != score:
        why += f"; {official:.2f} by the official script, which does not normalise where all annotators agree"
    return Verdict(score, score >= 0.5, f"{why}.")


# Equal keys are equal answers, yet the kind is not `keyed`: the official grade needs the text as written, so that a
# class is named by its shortest text. A later sample may bring a shorter one, so that ties stay open until the last.
KIND = Kind(_parse, same_key, _grade, keyed=False)
