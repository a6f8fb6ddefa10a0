"""Entropy in the loss: numbers worked by hand, gradients by finite differences, copies, dropped responses, memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from adapting import run
from credited_groups import group, rollout
from torch import Tensor

from mm_spine.methods.entropy_terms import (
    FIRST,
    LAST,
    MEAN,
    STEPS,
    band_around_mean,
    bonus_and_anchor,
    covariance_weights,
    entropy_bonus,
    minus_entropy,
    peak_means,
    peak_weights,
    running_mean,
    top_p_entropy,
)
from mm_spine.methods.method import Batch
from mm_spine.methods.sections import EntropyConfig, EpoConfig, SirenConfig, T1Config, TeaConfig
from mm_spine.methods.tokens import Tokens
from mm_spine.training.batch import merge_identical
from mm_spine.types import Group

ENTROPIES = [[0.2, 0.4], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [9.0]]
"""Of four responses, the second and the third equal, the last one dropped."""


def batch(memory: Mapping[str, Any] | None = None) -> Batch:
    """One question whose responses have these entropies, log-probs of minus them, and statistics of half of them."""
    tokens = [[1, 2], [3, 4, 5], [3, 4, 5], [6]]
    drawn = [rollout(i, ids, h) for i, (ids, h) in enumerate(zip(tokens, ENTROPIES, strict=True))]
    drawn = [replace(r, statistic=np.array(h, np.float32) / 2) for r, h in zip(drawn, ENTROPIES, strict=True)]
    made = replace(group(drawn, ["1", "2", "2", "3"]), dropped=frozenset({3}))
    return Batch([replace(made, advantages=torch.tensor([1.0, -0.5, -0.5, 0.0]))], memory=memory or {})


def all_tokens(of: Batch) -> list[list[Tokens]]:
    """All tokens of all responses but the dropped ones."""

    def chosen(each: Group) -> list[Tokens]:
        masks = [torch.full((len(r.token_ids),), r.index not in each.dropped) for r in each.rollouts]
        return [Tokens(mask_T, torch.zeros_like(mask_T), None) for mask_T in masks]

    return [chosen(each) for each in of.groups]


def merged(of: Batch) -> Batch:
    """The same step with the equal responses as one rollout of weight 2."""
    (whole,) = of.groups
    kept = [0, 1, 3]
    weighed = [replace(whole.rollouts[i], weight=2 if i == 1 else 1) for i in kept]
    parts = {name: tuple(getattr(whole, name)[i] for i in kept) for name in ("answers", "parsed")}
    assert whole.advantages is not None
    return of._replace(groups=[replace(whole, rollouts=tuple(weighed), advantages=whole.advantages[kept], **parts)])


def test_the_running_mean_is_over_steps_and_leaves_dropped_responses_out() -> None:
    """This step: (0.6 + 6 + 6) / 8 = 1.575. After two steps of mean 0.9: (2 x 0.9 + 1.575) / 3 = 1.125."""
    options = EpoConfig()
    first, later = batch(), batch({MEAN: 0.9, STEPS: 2})
    assert running_mean(options, first, all_tokens(first)) == {MEAN: pytest.approx(1.575), STEPS: 1}
    found = running_mean(options, later, all_tokens(later))
    assert found == {MEAN: pytest.approx(1.125), STEPS: 3}
    few = merged(later)
    assert running_mean(options, few, all_tokens(few)) == {MEAN: pytest.approx(1.125), STEPS: 3}
    nothing = [[chosen.without_policy(False) for chosen in own] for own in all_tokens(first)]
    assert running_mean(options, first, nothing) == {}


def test_the_corridor_is_around_the_running_mean_and_absent_in_the_first_step() -> None:
    first, later = batch(), batch({MEAN: 2.0, STEPS: 5})
    options = EpoConfig(entropy_low=0.75, entropy_high=1.5)
    assert all(chosen.bounds is None for own in band_around_mean(options, first, all_tokens(first)) for chosen in own)
    (found,) = band_around_mean(options, later, all_tokens(later))
    assert all(tuple(map(float, chosen.bounds or ())) == (1.5, 3.0) for chosen in found)
    assert [chosen.band_T.tolist() for chosen in found] == [[True] * 2, [True] * 3, [True] * 3, [False]]
    with pytest.raises(ValueError, match="entropy_low=1.3: must be below entropy_high=1.2"):
        EpoConfig(entropy_low=1.3)


def test_tea_weighs_by_the_covariance_of_log_prob_and_advantage() -> None:
    """Of 8 tokens the mean advantage is (2 x 1 - 6 x 0.5) / 8 = -0.125, the mean log-prob -1.575.

    First response: 1.125 x (1.375, 1.175); softmax exp(0.225) : 1. Second: -0.375 x (0.575, -0.425, -1.425).
    """
    of = batch()
    (found,) = covariance_weights(TeaConfig(), of, all_tokens(of))
    first = np.exp([1.125 * 1.375, 1.125 * 1.175])
    second = np.exp([-0.375 * 0.575, 0.375 * 0.425, 0.375 * 1.425])
    weights = [chosen.weights["tea"].numpy() for chosen in found]
    np.testing.assert_allclose(weights[0], np.minimum(10 * first / first.sum(), 5), rtol=1e-5)
    assert weights[0][0] == 5.0 and weights[0][1] < 5.0, "the larger one is capped"
    np.testing.assert_allclose(weights[1], 10 * second / second.sum(), rtol=1e-5)
    np.testing.assert_array_equal(weights[1], weights[2])
    assert not weights[3].any(), "a dropped response"
    odd = replace(of.groups[0].rollouts[0], logp=np.array([np.nan, -1.0], np.float32))
    broken = of._replace(groups=[replace(of.groups[0], rollouts=(odd, *of.groups[0].rollouts[1:]))])
    ((first_of_odd, *_),) = covariance_weights(TeaConfig(), broken, all_tokens(broken))
    assert first_of_odd.weights["tea"].isnan().all(), "the step must not hide it"
    few = merged(of)
    (leaves,) = covariance_weights(TeaConfig(), few, all_tokens(few))
    for mine, copy in zip(leaves, [found[0], found[1], found[3]], strict=True):
        torch.testing.assert_close(mine.weights["tea"], copy.weights["tea"])
    assert len(merge_identical(of.groups[0], found).leaves) == 3


def test_siren_has_the_slope_of_the_squared_distance_from_the_first_mean() -> None:
    """Peaks by share 0.3: 0.2, 1.5 and 1.5, mean 3.2 / 3. Slope 2 x 0.005 x (3.2 / 3 - 0.5)."""
    options = SirenConfig(share=0.3)
    first, later = batch(), batch({FIRST: 0.5, LAST: 0.7})
    assert peak_means(options, first, all_tokens(first)) == {
        FIRST: pytest.approx(3.2 / 3),
        LAST: pytest.approx(3.2 / 3),
    }
    (found,) = peak_weights(options, first, all_tokens(first))
    assert not any(chosen.weights["siren"].any() for chosen in found)
    (found,) = peak_weights(options, later, all_tokens(later))
    slope = 2 * 0.005 * (3.2 / 3 - 0.5)
    expected = [[0.0, slope], [0.0, 0.0, slope], [0.0, 0.0, slope], [0.0]]
    for chosen, values in zip(found, expected, strict=True):
        torch.testing.assert_close(chosen.weights["siren"], torch.tensor(values))
    assert peak_means(options, later, all_tokens(later)) == {FIRST: 0.5, LAST: pytest.approx(3.2 / 3)}
    few = merged(later)
    (leaves,) = peak_weights(options, few, all_tokens(few))
    torch.testing.assert_close(leaves[1].weights["siren"], found[1].weights["siren"])


def test_a_token_without_masked_entropy_is_no_peak() -> None:
    """The second response has one token of entropy only, though its share is two of three."""
    of, options = batch({FIRST: 0.0}), SirenConfig(share=0.7)
    (whole,) = of.groups
    flat = [np.zeros(len(r.token_ids), np.float32) for r in whole.rollouts]
    flat[1][2] = flat[2][2] = 0.5
    drawn = tuple(replace(r, statistic=value) for r, value in zip(whole.rollouts, flat, strict=True))
    of = of._replace(groups=[replace(whole, rollouts=drawn)])
    assert peak_means(options, of, all_tokens(of)) == {FIRST: 0.0, LAST: 0.5}
    (found,) = peak_weights(options, of, all_tokens(of))
    assert [(chosen.weights["siren"] != 0).tolist() for chosen in found[:2]] == [[False] * 2, [False, False, True]]


def logits(seed: int, rows: int = 6, vocabulary: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64) * 2


def test_sirens_slope_is_the_gradient_of_its_penalty() -> None:
    """c (mean h - m)^2 by finite differences in float64, h the masked entropy of the peak tokens."""
    at, peaks, target, c = logits(3), torch.tensor([0, 2, 5]), torch.zeros(6, dtype=torch.long), 0.005

    def mean(values: Tensor) -> Tensor:
        return top_p_entropy(values.log_softmax(-1), None, target, 0.8)[peaks].mean()

    def penalty(values: Tensor) -> Tensor:
        return c * (mean(values) - 0.5).square()

    own = at.clone().requires_grad_()
    slope = 2 * c * (float(mean(at)) - 0.5)
    (slope * mean(own)).backward()
    step = 1e-6
    expected = torch.zeros_like(at)
    for i in range(at.numel()):
        change = torch.zeros(at.numel(), dtype=at.dtype)
        change[i] = step
        change = change.view_as(at)
        expected.view(-1)[i] = (penalty(at + change) - penalty(at - change)) / (2 * step)
    assert own.grad is not None and float(expected.norm()) > 1e-4
    torch.testing.assert_close(own.grad, expected, rtol=1e-5, atol=1e-9)


def test_the_masked_entropy_by_hand() -> None:
    """Of 0.5, 0.3, 0.15, 0.05 the first two reach 0.8: shares 5/8 and 3/8. The first alone has no entropy."""
    log_probs = torch.tensor([[0.15, 0.5, 0.05, 0.3]]).log()
    target = torch.tensor([0])
    expected = -(0.625 * np.log(0.625) + 0.375 * np.log(0.375))
    assert float(top_p_entropy(log_probs, None, target, 0.7)) == pytest.approx(expected, rel=1e-5)
    assert float(top_p_entropy(log_probs, None, target, 0.4)) == 0.0
    whole = -sum(p * np.log(p) for p in (0.5, 0.3, 0.15, 0.05))
    assert float(top_p_entropy(log_probs, None, target, 1.0)) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("p", [0.3, 0.8, 1.0])
def test_the_masked_entropy_has_the_gradient_of_finite_differences_with_banned_tokens_too(p: float) -> None:
    target = torch.zeros(6, dtype=torch.long)

    def values(of: Tensor) -> Tensor:
        banned = torch.cat([of, torch.full((len(of), 2), -torch.inf, dtype=of.dtype)], -1)
        return top_p_entropy(banned.log_softmax(-1), None, target, p)

    assert torch.autograd.gradcheck(values, logits(1).requires_grad_())


def test_the_terms_of_the_rows() -> None:
    (bonus,) = entropy_bonus(EntropyConfig(entropy_weight=0.25))
    assert (bonus.name, bonus.coefficient, bonus.denominator) == ("entropy", 0.25, "all")
    assert bonus.value is minus_entropy
    names = [(term.name, term.coefficient, term.anchored) for term in bonus_and_anchor(T1Config(anchor_weight=0.5))]
    assert names == [("entropy", 0.001, False), ("anchor", 0.5, True)]


def steps(name: str, **own: Any) -> Any:
    layers = {"method": {"name": name, **own}, "optim": {"steps": 3, "lr": 0.003}}
    return [record.report for record in run(layers)[2]]


def test_a_bonus_raises_entropy_and_its_part_of_the_loss_is_reported() -> None:
    plain, raised = steps("ttrl"), steps("entropy-bonus", entropy_weight=1.0)
    assert raised[0].loss_terms == {"entropy": pytest.approx(-raised[0].entropy_mean, rel=1e-4)}
    assert raised[0].loss == pytest.approx(raised[0].loss_policy + raised[0].loss_kl - raised[0].entropy_mean, rel=1e-4)
    assert raised[-1].entropy_mean > plain[-1].entropy_mean


def test_epo_keeps_its_memory_and_bounds_by_it() -> None:
    first, second, third = steps("epo")
    assert first.band_low is None and first.memory == {MEAN: pytest.approx(first.entropy_mean, rel=1e-5), STEPS: 1}
    assert second.band_low == pytest.approx(0.8 * first.memory[MEAN], rel=1e-5) and second.loss_band > 0
    mean = (first.entropy_mean + second.entropy_mean) / 2
    assert third.band_high == pytest.approx(1.2 * mean, rel=1e-5)


def test_siren_measures_by_scoring_and_pulls_back_to_the_first_mean() -> None:
    layers = {"optim": {"steps": 4, "lr": 1e-3}}
    loose, held = (
        [record.report for record in run({"method": {"name": "siren", "siren_weight": weight}}, layers)[2]]
        for weight in (0.0, 5.0)
    )
    assert held[0].loss_terms == {"siren": 0.0} and held[0].memory[FIRST] == held[0].memory[LAST] > 0
    distances = [abs(reports[-1].memory[LAST] - reports[-1].memory[FIRST]) for reports in (loose, held)]
    assert distances[1] < distances[0]
    # The slope times the mean that the trainer has: its statistic is the scored one.
    for report in held[1:]:
        first, last = report.memory[FIRST], report.memory[LAST]
        assert report.loss_terms["siren"] == pytest.approx(2 * 5.0 * (last - first) * last, rel=1e-3)


def test_t1s_anchor_is_the_policy_at_first_and_stays_behind_it_then() -> None:
    first, second, third = steps("t1", anchor_weight=1.0)
    assert first.loss_terms["anchor"] == pytest.approx(0.0, abs=1e-9)
    assert second.loss_terms["anchor"] > 1e-6
    near = steps("t1", anchor_weight=1.0, anchor_decay=0.0)
    assert all(report.loss_terms["anchor"] == pytest.approx(0.0, abs=1e-9) for report in near)
    assert third.loss_kl == 0.0
