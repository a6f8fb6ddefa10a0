"""The table of sovereign countries that benchmarks on facts ask about.

`countries.tsv` holds the 193 members and two observers of the United Nations. Data: GeoNames, licence CC BY 4.0; its
header and scripts/study/countries_table.py, which wrote it, say more.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TABLE = Path(__file__).resolve().parent / "countries.tsv"


@dataclass(frozen=True)
class Country:
    """One country. Of several names, capitals, continents or currencies the first is the usual one; all are right.

    `code` is its ISO 3166 alpha-2 code, `article` is "the" where its name takes one in a sentence. `capitals` holds
    other spellings, a former name of the same city, and every seat of government.
    """

    code: str
    article: str
    names: tuple[str, ...]
    capitals: tuple[str, ...]
    continents: tuple[str, ...]
    population: int
    area_km2: float
    currencies: tuple[str, ...]

    @property
    def name(self) -> str:
        """The usual English name, without an article."""
        return self.names[0]

    @property
    def in_sentence(self) -> str:
        """The usual English name as it stands within a sentence: "the Netherlands", "France"."""
        return f"{self.article} {self.name}".strip()


@cache
def countries() -> tuple[Country, ...]:
    """Return all countries, in the order of their codes."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader((line for line in file if not line.startswith("#")), delimiter="\t")
        return tuple(_country(row) for row in rows)


def _country(row: dict[str, str]) -> Country:
    return Country(
        code=row["code"],
        article=row["article"],
        names=tuple(row["names"].split("|")),
        capitals=tuple(row["capitals"].split("|")),
        continents=tuple(row["continents"].split("|")),
        population=int(row["population"]),
        area_km2=float(row["area_km2"]),
        currencies=tuple(row["currencies"].split("|")),
    )
