"""Rewards without labels: pure functions (group without rewards) -> (N,)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mm_spine.types import Group, Reward, Rollout


def majority_reward(group: Group) -> Tensor:
    """Return TTRL's reward, shape (N,): 1 where the response's vote class is the winner, else 0 (arXiv 2504.16084).

    An unparsed response earns 0, also when nothing parsed and there is no winner.
    """
    winner = group.vote.answer
    return torch.tensor([float(answer is not None and answer == winner) for answer in group.answers])


def entropy_reward(penalty: float = 7.0) -> Reward:
    """Return RENT's reward, shape (N,): -mean_t H_t in nats, and -penalty where no answer was parsed.

    Calling the reward raises ValueError if a rollout carries no entropy.
    """

    def reward(group: Group) -> Tensor:
        unparsed = torch.tensor([answer is None for answer in group.answers], dtype=torch.bool)
        return (-mean_entropies(group.rollouts)).masked_fill(unparsed, -penalty)

    return reward


def measured(group: Group) -> Sequence[np.ndarray | None]:
    """Return what was measured of each rollout, None where nothing was asked of it.

    Raises ValueError, naming the question, for a group that was not measured: its rewards would all be equal.
    """
    if group.measured is None:
        raise ValueError(f"question {group.question.id!r}: not measured, which this method's reward needs")
    return group.measured


def mean_entropies(rollouts: Sequence[Rollout]) -> Tensor:
    """Return the mean token entropy of each response, (N,), nats; 0 for a response of no tokens.

    Raises ValueError, naming question and rollout, where `entropy` is None.
    """
    return torch.tensor([_mean_entropy(rollout) for rollout in rollouts], dtype=torch.float32)


def _mean_entropy(rollout: Rollout) -> float:
    if rollout.entropy is None:
        raise ValueError(
            f"question {rollout.question_id!r}, rollout {rollout.index}: no token entropies, which this method needs; "
            "score the rollouts first, or use a sampler that returns exact entropies"
        )
    return float(rollout.entropy.mean(dtype="float64")) if len(rollout.entropy) else 0.0
