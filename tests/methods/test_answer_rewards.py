"""Rewards from shares of answers and certainty, against numbers worked by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from credited_groups import polled, rollout

from mm_spine.methods import answer_rewards
from mm_spine.methods.answer_rewards import answer_entropy, certainty, distribution, frequency, phased, selective
from mm_spine.methods.apply import assign_credit
from mm_spine.methods.method import Batch
from mm_spine.methods.rows_credit import ROWS
from mm_spine.methods.sections import DareConfig, EmRlConfig, PearConfig, ScrlConfig, TtrvConfig
from mm_spine.methods.table import configure


def test_shares_are_of_all_votes_and_equal_their_decimal() -> None:
    shares = answer_rewards.vote_shares(polled([*"AAAAAAAAAAAA", *"BBB", *"CC", *[None] * 7]).vote)
    assert shares == {"A": 0.5, "B": 0.125, "C": 2 / 24}
    assert answer_rewards.vote_shares(polled([None, None]).vote) == {}


def test_the_entropy_of_answers_is_over_those_that_voted() -> None:
    assert answer_entropy({"A": 0.25, "B": 0.25}) == pytest.approx(math.log(2))
    assert answer_entropy({"A": 0.125}) == 0.0 == answer_entropy({})


class TestTtrv:
    def test_the_share_of_an_answer_less_the_normalised_entropy(self) -> None:
        # Shares 4/8, 2/8, 1/8; of those that voted 4/7, 2/7, 1/7, whose entropy is 0.9557 nats of log 3 = 1.0986.
        entropy = -sum(p * math.log(p) for p in (4 / 7, 2 / 7, 1 / 7))
        rewards = frequency(TtrvConfig(alpha=0.75), polled([*"AAAABBC", None]))
        less = 0.75 * entropy / math.log(3)
        assert less == pytest.approx(0.6524, abs=1e-4)
        expected = torch.tensor([0.5] * 4 + [0.25] * 2 + [0.125, 0.0]) - less
        torch.testing.assert_close(rewards, expected)

    def test_one_answer_has_no_entropy_and_no_answer_no_reward(self) -> None:
        assert frequency(TtrvConfig(), polled(["A", "A", None, None])).tolist() == [0.5, 0.5, 0.0, 0.0]
        assert frequency(TtrvConfig(), polled([None, None])).tolist() == [0.0, 0.0]

    def test_the_entropy_cancels_within_a_group_and_acts_over_the_step(self) -> None:
        groups = [polled([*"AAAB"]), polled([*"AAAAAABB"], question=1)]

        def credit(**options: object) -> list[torch.Tensor]:
            own = configure({"method": {"name": "ttrv", **options}}).method
            return [g.advantages for g in assign_credit(Batch(groups), ROWS["ttrv"], own)]

        for with_entropy, without in zip(credit(alpha=0.75), credit(alpha=0.0), strict=True):
            torch.testing.assert_close(with_entropy, without, atol=1e-5, rtol=1e-5)
        other = [polled([*"AAAA"]), polled([*"AABB"], question=1)]
        own = configure({"method": {"name": "ttrv", "advantage": "batch"}}).method
        first, second = (g.advantages for g in assign_credit(Batch(other), ROWS["ttrv"], own))
        # Rewards 1 (four times) and 0.5 - 0.75 (four times): mean 0.375, all 0.625 from it.
        std = 0.625 * math.sqrt(8 / 7)
        torch.testing.assert_close(first, torch.full((4,), 0.625 / std), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(second, torch.full((4,), -0.625 / std), atol=1e-5, rtol=1e-5)


class TestEmRl:
    @pytest.mark.parametrize(
        "level, over, expected",
        [
            ("token", "mean", [-0.5, -2.0]),
            ("token", "sum", [-1.5, -2.0]),
            ("sequence", "mean", [-1.0, -0.25]),
            ("sequence", "sum", [-3.0, -0.25]),
        ],
    )
    def test_entropy_or_log_probability_over_the_tokens(self, level: str, over: str, expected: list[float]) -> None:
        group = polled(["A", "B"])
        longer = replace(rollout(0, [1, 2, 3], [0.25, 0.25, 1.0]), logp=np.array([-2, -0.5, -0.5], np.float32))
        shorter = replace(rollout(1, [1], [2.0]), logp=np.array([-0.25], np.float32))
        rewards = certainty(EmRlConfig(level=level, over_tokens=over), replace(group, rollouts=(longer, shorter)))
        torch.testing.assert_close(rewards, torch.tensor(expected))

    def test_a_response_of_no_tokens_has_reward_0(self) -> None:
        empty = replace(polled(["A"]), rollouts=(rollout(0, [], []),))
        assert certainty(EmRlConfig(level="sequence"), empty).tolist() == [0.0]
        assert certainty(EmRlConfig(), empty).tolist() == [0.0]


class TestScrl:
    ANSWERS = ("A",) * 8 + ("B",) * 4 + ("C",) * 2 + ("D", None)
    ENTROPIES = (0.5,) * 8 + (1.0,) * 4 + (2.0,) * 2 + (0.25, 0.75)

    def test_binary_labels(self) -> None:
        # Shares 1/2, 1/4, 1/8, 1/16. The margin 1/4 is above 1/8. Only D is rarer than 1/8, and it is surer than the
        # question's mean: (4 + 4 + 4 + 0.25 + 0.75)/16 = 0.8125.
        options = ScrlConfig(label_reward="binary")
        rewards = selective(options, polled(self.ANSWERS, self.ENTROPIES))
        assert rewards.tolist() == [1.0] * 8 + [0.0] * 7 + [-1.0]
        unsure = (*self.ENTROPIES[:14], 3.0, 0.75)
        assert selective(options, polled(self.ANSWERS, unsure)).tolist() == [1.0] * 8 + [0.0] * 6 + [-1.0, -1.0]

    def test_continuous_rewards(self) -> None:
        unsure = (*self.ENTROPIES[:14], 3.0, 0.75)
        rewards = selective(ScrlConfig(), polled(self.ANSWERS, unsure))
        mean = (4 + 4 + 4 + 3 + 0.75) / 16
        assert rewards[0] == pytest.approx(0.5 - 0.1 * (0.5 - mean))
        assert rewards[8] == pytest.approx(-0.1 * (1.0 - mean))
        assert rewards[12] == pytest.approx(-0.1 * (2.0 - mean)), "a share of 1/8 is not below 1/8"
        assert rewards[14] == pytest.approx(1 / 16 - 0.125 - 0.1 * (3.0 - mean))
        assert rewards[15] == -1.0

    @pytest.mark.parametrize("answers", ["AAABBCDE", "AAABBBCD", "AABCDEFG"])
    def test_no_label_without_a_clear_vote(self, answers: str) -> None:
        """A margin of exactly 1/8, a tie, and a share of 2/8."""
        assert selective(ScrlConfig(label_reward="binary"), polled([*answers])).max() == 0.0

    def test_a_single_answer_needs_no_second(self) -> None:
        options = ScrlConfig(label_reward="binary")
        assert selective(options, polled(["A", "A", "A", None, None])).tolist() == [1.0, 1.0, 1.0, -1.0, -1.0]


class TestDare:
    def test_probability_by_votes_and_certainty(self) -> None:
        # n/u: A 4/1, B 2/0.25 = 8, C 2/2 = 1; of 13 in all.
        group = polled([*"AAAABBCC"], [1.0] * 4 + [0.25] * 2 + [2.0] * 2)
        rewards = distribution(DareConfig(bonus=0.0, prune=0.0, uncertainty_eps=1e-12), group)
        torch.testing.assert_close(rewards, torch.tensor([4.0] * 4 + [8.0] * 2 + [1.0] * 2) / 13)

    def test_the_bonus_is_for_rare_sure_answers(self) -> None:
        group = polled([*"AAAABBCC"], [1.0] * 4 + [0.25] * 2 + [2.0] * 2)
        rewards = distribution(DareConfig(bonus=0.5, prune=0.0, uncertainty_eps=1e-12), group)
        assert rewards[0] == pytest.approx(4 / 13 + 0.5 * (1 - 4 / 8) * (1 - 1.0))
        assert rewards[4] == pytest.approx(8 / 13 + 0.5 * (1 - 2 / 8) * (1 - 0.25))
        assert rewards[6] == pytest.approx(1 / 13 + 0.5 * (1 - 2 / 8) * (1 - 2.0))

    def test_improbable_answers_are_left_out(self) -> None:
        group = polled([*"AAAABBCC", None], [1.0] * 4 + [0.25] * 2 + [2.0] * 2 + [0.5])
        rewards = distribution(DareConfig(bonus=0.5, prune=0.1, uncertainty_eps=1e-12), group)
        assert rewards[6:].tolist() == [0.0, 0.0, 0.0]
        assert rewards[0] == pytest.approx(4 / 12 + 0.0)
        assert rewards[4] == pytest.approx(8 / 12 + 0.5 * (1 - 2 / 6) * 0.75)

    def test_dropped_rollouts_count_for_nothing_and_copies_as_often_as_they_are(self) -> None:
        group = polled([*"AAB"], [1.0, 3.0, 1.0])
        options = DareConfig(bonus=0.0, prune=0.0, uncertainty_eps=1e-12)
        rewards = distribution(options, replace(group, dropped=frozenset({1})))
        assert rewards[0] == rewards[2] == pytest.approx(0.5)
        heavy = replace(group, rollouts=(replace(group.rollouts[0], weight=3), *group.rollouts[1:]))
        # A: 4 votes of mean entropy (3 + 3)/4 = 1.5; B: 1 of 1.
        assert distribution(options, heavy)[2] == pytest.approx(1 / (4 / 1.5 + 1))

    def test_nothing_parsed_is_no_reward(self) -> None:
        assert distribution(DareConfig(), polled([None, None])).tolist() == [0.0, 0.0]


def test_dler_rewards_nothing_at_the_limit() -> None:
    group = polled([*"AAB"])
    cut = replace(
        group, rollouts=(group.rollouts[0], replace(group.rollouts[1], finish_reason="length"), group.rollouts[2])
    )
    assert answer_rewards.within_limit(None, cut).tolist() == [1.0, 0.0, 0.0]


class TestPear:
    def test_entropy_of_the_thinking_is_made_up_for_by_that_of_the_answer(self) -> None:
        thought = replace(rollout(0, [1, 2, 3, 4], [1.0, 0.5, 0.25, 0.75]), thinking=2)  # 0.75 and 0.5
        sure = replace(rollout(1, [1, 2, 3], [0.125, 0.125, 0.5]), thinking=2)  # 0.125 and 0.5: no excess
        untagged = rollout(2, [1, 2], [0.25, 0.75])  # 0.5, all of it
        wrong = replace(rollout(3, [1, 2], [0.5, 1.0]), thinking=2)  # nothing after the thinking
        group = replace(polled([*"AAAB"]), rollouts=(thought, sure, untagged, wrong))
        torch.testing.assert_close(phased(PearConfig(), group), torch.tensor([0.75, 1.0, 0.5, -0.75]))
        halved = phased(PearConfig(answer_entropy=0.5), group)
        torch.testing.assert_close(halved, torch.tensor([0.5, 1.0, 0.5, -0.75]))

    def test_without_entropies_the_rollout_is_named(self) -> None:
        group = replace(polled(["A"]), rollouts=(replace(rollout(0, [1], [0.5]), entropy=None),))
        with pytest.raises(ValueError, match="question 'q0', rollout 0: no token entropies"):
            phased(PearConfig(), group)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if name != "entrocraft"])
def test_copies_get_the_same_credit_and_dropped_rollouts_none(name: str) -> None:
    """A rollout of weight 2 as two rollouts; a dropped one, which no other's credit depends on."""
    whole = polled([*"AABCA"], [0.3, 0.3, 0.9, 0.6, 0.2])
    equal = replace(whole.rollouts[0], index=1)
    spread = replace(whole, rollouts=(whole.rollouts[0], equal, *whole.rollouts[2:]))
    counted = replace(
        whole,
        rollouts=(replace(whole.rollouts[0], weight=2), *whole.rollouts[2:]),
        answers=("A", "B", "C", "A"),
        parsed=(None,) * 4,
    )
    own = configure({"method": name}).method
    other = polled([*"AAB"], [0.4, 0.5, 0.6], question=1)
    dropped = frozenset({3})
    first, second = (
        assign_credit(Batch([replace(g, dropped=dropped), other]), ROWS[name], own)[0] for g in (spread, counted)
    )
    torch.testing.assert_close(first.advantages[1:], second.advantages)
    assert first.advantages[0] == first.advantages[1] and first.advantages[3] == 0.0
    alone = replace(
        spread, rollouts=(*spread.rollouts[:3], spread.rollouts[4]), answers=("A", "A", "B", "A"), parsed=(None,) * 4
    )
    third = assign_credit(Batch([alone, other]), ROWS[name], own)[0]
    torch.testing.assert_close(third.advantages, first.advantages[[0, 1, 2, 4]])
