"""Advantages, clipping limits and weights of single tokens, from log-probs and entropies measured before the update."""

from __future__ import annotations

import torch
from torch import Tensor

from mm_spine.config import MethodConfig
from mm_spine.methods.credit import advantages, normalised
from mm_spine.methods.laid import Laid, lay, over_the_step, replaced, unit_range, with_advantages
from mm_spine.methods.method import Batch, View
from mm_spine.methods.rewards import mean_entropies
from mm_spine.methods.sections import EmpgConfig, ShapingConfig, SteerConfig, UcasConfig
from mm_spine.methods.terms import clipped_surrogate
from mm_spine.methods.tokens import Limits, Tokens
from mm_spine.methods.weights import linear_quantile

LARGEST = 5.0
"""A group with a token-averaged advantage of this size keeps the usual ones (public code of arXiv 2509.16591)."""


# STEER


def by_entropy_change(options: SteerConfig, batch: Batch, tokens: list[list[Tokens]]) -> list[list[Tokens]]:
    """Weigh each token by how little its update changes its entropy (STEER)."""
    low, high = options.weight_least, options.weight_most
    return with_advantages(batch, tokens, lambda laid: laid.advantage_S * change_weights(laid, low, high))


def change_weights(laid: Laid, low: float, high: float) -> Tensor:
    """Map |Omega| of S >= 1 tokens linearly on weights (S,): the least on `high`, the largest on `low`.

    Omega = A / pi_old p (1 - p) (ln p + H) estimates the change of a token's entropy, here at p = pi_old. Where all are
    equal the weight is the middle. Source: arXiv 2510.10150 and its public code.
    """
    change_S = (laid.advantage_S * (1 - laid.logp_S.exp()) * (laid.logp_S + laid.entropy_S)).abs()
    if change_S.min() == change_S.max():
        return torch.full_like(change_S, (low + high) / 2)
    return high - (high - low) * unit_range(change_S)


# EMPG


def by_clarity(options: EmpgConfig, batch: Batch, tokens: list[list[Tokens]]) -> list[list[Tokens]]:
    """Modulate advantages by entropy: A g(H_t) + clarity f(H_t+1), less the mean over the step (arXiv 2509.09265).

    f = exp(-sharpness H) with H on [0, 1] over the step, g = f / mean f. The last token of a response has no next one
    and gets no bonus.
    """
    clear = over_the_step(batch, tokens, lambda laid: (-options.sharpness * unit_range(laid.entropy_S)).exp())
    shifted = [torch.cat([f_T[1:], f_T[:1] * 0]) for own in clear for f_T in own]
    now_S, next_S = lay(batch, tokens, [f_T for own in clear for f_T in own]), lay(batch, tokens, shifted)

    def modulated(laid: Laid) -> Tensor:
        found_S = laid.advantage_S * now_S / now_S.mean() + options.clarity * next_S
        return found_S - found_S.mean()

    return with_advantages(batch, tokens, modulated)


# HAPO


def token_averaged(options: MethodConfig, batch: Batch, rewards_QN: list[Tensor]) -> list[Tensor]:
    """Normalise rewards within each group by mean and standard deviation over its tokens (HAPO)."""
    usual_QN = normalised(options, batch, rewards_QN)
    lengths_QN = [torch.tensor([float(len(r.token_ids)) for r in group.rollouts]) for group in batch.groups]
    triples = zip(rewards_QN, lengths_QN, usual_QN, strict=True)
    return [average_over_tokens(*each, eps=options.eps) for each in triples]


def average_over_tokens(rewards_N: Tensor, length_N: Tensor, usual_N: Tensor, eps: float) -> Tensor:
    """Return (r - mean) / (std + eps), (N,), where a response counts as often as it has tokens; std of the population.

    Where one is `LARGEST` or more in size, or all rewards are equal, return `usual_N`. Source: arXiv 2509.16591.
    """
    share_N = length_N / length_N.sum().clamp(min=1)
    centred_N = rewards_N - (share_N * rewards_N).sum()
    found_N = centred_N / ((share_N * centred_N**2).sum().sqrt() + eps)
    return found_N if usual_N.any() and found_N.abs().max() < LARGEST else usual_N


def with_entropy_limits(options: MethodConfig, batch: Batch, tokens: list[list[Tokens]]) -> list[list[Tokens]]:
    """Widen the upper clipping limit of uncertain tokens to clip_high (1 + h), the lower one of certain tokens to
    clip_low (1 - h), with h of `entropy_score` (HAPO)."""

    def limited(chosen: Tokens, h_T: Tensor) -> Tokens:
        limits = Limits(options.clip_low * (1 - h_T.clamp(max=0)), options.clip_high * (1 + h_T.clamp(min=0)))
        return chosen._replace(clip=limits)

    return replaced(tokens, over_the_step(batch, tokens, lambda laid: entropy_score(laid.entropy_S)), limited)


