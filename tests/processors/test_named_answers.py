"""One of many listed names, wherever a sentence states it."""

from __future__ import annotations

import pytest

from mm_spine.processors.answers import grade, parse
from mm_spine.types import AnswerSpec

LANDS = ("France", "United States|USA", "Guinea", "Papua New Guinea|PNG", "Côte d'Ivoire|Ivory Coast", "Spain", "Niger")
CITIES = ("Paris", "Washington, D.C.|Washington", "St. John's|Saint John's", "Mexico City", "Singapore", "São Tomé")
LAND, CITY = AnswerSpec("named", LANDS), AnswerSpec("named", CITIES, value_type="object")


@pytest.mark.parametrize(
    ("response", "key"),
    [
        ("France", "france"),
        ("The name of this country is France.", "france"),
        ("France is a country in Europe, bordered by Spain to the south, and", "france"),
        ("France has more people than Spain. Spain has fewer.", "france"),
        ("This is Papua New Guinea.", "papua new guinea"),
        ("PNG.", "papua new guinea"),
        ("It is the USA", "united states"),
        ("Cote d’Ivoire is in Africa", "cote d'ivoire"),
        ("The answer is:\nGuinea.", "guinea"),
        ("\\boxed{Spain}", "spain"),
        ("Nigeria", "nigeria"),
        ("The Nigerian flag is a flag of great cultural importance to all.", None),
        ("While both France and Spain are countries in Europe", None),
        ("I cannot determine the country from this image: France or Spain.", None),
        ("", None),
    ],
)
def test_the_first_listed_name_is_the_answer(response: str, key: str | None) -> None:
    found = parse(response, LAND)
    assert (found and found.key) == key
    assert found is None or parse(found.text, LAND) == found


@pytest.mark.parametrize(
    ("response", "key"),
    [
        ("The capital of France is Paris.", "paris"),
        ("Paris is the capital of France", "paris"),
        ("The capital of Singapore is Singapore.", "singapore"),
        ("The capital of Singapore is Kuala.", "kuala"),
        ("The capital of Mexico is Mexico City, near Paris.", "mexico city"),
        ("The capital of the country is St. John's. Paris is not.", "st. john's"),
        ("The capital of the USA is Washington D.C.", "washington, d.c."),
        ("Sao Tome", "sao tome"),
        ("The capital of Lesotho is the city of Lilongwe.", "lilongwe"),
        ("The capital of Peru is a large and very beautiful city on the coast.", None),
        ("Peru is a country in South America, bordered by six other countries of the region", None),
    ],
)
def test_an_object_stands_behind_the_verb(response: str, key: str | None) -> None:
    found = parse(response, CITY)
    assert (found and found.key) == key
    assert found is None or parse(found.text, CITY) == found


def test_every_name_of_a_thing_is_the_same_answer() -> None:
    said = parse("The USA.", LAND)
    assert grade(said, ("United States",), LAND).correct and grade(said, ("usa",), LAND).correct
    assert not grade(said, ("France",), LAND).correct


def test_without_a_list_a_few_words_are_an_answer() -> None:
    found = parse("It is in France.", AnswerSpec("named", value_type="object"))
    assert found is not None and found.key == "france"


def test_wrong_places_are_named() -> None:
    with pytest.raises(ValueError, match="'verb'.*subject or object"):
        parse("France it is", AnswerSpec("named", LANDS, value_type="verb"))
