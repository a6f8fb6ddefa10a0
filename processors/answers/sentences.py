"""Cut the sentence around an answer away, by the words of its question.

Models answer in sentences. Words that the question holds, articles and copulas carry no answer: to "What is the capital
of France?", "The capital of France is Paris." and "Paris is the capital of France" both answer "Paris". Whatever might
tell two answers apart stays: alternatives that the question offers ("left or right"), sides, numbers, negations, and
every word behind a preposition that the question does not hold.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from mm_spine.types import AnswerSpec

READERS = frozenset(("text", "medical", "vqa", "typed"))
"""The kinds whose answers are free text, read with the words of their question."""

_LONGEST = 1000  # characters of a text in which a sentence is cut; a longer one is left whole
_ARTICLES = frozenset(("a", "an", "the"))
_BE = "is are was were be am been being isn aren"
_COPULAS = frozenset(_BE.split())
# Verbs that join a question's words to the answer as a copula does.
_SHOWING = "shows show depicts depict displays display contains contain has have had represents 为 是 有"
_VERBS = _COPULAS | frozenset(_SHOWING.split())
_NAMING = frozenset(("called", "named"))
# Subjects that stand for what was asked about, or for the one who answers.
_STANDING = (
    "it this that these those there here he she they image picture photo photograph figure scan slide answer i we"
    " can see think believe would say 图 中 这"
)
_SUBJECTS = frozenset(_STANDING.split())
# Words that tell answers apart though a question may hold them; they are never cut from the end of an answer.
_TELLING_WORDS = (
    "not no non without never none nor neither left right upper lower top bottom middle anterior posterior medial"
    " lateral proximal distal superior inferior bilateral unilateral both north south east west before after first"
    " second third last more less most least fewer greater smaller larger higher lower increase increased decrease"
    " decreased positive negative normal abnormal male female man woman hot cold high low big small old young black"
    " white red green blue yellow brown gray grey orange purple pink yes true false same different one two three"
    " four five six seven eight nine ten eleven twelve"
)
_TELLING = frozenset(_TELLING_WORDS.split())
_PREPOSITIONS = (
    "of to in on at by for from with and or than as into onto over under between near behind above below per via"
    " during against through within without not no"
)
_FUNCTION = frozenset(_PREPOSITIONS.split())
# Prepositions that join words of the question: "the colour of the car", "the bus in the picture".
_JOINING = frozenset(("of", "in", "for"))
_OPPOSITES = (
    ("left", "right"), ("upper", "lower"), ("top", "bottom"), ("anterior", "posterior"), ("male", "female"),
    ("medial", "lateral"), ("superior", "inferior"), ("proximal", "distal"), ("normal", "abnormal"),
    ("benign", "malignant"), ("increased", "decreased"), ("positive", "negative"), ("before", "after"),
)  # fmt: skip
_TOKEN = re.compile(r"[\u3400-\u9fff]|\d+(?:[.,]\d+)*|[^\W\d_]+|[:=]")
_CONTRACTION = re.compile(
    r"\b(it|that|there|he|she|here|this)['’]s\b|\b(they|these|those|we|you)['’]re\b", re.IGNORECASE
)
_OR = re.compile(r"\b(?:or|and|vs|versus)\b|/|还是|或者?", re.IGNORECASE)
# No sentence ends behind "St." and the like, or within one: "The capital of the U.S. is ...".
_SENTENCE = re.compile(
    r"(?<=[.!?])(?<!(?i:\b[mdfs]t\.))(?<!(?i:\b[md]r\.))(?!(?<=(?i:\.[a-z]\.))\s+[a-z])\s+|(?<=[。！？])\s*|\n+"
)
_CONCLUSION = re.compile(
    r"\s*(?:so|therefore|thus|hence|in conclusion|in summary|overall|因此|所以)(?![a-z])[,，:]?\s*", re.IGNORECASE
)
_CORRECTION = re.compile(r"\s*(?:no|wait|actually|correction|sorry)\b", re.IGNORECASE)
# An explanation behind an answer.
_REASON = re.compile(
    r"(?<=[\w.])(?:,?\s+(?:because|since)\s|,\s+(?:which|who|where|as|so|and it|and this)\s).*\Z",
    re.IGNORECASE | re.DOTALL,
)
# What a sentence adds to a proper name behind a comma: "Paris, a city known for its cafés". Two words are too few for
# it: "Dumas, the younger" is not "Dumas, the elder".
_APPOSITION = re.compile(
    r"\A(\s*(?:the\s)?[A-Z][\w'’.-]*(?:\s(?:[A-Z][\w'’.-]*|of|de|es|la))*),\s+"
    r"(?:(?:an?|the(?=\s+[a-z]))\s+(?P<said>\w[\w-]*\s+\w+)|(?:also|built|capital|known|located|nestled|situated)\s+\w+)\b.*\Z",
    re.DOTALL,
)
_IN_THE_IMAGE = re.compile(
    r"(?<=\w),?\s+(?:(?:seen|shown|visible|depicted|present) )?(?:in|on) (?:the|this) (?:\w+ )?"
    r"(?:image|picture|photo(?:graph)?|figure|scan|slide)[\s.!]*\Z",
    re.IGNORECASE,
)
_LOCATED = re.compile(
    r"\A\s*(?:located|situated|found|seen|visible|shown|present)?\s*\bin (?:the )?(?=\w)", re.IGNORECASE
)
_WRITTEN_BY = re.compile(r"\A\s*\w+(?:ed|en|wn) by (?=\w)", re.IGNORECASE)
_SHORT = 12  # words of a first sentence that may be an answer which the others explain


class _Token(NamedTuple):
    word: str
    start: int
    end: int


class _Asked(NamedTuple):
    """The words of a question that carry no answer, and the whole of it in lower case."""

    words: frozenset[str]
    where: bool
    who: bool


def about(spec: AnswerSpec, question: str) -> AnswerSpec:
    """Return `spec` with the words of its question, if its kind reads them and it has none yet."""
    return replace(spec, question=question) if spec.kind in READERS and not spec.question else spec


def core(text: str, question: str) -> str:
    """Return the part of `text` that answers `question`, a contiguous piece of it; `text` where nothing is left."""
    if not question or not text.strip() or len(text) > _LONGEST:
        return text
    asked = _asked(question)
    sentences = [sentence for sentence in _SENTENCE.split(text.strip()) if re.search(r"\w", sentence)]
    if len(sentences) > 1:
        stated = _stated(sentences, asked)
        return text if stated is None else stated
    return _cut(text, asked)[0]


@lru_cache(maxsize=4096)
def _asked(question: str) -> _Asked:
    """Return the words of a question without those that it offers as alternatives."""
    tokens = _tokens(question[-4 * _LONGEST :])
    words = {token.word for token in tokens}
    for alternative in _OR.finditer(question[-4 * _LONGEST :]):
        before = [t.word for t in tokens if t.end <= alternative.start()][-3:]
        after = [t.word for t in tokens if t.start >= alternative.end()][:3]
        # "Is the left or right lung affected?": the participle belongs to neither.
        after = after[: next((place for place, word in enumerate(after) if word.endswith("ed")), 3)]
        words -= (set(before) ^ set(after)) - _COPULAS - _ARTICLES
    for pair in _OPPOSITES:
        if words.issuperset(pair):
            words -= set(pair)
    lower = question.lower()
    return _Asked(frozenset(words - {":", "="}), "where" in lower, "who" in lower or "by what" in lower)


def _tokens(text: str) -> list[_Token]:
    return [_Token(match[0].casefold(), match.start(), match.end()) for match in _TOKEN.finditer(text)]


def _stated(sentences: list[str], asked: _Asked) -> str | None:
    """Return the answer of several sentences: the conclusion, else what the first states, else what one states last."""
    conclusion = _CONCLUSION.match(sentences[-1])
    if conclusion and conclusion.end():
        return _cut(sentences[-1][conclusion.end() :], asked)[0]
    found = [(sentence, *_cut(sentence, asked)) for sentence in sentences]
    corrected = [piece for sentence, piece, framed in found[1:] if framed and _CORRECTION.match(sentence)]
    if corrected:
        return corrected[-1]
    first, piece, framed = found[0]
    words = [token.word for token in _tokens(first)]
    if len(words) <= _SHORT and (framed or (len(words) <= 4 and not _VERBS & set(words))):
        return piece
    return next((piece for _, piece, framed in reversed(found) if framed), None)


def _cut(sentence: str, asked: _Asked) -> tuple[str, bool]:
    """Return (the answer in `sentence`, whether a side of it that only repeats the question was cut away)."""
    piece = _CONTRACTION.sub(lambda match: f"{match[1] or match[2]} is", sentence)
    piece = _without(_IN_THE_IMAGE, _without(_REASON, piece))
    cut = _side(piece, asked)
    framed = cut is not None
    if cut is not None:
        piece = _without_apposition(_leading(cut, asked))
        if asked.where:
            piece = _without(_LOCATED, piece)
        if asked.who:
            piece = _without(_WRITTEN_BY, piece)
    elif asked.where:
        piece = _without(_LOCATED, piece)
    return _trailing(piece, asked), framed


def _without(pattern: re.Pattern[str], text: str) -> str:
    rest = pattern.sub("", text)
    return rest if re.search(r"\w", rest) else text


def _without_apposition(piece: str) -> str:
    """Cut what a sentence adds to a proper name, unless it may tell two bearers of the name apart."""
    found = _APPOSITION.match(piece)
    return found[1] if found and not _TELLING & {t.word for t in _tokens(found["said"] or "")} else piece


def _side(sentence: str, asked: _Asked) -> str | None:
    """Return the side of the first verb that carries the answer, where the other only repeats the question."""
    tokens = _tokens(sentence)
    idle = asked.words | _ARTICLES | _COPULAS | _SUBJECTS | {":", "="}
    for place, token in enumerate(tokens):
        if token.word not in _VERBS and token.word not in (":", "="):
            continue
        before, after = tokens[:place], tokens[place + 1 :]
        if not before or not after:
            continue
        # "A is larger" begins with a letter, not with the article.
        first = [t for t in before if t.word not in idle or (len(before) == 1 and t.word == "a")]
        second = [t for t in after if t.word not in idle]
        if first and all(t.word in _JOINING for t in second) and (not second or len(second) < len(after)):
            return sentence[: token.start]
        if second and all(t.word in _JOINING for t in first):
            return sentence[token.end :]
        if first:
            # Both sides tell something: a later verb would only cut a clause in two.
            return None
    return None


def _leading(piece: str, asked: _Asked) -> str:
    """Cut words of the question from the beginning of what follows it: "wearing a red hat" after "The man is"."""
    tokens = _tokens(piece)
    place = 0
    idle = (asked.words | _ARTICLES | _COPULAS | _NAMING) - _TELLING - _FUNCTION
    # "of" goes with the words before it: "the capital of France" to "Paris is the capital of which country?".
    while place < len(tokens) and (
        tokens[place].word in idle or (place and tokens[place].word in asked.words & {"of"})
    ):
        place += 1
    if 0 < place < len(tokens) and not tokens[place].word.isdigit():
        return piece[tokens[place].start :]
    return piece


def _trailing(piece: str, asked: _Asked) -> str:
    """Cut words of the question from the end: "red car" to "What colour is the car?" is "red"."""
    tokens = _tokens(piece)
    place = len(tokens)
    while (
        place and tokens[place - 1].word in (asked.words | _COPULAS) - _TELLING and not _fixed(tokens[place - 1].word)
    ):
        place -= 1
    # "the" of "in the picture" goes with it.
    while 0 < place < len(tokens) and tokens[place - 1].word in _ARTICLES and tokens[place - 1].word != "a":
        place -= 1
    if place == len(tokens) or place == 0:
        return piece
    if tokens[place - 1].word in _FUNCTION or all(token.word in _ARTICLES for token in tokens[:place]):
        return piece
    return piece[: tokens[place - 1].end]


def _fixed(word: str) -> bool:
    """Return whether a word is a number or a Chinese character, of which the last carries meaning."""
    return word[:1].isdigit() or "\u3400" <= word[:1] <= "\u9fff"
