"""Advantages and their shaping, against numbers worked by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_spine.methods.credit import adv_clip, adv_res, advantages

ROOT3 = 3**0.5


class TestAdvantages:
    def test_group_with_the_sample_std(self) -> None:
        # [1,1,0,0]: mean 1/2, sample var 4(1/4)/3 = 1/3, so +-(1/2)sqrt(3).
        # [1,0,0]: mean 1/3, sample var (4/9 + 1/9 + 1/9)/2 = 1/3, so (2/3)sqrt(3) and -(1/3)sqrt(3).
        first, second = advantages([torch.tensor([1.0, 1, 0, 0]), torch.tensor([1.0, 0, 0])], "group", "sample", 0.0)
        torch.testing.assert_close(first, torch.tensor([1.0, 1, -1, -1]) * ROOT3 / 2)
        torch.testing.assert_close(second, torch.tensor([2.0, -1, -1]) * ROOT3 / 3)

    def test_group_with_the_population_std_and_eps(self) -> None:
        # Population std 1/2: +-1; with eps 1/2 added to the std: +-1/2.
        rewards = [torch.tensor([1.0, 1, 0, 0])]
        assert advantages(rewards, "group", "population", 0.0)[0].tolist() == [1.0, 1.0, -1.0, -1.0]
        assert advantages(rewards, "group", "population", 0.5)[0].tolist() == [0.5, 0.5, -0.5, -0.5]

    def test_batch_standardises_over_all_rewards(self) -> None:
        # All of [1,1 | 0,0,1]: mean 3/5, population var (3(4/25) + 2(9/25))/5 = 6/25.
        scale = 5 / 6**0.5
        first, second = advantages([torch.ones(2), torch.tensor([0.0, 0, 1])], "batch", "population", 0.0)
        torch.testing.assert_close(first, torch.full((2,), 0.4 * scale))
        torch.testing.assert_close(second, torch.tensor([-0.6, -0.6, 0.4]) * scale)
        # Sample var of the same: (30/25)/4 = 3/10.
        sample = advantages([torch.ones(2), torch.tensor([0.0, 0, 1])], "batch", "sample", 0.0)[1]
        torch.testing.assert_close(sample, torch.tensor([-0.6, -0.6, 0.4]) / 0.3**0.5)

    def test_center_subtracts_the_group_mean_alone(self) -> None:
        first, second = advantages([torch.tensor([1.0, 0, 0, 0]), torch.tensor([3.0, 1.0])], "center", "sample", 1e-6)
        assert first.tolist() == [0.75, -0.25, -0.25, -0.25]
        assert second.tolist() == [1.0, -1.0]

    @pytest.mark.parametrize("normalise", ["group", "batch", "center"])
    @pytest.mark.parametrize("std", ["sample", "population"])
    @pytest.mark.parametrize("rewards", [[0.1] * 7, [-0.3] * 6, [1.0] * 8, [0.0] * 4, [-0.3]])
    def test_equal_rewards_give_exactly_zero(self, normalise, std, rewards) -> None:
        # The float32 mean of seven times 0.1 is not 0.1: with eps 0 the residue would become 1; one reward, nan.
        assert advantages([torch.tensor(rewards)], normalise, std, 0.0)[0].tolist() == [0.0] * len(rewards)

    def test_a_unanimous_group_among_others(self) -> None:
        group_wise = advantages([torch.ones(4), torch.tensor([1.0, 0.0])], "group", "sample", 1e-6)
        assert group_wise[0].tolist() == [0.0] * 4
        assert group_wise[1][0] > 0 > group_wise[1][1]

    @pytest.mark.parametrize("normalise", ["group", "batch", "center"])
    def test_no_questions(self, normalise) -> None:
        assert advantages([], normalise, "sample", 1e-6) == []

    @settings(max_examples=50)
    @given(st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=2, max_size=12), st.randoms(use_true_random=False))
    def test_permuting_rollouts_permutes_advantages(self, rewards, random) -> None:
        order = list(range(len(rewards)))
        random.shuffle(order)
        values = torch.tensor(rewards, dtype=torch.float64)
        plain = advantages([values], "group", "sample", 1e-6)[0]
        torch.testing.assert_close(advantages([values[order]], "group", "sample", 1e-6)[0], plain[order])
        assert abs(float(plain.sum())) < 1e-9


class TestEar:
    def test_adv_res_follows_the_equation_and_clips(self) -> None:
        # Mean of [0.5, 1, 1.5, 1] is 1: Y = 1.5 -> 1.2, 1, 0.5 -> 0.8, 1.
        scaled = adv_res(torch.tensor([1.0, -1.0, 1.0, 2.0]), torch.tensor([0.5, 1.0, 1.5, 1.0]))
        torch.testing.assert_close(scaled, torch.tensor([1.2, -1.0, 0.8, 2.0]))

    def test_adv_res_between_the_limits(self) -> None:
        # Mean of [1.8, 2.2] is 2: Y = 1 + 0.2/2 = 1.1 and 0.9, also for negative advantages.
        scaled = adv_res(torch.tensor([-1.0, 3.0]), torch.tensor([1.8, 2.2]))
        torch.testing.assert_close(scaled, torch.tensor([-1.1, 2.7]))
        wide = adv_res(torch.tensor([1.0, 1.0]), torch.tensor([0.5, 1.5]), 0.4, 1.6)
        torch.testing.assert_close(wide, torch.tensor([1.5, 0.5]))

    def test_adv_res_without_any_entropy_changes_nothing(self) -> None:
        assert adv_res(torch.tensor([1.0, -1.0]), torch.zeros(2)).tolist() == [1.0, -1.0]

    def test_adv_clip(self) -> None:
        assert adv_clip(torch.tensor([-3.0, -2.0, 0.5, 2.5])).tolist() == [-2.0, -2.0, 0.5, 2.0]
        assert adv_clip(torch.tensor([-3.0, 0.5]), 0.25).tolist() == [-0.25, 0.25]
