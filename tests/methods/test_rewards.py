"""Rewards, against numbers worked by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from mm_spine.methods.rewards import entropy_reward, majority_reward, mean_entropies
from mm_spine.types import AnswerSpec, Group, Question, Rollout, Vote


def rollout(index: int, entropy: list[float] | None) -> Rollout:
    values = None if entropy is None else np.array(entropy, dtype=np.float32)
    length = 0 if entropy is None else len(entropy)
    return Rollout("q1", index, tuple(range(length)), "", np.zeros(length), values, "stop")


def group(answers: list[str | None], winner: str | None, entropies: list[list[float] | None] | None = None) -> Group:
    entropies = entropies if entropies is not None else [[0.0]] * len(answers)
    counts = Counter(answer for answer in answers if answer is not None)
    vote = Vote(winner, 0.0, counts, 0.0, sum(counts.values()))
    question = Question("q1", (), "?", AnswerSpec("number"))
    rollouts = tuple(rollout(i, e) for i, e in enumerate(entropies))
    return Group(question, rollouts, tuple(answers), vote, parsed=(None,) * len(answers))


class TestRewards:
    def test_majority_rewards_the_winning_class_only(self) -> None:
        assert majority_reward(group(["7", None, "3", "7"], "7")).tolist() == [1.0, 0.0, 0.0, 1.0]

    def test_nothing_parsed_earns_nothing(self) -> None:
        # No winner and no answer are both None, which must not count as agreement.
        assert majority_reward(group([None, None, None], None)).tolist() == [0.0, 0.0, 0.0]

    def test_one_rollout_and_unanimity(self) -> None:
        assert majority_reward(group(["7"], "7")).tolist() == [1.0]
        assert majority_reward(group(["7"] * 4, "7")).tolist() == [1.0] * 4

    def test_rent_is_minus_the_mean_entropy_or_the_penalty(self) -> None:
        # (0.2 + 0.4)/2 = 0.3; unparsed: the penalty, whatever the entropy; one token: itself.
        answered = group(["7", None, "3"], "7", [[0.2, 0.4], [0.1, 0.1], [1.5]])
        torch.testing.assert_close(entropy_reward()(answered), torch.tensor([-0.3, -7.0, -1.5]))
        torch.testing.assert_close(entropy_reward(2.5)(answered)[1], torch.tensor(-2.5))

    def test_an_empty_response_has_mean_entropy_zero(self) -> None:
        assert mean_entropies([rollout(0, []), rollout(1, [0.5, 1.5])]).tolist() == [0.0, 1.0]

    def test_missing_entropies_name_question_and_rollout(self) -> None:
        with pytest.raises(ValueError, match=r"'q1', rollout 1.*score the rollouts"):
            entropy_reward()(group(["7", "7"], "7", [[0.1], None]))
