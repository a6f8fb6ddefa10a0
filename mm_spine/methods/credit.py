"""Rewards and advantages without labels: pure functions on small tensors.

A reward is a function (group without rewards) -> (N,); advantages are per response, one for all its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, assert_never

import torch
from torch import Tensor

from mm_spine.types import Group, Responses, Reward, Rollout

Normalise = Literal["group", "batch", "center"]
Std = Literal["sample", "population"]


def majority_reward(group: Group) -> Tensor:
    """TTRL (arXiv 2504.16084): 1 where the response's vote class is the winner, else 0; shape (N,).

    An unparsed response earns 0, also when nothing parsed and there is no winner.
    """
    winner = group.vote.answer
    return torch.tensor([float(answer is not None and answer == winner) for answer in group.answers])


def entropy_reward(penalty: float = 7.0) -> Reward:
    """RENT: the reward -mean_t H_t in nats, and -penalty where no answer was found; shape (N,).

    The reward raises ValueError if a rollout carries no entropy.
    """

    def reward(group: Group) -> Tensor:
        unparsed = torch.tensor([answer is None for answer in group.answers], dtype=torch.bool)
        return (-mean_entropies(group.rollouts)).masked_fill(unparsed, -penalty)

    return reward


def mean_entropies(rollouts: Responses) -> Tensor:
    """The mean token entropy of each response, (N,), nats; 0 for a response of no tokens.

    Raises ValueError, naming question and rollout, where `entropy` is None.
    """
    return torch.tensor([_mean_entropy(rollout) for rollout in rollouts], dtype=torch.float32)


def advantages(
    rewards_QN: Sequence[Tensor],
    normalise: Normalise = "group",
    std: Std = "sample",
    eps: float = 1e-6,
) -> list[Tensor]:
    """Rewards of Q questions, each of shape (N,), to advantages of the same shapes.

    "group": (r - mean)/(std + eps) within each question (GRPO). "batch": the same with one mean and one std over
    all rewards of the step, so that what is constant within a question still counts (TRL's "batch" differs: group
    mean, batch std). "center": r - group mean. Equal rewards, or one alone, give exactly 0.
    """
    match normalise:
        case "group":
            return [_standardised(rewards, std, eps) for rewards in rewards_QN]
        case "batch":
            if not rewards_QN:
                return []
            sizes = [len(rewards) for rewards in rewards_QN]
            return list(torch.split(_standardised(torch.cat(list(rewards_QN)), std, eps), sizes))
        case "center":
            return [_centred(rewards) for rewards in rewards_QN]
        case _:
            assert_never(normalise)


def adv_res(advantages_N: Tensor, mean_entropy_N: Tensor, low: float = 0.8, high: float = 1.2) -> Tensor:
    """ETTRL's Adv-Res (arXiv 2508.11356, EAR): clip(Y_i, low, high) A_i, shape (N,).

    Y_i = 1 + (mean_j Hbar_j - Hbar_i)/mean_j Hbar_j favours confident responses; Y = 1 where all entropy is 0.
    """
    mean = mean_entropy_N.mean()
    relative = torch.where(mean > 0, (mean - mean_entropy_N) / mean, torch.zeros_like(mean_entropy_N))
    return (1 + relative).clamp(low, high) * advantages_N


def adv_clip(advantages_N: Tensor, limit: float = 2.0) -> Tensor:
    """ETTRL's Adv-Clip (arXiv 2508.11356): clip(A, -limit, limit), shape (N,)."""
    return advantages_N.clamp(-limit, limit)


def _mean_entropy(rollout: Rollout) -> float:
    if rollout.entropy is None:
        raise ValueError(
            f"question {rollout.question_id!r}, rollout {rollout.index}: no token entropies, which this method needs; "
            "score the rollouts first, or use a sampler that returns exact entropies"
        )
    return float(rollout.entropy.mean(dtype="float64")) if len(rollout.entropy) else 0.0


def _centred(rewards_N: Tensor) -> Tensor:
    # Rounding in the mean would leave a residue of about 1e-8, which dividing by the std blows up.
    if bool((rewards_N == rewards_N[:1]).all()):
        return torch.zeros_like(rewards_N)
    return rewards_N - rewards_N.mean()


def _standardised(rewards_N: Tensor, std: Std, eps: float) -> Tensor:
    centred = _centred(rewards_N)
    if not bool(centred.any()):  # also one reward alone, whose sample std is undefined
        return centred
    return centred / (rewards_N.std(correction=1 if std == "sample" else 0) + eps)
