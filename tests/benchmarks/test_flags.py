"""The embedded benchmark of flags: disjoint countries, true golds, and pictures that are the same every time."""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from mm_spine.benchmarks import BENCHMARKS, flag_pictures, flags
from mm_spine.benchmarks.countries import countries
from mm_spine.processors.answers import grade, parse

SENTENCES = {
    "name": "The name of this country is {}.",
    "capital": "The capital of the country is {}.",
    "continent": "It lies on the continent of {}.",
    "population": "{} has more people.",
    "area": "The larger country is {}.",
}


def apart(one: Image.Image, other: Image.Image) -> float:
    """Return the mean distance of two pictures, in grey levels."""
    return float(np.abs(np.asarray(one, np.float64) - np.asarray(other, np.float64)).mean())


def test_the_archive_holds_every_country_and_the_licence() -> None:
    with zipfile.ZipFile(flag_pictures.ARCHIVE) as archive:
        assert {*archive.namelist()} == {"LICENSE", *(f"{country.code}.png" for country in countries())}
        assert b"MIT License" in archive.read("LICENSE")
        assert Image.open(io.BytesIO(archive.read("FR.png"))).size == (128, 96)
    assert flag_pictures.ARCHIVE.stat().st_size < 600_000


def test_countries_that_look_alike_are_not_both_shown() -> None:
    for left_out, shown in flags.ALIKE.items():
        assert apart(flag_pictures.flag(left_out), flag_pictures.flag(shown)) < 35
    codes = [country.code for country in flags.SHOWN]
    assert not flags.ALIKE.keys() & set(codes)
    assert min(apart(flag_pictures.flag(a), flag_pictures.flag(b)) for a, b in combinations(codes, 2)) > 5


def test_no_country_is_in_two_splits() -> None:
    seen = [code for codes in flags.CODES.values() for code in codes]
    assert len(seen) == len(set(seen)) == 192 == len(flags.SHOWN)
    for split, codes in flags.CODES.items():
        assert {code for asked in flags.plan(split) for code in asked.codes} == set(codes)


@pytest.mark.parametrize("split", flags.SPLITS)
def test_three_questions_ask_about_each_picture_and_one_compares_it(split: str) -> None:
    planned = flags.plan(split)
    alone = Counter(asked.codes[0] for asked in planned if len(asked.codes) == 1)
    together = Counter(code for asked in planned if len(asked.codes) == 2 for code in asked.codes)
    assert set(alone.values()) == {3} and set(together.values()) == {1}
    assert len({asked.id for asked in planned}) == len(planned)


def test_what_is_compared_differs_enough() -> None:
    by_code = {country.code: country for country in flags.SHOWN}
    for asked in (asked for split in flags.CODES for asked in flags.plan(split)):
        if len(asked.codes) == 2:
            small, large = sorted(flags._size(by_code[code], asked.kind) for code in asked.codes)
            assert large >= flags.LEAST_RATIO * small, asked


def test_every_gold_is_read_alone_and_in_a_sentence() -> None:
    for split in ("tune", "adapt", "held_out"):
        labelled = flags.load(split)
        for question in labelled.questions:
            golds = labelled.key[question.id]
            sentence = SENTENCES[labelled.tags[question.id]["kind"]]
            for said in (*golds, *(sentence.format(gold) for gold in golds)):
                assert grade(parse(said, question.spec), golds, question.spec).correct, (question.id, said)


def test_golds_are_those_of_the_countries_shown() -> None:
    labelled = flags.load("tune")
    by_id = {asked.id: asked for asked in flags.plan("tune")}
    by_code = {country.code: country for country in countries()}
    for question in labelled.questions:
        shown = [by_code[code] for code in by_id[question.id].codes]
        kind, golds = by_id[question.id].kind, labelled.key[question.id]
        assert len(question.images) == len(shown) == question.prompt.count("<image")
        if kind == "population":
            other = next(country for country in shown if country.names != golds)
            assert next(c for c in shown if c.names == golds).population > other.population
        if kind == "capital":
            assert golds == shown[0].capitals


def test_pictures_are_the_same_every_time_and_plain_ones_are_plain() -> None:
    code = flags.CODES["adapt"][0]
    first = flags.picture("adapt", code)
    flags.picture.cache_clear()
    assert apart(first, flags.picture("adapt", code)) == 0
    assert first.size == (flag_pictures.WIDTH, flag_pictures.HEIGHT)
    plain = np.asarray(flags.picture("adapt_plain", code))
    assert (plain[0, 0] == flag_pictures.GREY).all() and apart(first, Image.fromarray(plain)) > 10


def test_the_shift_grows_with_its_strength() -> None:
    still = [flag_pictures.photograph(np.random.default_rng(0), "BR", strength) for strength in (0.0, 0.5, 1.0)]
    again = flag_pictures.photograph(np.random.default_rng(1), "BR", 0.0)
    # Without strength no draw changes anything.
    assert apart(still[0], again) == 0
    assert 0 < apart(still[0], still[1]) < apart(still[0], still[2])


def test_wrong_splits_and_sources_are_named() -> None:
    with pytest.raises(ValueError, match="no split 'test'.*held_out_plain"):
        flags.load("test")
    with pytest.raises(ValueError, match="embedded"):
        BENCHMARKS["flags"].load("tune", source="elsewhere")
