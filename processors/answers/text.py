"""Short free text, compared without case, articles, repeated white space and surrounding punctuation.

What the question says already is no part of an answer: see `sentences`.
"""

from __future__ import annotations

import re
import unicodedata

from mm_spine.processors.answers import sentences
from mm_spine.processors.answers.extraction import announced, last_boxed, plain
from mm_spine.processors.answers.kind import keyed
from mm_spine.processors.answers.statements import refuses, unfinished
from mm_spine.types import AnswerSpec

_MARKS = ",;:!?\"'*_“”‘’«»。，、；：！？"
# One apostrophe within words, however it is set: "N’Djamena" is "N'Djamena".
_APOSTROPHES = str.maketrans("’‘ʼ", "'''")
# Unicode composition takes quadratic time where combining marks pile up; a longer text is left as it is.
_COMPOSED = 2000
_PAIR = re.compile(r"\(([^()]*)\)|\[([^\[\]]*)\]|\{([^{}]*)\}")
# "a" goes only at the beginning or behind a preposition: "vitamin a" keeps it.
_ARTICLES = re.compile(
    r"\A(?:(?:an?|the) )+(?=\S)(?!(?:is|are|was|has|and|or|than)\b)|(?<= )(?:the|an) (?=\S)"
    r"|(?<=(?: of| in| on| at| by| to| is) )a (?=\S)|(?<= with )a (?=\S)"
)


def read(text: str, spec: AnswerSpec) -> str | None:
    """Return the key of a bare answer: what it adds to the question, normalised, without articles."""
    key: str | None = text
    # What is cut may leave more to cut; a key reads back as itself.
    for _ in range(4):
        before, key = key, _key(sentences.core(key, spec.question)) if key else None
        if key == before:
            break
    return key


def _key(text: str) -> str | None:
    key = normal(text)
    return key and (_ARTICLES.sub("", key) or key)


def normal(text: str) -> str | None:
    """Return the normalised text, None if nothing is left. A sign, a leading decimal point and a % stay."""
    text = " ".join(plain(text).casefold().translate(_APOSTROPHES).split())
    while True:
        before = text
        text = unicodedata.normalize("NFC", text) if len(text) <= _COMPOSED else text
        text = text.lstrip(_MARKS + " ").rstrip(_MARKS + ". ")
        if pair := _PAIR.fullmatch(text):
            text = next(inner for inner in pair.groups() if inner is not None)
        if text == before:
            return text or None


def find(response: str, spec: AnswerSpec) -> str | None:
    """Return the boxed content, else the announced answer, else what the whole response says.

    A refusal, and a response that breaks off, commit to nothing.
    """
    box = last_boxed(response)
    content = response if box is None else box
    for said in announced(content):
        if key := read(said, spec):
            return None if refuses(said) else key
    if refuses(first_sentence(content)) or (box is None and unfinished(content)):
        return None
    return read(content, spec)


def first_sentence(text: str) -> str:
    """Return what a response states first: a refusal there is one, an explanation behind an answer is not."""
    return re.split(r"(?<=[.!?。])\s+|\n+", text.strip(), maxsplit=1)[0]


KIND = keyed(find, read)
