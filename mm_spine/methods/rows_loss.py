"""Methods that add entropy, or earlier responses, to the loss of `ttrl`: one row each.

Nothing here imports torch before a rule is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter

from mm_spine.methods.choices import token_position
from mm_spine.methods.method import NO_ENTROPIES, TTRL_KL, Method, chain, made, rule
from mm_spine.methods.sections import EntropyConfig, EpoConfig, R3Config, SirenConfig, T1Config, TeaConfig

_VOTED = "r_i, A_i, L_ttrl: as in ttrl"

ROWS: Mapping[str, Method] = {
    "entropy-bonus": Method(
        "ttrl with a bonus for entropy on all tokens",
        "arXiv 1602.01783",
        f"{_VOTED}\nL = L_ttrl - entropy_weight mean_t H_t",
        "The weight is the default of EPO's code (0.001); papers use 0.001 to 0.01. The entropy is exact over the "
        "vocabulary, at the sampling temperature.",
        reported="With labels (arXiv 2509.25133, abstract): on long reasoning it does not help, entropy explodes.",
        terms=made("entropy_terms", "entropy_bonus"),
        **NO_ENTROPIES,
        section=EntropyConfig,
        options=TTRL_KL,
    ),
    "epo": Method(
        "ttrl with an entropy bonus, and entropy kept near its running mean",
        "arXiv 2509.22576",
        f"{_VOTED}\nL = L_ttrl - entropy_weight mean_t H_t\n"
        "  + mean_t (band_low_weight max(0, entropy_low M - H_t) + band_high_weight max(0, H_t - entropy_high M))\n"
        "  M = the mean over the steps before of the step's mean entropy; without the last line in the first step",
        "The paper's penalty is a constant (0.1) for a token outside of the corridor, which has no gradient; here it "
        "is the distance from the corridor in nats. Its weight does not change over the steps: the paper's text lets "
        "it grow, its code lets it fall. The paper has a mean for each turn of an agent; here a response is one turn.",
        reported="With labels (arXiv 2509.22576, abstract): up to 152 % better on ScienceWorld and 19.8 % on ALFWorld, "
        "agents of many turns.",
        signal=token_position,
        choice=rule("entropy_terms", "band_around_mean"),
        terms=made("entropy_terms", "entropy_bonus"),
        remember=rule("entropy_terms", "running_mean"),
        section=EpoConfig,
        options={**TTRL_KL, "band_low_weight": 0.001, "band_high_weight": 0.001},
    ),
    "t1": Method(
        "ttrl with an entropy bonus, and a KL to an anchor that follows the policy",
        "arXiv 2501.11651",
        f"{_VOTED}, without its KL\nL = L_ttrl - entropy_weight mean_t H_t\n"
        "  + anchor_weight mean_t (exp d_t - 1 - d_t), d_t = log pi_a - log pi\n"
        "after each step: weights of pi_a = anchor_decay (weights of pi_a) + (1 - anchor_decay) (weights of pi)",
        "The texts at hand name the bonus and the moving average but no numbers: the two weights and the decay are our "
        "choice. The average is over weights; of adapters (LoRA) over their factors. The KL to the starting model "
        "(method.kl) is off; where it is set, its anchor moves too. T1's oversampling is sampling.votes.max above "
        "sampling.train_rollouts.",
        reported="With labels, as a part of a recipe (arXiv 2501.11651, abstract): Qwen2.5-32B above QwQ-32B-Preview "
        "on MATH500, AIME2024 and Omni-math-500.",
        terms=made("entropy_terms", "bonus_and_anchor"),
        anchor_decay=attrgetter("anchor_decay"),
        **NO_ENTROPIES,
        section=T1Config,
        options={"kl": "none"},
    ),
    "tea": Method(
        "ttrl with entropy raised where confidence goes with reward",
        "arXiv 2508.03178",
        f"{_VOTED}\nL = L_ttrl - mean_t w_t H_t, w_t = min(tea_cap, tea_scale softmax_t c_t) within a response\n"
        "  c_t = (A_i - mean A) (log p_t - mean log p), means over the tokens of the step",
        "As the authors' code (Light-IF) computes it, with its scale and cap. Its means are over a micro-batch, ours "
        "over the step; its weights carry a gradient by the current log-probs, ours are fixed before the update.",
        reported="With rewards for instructions kept, as a part of a recipe (arXiv 2508.03178, abstract): above larger "
        "models on benchmarks of instruction following.",
        choice=rule("entropy_terms", "covariance_weights"),
        terms=made("entropy_terms", "weighted_entropy"),
        **NO_ENTROPIES,
        section=TeaConfig,
        options=TTRL_KL,
    ),
    "siren": Method(
        "ttrl with the entropy of peak tokens held at its first value",
        "arXiv 2509.25133",
        f"{_VOTED}\nL = L_ttrl + siren_weight (mean h_t - m)^2, the mean over the peak tokens of all responses\n"
        "  h_t = the entropy of the most probable tokens that together reach siren_top_p, renormalised\n"
        "  peak: h_t > 0 and h_t >= the quantile 1 - share of the response; m = the first step's mean",
        "The mean is over the step; in the authors' code over a micro-batch, each response averaged first. It is "
        "measured before the update, by scoring the responses once more: with several optim.epochs the later ones keep "
        "its slope. The report's loss_terms.siren is that slope times the mean; memory has the means. The token that "
        "reaches siren_top_p is counted; the authors' code leaves it out.",
        reported="With labels (arXiv 2509.25133, abstract): maj@k on AIME 2024/25 6.6 points above earlier "
        "methods of this kind, Qwen2.5-Math-7B.",
        statistic=made("entropy_terms", "masked_entropy"),
        choice=rule("entropy_terms", "peak_weights"),
        terms=made("entropy_terms", "peak_entropy"),
        remember=rule("entropy_terms", "peak_means"),
        **NO_ENTROPIES,
        section=SirenConfig,
        options=TTRL_KL,
    ),
    "r3": Method(
        "ttrl, unanimous groups set against earlier responses that answered otherwise",
        "arXiv 2601.19620",
        "r_i = 1 if answer i is the winner of the vote, else 0\n"
        "a group of which all answers agree gets up to replay_count earlier responses to its question that lost their\n"
        "vote and have another answer, the latest first: r_i = 0\n"
        "A_i = (r_i - mean r) / (replay_scale std r + eps) in such a group, as in ttrl elsewhere\n"
        "L = L_ttrl, rho_t = pi / (pi of the step that drew the response)",
        "Of R3 the replay only, with the vote in place of its verifier: no text gives it without labels, nor "
        "replay_count, replay_kept and replay_scale. A group of which no answer could be read stays as it is, and so "
        "does one of answers without a canonical form. Not built: reflection, which changes "
        "the prompt, and the ranking of cut-off responses by entropy.",
        reported="With labels (arXiv 2601.19620, table 3): without the replay AIME24 35.6 in place of 47.5, a "
        "model of 1.5B.",
        replay=rule("replay", "recall_opposed"),
        credit=chain(rule("replay", "mixed")),
        remember=rule("replay", "keep_losers"),
        **NO_ENTROPIES,
        section=R3Config,
        options=TTRL_KL,
    ),
}
"""Name -> row."""
