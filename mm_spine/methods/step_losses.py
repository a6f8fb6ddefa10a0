"""Losses of a whole step that take the vote as a label of each response: (options, batch, log-ratios) -> a scalar.

A response counts as often as its rollout's `weight` says, a dropped one not at all.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from mm_spine.methods.apply import credited_places
from mm_spine.methods.method import Batch
from mm_spine.methods.sections import PacsConfig, RealConfig
from mm_spine.types import Group


def supervised(options: PacsConfig, batch: Batch, ratios: list[list[Tensor]]) -> Tensor:
    """Return the binary cross-entropy of the rewards and s_i minus the mean s of the question's other responses.

    s_i = beta sum_t (logp - old logp). Where a question has rewards of 0 and of 1, both together weigh the same. The
    mean is over the responses of the step. Source: PACS, arXiv 2509.02522, with the authors' class weights.
    """
    losses = []
    for group, ratios_N in zip(batch.groups, ratios, strict=True):
        copies = credited_places(group)
        if len(copies) < 2:
            continue
        score_M = options.beta * torch.stack([ratio_T.sum() for ratio_T in ratios_N])[copies]
        label_M = _rewards(group)[copies].to(score_M.dtype)
        logit_M = (score_M - score_M.mean()) * len(copies) / (len(copies) - 1)
        share = label_M.mean()
        both = bool(0 < share < 1)
        weight_M = 0.5 / torch.where(label_M > 0, share, 1 - share) if both else torch.ones_like(label_M)
        losses.append(binary_cross_entropy_with_logits(logit_M, label_M, weight_M, reduction="none"))
    return torch.cat(losses).mean() if losses else torch.zeros(())


def as_classes(options: RealConfig, batch: Batch, ratios: list[list[Tensor]]) -> Tensor:
    """Return log(1 + sum over rewarded responses of exp(-s/tau)) + log(1 + sum over the others of exp(s/tau)).

    s is the mean log-ratio of a response, the value the mean over questions with a vote. Source: REAL, arXiv
    2602.05630.
    """
    losses = []
    for group, ratios_N in zip(batch.groups, ratios, strict=True):
        copies = credited_places(group)
        if not copies or group.vote.answer is None:
            continue
        rewarded_M = _rewards(group)[copies] > 0
        means_N = torch.stack([ratio_T.sum() / max(len(ratio_T), 1) for ratio_T in ratios_N])
        score_M = means_N[copies] / options.tau
        losses.append(_log1p_sum_exp(-score_M[rewarded_M]) + _log1p_sum_exp(score_M[~rewarded_M]))
    return torch.stack(losses).mean() if losses else torch.zeros(())


def _log1p_sum_exp(values_M: Tensor) -> Tensor:
    return softplus(torch.logsumexp(values_M, 0))


def _rewards(group: Group) -> Tensor:
    if group.rewards is None:
        raise ValueError(f"{group.question.id}: no rewards yet; call assign_credit first")
    return group.rewards
