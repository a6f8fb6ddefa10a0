"""Differences between methods, and their tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from mm_spine.intervals import Interval
from mm_spine.measures import GREEDY, MAJ_AT_N, PASS_AT_1
from mm_spine.reporting.contrasts import BASE_VOTE, Contrast, contrasts, holm, p_words, sign_flip_test, t_test
from mm_spine.reporting.finished_run import FinishedRun


def a_run(method: str, vote: Sequence[float], greedy: Sequence[float], seed: int = 0, name: str = "") -> FinishedRun:
    """A run whose starting model's vote, and whose adapted model's greedy answers and samples, have these scores."""

    def scores(values: Sequence[float]) -> dict[str, float | None]:
        return {f"q{i}": value for i, value in enumerate(values)}

    summary = {"method": method, "seed": seed, "label_free": True}
    before = {"adapted": {MAJ_AT_N: scores(vote), GREEDY: scores(vote), PASS_AT_1: scores(vote)}}
    after = {"adapted": {MAJ_AT_N: scores(vote), GREEDY: scores(greedy), PASS_AT_1: scores(greedy)}}
    return FinishedRun(Path(name or f"{method}{seed}"), summary, 4, before, after)


def test_right_and_wrong_answers_are_tested_by_mcnemars_exact_test() -> None:
    # 7 questions turn right and 1 wrong, the others stay: a binomial test of 1 in 8.
    differences_Q = np.array([1.0] * 7 + [-1.0] + [0.0] * 20)
    assert sign_flip_test(differences_Q) == pytest.approx(stats.binomtest(1, 8).pvalue)
    assert sign_flip_test(np.zeros(5)) == 1.0 and sign_flip_test(np.array([1.0, 0.0])) == 1.0
    assert sign_flip_test(np.array([1.0])) is None


def test_many_questions_are_tested_by_drawn_sign_flips_always_the_same() -> None:
    differences_Q = np.random.default_rng(0).normal(0.2, 1.0, 200)
    p = sign_flip_test(differences_Q)
    assert p == sign_flip_test(differences_Q)
    assert p == pytest.approx(stats.ttest_1samp(differences_Q, 0.0).pvalue, abs=0.02)


def test_the_test_over_seeds_is_students() -> None:
    assert t_test([0.1, 0.2, 0.15]) == pytest.approx(stats.ttest_rel([0.1, 0.2, 0.15], [0.0] * 3).pvalue)
    assert t_test([0.1]) is None and t_test([0.1, 0.1]) is None


def with_p(p: float | None) -> Contrast:
    return Contrast("m", BASE_VOTE, "adapted", (0,), 9, Interval(0.1, 0.0, 0.2), p)


def test_holm_by_hand() -> None:
    corrected = [one.p_holm for one in holm([with_p(p) for p in (0.04, 0.01, None, 0.03, 0.5)])]
    # Sorted: 4 x 0.01, 3 x 0.03, 2 x 0.04 raised to what stands before it, 0.5.
    assert corrected[:2] == pytest.approx([0.09, 0.04]) and corrected[2] is None
    assert corrected[3:] == pytest.approx([0.09, 0.5])
    assert [one.p_holm for one in holm([with_p(0.7), with_p(0.7)])] == [1.0, 1.0]


def test_one_seed_is_paired_by_question_and_several_by_seed() -> None:
    single = a_run("ttrl", [1, 0, 0, 1], [1, 1, 1, 1])
    seeds = [a_run("spine", [1, 0, 0, 1], greedy, seed) for seed, greedy in enumerate(([1, 1, 1, 1], [1, 1, 0, 1]))]
    ttrl, spine = contrasts([single, *seeds])
    assert (ttrl.method, ttrl.seeds, ttrl.difference.value) == ("ttrl", (0,), 0.5)
    assert (ttrl.against, ttrl.test, ttrl.p) == (BASE_VOTE, "sign flips, 4 questions", 0.5)
    assert (spine.method, spine.seeds, spine.difference.value) == ("spine", (0, 1), 0.375)
    assert spine.test == "paired t, 2 seeds"
    assert spine.p == pytest.approx(stats.ttest_1samp([0.5, 0.25], 0.0).pvalue)
    assert spine.p is not None
    assert (spine.p_holm, ttrl.p_holm) == pytest.approx((2 * spine.p, 0.5))


def test_seeds_that_end_alike_have_no_interval_and_no_test() -> None:
    (one,) = contrasts([a_run("spine", [1, 0], [1, 1], seed) for seed in (0, 1)])
    assert one.difference == (0.5, None, None) and one.p is None and one.test == ""


def test_against_a_run_seeds_are_paired_with_their_own_partner() -> None:
    base = [a_run("ttrl", [0, 0], greedy, seed) for seed, greedy in enumerate(([0, 1], [0, 0]))]
    spine = [a_run("spine", [0, 0], greedy, seed) for seed, greedy in enumerate(([1, 1], [1, 1]))]
    (one,) = contrasts([*base, *spine], base[0])
    assert (one.method, one.against, one.difference.value) == ("spine", "ttrl", 0.75)
    # A seed without a partner is left out.
    (one,) = contrasts([base[0], *spine], base[0])
    assert (one.seeds, one.difference.value) == ((0,), 0.5)


def test_runs_of_one_method_and_seed_stay_apart() -> None:
    slow, fast = (a_run("spine", [0, 0], [1, 1], name=name) for name in ("slow", "fast"))
    assert [one.method for one in contrasts([slow, fast])] == ["spine (slow)", "spine (fast)"]
    (one,) = contrasts([slow, fast], slow)
    assert (one.method, one.difference.value) == ("spine", 0.0)


def test_p_values_in_words() -> None:
    assert [p_words(p) for p in (None, 0.0002, 0.0496, 1.0)] == ["–", "< 0.001", "0.050", "1.000"]
