"""Which tokens a policy term leaves out and a further term acts on, by covariance, log-prob or entropy of a window."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mm_spine.config import MethodConfig
from mm_spine.methods.apply import first_of_equal
from mm_spine.methods.choices import random_draw
from mm_spine.methods.laid import Laid, covariance, largest, lay, over_the_step, replaced
from mm_spine.methods.method import Batch, Term
from mm_spine.methods.sections import ClipCovConfig, KlCovConfig, LpRegConfig
from mm_spine.methods.terms import statistic_of
from mm_spine.methods.tokens import Tokens

COVARIANCE, PROXY = "kl_cov", "kl_proxy"
"""Names of the further terms."""


def window_mean(entropy_T: Tensor, window: int) -> Tensor:
    """Return the mean entropy (T,) of each token and the window - 1 after it (arXiv 2510.08457); fewer at the end."""
    sums_T = torch.cat([torch.zeros(1, dtype=torch.float64), entropy_T.double().cumsum(0)])
    first_T = torch.arange(len(entropy_T))
    end_T = (first_T + window).clamp(max=len(entropy_T))
    return ((sums_T[end_T] - sums_T[first_T]) / (end_T - first_T)).float()


def anchored_everywhere(options: MethodConfig, batch: Batch, tokens: list[list[Tokens]]) -> list[list[Tokens]]:
    """Let the KL act on all tokens of the responses that it acts on (EARL)."""
    if options.kl == "none":
        return tokens
    return [[t._replace(kl_T=torch.ones_like(t.policy_T)) if t.anchored_T.any() else t for t in own] for own in tokens]


# Clip-Cov and KL-Cov, arXiv 2505.22617


def without_covarying(options: ClipCovConfig, batch: Batch, tokens: list[list[Tokens]]) -> list[list[Tokens]]:
    """Leave random tokens, `cov_share` of all, with a covariance between `cov_low` and `cov_high` out (Clip-Cov)."""
    # Equal responses have equal draws.
    draws_S = lay(batch, tokens, [random_draw(r, batch.seed, batch.step) for r in first_of_equal(batch.groups)])

    def left_out(laid: Laid) -> Tensor:
        covariance_S = covariance(laid)
        candidate_S = (covariance_S > options.cov_low) & (covariance_S < options.cov_high)
        return candidate_S & largest(draws_S.where(candidate_S, -1.0), options.cov_share)

    def reduced(chosen: Tokens, out_T: Tensor) -> Tokens:
        return chosen._replace(policy_T=chosen.policy_T & (out_T == 0))

    return replaced(tokens, over_the_step(batch, tokens, left_out), reduced)


def with_covarying(options: KlCovConfig, batch: Batch, tokens: list[list[Tokens]]) -> list[list[Tokens]]:
    """Let the penalty act on the `cov_share` of all tokens with the largest covariance, if positive (KL-Cov)."""

    def penalised(laid: Laid) -> Tensor:
        covariance_S = covariance(laid)
        return (covariance_S > 0) & largest(covariance_S, options.cov_share)

    found = over_the_step(batch, tokens, penalised)
    return replaced(tokens, found, lambda chosen, weight_T: chosen.weighed(COVARIANCE, weight_T))


def covariance_terms(options: KlCovConfig) -> tuple[Term, ...]:
    """Return the penalty of KL-Cov: cov_weight |log pi - log pi_old|."""
    return (Term(COVARIANCE, lambda view: (view.logp_NT - view.old_logp_NT).abs(), options.cov_weight),)


# Lp-Reg, arXiv 2510.03222


def with_least_likely(options: LpRegConfig, batch: Batch, tokens: list[list[Tokens]]) -> list[list[Tokens]]:
    """Let the KL to the proxy act on the `least_likely` share of the tokens with A < 0, by their log-probs (Lp-Reg)."""

    def regularised(laid: Laid) -> Tensor:
        blamed_S = laid.advantage_S < 0
        found_S = blamed_S.clone()
        if blamed_S.any():
            found_S[blamed_S] = largest(-laid.logp_S[blamed_S], options.least_likely)
        return found_S

    found = over_the_step(batch, tokens, regularised)
    return replaced(tokens, found, lambda chosen, weight_T: chosen.weighed(PROXY, weight_T))


def proxy_terms(options: LpRegConfig) -> tuple[Term, ...]:
    """Return the KL of Lp-Reg, measured where the head has the full distribution."""
    statistic = partial(proxy_kl, min_p=options.min_p, estimate=options.proxy_kl)
    return (Term(PROXY, statistic_of, options.proxy_weight, statistic=statistic),)


def proxy_kl(
    log_probs_SV: Tensor, anchor_SV: Tensor | None, target_S: Tensor, min_p: float, estimate: str = "exact"
) -> Tensor:
    """Return KL(proxy || pi), (S,) in nats; 0 where the proxy lacks the token drawn. The proxy has no gradient.

    The proxy is pi without the tokens below `min_p` times the largest probability. "exact" is over the vocabulary;
    "k3" the estimate exp(d) - 1 - d with d = log proxy - log pi of the token drawn. Source: arXiv 2510.03222.
    """
    detached_SV = log_probs_SV.detach()
    kept_SV = detached_SV >= detached_SV.max(-1, keepdim=True).values + torch.tensor(min_p).log()
    proxy_SV = detached_SV.masked_fill(~kept_SV, -torch.inf).log_softmax(-1)
    drawn_S1 = target_S[:, None]
    if estimate == "k3":
        gap_S = (proxy_SV.gather(-1, drawn_S1) - log_probs_SV.gather(-1, drawn_S1))[:, 0]
        return torch.where(kept_SV.gather(-1, drawn_S1)[:, 0], gap_S.expm1() - gap_S, 0.0)
    # A token that the policy bans or the proxy lacks adds nothing, and 0 * -inf would be nan.
    logs_SV = log_probs_SV.masked_fill(~kept_SV, 0.0)
    kl_S = (proxy_SV.exp() * (proxy_SV.masked_fill(~kept_SV, 0.0) - logs_SV)).sum(-1)
    return torch.where(kept_SV.gather(-1, drawn_S1)[:, 0], kl_S, 0.0)
