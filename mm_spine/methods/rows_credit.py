"""Rows that change rewards, credit or the loss of a step. Nothing here imports torch.

`METHODS` of the table holds them. Their rules are functions of `answer_rewards`, `credit_chain`, `step_losses` and
`rejection`.
"""

from __future__ import annotations

from collections.abc import Mapping

from mm_spine.methods.method import NO_ENTROPIES, NORMALISED, TTRL_KL, Method, chain, rule
from mm_spine.methods.sections import (
    ArmConfig,
    CopoConfig,
    DareConfig,
    EmRlConfig,
    EntrocraftConfig,
    PacsConfig,
    PearConfig,
    RealConfig,
    RiskConfig,
    ScrlConfig,
    TtrvConfig,
)

_VOTED = "r_i = 1 if answer i is the winner of the vote, else 0"
_NORMAL = "A_i = (r_i - mean r) / (std r + eps) within the group of a question; L as in ttrl"

ROWS: Mapping[str, Method] = {
    "ttrv": Method(
        "reward of an answer's share of the votes, less the answers' entropy",
        "arXiv 2510.06783",
        "r_i = n(y_i)/N - alpha H / log K, H the entropy of the shares of the K answers, n(y) votes of N for y\n"
        f"{_NORMAL}",
        "H is the same for all responses to a question: it cancels under method.advantage=group, the default as in the "
        "authors' code, and acts only under method.advantage=batch. Responses without an answer have share 0, and are "
        "no answer in H and K. KL as in ttrl.",
        reported="Gains on 16 data sets of object recognition (+24.6 points on average) and visual questions (+10.0); "
        "arXiv 2510.06783, abstract.",
        reward=rule("answer_rewards", "frequency"),
        section=TtrvConfig,
        options=TTRL_KL,
        **NO_ENTROPIES,
    ),
    "em-rl": Method(
        "reward of low entropy (EM-RL-token) or high probability (EM-RL-sequence), no vote (method.level)",
        "arXiv 2505.15134",
        "level=token: r_i = -mean_t H_t; level=sequence: r_i = mean_t log pi(o_t); sums with over_tokens=sum, in nats\n"
        "A_i = r_i - the mean r of the question's other responses (RLOO); L as in ttrl",
        "The paper writes sums, the authors' code takes means: means are the default. Log-probs are the sampler's.",
        reported="On a par with rewards from labels on most of its tasks of mathematics and code, above them on "
        "LeetCode, Minerva and AMC; arXiv 2505.15134.",
        reward=rule("answer_rewards", "certainty"),
        credit=chain(rule("credit_chain", "leave_one_out")),
        section=EmRlConfig,
        options=TTRL_KL,
    ),
    "scrl": Method(
        "rewards only clear votes, and punishes rare answers of unsure responses",
        "arXiv 2603.19880",
        "y is the label if share(y) >= consensus and its lead > margin; a is rare if share(a) < rare and h(a) >= h\n"
        "h(a), h: mean token entropy of the responses with answer a, of all responses to the question\n"
        "continuous: r_i = share(y) | share(a) - rare | 0, - gap_weight (h(a_i) - h); binary: r_i = 1 | -1 | 0\n"
        f"r_i = -1 without an answer; {_NORMAL}",
        "Rewards as in the authors' code, whose docstring has share(y) - consensus. Entropies are those of the trained "
        "responses, shares those of all votes. With at most 8 votes no share is below 0.125: nothing is rare.",
        reported="Above TTRL on mathematical benchmarks, most where few responses can be drawn; arXiv 2603.19880, "
        "abstract.",
        reward=rule("answer_rewards", "selective"),
        section=ScrlConfig,
        options=TTRL_KL,
    ),
    "copo": Method(
        "mixes advantages within a question with that of the question in its step, by the answers' entropy",
        "arXiv 2508.04138",
        f"{_VOTED}; R_q = mean r of question q\n"
        "A_i = w (r_i - R_q) / (std r + eps) + (1 - w) (R_q - mean R) / (std R + eps)\n"
        "w = 1 / (1 + exp(-steepness (H_q - middle))), H_q the entropy of the answers to q in bits; L as in ttrl",
        "The vote stands for the paper's labels. Advantages are mixed where the authors' code mixes two clipped "
        "losses; both are the same while no ratio is clipped. Responses without an answer are no answer in H.",
        reported="With labels, gains on mathematical benchmarks; arXiv 2508.04138, abstract.",
        credit=chain(rule("credit_chain", "locally_and_globally")),
        section=CopoConfig,
        **NO_ENTROPIES,
    ),
    "dare": Method(
        "reward of an answer's probability by votes and certainty, with a bonus for rare sure answers",
        "arXiv 2601.21804",
        "p(y) proportional to n(y) / (u(y) + uncertainty_eps), u(y) the mean token entropy of the responses with "
        "answer y\nr_i = p(y_i) + bonus (1 - n(y_i)/M) (1 - u(y_i)) over the answers with p >= prune, else 0\n"
        f"{_NORMAL}",
        "No public text that we found states bonus, prune and uncertainty_eps: they are ours. After pruning, p is "
        "scaled to 1 over answers. n and M count the trained responses with an answer; those without one earn 0.",
        reported="Above TTRL: relative gains of 25.3 % on AIME 2024 and 5.3 % on AMC; arXiv 2601.21804, abstract.",
        reward=rule("answer_rewards", "distribution"),
        section=DareConfig,
        options=TTRL_KL,
    ),
    "dler": Method(
        "no reward at the limit on tokens, advantages scaled over the step, clipping 0.2 / 0.28",
        "arXiv 2510.15110",
        f"{_VOTED}, and 0 if response i reached sampling.max_new_tokens\n"
        "A_i = (r_i - mean r of the question) / (std of these over the step + eps); L as in ttrl",
        "The vote stands for the paper's labels. The std is over responses, in the authors' code over tokens. Its "
        "dynamic sampling is left to sampling.votes.keep. KL weight as in its script.",
        reported="With labels, responses more than 70 % shorter at an accuracy above other methods for length; arXiv "
        "2510.15110, abstract.",
        reward=rule("answer_rewards", "within_limit"),
        credit=chain(rule("credit_chain", "step_scaled")),
        options={"clip_high": 0.28, "kl": "k3", "kl_weight": 0.0005},
        **NO_ENTROPIES,
    ),
    "riskpo": Method(
        "mixed value-at-risk of the vote over bundles of questions",
        "arXiv 2510.00911",
        f"{_VOTED}; a bundle of questions has the score S, the sum of r of one response to each\n"
        "a, b: the quantiles lower and upper of S; m(S) = (clip(S, a, b) - b) / (upper - lower)\n"
        "A_i = E[(tail_weight min(S - a, 0) / lower + m(S)) / (tail_weight + 1)] / std S / std r of the question; L as "
        "in ttrl",
        "The vote stands for the paper's labels. E is over all responses to the bundle's other questions, where the "
        "paper draws one set: copies of a response get the same. Quantiles are each bundle's own, not tracked over "
        "steps. Levels and weight as in the authors' script; as in their code no advantage is positive.",
        reported="With labels, above GRPO in pass@1 and pass@k on mathematics, images and code; arXiv 2510.00911, "
        "abstract.",
        credit=chain(rule("credit_chain", "mixed_risk")),
        section=RiskConfig,
        **NO_ENTROPIES,
    ),
    "arm": Method(
        "ttrl with advantages that level the confidence of responses (ProGRPO)",
        "arXiv 2602.05281",
        f"{_VOTED}; A_i = (r_i - mean r) / (std r + eps) + level_weight (mean_j c_j - c_i) if any r_j > 0\n"
        "c_i = exp(mean log pi of the share `least` of the tokens that are least likely); L as in ttrl, clipping "
        "0.2 / 0.28",
        "The mean of c over the question's responses stands for the paper's confidence in the prompt, which would need "
        "log-probs of the prompt. No public text that we found states level_weight: it is ours.",
        reported="With labels, Qwen2.5-7B gains 5.7 points of pass@1 and 13.9 of pass@32 over GRPO; arXiv 2602.05281, "
        "abstract.",
        credit=chain(NORMALISED, rule("credit_chain", "levelled")),
        section=ArmConfig,
        options={"clip_high": 0.28},
        **NO_ENTROPIES,
    ),
    "pear": Method(
        "ttrl with less reward for entropy while the model thinks (models that think between tags)",
        "arXiv 2510.08026",
        f"{_VOTED}, then r_i = min(1, r_i - max(0, h_think - answer_entropy h_answer))\n"
        "h_think, h_answer: mean token entropy up to and including the tag that closes the thinking, and after it, "
        f"nats\n{_NORMAL}",
        "The vote stands for the paper's labels. A response without the tag is thinking throughout, as in the paper.",
        reported="With labels, responses 38 to 59 % shorter, accuracy down by less than a point; arXiv 2510.08026, "
        "reviews.",
        reward=rule("answer_rewards", "phased"),
        section=PearConfig,
    ),
    "pacs": Method(
        "the vote as labels of a classifier whose score is the response's log-ratio",
        "arXiv 2509.02522",
        f"{_VOTED}; s_i = beta sum_t log(pi / pi_old), z_i = s_i - the mean s of the question's other responses\n"
        "L = the mean over the step of w_i BCE(sigmoid(z_i), r_i); w_i = N / (2 N_r) with N_r responses of reward r_i, "
        "1 where all are equal",
        "The vote stands for the paper's labels. One update a step (optim.epochs=1). Class weights as in the authors' "
        "script.",
        reported="With labels, mean gains of 8.26 % (4B) and 9.57 % (8B) over the starting models; arXiv 2509.02522, "
        "abstract.",
        step_loss=rule("step_losses", "supervised"),
        section=PacsConfig,
        **NO_ENTROPIES,
    ),
    "real": Method(
        "the vote as labels, the mean log-ratio as the logit",
        "arXiv 2602.05630",
        f"{_VOTED}; s_i = mean_t log(pi / pi_old)\n"
        "L = the mean over questions of\n"
        "  log(1 + sum over r_i=1 of exp(-s_i/tau)) + log(1 + sum over r_i=0 of exp(s_i/tau))",
        "The vote stands for the paper's labels; a question without a winner is left out. A unanimous question trains: "
        "its responses are made likelier. One update a step (optim.epochs=1).",
        reported="With labels, pass@1 6.7 points (1.5B) and 6.2 (7B) above DAPO; arXiv 2602.05630, abstract.",
        step_loss=rule("step_losses", "as_classes"),
        section=RealConfig,
        **NO_ENTROPIES,
    ),
    "entrocraft": Method(
        "ttrl that leaves out responses of one sign of advantage while the entropy is out of its range",
        "arXiv 2604.26326",
        f"{_VOTED}; A_i = (r_i - mean r) / (std r + eps)\n"
        "left out: A_i < 0 while H > high H_0, A_i > 0 while H < low H_0; H and H_0 are the mean token entropies of "
        "this step and the first\n"
        "L = -the mean over the tokens of the other responses of min(rho_t A_i, clip(rho_t) A_i)",
        "The paper has ranges in nats for one model, (0.6, 0.7) to (0.1, 0.2): ours are in units of the first step's "
        "entropy and stay unless anneal_steps is set.",
        reported="With labels, Qwen3-4B-Base: mean of three benchmarks 53.5, GRPO 47.2; arXiv 2604.26326, table 2.",
        choice=rule("rejection", "towards_range"),
        remember=rule("rejection", "remember_start"),
        section=EntrocraftConfig,
        options={"policy_denominator": "selected"},
    ),
}