def entropy_score(entropy_S: Tensor) -> Tensor:
    """Return h of S >= 1 tokens, (S,) in [-1, 1]: log H less its median, each side divided by its own largest size.

    Source: arXiv 2509.16591. Its public code divides the negative side by its minimum instead, and h is never negative.
    """
    log_S = entropy_S.clamp(min=1e-8).log()
    centred_S = log_S - linear_quantile(log_S, 0.5)
    sizes = centred_S.max().clamp(min=1e-8), (-centred_S.min()).clamp(min=1e-8)
    return torch.where(centred_S > 0, centred_S / sizes[0], centred_S / sizes[1])


def redistributed(options: MethodConfig, view: View) -> Tensor:
    """Return PPO's objective (N, T) with A (1 + h) in place of A where entropy and importance ratio agree (HAPO).

    That is for certain tokens (h <= 0) while the ratio is within half of the clipping limits, and for uncertain ones
    beyond. The limits hold h: clip_high = high (1 + max(h, 0)) and clip_low = low (1 - min(h, 0)).
    """
    h_NT = torch.as_tensor(view.clip_high / options.clip_high - view.clip_low / options.clip_low)
    ratio_NT = (view.logp_NT.detach() - view.old_logp_NT).exp()
    inside_NT = (ratio_NT > 1 - view.clip_low / 2) & (ratio_NT < 1 + view.clip_high / 2)
    advantage_NT = view.advantage_NT * torch.where(inside_NT == (h_NT <= 0), 1 + h_NT, torch.ones_like(h_NT))
    return clipped_surrogate(view.logp_NT, view.old_logp_NT, advantage_NT, view.clip_low, view.clip_high)


# UCAS


def by_certainty(options: UcasConfig, batch: Batch, advantages_QN: list[Tensor]) -> list[Tensor]:
    """Scale A by exp(-certain_right C) where it is positive, else by exp(certain_wrong C) (UCAS, arXiv 2510.10649).

    C is the certainty of a response, minus its mean entropy, standardised within the group.
    """

    def scaled(advantages_N: Tensor, certainty_N: Tensor) -> Tensor:
        exponent_N = torch.where(advantages_N > 0, -options.certain_right, options.certain_wrong) * certainty_N
        return advantages_N * exponent_N.exp()

    scores = advantages([-mean_entropies(group.rollouts) for group in batch.groups], std="population")
    return [scaled(*pair) for pair in zip(advantages_QN, scores, strict=True)]


def without_sureness(options: UcasConfig, batch: Batch, tokens: list[list[Tokens]]) -> list[list[Tokens]]:
    """Subtract logit_penalty times the log-prob, on [0, 1] over the step, from A where it is not 0 (UCAS).

    A positive advantage stays at 0 or above.
    """

    def reduced(laid: Laid) -> Tensor:
        found_S = laid.advantage_S - options.logit_penalty * unit_range(laid.logp_S)
        found_S = torch.where(laid.advantage_S > 0, found_S.clamp(min=0), found_S)
        return torch.where(laid.advantage_S == 0, 0.0, found_S)

    return with_advantages(batch, tokens, reduced)


# The two shapings of arXiv 2508.02260


def by_perplexity(options: ShapingConfig, batch: Batch, advantages_QN: list[Tensor]) -> list[Tensor]:
    """Scale A by 1 - perplexity_weight w, w the log-perplexity standardised within the group, under that shaping."""
    if options.shaping != "perplexity":
        return advantages_QN
    logs_QN = [
        torch.tensor([-float(r.logp.mean(dtype="float64")) if len(r.logp) else 0.0 for r in group.rollouts])
        for group in batch.groups
    ]
    pairs = zip(advantages_QN, advantages(logs_QN, std="population"), strict=True)
    return [advantages_N * (1 - options.perplexity_weight * log_N) for advantages_N, log_N in pairs]


def by_position(options: ShapingConfig, batch: Batch, tokens: list[list[Tokens]]) -> list[list[Tokens]]:
    """Add sign(A) position_weight t / T to A at token t of T, under that shaping."""
    if options.shaping != "position":
        return tokens
    lengths = [len(t.policy_T) for own in tokens for t in own]
    place_S = lay(batch, tokens, [torch.arange(1, length + 1) / length for length in lengths])
    weight = options.position_weight
    return with_advantages(batch, tokens, lambda laid: laid.advantage_S + laid.advantage_S.sign() * weight * place_S)
