"""Entropy in the loss: a bonus for it, a band around its running mean, weights by covariance, and a target for it.

Functions of a micro-batch or of a whole step, on small tensors. Entropies are in nats.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mm_spine.methods.band import Bounds
from mm_spine.methods.laid import covariance, lay, over_the_step, replaced, rollouts_of
from mm_spine.methods.method import Batch, Term, View
from mm_spine.methods.sections import EntropyConfig, EpoConfig, SirenConfig, T1Config, TeaConfig
from mm_spine.methods.terms import kl_of_drawn, statistic_of
from mm_spine.methods.tokens import Tokens
from mm_spine.methods.weights import top_quantile
from mm_spine.types import Rollout, Statistic

MEAN, STEPS = "entropy_mean", "entropy_steps"
"""The memory of `epo`: the mean over the steps done of the mean token entropy, and their number."""

FIRST, LAST = "siren_first", "siren_last"
"""The memory of `siren`: the mean peak entropy of the first step and of the last one."""


def minus_entropy(view: View) -> Tensor:
    """Return -H_t, (N, T): a term that is minimised where entropy is high."""
    return -view.entropy_NT


def entropy_bonus(options: EntropyConfig) -> list[Term]:
    """Return a bonus for the entropy of every response token."""
    return [Term("entropy", minus_entropy, options.entropy_weight)]


def bonus_and_anchor(options: T1Config) -> list[Term]:
    """Return the bonus and the KL to the anchor (T1)."""
    anchor = Term("anchor", statistic_of, options.anchor_weight, statistic=kl_of_drawn, anchored=True)
    return [*entropy_bonus(options), anchor]


def weighted_entropy(options: TeaConfig) -> list[Term]:
    """Return a bonus for entropy by the weights of the tokens (Light-IF)."""
    return [Term("tea", minus_entropy, 1.0)]


def masked_entropy(options: SirenConfig) -> Statistic:
    """Return the entropy of the most probable tokens as a statistic of the head (SIREN)."""
    return partial(top_p_entropy, p=options.siren_top_p)


def peak_entropy(options: SirenConfig) -> list[Term]:
    """Return the masked entropy of the peak tokens, which moves along the slope of the penalty (SIREN)."""
    return [Term("siren", statistic_of, 1.0, "selected", masked_entropy(options))]


def band_around_mean(options: EpoConfig, batch: Batch, tokens: list[list[Tokens]]) -> list[list[Tokens]]:
    """Bound the entropies of all tokens by multiples of the running mean (EPO); a first step has no band."""
    if MEAN not in batch.memory:
        return tokens
    mean = batch.memory[MEAN]
    bounds = Bounds(torch.tensor(options.entropy_low * mean), torch.tensor(options.entropy_high * mean))
    return [[found._replace(band_T=found.policy_T, bounds=bounds) for found in own] for own in tokens]


def running_mean(options: EpoConfig, batch: Batch, tokens: list[list[Tokens]]) -> Mapping[str, Any]:
    """Return the mean over all steps of the mean entropy of the tokens of the policy term."""
    entropy_S = lay(batch, tokens, [torch.from_numpy(rollout.entropy) for rollout in rollouts_of(batch)])
    if not len(entropy_S):
        return {}
    done = batch.memory.get(STEPS, 0)
    return {MEAN: (done * batch.memory.get(MEAN, 0.0) + float(entropy_S.mean())) / (done + 1), STEPS: done + 1}


def covariance_weights(options: TeaConfig, batch: Batch, tokens: list[list[Tokens]]) -> list[list[Tokens]]:
    """Weigh the entropy of each token by how its log-prob goes with its advantage (Light-IF's TEA-RL).

    weight_t = min(tea_cap, tea_scale softmax_t (A_i - mean A) (log p_t - mean log p)), the softmax within a response,
    the means over the tokens of the step.
    """

    def weighed(chosen: Tokens, covariance_T: Tensor) -> Tokens:
        share_T = torch.softmax(covariance_T.masked_fill(~chosen.policy_T, -torch.inf), 0).where(chosen.policy_T, 0.0)
        return chosen.weighed("tea", (options.tea_scale * share_T).clamp(max=options.tea_cap))

    return replaced(tokens, over_the_step(batch, tokens, covariance), weighed)


def top_p_entropy(log_probs_SV: Tensor, anchor_SV: Tensor | None, target_S: Tensor, p: float) -> Tensor:
    """Return the entropy of the most probable tokens that together have probability `p`, renormalised: (S,), nats.

    With Z the probability of these tokens it is log Z - sum p log p / Z. They are the fewest that reach `p`, and what
    they are carries no gradient (SIREN, arXiv 2509.25133).
    """
    p_SV = log_probs_SV.exp()
    sorted_SV, order_SV = p_SV.detach().sort(dim=-1, descending=True, stable=True)
    # A token is kept while those before it have less than p; the first one always.
    kept_SV = torch.zeros_like(order_SV, dtype=torch.bool)
    kept_SV = kept_SV.scatter(-1, order_SV, sorted_SV.cumsum(-1) - sorted_SV < p)
    mass_S = p_SV.where(kept_SV, 0.0).sum(-1)
    log_p_SV = log_probs_SV.masked_fill(~kept_SV | (log_probs_SV == -torch.inf), 0.0)
    entropy_S = mass_S.log() - (p_SV * log_p_SV).sum(-1) / mass_S
    # One token alone has none: rounding must not order such tokens.
    return entropy_S.where(kept_SV.sum(-1) > 1, 0.0)


def peak_weights(options: SirenConfig, batch: Batch, tokens: list[list[Tokens]]) -> list[list[Tokens]]:
    """Give the peak tokens of each response the slope of SIREN's penalty, 2 siren_weight (mean - first mean).

    The mean over the peak tokens of the step is that before the update, which makes the gradient exact. In the first
    step it is the target itself, and the slope 0.
    """
    peaks, mean = _peaks(options, batch, tokens)
    slope = 0.0 if mean is None else 2 * options.siren_weight * (mean - batch.memory.get(FIRST, mean))
    return replaced(tokens, peaks, lambda chosen, peak_T: chosen.weighed("siren", slope * peak_T.float()))


def peak_means(options: SirenConfig, batch: Batch, tokens: list[list[Tokens]]) -> Mapping[str, Any]:
    """Return the mean peak entropy of this step, and that of the first step."""
    _, mean = _peaks(options, batch, tokens)
    return {} if mean is None else {FIRST: batch.memory.get(FIRST, mean), LAST: mean}


def _peaks(options: SirenConfig, batch: Batch, tokens: list[list[Tokens]]) -> tuple[list[list[Tensor]], float | None]:
    """Return the mask of the peak tokens of each response, and the mean of the statistic over them.

    A token of which one candidate alone reaches `siren_top_p` has a masked entropy of 0 and is no peak.
    """

    def peak(rollout: Rollout, chosen: Tokens) -> Tensor:
        value_T = torch.from_numpy(rollout.statistic)
        return chosen.policy_T & (value_T > 0) & top_quantile(value_T, options.share)

    pairs = zip(batch.groups, tokens, strict=True)
    peaks = [[peak(r, t) for r, t in zip(group.rollouts, own, strict=True)] for group, own in pairs]
    acted = replaced(tokens, peaks, lambda chosen, peak_T: chosen._replace(policy_T=peak_T))
    value_S = lay(batch, acted, [torch.from_numpy(rollout.statistic) for rollout in rollouts_of(batch)])
    return peaks, float(value_S.mean()) if len(value_S) else None
