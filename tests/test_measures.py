"""Measures that are computed from counts and classes, by hand and against their definitions."""

from __future__ import annotations

from itertools import combinations, pairwise
from math import comb, log

import pytest
from saved_runs import AFTER, BEFORE, item

from mm_spine.evaluation import metrics
from mm_spine.evaluation.turned import is_right, turned_by_split
from mm_spine.measures import (
    SHARE_BINS,
    Turn,
    answer_entropy,
    distinct_answers,
    mean_pass_at_k,
    pass_at_k,
    shown_k,
    turned,
    vote_is_right,
    vote_share,
)


def test_pass_at_k_by_hand() -> None:
    # Of 4 samples 2 are right: of the 6 pairs one has no right one, and no three have none.
    assert pass_at_k(4, 2) == pytest.approx((1 / 2, 5 / 6, 1, 1))
    assert pass_at_k(4, 1) == pytest.approx((1 / 4, 1 / 2, 3 / 4, 1))
    assert pass_at_k(4, 0) == (0, 0, 0, 0) and pass_at_k(4, 4) == (1, 1, 1, 1)


def test_pass_at_k_is_the_share_of_draws_with_a_right_sample() -> None:
    for right in range(7):
        for k, value in enumerate(pass_at_k(6, right), 1):
            draws = list(combinations(range(6), k))
            assert value == pytest.approx(sum(min(draw) < right for draw in draws) / len(draws))


def test_pass_at_k_of_many_samples_is_that_of_whole_numbers_and_stays_in_bounds() -> None:
    for right in (0, 1, 3, 500, 1999, 2000):
        curve = pass_at_k(2000, right)
        assert all(0.0 <= a <= b <= 1.0 for a, b in pairwise(curve))
        for k in (1, 7, 900, 2000):
            exact = 1 - comb(2000 - right, k) / comb(2000, k) if right else 0.0
            assert curve[k - 1] == pytest.approx(exact, abs=1e-12)


def test_the_mean_is_over_questions_up_to_the_fewest_samples() -> None:
    assert mean_pass_at_k([(4, 2), (4, 0)]) == pytest.approx([1 / 4, 5 / 12, 1 / 2, 1 / 2])
    assert mean_pass_at_k([(4, 2), (2, 1)]) == pytest.approx([1 / 2, 11 / 12])


def test_tables_show_powers_of_two_and_the_last() -> None:
    assert [shown_k(n) for n in (0, 1, 4, 12)] == [[], [1], [1, 2, 4], [1, 2, 4, 8, 12]]


def test_entropy_and_number_of_answers_by_hand() -> None:
    assert answer_entropy(("a", "a", "a", "a")) == 0 and answer_entropy((None, None)) == 0
    assert answer_entropy(("a", "a", "b", None)) == pytest.approx(log(4) - log(2) / 2)
    assert answer_entropy(("a", "b", "c", "d")) == pytest.approx(log(4))
    assert [distinct_answers(classes) for classes in (("a", "a", "b", None), (None, None), ("a",))] == [2, 0, 1]
    # A model that stops answering is not taken for a sure one.
    assert answer_entropy(("a", None, None, None)) > 0
    assert [vote_share(classes) for classes in (("a", "a", "b", None), (None, None))] == [0.5, 0.0]


def test_a_vote_is_right_as_the_sample_that_gave_it() -> None:
    assert vote_is_right("2", ("1", None, "2"), (False, False, True))
    assert not vote_is_right("1", ("1", None, "2"), (False, False, True))
    assert not vote_is_right(None, (None, None), (True, True))


def test_questions_learnt_and_corrupted_by_hand() -> None:
    turns = [
        Turn(False, True, 0.25), Turn(False, True, 0.75), Turn(True, False, 1.0), Turn(True, True, 1.0),
        Turn(False, False, 0.0), Turn(False, True, 0.8),
    ]  # fmt: skip
    found = turned(turns)
    assert (found["n"], found["right_before"], found["learnt"], found["corrupted"]) == (6, 2, 3, 1)
    assert (found["learnt_share"], found["corrupted_share"]) == (pytest.approx(0.6), 1.0)
    counted = [(each["n"], each["right_before"], each["learnt"], each["corrupted"]) for each in found["bins"]]
    assert counted == [(2, 0, 1, 0), (0, 0, 0, 0), (1, 0, 1, 0), (1, 0, 1, 0), (2, 2, 0, 1)]
    assert [(each["low"], each["high"]) for each in found["bins"]] == list(SHARE_BINS)
    nothing = turned([])
    assert nothing["n"] == 0 and nothing["learnt_share"] is None and nothing["corrupted_share"] is None


def test_turned_of_two_evaluations_by_hand() -> None:
    by_split = turned_by_split(BEFORE, AFTER)
    assert list(by_split) == ["adapted", "held_out"]
    # Greedy: a is learnt, from a vote of 3 of 4 that was wrong, and b corrupted, from one of 3 of 4 that was right.
    greedy, vote = by_split["adapted"]["greedy"], by_split["adapted"]["vote"]
    assert (greedy["n"], greedy["learnt"], greedy["corrupted"], greedy["right_before"]) == (4, 1, 1, 2)
    assert (greedy["learnt_share"], greedy["corrupted_share"]) == (0.75, 0.75)
    assert (vote["learnt"], vote["corrupted"], vote["right_before"]) == (1, 1, 2)
    # Held out: the greedy answer to e is learnt; so is its vote, and f was right before.
    assert by_split["held_out"]["vote"]["learnt"] == by_split["held_out"]["greedy"]["learnt"] == 1
    assert turned_by_split([item("a", None, "1222")], [item("a", None, "1112")]) == {}
    assert turned_by_split([item("a", True, "1222")], [item("b", True, "1112")]) == {}
    assert is_right(item("a", True, "2221"), "greedy") and not is_right(item("a", True, "2221"), "vote")


def test_the_metrics_of_an_evaluation_by_hand() -> None:
    # Two of four, none, and both answers: "1222", "1112".
    block = metrics([item("a", False, "1222"), item("b", True, "1122"), item("c", None, "1111")])
    assert block["pass_at_k"] == pytest.approx([(1 / 4 + 1 / 2) / 2, (1 / 2 + 5 / 6) / 2, (3 / 4 + 1) / 2, 1])
    quarter = log(4) - 3 / 4 * log(3)
    assert block["answer_entropy"] == pytest.approx((quarter + log(2)) / 3)
    assert block["distinct_answers"] == pytest.approx(5 / 3)
    assert metrics([item("c", None, "1111")])["pass_at_k"] is None
