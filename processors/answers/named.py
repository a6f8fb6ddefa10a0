"""One of many listed names, such as countries or capitals, wherever a sentence states it.

Each choice of the spec is a thing with its names, "United States|USA": all are the same answer, and the key is the
first. The list is of everything that an answer might be, and says nothing about a single question. `value_type` says
where a sentence states the answer: "subject" (the default) takes the first name, "France" in "France is a country near
Spain."; "object" takes the first name behind the verb, "Paris" in "The capital of France is Paris.". Case, accents and
punctuation do not matter. A few words without a listed name are an answer of their own.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from itertools import islice

from mm_spine.processors.answers import text as free_text
from mm_spine.processors.answers.extraction import LOOKED_AT, announced, last_boxed, plain
from mm_spine.processors.answers.kind import keyed
from mm_spine.processors.answers.statements import refuses
from mm_spine.types import AnswerSpec

_REACH = 1000  # characters of a statement that are looked at
_ANNOUNCED = 50  # announcements that are looked at, from the end
_FEW = 5  # words of an answer that is not listed
_VERB = re.compile(r"\b(?:is|are|was|lies?|belongs?|called|named)\b")
# "St. John's" and "Washington D.C." end no sentence.
_END = re.compile(r"(?<!\bst)(?<!\bd\.c)[.!?](?=\s|\Z)|\n")
_LEADING = re.compile(r"\A(?:the|a|an|in|on|to|called|known as|located in|city of|continent of)\s+")


def read(text: str, spec: AnswerSpec) -> str | None:
    """Return the key of a bare answer. ValueError: unknown `value_type`."""
    said = _folded(text)
    found = _names(spec.choices)[1].get(said.strip(" .,!?"))
    return found or _stated(said, spec)


def find(response: str, spec: AnswerSpec) -> str | None:
    """Return the boxed, else the announced name, else the one that the first sentence states. ValueError: as `read`."""
    box = last_boxed(response)
    if box is not None:
        return read(box, spec)
    for said in islice(announced(response[-LOOKED_AT:]), _ANNOUNCED):
        if key := read(said, spec):
            return key
    return read(response, spec)


def _stated(said: str, spec: AnswerSpec) -> str | None:
    """Return the key of what the first sentence of a folded text states."""
    if spec.value_type not in (None, "subject", "object"):
        raise ValueError(f"unknown value_type {spec.value_type!r} of a named answer; take subject or object")
    sentence = said[: end.start()] if (end := _END.search(said)) else said
    if refuses(sentence):
        return None
    pattern, keys = _names(spec.choices)
    verb = _VERB.search(sentence) if spec.value_type == "object" else None
    behind = sentence[verb.end() :] if verb else sentence
    found = pattern.search(behind)
    # "Paris is the capital of France." has no capital behind its verb.
    if found is None and verb and not sentence.startswith("the "):
        found = pattern.search(sentence[: verb.start()])
    if found:
        both = found.string[: found.start()].split()[-1:] == ["both"]
        return None if both else keys[found[0]]
    rest = free_text.normal(behind.strip())
    while rest and (cut := _LEADING.sub("", rest)) != rest:
        rest = cut
    return rest if rest and len(rest.split()) <= _FEW and not _VERB.search(rest) else None


def _folded(text: str) -> str:
    """Return the text in lower case without accents, with plain apostrophes and single spaces, but for line ends."""
    letters = unicodedata.normalize("NFKD", plain(text[:_REACH]).replace("’", "'"))
    kept = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return "\n".join(" ".join(line.split()) for line in kept.casefold().strip().split("\n"))


@lru_cache(maxsize=64)
def _names(choices: tuple[str, ...]) -> tuple[re.Pattern[str], dict[str, str]]:
    """Return what matches a listed name, the longest where several begin, and folded name -> key."""
    keys: dict[str, str] = {}
    for choice in choices:
        names = [_folded(name) for name in choice.split("|") if name.strip()]
        for name in names:
            keys.setdefault(name, names[0])
    # Without names there is nothing to match.
    one = "|".join(re.escape(name) for name in sorted(keys, key=len, reverse=True)) or r"\Z."
    return re.compile(rf"(?<!\w)(?:{one})(?!\w)"), keys


KIND = keyed(find, read)
