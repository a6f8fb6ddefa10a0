"""What tree rollouts cost, by counting and by ETMR's formula."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tree_backends import QUESTIONS, Scripted, policy, random_script, trees

from mm_spine.draws import generator
from mm_spine.types import Rollout

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "study"))

from tree_metrics import fork_depths, ratio_by_forks, token_ratio


def even_forks(length: int) -> Callable[[str, int], tuple[Any, Any]]:
    """Twelve roots whose two forks each lie at 24 evenly spaced places, from 1/48 of the length to 47/48."""

    def script(name: str, index: int) -> tuple[Any, Any]:
        logp = np.full(length, -0.01)
        logp[[length * (4 * (index // 5) + side) // 48 for side in (1, 3)]] = -5.0, -4.0
        return generator("even", name, index).integers(0, 200, length), logp

    return script


def test_uniform_forks_cost_three_fifths_of_flat_sampling() -> None:
    """M 12, N 2, B 2: (1 + 0.5 x 4)/(1 + 4) = 0.60 at 60 leaves, by counting and by the formula."""
    backend = Scripted(policy(), 240, even_forks(240))
    (group,) = trees(backend, 60, QUESTIONS[:1])
    assert len(group) == 60 and backend.drawn == 0.6 * 60 * 240
    assert token_ratio(group) == 0.6
    assert ratio_by_forks(group) == pytest.approx(0.6, abs=1e-12)
    assert np.mean(fork_depths(group)) == pytest.approx(0.5, abs=1e-12) and len(fork_depths(group)) == 24


@pytest.mark.parametrize("forks, count", [(2, 2), (3, 2), (1, 4)])
def test_the_formula_agrees_with_counting_where_branches_are_as_long_as_their_root(forks: int, count: int) -> None:
    """(1 + B sum_k(1 - t_k/T))/(1 + B N), over eight trees of each question."""
    size = 1 + forks * count
    found = list(chain(*trees(Scripted(policy(), 50, random_script(50)), 8 * size, forks=forks, branches=count)))
    measured = token_ratio(found)
    assert ratio_by_forks(found) == measured
    depths = fork_depths(found)
    assert len(depths) == 3 * 8 * forks
    assert measured == pytest.approx((1 + count * forks * (1 - np.mean(depths))) / size, rel=1e-12)


def test_roots_of_different_lengths_weigh_by_their_tokens() -> None:
    """Trees of 10 and 30 tokens forked at 4 and 3, one branch each, of 6 and 9 tokens; a flat one of 5.

    Counted: 10 + 2 + 30 + 6 + 5 of 60; by the forks: 10 + 6 + 30 + 27 + 5 of 85.
    """
    lengths, forks, parents = [10, 6, 30, 9, 5], [None, 4, None, 3, None], [None, 0, None, 2, None]
    made = [
        Rollout("q", i, (1,) * length, "", np.zeros(length), None, "stop", parent, at)
        for i, (length, at, parent) in enumerate(zip(lengths, forks, parents, strict=True))
    ]
    assert token_ratio(made) == 53 / 60
    assert ratio_by_forks(made) == 78 / 85
    assert fork_depths(made) == [0.4, 0.1]
    assert token_ratio([]) == ratio_by_forks([]) == 1.0
