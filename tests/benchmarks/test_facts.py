"""The built-in benchmarks on facts: the table of countries, disjoint splits, and what counts as the same answer."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mm_spine.benchmarks import BENCHMARKS, capital_of, capitals
from mm_spine.benchmarks.countries import Country, countries
from mm_spine.benchmarks.facts import SPLITS, FactsBenchmark, countries_by_split, names_share_a_word
from mm_spine.config import ConfigError
from mm_spine.processors.answers import grade, parse, same
from mm_spine.runs.plan import check, load_config
from mm_spine.types import AnswerSpec, Question
from mm_spine.voting import vote

COUNTRIES = {country.code: country for country in countries()}
BOTH = pytest.mark.parametrize("benchmark", [capitals.BENCHMARK, capital_of.BENCHMARK], ids=lambda b: b.name)


def question(benchmark: FactsBenchmark, code: str) -> Question:
    """The question about a country, in whichever split it is."""
    (found,) = (q for split in SPLITS for q in benchmark.load(split).questions if q.id == f"{benchmark.name}/{code}")
    return found


def golds(benchmark: FactsBenchmark, code: str) -> tuple[str, ...]:
    (found,) = (fact.golds for fact in benchmark.facts() if fact.country == code)
    return found


def key(response: str, spec: AnswerSpec) -> str | None:
    answer = parse(response, spec)
    return answer and answer.key


def right(benchmark: FactsBenchmark, code: str, response: str) -> bool:
    spec = question(benchmark, code).spec
    return grade(parse(response, spec), golds(benchmark, code), spec).correct


# The table


def test_the_table_holds_every_member_and_observer_once() -> None:
    assert len(COUNTRIES) == len(countries()) == 195
    assert len({country.name for country in countries()}) == 195
    assert not {"TW", "XK", "HK", "PR", "GL"} & set(COUNTRIES) and {"VA", "PS", "NA"} <= set(COUNTRIES)


def test_every_cell_has_a_value_of_its_kind() -> None:
    continents = {"Africa", "Asia", "Europe", "North America", "Oceania", "South America"}
    for country in countries():
        assert country.population > 0 and country.area_km2 > 0 and set(country.continents) <= continents
        for values in (country.names, country.capitals, country.currencies, country.continents):
            assert all(value and value == value.strip() for value in values) and len(set(values)) == len(values)


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("UA", ("Kyiv", "Kiev")),
        ("KZ", ("Astana", "Nur-Sultan")),
        ("BO", ("Sucre", "La Paz")),
        ("ZA", ("Pretoria", "Cape Town", "Bloemfontein")),
        ("BR", ("Brasília", "Brasilia")),
        ("AU", ("Canberra",)),
        ("NG", ("Abuja",)),
        ("TZ", ("Dodoma",)),
    ],
)
def test_capitals_and_their_further_names(code: str, names: tuple[str, ...]) -> None:
    assert COUNTRIES[code].capitals == names


def test_a_name_takes_its_article_within_a_sentence() -> None:
    assert [COUNTRIES[code].in_sentence for code in ("NL", "FR", "US")] == [
        "the Netherlands",
        "France",
        "the United States",
    ]


# The splits


def test_no_country_is_in_two_splits() -> None:
    drawn = countries_by_split()
    assert {split: len(codes) for split, codes in drawn.items()} == {"tune": 33, "adapt": 81, "held_out": 81}
    assert set().union(*drawn.values()) == set(COUNTRIES)
    # The draw is part of every published figure: another seed would be another benchmark.
    assert {"FR", "US", "UA"} <= drawn["tune"] and "DE" in drawn["adapt"] | drawn["held_out"]


@BOTH
def test_a_question_is_in_the_split_of_its_country(benchmark: FactsBenchmark) -> None:
    loaded = {split: benchmark.load(split) for split in SPLITS}
    assert {split: len(labelled.questions) for split, labelled in loaded.items()} == {
        "tune": 28,
        "adapt": 76,
        "held_out": 76,
    }
    for split, labelled in loaded.items():
        assert {q.id.rpartition("/")[2] for q in labelled.questions} <= countries_by_split()[split]
        assert set(labelled.key) == {q.id for q in labelled.questions} == set(labelled.tags)
        assert all(not q.images and q.spec.kind == "text" for q in labelled.questions)
    assert benchmark.load("tune") == loaded["tune"]
    assert (benchmark.adapt_split, benchmark.held_out_split) == ("adapt", "held_out")


@BOTH
def test_another_split_or_source_is_refused(benchmark: FactsBenchmark) -> None:
    with pytest.raises(ValueError, match=f"{benchmark.name} has no split 'test'; take one of tune, adapt, held_out"):
        benchmark.load("test")
    with pytest.raises(ValueError, match=f"{benchmark.name} is embedded and has no other source"):
        benchmark.load("tune", source="elsewhere")


def test_what_is_asked() -> None:
    assert question(capitals.BENCHMARK, "NL").prompt == "What is the capital of the Netherlands?"
    assert question(capital_of.BENCHMARK, "UA").prompt == "Kyiv is the capital of which country?"
    assert golds(capitals.BENCHMARK, "UA") == ("Kyiv", "Kiev")


# Countries that give their capital away


@pytest.mark.parametrize(
    ("country", "capital", "shared"),
    [
        ("Mexico", "Mexico City", True),
        ("Guinea-Bissau", "Bissau", True),
        ("São Tomé and Príncipe", "Sao Tome", True),
        ("Sri Lanka", "Sri Jayawardenepura Kotte", True),
        ("Algeria", "Algiers", False),
        ("Trinidad and Tobago", "Port of Spain", False),
        ("the Netherlands", "The Hague", False),
    ],
)
def test_names_that_share_a_word(country: str, capital: str, shared: bool) -> None:
    assert names_share_a_word([country], [capital]) is shared


@BOTH
def test_no_question_gives_its_answer_away(benchmark: FactsBenchmark) -> None:
    asked = {fact.country for fact in benchmark.facts()}
    left_out = {"AD", "DJ", "GT", "GW", "KW", "LK", "LU", "MC", "MX", "PA", "SG", "SM", "ST", "SV", "VA"}
    assert set(COUNTRIES) - asked == left_out
    for fact in benchmark.facts():
        assert not names_share_a_word([fact.about], [fact.golds[0]]), fact.id


# Grading and votes


def sentences_about(benchmark: FactsBenchmark, country: Country, gold: str) -> Sequence[str]:
    """Ways to give `gold` as the answer."""
    asked, capital = country.in_sentence, country.capitals[0]
    if benchmark is capitals.BENCHMARK:
        return (
            f"{gold}.", f"**{gold}**", f"It is {gold}.", f"{gold} is the capital.",
            f"{gold} is the capital of {asked}.", f"The capital of {asked} is {gold}.",
            f"The capital city of {asked} is {gold}.", f"The capital of {country.names[-1]} is {gold}.",
            f"The capital of {asked} is {gold}, which is in the south.",
        )  # fmt: skip
    gold = f"the {gold}" if country.article else gold
    return (
        f"{gold}.", f"It is the capital of {gold}.", f"The country is {gold}.", f"{capital} is the capital of {gold}.",
        f"{capital} is the capital city of {gold}.", f"The capital of {gold} is {capital}.",
        f"{capital} is the capital of the country of {gold}.",
    )  # fmt: skip


@BOTH
def test_a_sentence_around_any_gold_is_that_gold(benchmark: FactsBenchmark) -> None:
    for fact in benchmark.facts():
        spec = question_spec(benchmark, fact.about)
        for gold in fact.golds:
            for response in sentences_about(benchmark, COUNTRIES[fact.country], gold):
                answer = parse(response, spec)
                assert key(response, spec) == key(gold, spec), response
                assert grade(answer, fact.golds, spec).correct, response


def question_spec(benchmark: FactsBenchmark, about: str) -> AnswerSpec:
    return AnswerSpec(kind=benchmark.kind, question=about)


@BOTH
def test_answers_for_two_countries_are_never_one_class(benchmark: FactsBenchmark) -> None:
    facts = benchmark.facts()
    for fact in facts[::9]:
        spec = question_spec(benchmark, fact.about)
        classes = [key(other.golds[0], spec) for other in facts]
        assert len(set(classes)) == len(facts), fact.id
        wrong = [other.golds[0] for other in facts if not set(other.golds) & set(fact.golds)]
        assert not any(grade(parse(answer, spec), fact.golds, spec).correct for answer in wrong), fact.id


@pytest.mark.parametrize(
    ("code", "response", "correct"),
    [
        ("BF", "The capital of Burkina Faso is Ouagadougou.", True),
        ("FR", "Paris is the capital.", True),
        ("US", "The capital of the U.S. is Washington, D.C.", True),
        ("US", "The capital of the United States is New York City.", False),
        ("TT", "The capital of Trinidad and Tobago is Port of Spain.", True),
        ("TL", "The capital of Timor-Leste is Dili.", True),
        ("AG", "St. John's is the capital of Antigua and Barbuda.", True),
        ("AG", "The capital of Antigua and Barbuda is St. George's.", False),
        ("TD", "The capital of Chad is N’Djamena.", True),
        ("TZ", "The capital of Tanzania is Dar es Salaam.", False),
        ("GN", "The capital of Guinea is Bissau.", False),
        ("FR", "The capital of France is France.", False),
        ("FR", "Paris is not the capital of France.", False),
        ("FR", "I do not know.", False),
    ],
)
def test_real_sentences_about_capitals(code: str, response: str, correct: bool) -> None:
    assert right(capitals.BENCHMARK, code, response) is correct


@pytest.mark.parametrize(
    ("code", "response", "correct"),
    [
        ("CU", "Havana is the capital of the Republic of Cuba.", True),
        ("MA", "The capital of the Republic of Morocco is Rabat.", True),
        ("KR", "Seoul is the capital of South Korea.", True),
        ("KR", "Seoul is the capital of North Korea.", False),
        ("CD", "Kinshasa is the capital of the Democratic Republic of the Congo.", True),
        ("CG", "Brazzaville is the capital of the Democratic Republic of the Congo.", False),
        ("CN", "Beijing is the capital of the Republic of China.", False),
        ("GA", "The capital of France is Paris.", False),
        ("LI", "Vaduz is the capital of the Russian Federation.", False),
    ],
)
def test_real_sentences_about_countries(code: str, response: str, correct: bool) -> None:
    assert right(capital_of.BENCHMARK, code, response) is correct


def test_a_vote_counts_meanings() -> None:
    asked = question(capitals.BENCHMARK, "FR")
    responses = [
        "The capital of France is Lyon.",
        "Paris is the capital.",
        "Lyon",
        "The capital of France is Paris.",
        "Paris",
    ]
    ballot, classes = vote([parse(response, asked.spec) for response in responses], asked.spec, asked.id)
    assert ballot.answer == "paris" and classes == ("lyon", "paris", "lyon", "paris", "paris")
    first, second = (parse(name, asked.spec) for name in ("Sucre", "La Paz"))
    assert first and second and not same(first, second, asked.spec)


# Commands


@pytest.mark.parametrize("name", ["capitals", "capital_of"])
def test_without_a_model_a_user_is_told_how_to_make_one(name: str) -> None:
    with pytest.raises(ConfigError, match=f"benchmark '{name}' ships no model of its own; scripts/real.sh makes"):
        check(load_config(name))
    assert BENCHMARKS[name].default_model is None


@pytest.mark.parametrize("name", ["capitals", "capital_of"])
def test_its_configuration_votes_and_evaluates_at_one_temperature(name: str) -> None:
    config = load_config(name)
    assert config.benchmark == name and config.model.dtype == "float32" and config.method.kl == "none"
    assert config.sampling.temperature == config.evaluation.temperature == 0.7
    assert config.sampling.max_new_tokens == config.evaluation.max_new_tokens == 24
    assert (config.sampling.votes.max, config.optim.steps, config.optim.questions_per_step) == (16, 10, 12)
