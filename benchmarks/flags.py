"""The benchmark `flags`: questions about countries whose flags are seen, so that what is seen meets what is known.

The flags are drawn by `flag_pictures`, what is asked about them stands in `countries.tsv`. Every country is in one of
three splits, so that `held_out` shows flags, and asks for capitals, that no adaptation has met:

- `tune` (72 countries): the only split whose answers may be used for decisions;
- `adapt` (48 countries): what a run adapts to;
- `held_out` (72 countries).

Each country has one picture, about which three questions are asked: its name, its capital, its continent. Another
question shows two pictures and asks which country has more people, or a larger area; each picture is in one of
these. So the answers of four questions depend on how a picture is read. Pictures have the camera's shift; the splits
`tune_plain`, `adapt_plain` and `held_out_plain` ask the same about flags that are drawn plainly, as the vision tower
was trained on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from mm_spine.benchmarks import flag_pictures
from mm_spine.benchmarks.benchmark import Benchmark
from mm_spine.benchmarks.countries import Country, countries
from mm_spine.types import AnswerSpec, LabelledSet, Question

ALIKE: Mapping[str, str] = {"TD": "RO", "MC": "ID", "LU": "NL"}
"""Countries that are not shown, and those whose flags look the same when they are this small, or faded."""

PLAIN = "_plain"
"""The ending of the splits without the camera's shift."""

SHIFT = 0.65
"""The strength of the camera's shift, chosen on `tune` (docs/results/flags.md)."""

LEAST_RATIO = 1.5
"""Of two countries that are compared the larger is larger by this factor, so that a year more does not matter."""

_SEED = 4321
_COUNTS = {"tune": 72, "adapt": 48, "held_out": 72}

SPLITS = (*_COUNTS, *(split + PLAIN for split in _COUNTS))

SHOWN: tuple[Country, ...] = tuple(country for country in countries() if country.code not in ALIKE)
"""The countries whose flags are shown, in the order of their codes."""

CONTINENTS = (
    "Africa|African", "Asia|Asian", "Europe|European", "North America|North American|Central America",
    "South America|South American", "Oceania|Australia",
)  # fmt: skip

_COUNTRY = AnswerSpec("named", tuple("|".join(country.names) for country in countries()))
_CAPITAL = AnswerSpec("named", tuple("|".join(country.capitals) for country in countries()), value_type="object")
_CONTINENT = AnswerSpec("named", CONTINENTS, value_type="object")


@dataclass(frozen=True)
class QuestionKind:
    """One kind of question: its prompt, the golds of the countries that it shows, and the spec of its answer."""

    prompt: str
    golds: Callable[[tuple[Country, ...]], tuple[str, ...]]
    spec: AnswerSpec


@dataclass(frozen=True)
class PlannedQuestion:
    """A question before its pictures are drawn: the codes of the countries that it shows, in order, and its kind."""

    id: str
    codes: tuple[str, ...]
    kind: str


KINDS: Mapping[str, QuestionKind] = {
    "name": QuestionKind("What is the name of this country: <image1>?", lambda shown: shown[0].names, _COUNTRY),
    "capital": QuestionKind("What is the capital of <image1>?", lambda shown: shown[0].capitals, _CAPITAL),
    "continent": QuestionKind(
        "On which continent does <image1> lie? Answer with its name only.",
        lambda shown: shown[0].continents,
        _CONTINENT,
    ),
    "population": QuestionKind(
        "Which country has more people: <image1> or <image2>?",
        lambda shown: max(shown, key=lambda country: country.population).names,
        _COUNTRY,
    ),
    "area": QuestionKind(
        "Which is the larger country, <image1> or <image2>?",
        lambda shown: max(shown, key=lambda country: country.area_km2).names,
        _COUNTRY,
    ),
}


def _codes() -> dict[str, tuple[str, ...]]:
    order = iter(np.random.default_rng(_SEED).permutation([country.code for country in SHOWN]).tolist())
    return {split: tuple(next(order) for _ in range(count)) for split, count in _COUNTS.items()}


CODES: Mapping[str, tuple[str, ...]] = _codes()
"""The countries of each split: no country is in two of them."""


def load(split: str, source: str | None = None, prompt: str = "reason") -> LabelledSet:
    """Return the questions of `split` and their key. They are the same every time.

    Prompts have no instructions of a style, so `prompt` changes nothing. Raises ValueError for another split, or a
    `source`.
    """
    if source is not None:
        raise ValueError(f"source={source!r}: flags is embedded and has no other source; leave it out")
    by_code = {country.code: country for country in SHOWN}
    questions, key, tags = [], {}, {}
    for planned in plan(split):
        kind = KINDS[planned.kind]
        pictures = tuple(picture(split, code) for code in planned.codes)
        questions.append(Question(planned.id, pictures, kind.prompt, kind.spec, benchmark="flags"))
        key[planned.id] = kind.golds(tuple(by_code[code] for code in planned.codes))
        tags[planned.id] = {"kind": planned.kind}
    return LabelledSet(tuple(questions), key, tags=tags)


def plan(split: str) -> tuple[PlannedQuestion, ...]:
    """Plan the questions of `split`, without their pictures. Raises ValueError for another split."""
    if split not in SPLITS:
        raise ValueError(f"flags has no split {split!r}; take one of {', '.join(SPLITS)}")
    codes = CODES[split.removesuffix(PLAIN)]
    asked: list[tuple[tuple[str, ...], str]] = []
    asked += [((code,), kind) for code in codes for kind in ("name", "capital", "continent")]
    asked += _pairs(codes)
    return tuple(PlannedQuestion(f"flags/{split}/{index:04d}", *question) for index, question in enumerate(asked))


@cache
def picture(split: str, code: str) -> Image.Image:
    """Return the one picture of a country in a split."""
    at = SPLITS.index(split)
    rng = np.random.default_rng([_SEED, at, [country.code for country in SHOWN].index(code)])
    return flag_pictures.plain(rng, code) if split.endswith(PLAIN) else flag_pictures.photograph(rng, code, SHIFT)


def _pairs(codes: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Pair all countries by turns for a comparison of population and of area, each with the next that differs enough.

    A country that none is left for stays alone.
    """
    by_code = {country.code: country for country in SHOWN}
    left, kinds = list(codes), 0
    while left:
        first, kind = left.pop(0), ("population", "area")[kinds % 2]
        size = {code: _size(by_code[code], kind) for code in (first, *left)}
        fits = (code for code in left if max(size[first], size[code]) >= LEAST_RATIO * min(size[first], size[code]))
        if second := next(fits, None):
            left.remove(second)
            kinds += 1
            yield (first, second), kind


def _size(country: Country, kind: str) -> float:
    return country.population if kind == "population" else country.area_km2


class FlagsBenchmark(Benchmark):
    """The embedded benchmark as the commands see it."""

    @property
    def splits(self) -> tuple[str, ...]:
        return SPLITS

    def load(self, split: str, source: str | None = None, prompt: str = "reason") -> LabelledSet:
        return load(split, source, prompt)


BENCHMARK = FlagsBenchmark(
    name="flags",
    adapt_split="adapt",
    held_out_split="held_out",
    summary="Photographed flags: the country, its capital, its continent, which of two is larger; embedded, offline.",
    citation="flag-icons 7.5.0, https://github.com/lipis/flag-icons; GeoNames, https://www.geonames.org.",
    licence="MIT (the flags), CC BY 4.0 (the facts)",
    kind="named",
    breakdowns=("kind",),
    model_hint="scripts/real.sh flags makes the one it is meant for, models/flags, of SmolLM2-135M-Instruct",
)
