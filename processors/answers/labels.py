"""The labels and texts of the options of a question, and texts cleaned for finding them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from mm_spine.processors.answers import text as free_text
from mm_spine.processors.answers.extraction import plain
from mm_spine.types import AnswerSpec

LABELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_UNLISTED = 10  # labels that a question without listed options may have

ELIMINATED = re.compile(
    r"\b(?:wrong|incorrect|false|not|isn't|eliminated?|excluded?|ruled out|unlikely|impossible|implausible"
    r"|contraindicated|inappropriate)\b",
    re.I,
)
BRACKETED = re.compile(r"[(\[][A-Z][)\]]")
"""A letter in brackets."""

# Some releases write the label into the option: "B. aspirin".
_OWN_LABEL = re.compile(r"[(\[]?([A-Z])(?:[)\]][.:]?|[.:])\s*(?=\S)")
_ITEM = re.compile(r"\s*(?:[-*•]\s*)?[(\[]?([A-Z])(?:[)\]][.:]?|[.:])\s*(\S.*?)\s*[;,.]?\s*")
_TAG = re.compile(r"<(/?)(?:final_?)?answer>", re.IGNORECASE)
# Full-width signs have ASCII twins; marks of direction and of zero width go.
_TWINS: dict[int, str | None] = {
    **dict.fromkeys([0xAD, 0xFEFF, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070)]),
    **{code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},
    0x3000: " ",
    0x3002: ". ",
    0x3010: "[",
    0x3011: "]",
}


def check_count(choices: Sequence[str]) -> None:
    """Raise ValueError for more choices than there are labels: an answer is one letter of `LABELS`."""
    if len(choices) > len(LABELS):
        raise ValueError(f"{len(choices)} choices; at most {len(LABELS)} ({LABELS[0]} to {LABELS[-1]}) are graded")


def option_text(spec: AnswerSpec, index: int) -> str | None:
    """Return option `index` as normalised text, without its own label: "B. aspirin" is "aspirin"."""
    return _texts(spec)[index]


def label_of(index: int, spec: AnswerSpec) -> str:
    """Return the label of option `index`: of options with equal texts, that of the first."""
    return _first_alike(spec)[index]


def straight(text: str) -> str:
    """Replace full-width signs by ASCII ones and <answer> by "Answer:", and remove invisible marks."""
    if not text.isascii():
        text = text.translate(_TWINS)
    return _TAG.sub(lambda tag: "\n" if tag[1] else "\nAnswer: ", text) if "<" in text else text


def clean(text: str) -> str:
    """Remove markup, invisible marks and emphasis."""
    return plain(straight(text)).replace("*", "").replace("_", "")


@lru_cache(maxsize=4096)
def _written(spec: AnswerSpec) -> tuple[str, ...]:
    """Return the options as written, without their own labels."""
    texts = []
    for index, option in enumerate(map(clean, spec.choices)):
        label = _OWN_LABEL.match(option)
        own = label is not None and label[1] == LABELS[index : index + 1]
        texts.append((option[label.end() :] if label and own else option).strip())
    return tuple(texts)


@lru_cache(maxsize=4096)
def _texts(spec: AnswerSpec) -> tuple[str | None, ...]:
    return tuple(map(free_text.normal, _written(spec)))


def options(spec: AnswerSpec) -> Iterator[tuple[str, str]]:
    """Yield (label, text) of the options that have text, of those written alike the first."""
    for label, text, first in zip(LABELS, _texts(spec), _first_alike(spec), strict=False):
        if text and label == first:
            yield label, text


def valid(letter: str, spec: AnswerSpec) -> str | None:
    """Return the letter in upper case, None if it is beyond the options; of options written alike, the first's."""
    letter = letter.upper()
    if letter not in LABELS[: len(spec.choices) or _UNLISTED]:
        return None
    return _first_alike(spec)[LABELS.index(letter)] if spec.choices else letter


@lru_cache(maxsize=4096)
def _first_alike(spec: AnswerSpec) -> tuple[str, ...]:
    """Return for each option the label of the first that is written alike: (C) 18 and (D) 18 are one answer."""
    # With case: "AA" and "Aa" differ. Options without words, or all alike, stand for images and are not compared.
    texts = _written(spec)[: len(LABELS)]
    told = len(set(texts)) > 1
    return tuple(
        LABELS[texts.index(text) if told and re.search(r"\w", text) else index] for index, text in enumerate(texts)
    )


def by_text(text: str, spec: AnswerSpec) -> str | None:
    """Return the label of the one option whose text `text` is."""
    wanted = free_text.normal(text) if spec.choices else None
    matches = [label for label, option in options(spec) if option == wanted]
    return matches[0] if len(matches) == 1 else None


def without_own_texts(sentence: str, spec: AnswerSpec) -> str:
    """Remove the text of each option behind its own letter: "(C) 不变" and "(B) not visible" deny nothing."""
    kept, at = "", 0
    for letter in BRACKETED.finditer(sentence):
        label = valid(letter[0][1], spec) if letter.start() >= at else None
        option = option_text(spec, LABELS.index(label)) if label and spec.choices else None
        text = len(sentence) - len(sentence[letter.end() :].lstrip(" .:、"))
        if option and sentence[text:].casefold().startswith(option):
            kept, at = kept + sentence[at : letter.end()], text + len(option)
    return kept + sentence[at:]


def without_echo(text: str, spec: AnswerSpec) -> str:
    """Remove lines that repeat the list of options: several in order from A, each a label and, if known, its text."""
    lines = text.split("\n")
    if len(lines) == 1:
        return text
    kept: list[str] = []
    listed: list[str] = []
    texts = dict(zip(LABELS, _texts(spec), strict=False))
    for line in lines:
        item = _ITEM.fullmatch(line)
        wanted = LABELS[len(listed) : len(listed) + 1]
        known = item is not None and (not spec.choices or free_text.normal(item[2]) == texts.get(item[1]))
        if item is not None and item[1] == wanted and known and not ELIMINATED.search(item[2]):
            listed.append(line)
            continue
        if line.strip() or not listed:
            kept += [*(listed if len(listed) == 1 else []), line]
            listed = []
    return "\n".join([*kept, *(listed if len(listed) == 1 else [])])
