"""Advantages and their shaping: pure functions on small tensors.

An advantage belongs to a response and is the same for all its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, assert_never

import torch
from torch import Tensor

from mm_spine.config import MethodConfig
from mm_spine.methods.method import Batch
from mm_spine.methods.rewards import mean_entropies
from mm_spine.methods.sections import EarConfig

Normalise = Literal["group", "batch", "center"]
Std = Literal["sample", "population"]


def advantages(
    rewards_QN: Sequence[Tensor],
    normalise: Normalise = "group",
    std: Std = "sample",
    eps: float = 1e-6,
) -> list[Tensor]:
    """Turn the rewards of Q questions, each of shape (N,), into advantages of the same shapes.

    "group": (r - mean)/(std + eps) within each question (GRPO). "center": r - mean within each question.
    "batch": (r - mean)/(std + eps) over all rewards of the step, so that a reward that is constant within a question
    still counts. TRL's "batch" differs: it takes the group's mean and the batch's std.
    Equal rewards, or a single one, give exactly 0.
    """
    match normalise:
        case "group":
            return [_standardised(rewards_N, std, eps) for rewards_N in rewards_QN]
        case "batch":
            if not rewards_QN:
                return []
            sizes = [len(rewards_N) for rewards_N in rewards_QN]
            return list(torch.split(_standardised(torch.cat(list(rewards_QN)), std, eps), sizes))
        case "center":
            return [_centred(rewards_N) for rewards_N in rewards_QN]
        case _:
            assert_never(normalise)


def normalised(options: MethodConfig, batch: Batch, rewards_QN: list[Tensor]) -> list[Tensor]:
    """Turn rewards into advantages as the options say: the usual first link of a chain of credit."""
    return advantages(rewards_QN, options.advantage, options.std, options.eps)


def entropy_shaped(options: EarConfig, batch: Batch, advantages_QN: list[Tensor]) -> list[Tensor]:
    """Shape advantages as ETTRL's EAR does, by Adv-Res or Adv-Clip (`method.ear`)."""
    if options.ear == "adv_clip":
        return [adv_clip(advantages_N) for advantages_N in advantages_QN]
    pairs = zip(batch.groups, advantages_QN, strict=True)
    return [adv_res(advantages_N, mean_entropies(group.rollouts)) for group, advantages_N in pairs]


def adv_res(advantages_N: Tensor, mean_entropy_N: Tensor, low: float = 0.8, high: float = 1.2) -> Tensor:
    """Shape advantages by ETTRL's Adv-Res (arXiv 2508.11356, EAR): clip(Y_i, low, high) A_i, shape (N,).

    Y_i = 1 + (mean_j Hbar_j - Hbar_i)/mean_j Hbar_j favours confident responses. Y = 1 where all entropies are 0.
    """
    mean = mean_entropy_N.mean()
    relative = torch.where(mean > 0, (mean - mean_entropy_N) / mean, torch.zeros_like(mean_entropy_N))
    return (1 + relative).clamp(low, high) * advantages_N


def adv_clip(advantages_N: Tensor, limit: float = 2.0) -> Tensor:
    """Shape advantages by ETTRL's Adv-Clip (arXiv 2508.11356): clip(A, -limit, limit), shape (N,)."""
    return advantages_N.clamp(-limit, limit)


def _centred(rewards_N: Tensor) -> Tensor:
    # Rounding in the mean would leave a residue of about 1e-8, which dividing by the std blows up.
    if bool((rewards_N == rewards_N[:1]).all()):
        return torch.zeros_like(rewards_N)
    return rewards_N - rewards_N.mean()


def _standardised(rewards_N: Tensor, std: Std, eps: float) -> Tensor:
    centred = _centred(rewards_N)
    # A single reward ends here, too: its sample std is undefined.
    if not bool(centred.any()):
        return centred
    return centred / (rewards_N.std(correction=1 if std == "sample" else 0) + eps)
