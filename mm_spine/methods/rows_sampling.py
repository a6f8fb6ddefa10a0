"""Rows of methods that change how rollouts are sampled."""

from __future__ import annotations

from collections.abc import Mapping

from mm_spine.methods.method import NO_ENTROPIES, TTRL_KL, Method, chain, rule

WORDINGS = (
    "Look at this question closely, then answer it.\n{question}",
    "{question}\nCheck the answer before you give it.",
    "Here is a question.\n{question}\nAnswer it as well as you can.",
)

ROWS: Mapping[str, Method] = {
    "cure": Method(
        "responses drawn anew from tokens of high entropy, optimised together with their roots",
        "arXiv 2508.11016",
        formula="each root o and 3 continuations of o_<t, t uniform among its 20 tokens of highest entropy, are one "
        "group: A_i = (r_i - mean r)/(std r + eps) over roots and continuations. A continuation trains from token t "
        "on. The first token, special tokens and those of a single character are no candidates. Numbers and candidates "
        "are those of the authors' code (bytedance/CURE)",
        ours="the reward is agreement with the vote of all; the first of the paper's two stages (the second is ttrl's "
        "sampling); no filter of groups and no penalty for length, which stand in the authors' recipe; rollouts are "
        "ordered root by root; entropies are exact and ranked to 4 decimals, ties by position",
        reported="with labels, on Qwen2.5-Math-7B: entropy stays high in this stage; after the second, a gain of 5 % "
        "on six benchmarks of mathematics over other methods (2508.11016, abstract)",
        choice=rule("drawn", "own_tokens"),
        **NO_ENTROPIES,
        options={"clip_high": 0.28, "policy_denominator": "selected"},
        sampling={"regenerate": {}},
    ),
    "consistency": Method(
        "one answer over several wordings of a question: one vote and one baseline for all of them",
        "ours, after arXiv 2203.11171 and 2504.16084; compare 2511.01191 and 2508.00410",
        formula="k wordings of a question share N rollouts and the vote y* of all; "
        "A_i = (1[y_i = y*] - mean)/(std + eps) over the N, each trained under the wording that it answers",
        ours="all: fixed templates around the question's words, where 2511.01191 and 2508.00410 let a model rephrase "
        "it; one vote over all wordings, where 2511.01191 takes a harmonic mean of two shares and 2508.00410 rewards "
        "each wording by the other's vote; one baseline, so that a wording that always answers otherwise is trained. "
        "A model that knows one wording, as that of `digits`, answers the others badly: give `sampling.wordings` that "
        "suit the model",
        reported="not in this form; 2511.01191, in its own form, is the first of those compared in 28 of 30 settings",
        credit=chain(rule("drawn", "over_wordings")),
        **NO_ENTROPIES,
        options=TTRL_KL,
        sampling={"wordings": list(WORDINGS)},
    ),
}
