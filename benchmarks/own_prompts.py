"""Prompts of a user's folder: what they lack of options and of a request for the form of the answer is added."""

from __future__ import annotations

import re

from mm_spine.benchmarks.benchmark import Entry
from mm_spine.benchmarks.prompts import options, render
from mm_spine.processors.answers.choice import LABELS
from mm_spine.types import AnswerSpec

VERBATIM = "verbatim"
"""The style that adds no request."""

_LETTERED = ("choice", "math_or_choice", "typed")

# A verb that asks for an answer, where a sentence begins or after a polite word: "The knee does not respond to" and
# "the answer with the most votes" ask for no form.
_ASKS = r"(?:^|[.!?:;,\n(]\s*|\b(?:please|then|and|just|only)\s+)(?:answer|reply|respond)\b"
_FORM = r"(?:only|just|with|in|by|using|as|yes|directly|briefly)\b"
_PHRASES = (
    r"\\boxed",
    rf"{_ASKS}(?:\s+(?:the|this|each|my)\s+questions?|\s+it)?\s+{_FORM}",
    r"\bstep[- ]by[- ]step\b",
    r"\b(?:give|state|write|put|provide|output|return)\b[^.?!\n]{0,40}\bfinal answer\b",
    r"\b(?:a )?(?:single|one) (?:word|letter|number|phrase)\b",
    r"\byour (?:final )?answer (?:should|must)\b",
    r"\b(?:write|give|return|output|provide|state|name) (?:only|just)\b",
    r"\bonly (?:the|a|one) (?:letter|number|word|answer|result|option)\b",
    # German, French, Spanish, Italian, Chinese.
    r"\bantworte(?:n sie)?\b|\bschritt für schritt\b",
    r"\brépond(?:s|ez) (?:par|avec|en|uniquement|seulement)\b",
    r"\b(?:responda?|contesta|conteste) (?:con|solo|sólo|en|únicamente)\b",
    r"\brispond(?:i|ete) (?:con|solo|in)\b",
    r"[请只仅][^。？?\n]{0,12}(?:回答|作答)|(?:回答|作答)[^。？?\n]{0,12}(?:即可|字母|选项|是或否)|逐步|一步一步",
)
_REQUEST = re.compile("|".join(_PHRASES), re.IGNORECASE)


def holds_request(prompt: str) -> bool:
    """Whether a prompt says itself in which form to answer, by its words."""
    return _REQUEST.search(prompt) is not None


def request(spec: AnswerSpec, style: str) -> str:
    """Return the words that ask for an answer of the kind of `spec`, "" for the style `verbatim`."""
    return "" if style == VERBATIM else render(Entry("", "", spec, (), lists_options=True), style)


def write_prompt(text: str, spec: AnswerSpec, style: str) -> str:
    """Return the prompt that is asked for `text`.

    Options that the text does not contain are listed below it. A request that speaks of letters also needs each option
    beside its letter. A text that holds a request gets no second one.
    """
    plain = style == VERBATIM or holds_request(text)
    shown = _contains(text, spec.choices) if plain or spec.kind not in _LETTERED else _letters(text, spec.choices)
    listed = text if shown else f"{text}\n{options(spec.choices)}"
    return listed if plain else f"{listed.rstrip()}\n{request(spec, style)}"


def without_request(prompt: str, spec: AnswerSpec) -> str:
    """Return a prompt without the request that `write_prompt` has added."""
    for style in ("reason", "short"):
        prompt = prompt.removesuffix("\n" + request(spec, style))
    return prompt


def _contains(text: str, choices: tuple[str, ...]) -> bool:
    return all(re.search(rf"(?<!\w){re.escape(choice)}(?!\w)", text) for choice in choices)


def _letters(text: str, choices: tuple[str, ...]) -> bool:
    """Whether the text shows each option beside its letter: "(A) CT", "A. CT" or "A: CT"."""
    return all(
        re.search(rf"(?<!\w){label}\W{{1,4}}{re.escape(choice)}(?!\w)", text)
        for label, choice in zip(LABELS, choices, strict=False)
    )
