"""Advantages and limits of single tokens, worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from credited_groups import everywhere, group, options, rollout, with_credit
from torch import Tensor

from mm_spine.methods.laid import Laid
from mm_spine.methods.method import Batch, View
from mm_spine.methods.token_weights import (
    average_over_tokens,
    by_certainty,
    by_clarity,
    by_entropy_change,
    by_perplexity,
    by_position,
    change_weights,
    entropy_score,
    redistributed,
    token_averaged,
    with_entropy_limits,
    without_sureness,
)
from mm_spine.methods.tokens import Tokens


def advantages(tokens: Sequence[Sequence[Tokens]]) -> list[Any]:
    return [None if t.advantage_T is None else t.advantage_T.tolist() for own in tokens for t in own]


def approx(rows: Sequence[Sequence[float]]) -> list[Any]:
    return [pytest.approx(row, abs=1e-5) for row in rows]


def test_steer_weighs_by_the_change_of_entropy() -> None:
    """|A (1 - p)(ln p + H)| = 0, 2 * 3/4 * 1 = 3/2 and 2 * 1/2 * 3/4 = 3/4: weights 1.2, 0.8 and 1.0."""
    p = torch.tensor([0.5, 0.25, 0.5], dtype=torch.float64)
    entropy = torch.tensor([0.0, 1.0, 0.75], dtype=torch.float64) - p.log()
    laid = Laid(p.log(), entropy, torch.tensor([3.0, 2.0, -2.0], dtype=torch.float64))
    torch.testing.assert_close(change_weights(laid, 0.8, 1.2), torch.tensor([1.2, 0.8, 1.0], dtype=torch.float64))
    same = Laid(*(x[:1] for x in laid))
    assert change_weights(same, 0.8, 1.2).tolist() == [1.0], "all equal: the middle"


def test_steer_scales_advantages() -> None:
    """Log-probs are minus entropies, so that ln p + H = 0: all weights are equal, (0.8 + 1.2) / 2."""
    own = with_credit([rollout(0, [1, 2], [0.1, 0.9]), rollout(1, [3], [0.5])], [1.0, -3.0])
    found = by_entropy_change(options("steer"), Batch([own]), everywhere([own]))  # type: ignore[arg-type]
    assert advantages(found) == approx([[1.0, 1.0], [-3.0]])


def test_empg_scales_by_certainty_and_adds_that_of_the_next_token() -> None:
    """h = 0, 1 and 1/2 of three tokens, f = exp(-h), g = f / mean f; the mean of all is taken off."""
    own = with_credit([rollout(0, [1, 2], [1.0, 3.0]), rollout(1, [3], [2.0])], [1.0, -2.0])
    found = by_clarity(options("empg"), Batch([own]), everywhere([own]))  # type: ignore[arg-type]
    f = [1.0, math.exp(-1), math.exp(-0.5)]
    mean = sum(f) / 3
    raw = [f[0] / mean + 0.1 * f[1], f[1] / mean, -2 * f[2] / mean]
    assert advantages(found) == approx([[raw[0] - sum(raw) / 3, raw[1] - sum(raw) / 3], [raw[2] - sum(raw) / 3]])


def test_hapo_averages_rewards_over_tokens() -> None:
    """Lengths 1 and 3: mean 1/4, variance 3/16. A response of 1 token among 100 would get 9.9, and keeps the usual."""
    usual = torch.tensor([0.7, -0.7])
    found = average_over_tokens(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 3.0]), usual, 0.0)
    torch.testing.assert_close(found, torch.tensor([0.75, -0.25]) / math.sqrt(3 / 16))
    far = average_over_tokens(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 99.0]), usual, 0.0)
    assert torch.equal(far, usual)
    own = [group([rollout(0, [1], [0.1]), rollout(1, [1, 2, 3], [0.1] * 3)], ["1", "2"])]
    ((high, low),) = token_averaged(options("hapo"), Batch(own), [torch.tensor([1.0, 0.0])])
    assert (float(high), float(low)) == pytest.approx((0.75 / math.sqrt(3 / 16), -0.25 / math.sqrt(3 / 16)), rel=1e-4)
    assert token_averaged(options("hapo"), Batch(own), [torch.ones(2)])[0].tolist() == [0.0, 0.0]


def test_hapo_scores_entropies_on_both_sides_of_the_median() -> None:
    """log H = -4, -2, 0, 1, 2: the median is 0. Its public code would give 1 for the first."""
    found = entropy_score(torch.tensor([-4.0, -2.0, 0.0, 1.0, 2.0], dtype=torch.float64).exp())
    torch.testing.assert_close(found, torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0], dtype=torch.float64))
    assert entropy_score(torch.zeros(3)).tolist() == [0.0] * 3


def test_hapo_widens_one_limit_of_each_token() -> None:
    """log H = -2, 0 and 2 score -1, 0 and 1; limits 0.2 below and 0.28 above."""
    own = with_credit([rollout(0, [1, 2, 3], [math.exp(-2), 1.0, math.exp(2)])], [1.0])
    (((limits,),),) = [[[t.clip for t in chosen] for chosen in with_entropy_limits(
        options("hapo"), Batch([own]), everywhere([own])
    )]]  # fmt: skip
    assert limits is not None
    torch.testing.assert_close(limits.low_T, torch.tensor([0.4, 0.2, 0.2]), atol=1e-6, rtol=0)
    torch.testing.assert_close(limits.high_T, torch.tensor([0.28, 0.28, 0.56]), atol=1e-6, rtol=0)


def view(ratio: Sequence[float], h: Sequence[float], advantage: float) -> View:
    """A response whose tokens have these importance ratios and scores."""
    score = torch.tensor([h], dtype=torch.float64)
    logp = torch.tensor([ratio], dtype=torch.float64).log().requires_grad_()
    nothing = torch.zeros_like(score)
    return View(
        logp, nothing, nothing, nothing, torch.tensor([[advantage]], dtype=torch.float64),
        0.2 * (1 - score.clamp(max=0)), 0.28 * (1 + score.clamp(min=0)),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("ratio", "h", "expected"),
    [
        (1.0, -0.5, 1.0),  # certain, near: A (1 - 1/2)
        (1.0, 0.5, 2.0),  # uncertain, near: A
        (1.25, 0.5, 1.25 * 3.0),  # uncertain, beyond half of 0.42: A (1 + 1/2)
        (1.2, -0.5, 1.2 * 2.0),  # certain, beyond half of 0.28: A
        (1.2, 0.0, 1.2 * 2.0),  # no score: A wherever it is
    ],
)
def test_hapo_redistributes_advantages(ratio: float, h: float, expected: float) -> None:
    found = redistributed(options("hapo"), view([ratio], [h], 2.0))
    assert float(found.detach()) == pytest.approx(expected)


def test_the_gradient_of_hapo_is_that_of_finite_differences() -> None:
    own = view([0.7, 0.95, 1.0, 1.05, 1.3, 1.5], [-0.9, -0.4, 0.1, 0.0, 0.6, -0.2], -1.5)

    def total(logp: Tensor) -> Tensor:
        return redistributed(options("hapo"), own._replace(logp_NT=logp))

    assert torch.autograd.gradcheck(total, (own.logp_NT,))


def test_ucas_shapes_responses_by_their_certainty() -> None:
    """Mean entropies 1 and 3 standardise to certainties 1 and -1."""
    own = [group([rollout(0, [1, 2], [0.5, 1.5]), rollout(1, [3], [3.0])], ["1", "2"])]
    for given, expected in (
        ((2.0, -2.0), (2 * math.exp(-0.25), -2 * math.exp(-0.35))),
        ((-2.0, 2.0), (-2 * math.exp(0.35), 2 * math.exp(0.25))),
    ):
        (found,) = by_certainty(options("ucas"), Batch(own), [torch.tensor(given)])  # type: ignore[arg-type]
        assert found.tolist() == pytest.approx(expected, rel=1e-4)


def test_ucas_takes_the_sureness_of_each_token_off() -> None:
    """Log-probs -2, -1 and 0 are 0, 1/2 and 1 of the range; a positive advantage ends at 0, an advantage of 0 stays."""
    own = with_credit(
        [rollout(0, [1, 2, 3], [2.0, 1.0, 0.0]), rollout(1, [4], [0.0]), rollout(2, [5], [0.0])], [0.03, -1.0, 0.0]
    )
    found = without_sureness(options("ucas"), Batch([own]), everywhere([own]))  # type: ignore[arg-type]
    assert advantages(found) == approx([[0.03, 0.005, 0.0], [-1.05], [0.0]])


def test_advantages_shaped_by_perplexity_or_by_position() -> None:
    """Mean negative log-probs 1 and 3 standardise to -1 and 1; positions are 1/2, 1 and 1."""
    own = with_credit([rollout(0, [1, 2], [0.5, 1.5]), rollout(1, [3], [3.0])], [2.0, -2.0])
    given = [torch.tensor([2.0, -2.0])]
    perplexity, position = (options("position-perplexity", shaping=s) for s in ("perplexity", "position"))
    (found,) = by_perplexity(perplexity, Batch([own]), given)  # type: ignore[arg-type]
    assert found.tolist() == pytest.approx([2.2, -1.8], rel=1e-4)
    assert by_perplexity(position, Batch([own]), given) is given  # type: ignore[arg-type]
    tokens = everywhere([own])
    assert advantages(by_position(position, Batch([own]), tokens)) == approx([[2.05, 2.1], [-2.1]])  # type: ignore[arg-type]
    assert by_position(perplexity, Batch([own]), tokens) is tokens  # type: ignore[arg-type]


def test_a_single_value_scores_0() -> None:
    one = group([rollout(0, [1], [5.0])], ["1"])
    groups, given = Batch([one, replace(one, rollouts=())]), [torch.tensor([2.0]), torch.zeros(0)]
    for rule, name in ((by_certainty, "ucas"), (by_perplexity, "position-perplexity")):
        assert [found_N.tolist() for found_N in rule(options(name), groups, given)] == [[2.0], []]  # type: ignore[operator]
