"""Built-in benchmarks on facts about countries: questions in words, answered in words, without images or a network.

One draw with a fixed seed splits the countries of `countries.tsv` in three. All benchmarks on facts share it, so that a
country which one of them adapts to is in no other one's `held_out`:

- `tune` (33 countries): the only split whose labels may be used for decisions;
- `adapt` (81 countries) and `held_out` (81 countries).
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from mm_spine.benchmarks.benchmark import Benchmark
from mm_spine.benchmarks.countries import countries
from mm_spine.types import AnswerSpec, LabelledSet, Question

SPLITS = ("tune", "adapt", "held_out")
_SEED = 2511
_TUNE = 33


@dataclass(frozen=True)
class Fact:
    """A question about a country (its code), the answers that are right, and what results are broken down by.

    `about` holds the words that carry no answer, those of the question and others for what it asks about.
    """

    id: str
    country: str
    prompt: str
    about: str
    golds: tuple[str, ...]
    tags: Mapping[str, str]


@cache
def countries_by_split() -> Mapping[str, frozenset[str]]:
    """Map each split to the codes of its countries."""
    codes = sorted(country.code for country in countries())
    random.Random(_SEED).shuffle(codes)
    middle = _TUNE + (len(codes) - _TUNE) // 2
    drawn = codes[:_TUNE], codes[_TUNE:middle], codes[middle:]
    return {split: frozenset(part) for split, part in zip(SPLITS, drawn, strict=True)}


def names_share_a_word(first: Iterable[str], second: Iterable[str]) -> bool:
    """Return whether a name of `first` and one of `second` have a word in common: "Mexico" and "Mexico City".

    The words of a question carry no answer to it, so such an answer could not be told from its question. Case and
    diacritics make no difference, and prepositions and articles do not count.
    """
    return bool(_words(first) & _words(second))


def _words(names: Iterable[str]) -> set[str]:
    plain = "".join(c for c in unicodedata.normalize("NFD", " ".join(names)) if not unicodedata.combining(c))
    return set(re.findall(r"\w+", plain.casefold())) - {"and", "de", "la", "of", "s", "the"}


@dataclass(frozen=True, kw_only=True)
class FactsBenchmark(Benchmark):
    """A built-in benchmark whose questions are facts."""

    facts: Callable[[], tuple[Fact, ...]]
    adapt_split: str = "adapt"
    held_out_split: str | None = "held_out"
    licence: str = "CC BY 4.0 (GeoNames)"
    model_hint: str = (
        "scripts/real.sh makes one that is meant for it, models/SmolLM2-135M-Instruct; any instruction-tuned "
        "language model's folder or hub id will do"
    )

    @property
    def splits(self) -> tuple[str, ...]:
        return SPLITS

    def load(self, split: str, source: str | None = None, prompt: str = "reason") -> LabelledSet:
        """Return the questions of `split`, their key and their tags. They are the same every time.

        Prompts have no instructions, so `prompt` changes nothing. Raises ValueError for another split, or a `source`.
        """
        if split not in SPLITS:
            raise ValueError(f"{self.name} has no split {split!r}; take one of {', '.join(SPLITS)}")
        if source is not None:
            raise ValueError(f"source={source!r}: {self.name} is embedded and has no other source; leave it out")
        asked = [fact for fact in self.facts() if fact.country in countries_by_split()[split]]
        questions = tuple(
            Question(fact.id, (), fact.prompt, AnswerSpec(kind=self.kind, question=fact.about), benchmark=self.name)
            for fact in asked
        )
        key = {fact.id: fact.golds for fact in asked}
        return LabelledSet(questions, key, tags={fact.id: fact.tags for fact in asked})
