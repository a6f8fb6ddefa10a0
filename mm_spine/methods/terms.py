"""Policy term, entropy band and KL: pure, elementwise, differentiable, of any shape.

Log-probabilities and entropies in nats. A suffix V is the vocabulary, S any set of token positions.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def clipped_surrogate(
    logp: Tensor, old_logp: Tensor, advantage: Tensor, clip_low: float = 0.2, clip_high: float = 0.2
) -> Tensor:
    """PPO's objective, to be maximised: min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), rho = pi/pi_old.

    All arguments broadcast; advantages of shape (N, 1) serve tokens of shape (N, T). Source: arXiv 1707.06347, eq. 7.
    """
    ratio = torch.exp(logp - old_logp)
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip_low, 1 + clip_high) * advantage)


def clipped_share(
    logp: Tensor, old_logp: Tensor, advantage: Tensor, clip_low: float = 0.2, clip_high: float = 0.2
) -> Tensor:
    """Where the clip cuts `clipped_surrogate`'s gradient: a boolean of the broadcast shape."""
    ratio = torch.exp(logp.detach() - old_logp)
    return ((ratio > 1 + clip_high) & (advantage > 0)) | ((ratio < 1 - clip_low) & (advantage < 0))


def hinge_band(entropy: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """SPINE's band (arXiv 2511.17938): max(0, low - H_t) and max(0, H_t - high), nats, per token.

    The gradient is 0 on a bound itself, where a fork often sits, the bounds being order statistics of the forks.
    """
    return torch.relu(low - entropy), torch.relu(entropy - high)


def kl_k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(pi || ref) from the drawn tokens: exp(r) - 1 - r with r = ref_logp - logp >= 0."""
    log_ratio = ref_logp - logp
    return torch.expm1(log_ratio) - log_ratio


def kl_exact(log_probs_SV: Tensor, ref_log_probs_SV: Tensor) -> Tensor:
    """KL(pi || ref) = sum_v pi (log pi - log ref), shape (S,), nats.

    A token banned by the policy (-inf) adds nothing. Mass where only the reference bans a token makes the value
    infinite; that term has no gradient, so that none is nan.
    """
    banned = log_probs_SV == -torch.inf
    missing = ref_log_probs_SV == -torch.inf
    log_pi = log_probs_SV.masked_fill(banned, 0.0)
    log_ref = ref_log_probs_SV.masked_fill(banned | missing, 0.0)
    terms = log_pi.exp() * (log_pi - log_ref)
    return terms.masked_fill(missing & ~banned, torch.inf).sum(-1)


def weighted_mean(values: Tensor, mask: Tensor, weights: Tensor, denominator: Tensor) -> Tensor:
    """sum(values mask weights)/denominator, a scalar; 0 where the mask and the denominator are empty.

    `mask` has the shape of `values`; `weights` too, or one per row: (N,) or (N, 1) for values (N, T). What lies
    outside the mask is never read, nan included.
    """
    weights = weights.reshape(weights.shape + (1,) * (values.dim() - weights.dim()))
    total = (torch.where(mask.bool(), values, 0.0) * weights).sum()
    return total / torch.where(denominator == 0, 1.0, denominator).to(total.dtype)


def denominator(
    lengths_N: Tensor, selected_counts_N: Tensor, weights_N: Tensor, kind: Literal["all", "selected"]
) -> Tensor:
    """The tokens a term is averaged over, each response counted `weight` times: a float64 scalar.

    "all" response tokens (TRL, SPINE v2's policy and band) or the "selected" ones. Sum it over micro-batches and
    ranks before the first backward.
    """
    counts_N = lengths_N if kind == "all" else selected_counts_N
    return (counts_N.double() * weights_N.double()).sum()
