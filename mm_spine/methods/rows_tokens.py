"""Rows of the table that select, weigh or clip single tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mm_spine.methods.choices import token_entropy, top_share
from mm_spine.methods.method import NO_ENTROPIES, NORMALISED, TTRL_KL, Method, chain, made, rule
from mm_spine.methods.sections import (
    ClipCovConfig,
    EmpgConfig,
    HapoConfig,
    KlCovConfig,
    LpRegConfig,
    ShapingConfig,
    SteerConfig,
    UcasConfig,
)

if TYPE_CHECKING:
    from torch import Tensor

    from mm_spine.types import Rollout

DAPO = "arXiv 2503.14476"
ENTROPY_MECHANISM = "arXiv 2505.22617"
WINDOW = 4
"""Tokens of a window of `window-entropy`, that of the token itself included."""

_CLIP_HIGHER = {"clip_high": 0.28}
# An importance ratio is above 0, and never as large as this.
_UNCLIPPED = {"clip_low": 1.0, "clip_high": 1e9}


def window_entropy(rollout: Rollout, seed: int, step: int) -> Tensor:
    """Rank tokens by the mean entropy, nats, of the `WINDOW` tokens that begin with them."""
    from mm_spine.methods.token_masks import window_mean

    return window_mean(token_entropy(rollout, seed, step), WINDOW)


# Formulas are plain text, a line a step. Means, quantiles and extremes are over all tokens of the step unless stated.
_A = "A the advantage of the response: its reward (1 if its answer is the winner of the vote, else 0), normalised"
_PPO = "L = -mean_t min(rho_t A_t, clip(rho_t, 1 - clip_low, 1 + clip_high) A_t), rho_t = pi / pi_old"
_MASKED = "L = -mean_t m_t min(rho_t A, clip(rho_t, 1 - clip_low, 1 + clip_high) A), rho_t = pi / pi_old"
_COV = "c_t = (A_t - mean A) (log pi_old,t - mean log pi_old)"
_VOTE = "The vote is the reward, in place of labels."
_NO_KL = f"{_VOTE} No KL to the starting model."
_ONCE = (
    "Measured once a step over all ranks, with the sampler's log-probs; the public code does so on each micro-batch."
)
_FIRST_EPOCH = "With optim.epochs=1 the importance ratio is 1 and"

ROWS: Mapping[str, Method] = {
    "top20-batch": Method(
        "80/20: the 20 % of tokens with the highest entropy in the whole step",
        "arXiv 2506.01939",
        f"m_t = 1 if H_t >= the quantile 1 - share of the entropies of all tokens of the step, else 0\n{_MASKED}\n{_A}",
        "The mean is over all tokens, as public texts give it; public codes that drop the other tokens from the mask "
        f"divide by the selected ones (method.policy_denominator=selected). {_NO_KL}",
        "With labels: Qwen3-32B +7.71 points on AIME24 and +11.04 on AIME25 over all tokens; no gain and no loss with "
        "Qwen3-8B (arXiv 2506.01939).",
        policy_mask=top_share,
        options={**_CLIP_HIGHER, "mask_scope": "batch"},
    ),
    "clip-higher": Method(
        "a wider upper clipping limit (DAPO)",
        DAPO,
        f"{_PPO}\nclip_low = 0.2, clip_high = 0.28; A_t = A\n{_A}",
        f"Only the limits of DAPO. {_FIRST_EPOCH} no limit acts. {_NO_KL}",
        "With labels, mean of seven benchmarks of mathematics: Qwen2.5-7B 38.8 %, 38.6 with GRPO; Qwen2.5-32B 47.2, "
        "45.8 with GRPO (arXiv 2505.22617).",
        **NO_ENTROPIES,
        options=_CLIP_HIGHER,
    ),
    "clip-cov": Method(
        "no gradient at random tokens whose log-prob and advantage covary (Clip-Cov)",
        ENTROPY_MECHANISM,
        f"{_COV}\nm_t = 0 for a random cov_share of all tokens, drawn where cov_low < c_t < cov_high; else 1\n"
        f"{_MASKED}\n{_A}",
        f"{_ONCE} Equal responses have equal draws. {_NO_KL}",
        "With labels, mean of seven benchmarks of mathematics: Qwen2.5-7B 40.4 %, 38.6 with GRPO; Qwen2.5-32B 50.3, "
        "45.8 with GRPO (arXiv 2505.22617).",
        **NO_ENTROPIES,
        choice=rule("token_masks", "without_covarying"),
        section=ClipCovConfig,
    ),
    "kl-cov": Method(
        "a penalty on moving the tokens whose log-prob and advantage covary most (KL-Cov)",
        ENTROPY_MECHANISM,
        f"{_COV}\nk_t = 1 for the cov_share of all tokens with the largest c_t, else 0\n"
        f"L = -mean_t (rho_t A - cov_weight k_t |log pi - log pi_old|), rho_t = pi / pi_old\n{_A}",
        f"Only tokens with c_t > 0. {_ONCE} {_FIRST_EPOCH} the penalty has no gradient: set optim.epochs to 2 or more. "
        f"{_NO_KL}",
        "With labels, mean of seven benchmarks of mathematics: Qwen2.5-7B +2.0 points over GRPO, Qwen2.5-32B +6.4 "
        "(arXiv 2505.22617).",
        **NO_ENTROPIES,
        choice=rule("token_masks", "with_covarying"),
        terms=made("token_masks", "covariance_terms"),
        section=KlCovConfig,
        options=_UNCLIPPED,
    ),
    "steer": Method(
        "tokens weighed by how little their update changes the entropy (STEER)",
        "arXiv 2510.10150",
        "Omega_t = A / pi_old p_t (1 - p_t) (ln p_t + H_t), p_t = pi of the token drawn\n"
        "w_t falls linearly from weight_most at the least |Omega_t| to weight_least at the largest\n"
        f"{_PPO}, A_t = w_t A\n{_A}",
        f"{_ONCE} So p_t = pi_old. The linear map is that of the public code. {_NO_KL}",
        "With labels, in mathematics and code: entropy does not collapse, and results are above those of other "
        "interventions on entropy (arXiv 2510.10150).",
        choice=rule("token_weights", "by_entropy_change"),
        section=SteerConfig,
    ),
    "empg": Method(
        "advantages scaled by certainty, with a bonus for a certain next token (EMPG)",
        "arXiv 2509.09265",
        "h_t = (H_t - min H) / (max H - min H), f_t = exp(-sharpness h_t), g_t = f_t / mean f\n"
        f"A_t = A g_t + clarity f_t+1, less the mean of that over the step\n{_PPO}\n{_A}",
        "Each token is a step of its own; the steps of the source are those of an agent, of many tokens. The last "
        f"token gets no bonus. {_NO_KL}",
        "With rewards of an environment: ALFWorld, Qwen2.5-1.5B, 88.1 %, 80.8 with DAPO; Deep Search, Qwen2.5-32B, "
        "65.3, 62.0 with DAPO (arXiv 2509.09265).",
        choice=rule("token_weights", "by_clarity"),
        section=EmpgConfig,
    ),
    "hapo": Method(
        "advantages and clipping limits by the log-entropy of each token (HAPO)",
        "arXiv 2509.16591",
        "A = (r_i - mean r) / (std r + eps), both over the tokens of the group; the usual one where one is 5 or more\n"
        "h_t = log H_t less its median, the positive and the negative side each divided by its largest size\n"
        "clip_high,t = clip_high (1 + max(h_t, 0)), clip_low,t = clip_low (1 - min(h_t, 0))\n"
        "A_t = A (1 + h_t) for h_t <= 0 where rho_t is within half of the limits, and for h_t > 0 where it is not\n"
        f"A_t = A elsewhere\n{_PPO}, with those limits",
        "Its sampling temperature T (1 + 0.05 h_t) is left out: the samplers here have one temperature. The public "
        "code divides the negative side by its negative minimum, so that h is never negative there; here it is. "
        f"{_ONCE} {_NO_KL}",
        "With labels, in mathematics: above DAPO at several sizes of model, with all of its parts (arXiv 2509.16591).",
        credit=chain(rule("token_weights", "token_averaged")),
        choice=rule("token_weights", "with_entropy_limits"),
        objective=rule("token_weights", "redistributed"),
        section=HapoConfig,
        options=_CLIP_HIGHER,
    ),
    "window-entropy": Method(
        "the 20 % of tokens where the next four have the highest mean entropy (ARES)",
        "arXiv 2510.08457",
        f"w_t = mean of H_t ... H_t+{WINDOW - 1}\n"
        f"m_t = 1 if w_t >= the quantile 1 - share of the response's, else 0\n{_MASKED}\n{_A}",
        "ARES takes these tokens to shape its reward and its KL, and for exploration; the mask of the policy term and "
        f"its share are ours. At the end of a response the window is shorter. {_NO_KL}",
        "Nothing of this mask on its own: ARES is a pipeline with a cold start and rewards from labels.",
        signal=window_entropy,
        policy_mask=top_share,
        options=_CLIP_HIGHER,
    ),
    "lp-reg": Method(
        "a KL to the policy without its noise, at the least likely tokens that are blamed (Lp-Reg)",
        "arXiv 2510.03222",
        "proxy = pi without the tokens below min_p max pi, normalised, without gradient\n"
        "k_t = 1 for the least_likely share of the tokens with A < 0, by log-prob, if the proxy has them; else 0\n"
        f"{_PPO} + proxy_weight mean_t k_t KL(proxy || pi), A_t = A\n{_A}",
        "The KL is over the vocabulary; the public code takes the k3 estimate (method.proxy_kl=k3) and does not clip "
        f"those tokens. {_ONCE} {_NO_KL}",
        "With labels: 60.17 % on average over five benchmarks of mathematics, 2.66 points above the next best; stable "
        "where methods that raise all entropy collapse (arXiv 2510.03222).",
        **NO_ENTROPIES,
        choice=rule("token_masks", "with_least_likely"),
        terms=made("token_masks", "proxy_terms"),
        section=LpRegConfig,
        options=_CLIP_HIGHER,
    ),
    "earl": Method(
        "the 20 % of tokens with the highest entropy of each response, with a KL on all tokens (EARL)",
        "arXiv 2511.12033",
        f"m_t = 1 if H_t >= the quantile 1 - share of the response's entropies, else 0\n{_MASKED}\n"
        f"  + kl_weight mean_t (exp d_t - 1 - d_t), d_t = log pi_0 - log pi, over all tokens\n{_A}",
        f"share, kl_weight and that the KL acts on all tokens. {_VOTE}",
        "With rewards of a simulator, on Verilog: pass rates up to 14.7 % above other models (arXiv 2511.12033).",
        policy_mask=top_share,
        choice=rule("token_masks", "anchored_everywhere"),
        options=TTRL_KL,
    ),
    "position-perplexity": Method(
        "advantages by perplexity or by position (method.shaping: perplexity | position)",
        "arXiv 2508.02260",
        "perplexity: A_t = A (1 - perplexity_weight w), w the response's log-perplexity, standardised in its group\n"
        f"position: A_t = A + sign(A) position_weight t / T at token t of T\n{_PPO}\n{_A}",
        f"Both weights, and that the bonus grows linearly: the source says that it grows with the position. {_NO_KL}",
        "With labels, in mathematics, on average: +1.51 % over GRPO with Qwen2.5-7B, +2.31 % with Qwen2.5-Math-7B "
        "(arXiv 2508.02260).",
        **NO_ENTROPIES,
        credit=chain(NORMALISED, rule("token_weights", "by_perplexity")),
        choice=rule("token_weights", "by_position"),
        section=ShapingConfig,
    ),
    "ucas": Method(
        "advantages by the certainty of the response and of each token (UCAS)",
        "arXiv 2510.10649",
        "C = minus the response's mean entropy, standardised in its group\n"
        "A <- A exp(-certain_right C) if A > 0, else A exp(certain_wrong C)\n"
        "A_t = A - logit_penalty (log pi_t - min) / (max - min), not below 0 where A > 0\n"
        f"{_PPO}\n{_A}",
        "The source's certainty is the KL from the uniform distribution, and its penalty takes the raw logit of the "
        "token drawn: rollouts carry neither, so the entropy and the log-prob stand for them. Responses with A = 0 get "
        f"no penalty. {_NO_KL}",
        "With labels: above other methods on five benchmarks of mathematics, at 1.5 and 7 billion parameters "
        "(arXiv 2510.10649).",
        credit=chain(NORMALISED, rule("token_weights", "by_certainty")),
        choice=rule("token_weights", "without_sureness"),
        section=UcasConfig,
        options=_CLIP_HIGHER,
    ),
}
"""Name -> row."""
