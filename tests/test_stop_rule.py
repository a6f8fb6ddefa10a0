"""When votes may stop: the exact rule, and the posterior that the leader is the mode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import betainc
from ties import first_of

from mm_spine.voting import (
    confident,
    decided,
    first_is_largest,
    mode_posterior,
)

NAMES = ["a", "b", "c", "d"]


def unseen(question_id: str) -> list[str]:
    """Two names that a sample to come may bring: one that wins every tie with NAMES, one that loses every one."""
    others = [f"other {i}" for i in range(400)]
    first = next(name for name in others if first_of(name, *NAMES, question_id=question_id) == name)
    last = next(name for name in others if all(first_of(name, n, question_id=question_id) == n for n in NAMES))
    return [first, last]


def winner_of(counts: Counter[str], question_id: str = "q") -> str | None:
    most = max(counts.values(), default=0)
    return first_of(*(n for n in counts if counts[n] == most), question_id=question_id) if counts else None


def completions(counts: Counter[str], remaining: int, question_id: str = "q") -> Iterator[Counter[str]]:
    """Every outcome of the remaining samples: seen names, unseen names, or unparsed."""
    for drawn in combinations_with_replacement([*NAMES, *unseen(question_id), None], remaining):
        yield counts + Counter(name for name in drawn if name is not None)


@given(st.lists(st.integers(0, 5), min_size=4, max_size=4), st.integers(0, 4), st.sampled_from(["q", "r", "7", "é"]))
@settings(max_examples=200)
def test_keyed_stop_is_exact(tally: list[int], remaining: int, question_id: str) -> None:
    counts = +Counter(dict(zip(NAMES, tally, strict=True)))
    ends = {winner_of(final, question_id) for final in completions(counts, remaining, question_id)}
    fixed = ends == {winner_of(counts, question_id)}
    assert decided(counts, remaining, keyed=True, question_id=question_id) == fixed


def partitions(items: Sequence[str]) -> Iterator[list[list[str]]]:
    if not items:
        yield []
        return
    for rest in partitions(items[1:]):
        yield [[items[0]], *rest]
        for i, block in enumerate(rest):
            yield [*rest[:i], [items[0], *block], *rest[i + 1 :]]


@given(st.lists(st.integers(0, 5), min_size=4, max_size=4), st.integers(1, 4))
@settings(max_examples=150)
def test_unkeyed_stop_holds_however_classes_merge(tally: list[int], remaining: int) -> None:
    counts = +Counter(dict(zip(NAMES, tally, strict=True)))
    leader = winner_of(counts)
    if not decided(counts, remaining, keyed=False, question_id="q"):
        return
    for final in completions(counts, remaining):
        for blocks in partitions(sorted(final)):
            sizes = [sum(final[name] for name in block) for block in blocks]
            best = max(sizes)
            assert sizes.count(best) == 1 and leader in blocks[sizes.index(best)]


FIRST = first_of("a", "b")


SECOND = "b" if FIRST == "a" else "a"


@pytest.mark.parametrize(
    ("counts", "remaining", "keyed_kind", "stop"),
    [
        ({"a": 5, "b": 2}, 2, True, True),
        ({FIRST: 5, SECOND: 2}, 3, True, True),  # level at worst, and the leader wins that tie
        ({SECOND: 5, FIRST: 2}, 3, True, False),  # level at worst, and the other would win it
        ({"a": 3}, 3, True, False),  # a class not yet seen could come before "a"
        ({"a": 4}, 3, True, True),
        ({"a": 5, "b": 2, "c": 1}, 2, False, False),  # 5 > 2 + 1 + 2 fails: b and c may turn out to be one
        ({"a": 6, "b": 2, "c": 1}, 2, False, True),
        ({}, 1, True, False),
        ({}, 0, True, True),
        ({"a": 1, "b": 1}, 0, False, True),
    ],
)
def test_stop_rule_by_hand(counts: dict[str, int], remaining: int, keyed_kind: bool, stop: bool) -> None:
    assert decided(counts, remaining, keyed_kind, "q") is stop


def test_negative_remaining_is_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        decided({"a": 1}, -1, keyed=True, question_id="q")


@pytest.mark.parametrize("a", [1, 2, 5, 17, 64, 400, 5000])
@pytest.mark.parametrize("b", [1, 3, 16, 64, 390])
def test_two_classes_are_a_beta_distribution(a: int, b: int) -> None:
    # X_0 > X_1 of Beta(a, b) is X_0 > 1/2, the upper tail, which is I_1/2(b, a).
    assert first_is_largest([a, b]) == pytest.approx(betainc(b, a, 0.5), abs=1e-9)


@pytest.mark.parametrize("shapes", [(5, 3, 1), (9, 7, 7, 1), (2, 2, 2, 2, 1), (20, 14, 9, 1), (40, 1, 1, 1), (3, 6, 1)])
def test_the_quadrature_agrees_with_draws(shapes: tuple[int, ...]) -> None:
    draws = np.random.default_rng(0).dirichlet(shapes, 200_000)
    expected = float((draws.argmax(1) == 0).mean())
    assert first_is_largest(shapes) == pytest.approx(
        expected, abs=4 * (expected * (1 - expected) / 200_000) ** 0.5 + 1e-6
    )


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6))
@settings(max_examples=60)
def test_one_of_the_classes_is_the_largest(shapes: list[int]) -> None:
    each = [first_is_largest([shapes[i], *shapes[:i], *shapes[i + 1 :]]) for i in range(len(shapes))]
    assert sum(each) == pytest.approx(1, abs=1e-9)


def test_confidence_by_hand() -> None:
    # n votes for one answer: the unseen one is larger with probability (1/2)^(n + 1).
    for n in range(1, 40):
        assert mode_posterior({"7": n}) == pytest.approx(1 - 0.5 ** (n + 1), abs=1e-12)
    assert confident({"7": 4}, 0.95) and not confident({"7": 3}, 0.95)
    assert not confident({}, 0.0) and mode_posterior({}) == 0.0
    assert mode_posterior({"7": 3, "8": 3}) < 0.5
    assert mode_posterior({"8": 9, "7": 2}) == mode_posterior({"7": 2, "8": 9})
    assert (
        mode_posterior({"7": 12, "8": 4})
        > mode_posterior({"7": 12, "8": 4, "9": 4})
        > mode_posterior({"7": 12, "8": 8})
    )


@given(st.lists(st.integers(0, 30), min_size=1, max_size=5))
@settings(max_examples=60)
def test_a_further_vote_for_the_leader_adds_confidence(tally: list[int]) -> None:
    counts = +Counter(dict(zip("abcde", tally, strict=False)))
    if counts:
        more = counts + Counter([winner_of(counts) or ""])
        assert 0 < mode_posterior(counts) < mode_posterior(more) <= 1 + 1e-12
