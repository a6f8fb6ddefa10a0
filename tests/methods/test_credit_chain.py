"""Links of a chain of credit, against numbers worked by hand."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from credited_groups import polled, rollout

from mm_spine.config import MethodConfig
from mm_spine.methods.credit_chain import (
    confidence,
    leave_one_out,
    levelled,
    locally_and_globally,
    mixed_risk,
    quantile,
    step_scaled,
    sums_of,
    tail_credit,
)
from mm_spine.methods.method import Batch
from mm_spine.methods.sections import ArmConfig, CopoConfig, RiskConfig

NOTHING = torch.zeros(0)


def test_leave_one_out_compares_with_the_others() -> None:
    one, two, three = leave_one_out(
        MethodConfig(), Batch([]), [torch.tensor([2.0]), torch.tensor([1.0, -1.0, 3.0]), NOTHING]
    )
    torch.testing.assert_close(two, torch.tensor([1.0 - 1.0, -1.0 - 2.0, 3.0 - 0.0]))
    assert one.tolist() == [0.0] and len(three) == 0


class TestDler:
    def test_the_deviation_is_of_the_step(self) -> None:
        # Centred: (1/2, -1/2), (0, 0), (2/3, -1/3, -1/3); squares 1/2 + 2/3 = 7/6 over 7 - 1.
        rewards = [torch.tensor([1.0, 0.0]), torch.ones(2), torch.tensor([1.0, 0.0, 0.0])]
        found = step_scaled(MethodConfig(eps=1e-12), Batch([]), rewards)
        std = math.sqrt(7 / 36)
        torch.testing.assert_close(found[0], torch.tensor([0.5, -0.5]) / std)
        assert found[1].tolist() == [0.0, 0.0]
        torch.testing.assert_close(found[2], torch.tensor([2.0, -1.0, -1.0]) / 3 / std)
        population = step_scaled(MethodConfig(std="population", eps=0.5), Batch([]), rewards)
        torch.testing.assert_close(population[0], torch.tensor([0.5, -0.5]) / (math.sqrt(1 / 6) + 0.5))

    def test_equal_rewards_within_each_question_are_exactly_nothing(self) -> None:
        found = step_scaled(MethodConfig(), Batch([]), [torch.ones(3), torch.zeros(2), NOTHING])
        assert [values.tolist() for values in found] == [[0.0] * 3, [0.0] * 2, []]


class TestCopo:
    GROUPS = (polled([*"AAAA"]), polled([*"AABB"], question=1), polled([*"AABC"], question=2))
    REWARDS = (torch.ones(4), torch.tensor([1.0, 1, 0, 0]), torch.tensor([1.0, 1, 0, 0]))

    def test_the_entropy_of_the_answers_in_bits_weighs_both(self) -> None:
        # Entropies 0, 1 and 1.5 bits; question means 1, 1/2, 1/2: mean 2/3, sample std sqrt(1/12).
        options = CopoConfig(eps=1e-9, steepness=2.0, middle=1.0)
        found = locally_and_globally(options, Batch(self.GROUPS), list(self.REWARDS))
        among = [(1 - 2 / 3) * math.sqrt(12), (0.5 - 2 / 3) * math.sqrt(12)]
        local = 0.5 * math.sqrt(3)
        weights = [1 / (1 + math.exp(2.0)), 0.5, 1 / (1 + math.exp(-1.0))]
        torch.testing.assert_close(found[0], torch.full((4,), (1 - weights[0]) * among[0]))
        for values, weight in zip(found[1:], weights[1:], strict=True):
            expected = weight * local * torch.tensor([1.0, 1, -1, -1]) + (1 - weight) * among[1]
            torch.testing.assert_close(values, expected)

    def test_published_weights_are_local_above_and_global_below_1_5_bits(self) -> None:
        found = locally_and_globally(CopoConfig(), Batch(self.GROUPS), list(self.REWARDS))
        steep = locally_and_globally(CopoConfig(steepness=1e6), Batch(self.GROUPS), list(self.REWARDS))
        assert all(bool(torch.isfinite(values).all()) for values in steep)
        torch.testing.assert_close(found[1], torch.full((4,), -1 / math.sqrt(3)), atol=2e-4, rtol=0)
        assert found[2][0] > 0 > found[2][2]

    def test_a_question_without_credit_is_not_among_the_questions(self) -> None:
        two = locally_and_globally(CopoConfig(), Batch(self.GROUPS[:2]), list(self.REWARDS[:2]))
        groups = (self.GROUPS[0], self.GROUPS[2], self.GROUPS[1])
        three = locally_and_globally(CopoConfig(), Batch(groups), [self.REWARDS[0], NOTHING, self.REWARDS[1]])
        assert len(three[1]) == 0
        torch.testing.assert_close(two[1], three[2])
        assert locally_and_globally(CopoConfig(), Batch(groups[:1]), [NOTHING])[0].tolist() == []

    def test_one_question_has_no_step_to_compare_with(self) -> None:
        (found,) = locally_and_globally(CopoConfig(steepness=1.0), Batch(self.GROUPS[1:2]), [self.REWARDS[1]])
        weight = 1 / (1 + math.exp(0.5))
        torch.testing.assert_close(
            found, weight * 0.5 * math.sqrt(3) * torch.tensor([1.0, 1, -1, -1]), rtol=1e-4, atol=0
        )


class TestRiskPo:
    OPTIONS = RiskConfig(bundle=3, eps=1e-9)

    def test_the_distribution_of_a_sum(self) -> None:
        np.testing.assert_allclose(sums_of([0.5, 0.25]), [0.375, 0.5, 0.125])
        assert sums_of([]) == [1.0] and sums_of([1.0, 1.0])[2] == 1.0
        assert [quantile([0.375, 0.5, 0.125], level) for level in (0.2, 0.375, 0.376, 0.875, 0.9)] == [0, 0, 1, 1, 2]

    def test_the_credit_of_a_score(self) -> None:
        # Below the lower quantile 1: (1.5 (0 - 1)/0.2 + (1 - 2)/0.7)/2.5; at it only the middle; at the upper nothing.
        options = self.OPTIONS
        assert tail_credit(options, 0, 1, 2) == pytest.approx((1.5 * -5 - 1 / 0.7) / 2.5)
        assert tail_credit(options, 1, 1, 2) == pytest.approx(-1 / 0.7 / 2.5)
        assert tail_credit(options, 2, 1, 2) == tail_credit(options, 3, 1, 2) == 0.0

    def test_a_credit_is_the_mean_over_all_bundles_of_responses(self) -> None:
        rewards = [torch.tensor([1.0, 0, 0, 0]), torch.tensor([1.0, 1, 0]), torch.tensor([1.0, 0])]
        found = mixed_risk(self.OPTIONS, Batch([]), list(rewards))
        scores = np.array([sum(map(float, papers)) for papers in itertools.product(*rewards)])
        low, high = (np.quantile(scores, level, method="inverted_cdf") for level in (0.2, 0.9))
        for q, own in enumerate(rewards):
            others = rewards[:q] + rewards[q + 1 :]
            for i, reward in enumerate(own.tolist()):
                sums = [reward + sum(map(float, papers)) for papers in itertools.product(*others)]
                mean = np.mean([tail_credit(self.OPTIONS, score, low, high) for score in sums])
                assert found[q][i] == pytest.approx(mean / scores.std() / float(own.std()), rel=1e-5)
        assert all(
            (values[rewarded > 0].min() > values[rewarded == 0].max())
            for values, rewarded in zip(found, rewards, strict=True)
        )

    def test_bundles_are_apart_and_unanimous_ones_are_nothing(self) -> None:
        mixed, all_right = torch.tensor([1.0, 0, 0]), torch.ones(3)
        rewards = [mixed, mixed, NOTHING, mixed, all_right, all_right]
        found = mixed_risk(self.OPTIONS, Batch([]), list(rewards))
        alone = mixed_risk(self.OPTIONS, Batch([]), [mixed, mixed, mixed])
        torch.testing.assert_close(found[0], alone[0])
        assert len(found[2]) == 0 and found[3].any()
        assert not found[4].any() and not found[5].any()


class TestArm:
    def test_confidence_is_that_of_the_least_likely_tokens(self) -> None:
        # ceil(0.2 * 6) = 2 of 6 tokens: exp(-(2 + 1)/2).
        logp = np.array([-0.1, -2.0, -0.3, -1.0, 0.0, -0.2], np.float32)
        assert confidence(replace(rollout(0, range(6), [0.0] * 6), logp=logp), 0.2) == pytest.approx(math.exp(-1.5))
        assert confidence(replace(rollout(0, range(5), [0.0] * 5), logp=logp[:5]), 0.2) == pytest.approx(math.exp(-2))
        assert confidence(rollout(0, [], []), 0.2) == 1.0

    def test_sure_responses_lose_what_unsure_ones_gain(self) -> None:
        group = polled([*"AAB"], [0.5, 1.0, 2.0])
        rewarded = replace(group, rewards=torch.tensor([1.0, 1.0, 0.0]))
        given = torch.tensor([1.0, 1.0, -2.0])
        (found,) = levelled(ArmConfig(level_weight=0.5), Batch([rewarded]), [given.clone()])
        sure = torch.tensor([math.exp(-0.5), math.exp(-1.0), math.exp(-2.0)])
        torch.testing.assert_close(found, given + 0.5 * (sure.mean() - sure))
        nothing = replace(group, rewards=torch.zeros(3))
        assert levelled(ArmConfig(), Batch([nothing]), [given])[0] is given
