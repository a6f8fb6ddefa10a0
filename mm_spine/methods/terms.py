"""Policy term, entropy band and KL: pure, elementwise, differentiable functions of tensors of any shape.

Log-probs and entropies are in nats. The suffix V is the vocabulary, S any set of token positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mm_spine.config import Denominator
from mm_spine.methods.method import View


def clipped_surrogate(
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    clip_low: Tensor | float = 0.2,
    clip_high: Tensor | float = 0.2,
) -> Tensor:
    """Return PPO's objective, to be maximised: min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), rho = pi/pi_old.

    All arguments broadcast: advantages (N, 1) apply to tokens (N, T). Source: arXiv 1707.06347, eq. 7.
    """
    ratio = torch.exp(logp - old_logp)
    clipped = torch.clamp(ratio, 1 - clip_low, 1 + clip_high)  # type: ignore[arg-type]  # both numbers or both tensors
    return torch.minimum(ratio * advantage, clipped * advantage)


def surrogate_of(view: View) -> Tensor:
    """Return PPO's objective of a micro-batch, (N, T)."""
    return clipped_surrogate(view.logp_NT, view.old_logp_NT, view.advantage_NT, view.clip_low, view.clip_high)


def statistic_of(view: View) -> Tensor:
    """Return a term's own statistic of the head, (N, T). Raises ValueError where the term has none."""
    if view.statistic_NT is None:
        raise ValueError("the term has no statistic of the head")
    return view.statistic_NT


def truncated_ratio(old_logp: Tensor, sampled_logp: Tensor, limit: float) -> Tensor:
    """Return the weights min(pi_old / pi_sampler, limit) of truncated importance sampling, of the broadcast shape.

    They make up for a sampler whose distribution is not exactly the trainer's. Source: Yao et al. 2025, "Your
    efficient RL framework secretly brings you off-policy RL training".
    """
    return torch.exp(old_logp - sampled_logp).clamp(max=limit)


def clipped_share(
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    clip_low: Tensor | float = 0.2,
    clip_high: Tensor | float = 0.2,
) -> Tensor:
    """Return where clipping cuts the gradient of `clipped_surrogate`: a boolean of the broadcast shape."""
    ratio = torch.exp(logp.detach() - old_logp)
    return ((ratio > 1 + clip_high) & (advantage > 0)) | ((ratio < 1 - clip_low) & (advantage < 0))


def hinge_band(entropy: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return SPINE's two hinges per token, nats: max(0, low - H_t) and max(0, H_t - high) (arXiv 2511.17938)."""
    # relu has gradient 0 on a bound itself. A fork often lies there: the bounds are order statistics of the forks.
    return torch.relu(low - entropy), torch.relu(entropy - high)


def kl_k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """Return Schulman's k3 estimate of KL(pi || ref) at the drawn tokens: exp(r) - 1 - r >= 0, r = ref_logp - logp."""
    log_ratio = ref_logp - logp
    return torch.expm1(log_ratio) - log_ratio


def kl_of_drawn(log_probs_SV: Tensor, ref_log_probs_SV: Tensor | None, target_S: Tensor) -> Tensor:
    """Return the k3 estimate at the drawn tokens, from the log-probs of the whole vocabulary: (S,), nats.

    Raises ValueError without a reference.
    """
    if ref_log_probs_SV is None:
        raise ValueError("a KL needs the log-probs of a reference; its term must be anchored")
    drawn, anchor = (x.gather(-1, target_S[:, None])[:, 0] for x in (log_probs_SV, ref_log_probs_SV))
    return kl_k3(drawn, anchor)


def kl_exact(log_probs_SV: Tensor, ref_log_probs_SV: Tensor) -> Tensor:
    """Return KL(pi || ref) = sum_v pi (log pi - log ref), shape (S,), nats.

    A token that the policy bans (-inf) adds nothing. A token that only the reference bans makes the value infinite;
    its term has no gradient, so that no gradient is nan.
    """
    banned = log_probs_SV == -torch.inf
    missing = ref_log_probs_SV == -torch.inf
    log_pi = log_probs_SV.masked_fill(banned, 0.0)
    log_ref = ref_log_probs_SV.masked_fill(banned | missing, 0.0)
    terms = log_pi.exp() * (log_pi - log_ref)
    return terms.masked_fill(missing & ~banned, torch.inf).sum(-1)


def weighted_mean(values: Tensor, mask: Tensor, weights: Tensor, denominator: Tensor) -> Tensor:
    """Return sum(values * mask * weights)/denominator, a scalar; 0 where mask and denominator are 0.

    `mask` has the shape of `values`, `weights` too or one value per response: (N,) or (N, 1) for values (N, T). Values
    outside the mask are never used, not even nan.
    """
    weights = weights.reshape(weights.shape + (1,) * (values.dim() - weights.dim()))
    total = (torch.where(mask.bool(), values, 0.0) * weights).sum()
    return total / torch.where(denominator == 0, 1.0, denominator).to(total.dtype)


def denominator(lengths_N: Tensor, selected_counts_N: Tensor, weights_N: Tensor, kind: Denominator) -> Tensor:
    """Count what a term is averaged over, each response `weight` times: a float64 scalar.

    "all" response tokens (TRL; SPINE v2's policy term and band), only the "selected" ones, or the responses
    ("response": ETTRL, eq. 3, with the weights of `token_weights`). The count must cover all micro-batches and ranks
    before the first backward.
    """
    counts_N = {"all": lengths_N, "selected": selected_counts_N, "response": torch.ones_like(lengths_N)}[kind]
    return (counts_N.double() * weights_N.double()).sum()


def token_weights(lengths_N: Tensor, weights_N: Tensor, kind: Denominator) -> Tensor:
    """Return what each token of a response is multiplied by, (N,): its `weight`, over its length for "response".

    The length is of the whole response, whatever part of it a mask selects (1/|o_i| in ETTRL, eq. 3).
    """
    return weights_N / lengths_N.clamp(min=1) if kind == "response" else weights_N
