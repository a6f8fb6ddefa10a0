"""Links of a chain of credit: (options, batch, rewards or advantages (N,) of each question) -> advantages.

Each rollout that has credit is in the batch as often as it counts, so that N may be 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor

from mm_spine.config import MethodConfig
from mm_spine.methods.answer_rewards import answer_entropy, vote_shares
from mm_spine.methods.credit import advantages
from mm_spine.methods.method import Batch
from mm_spine.methods.sections import ArmConfig, CopoConfig, RiskConfig
from mm_spine.methods.weights import whole_if_close
from mm_spine.types import Rollout


def leave_one_out(options: MethodConfig, batch: Batch, rewards_QN: list[Tensor]) -> list[Tensor]:
    """Return r_i minus the mean reward of the question's other responses (RLOO, arXiv 2402.14740); 0 without others."""
    return [centred * _others(len(centred)) for centred in advantages(rewards_QN, "center")]


def step_scaled(options: MethodConfig, batch: Batch, rewards_QN: list[Tensor]) -> list[Tensor]:
    """Return (r_i - mean of the question) / (std of these over the step + eps), as DLER does (arXiv 2510.15110)."""
    centred = advantages(rewards_QN, "center")
    if not any(bool(values.any()) for values in centred):
        return centred
    std = torch.cat(centred).std(correction=1 if options.std == "sample" else 0)
    return [values / (std + options.eps) for values in centred]


def locally_and_globally(options: CopoConfig, batch: Batch, rewards_QN: list[Tensor]) -> list[Tensor]:
    """Mix each response's advantage in its question with the question's own among the questions of the step.

    w A_i + (1 - w) A_q, w = sigmoid(steepness (H - middle)), H the entropy of the question's answers in bits, A_q the
    standardised mean rewards of the questions. Source: COPO, arXiv 2508.04138.
    """
    local = advantages(rewards_QN, "group", options.std, options.eps)
    asked = [i for i, rewards_N in enumerate(rewards_QN) if len(rewards_N)]
    if not asked:
        return local
    means = torch.stack([rewards_QN[i].mean() for i in asked])
    for i, of_question in zip(asked, advantages([means], "group", options.std, options.eps)[0], strict=True):
        bits = answer_entropy(vote_shares(batch.groups[i].vote)) / math.log(2)
        weight = expit(options.steepness * (bits - options.middle))
        local[i] = weight * local[i] + (1 - weight) * of_question
    return local


def levelled(options: ArmConfig, batch: Batch, advantages_QN: list[Tensor]) -> list[Tensor]:
    """Add level_weight (mean_j c_j - c_i) where the question has a rewarded response (ARM, arXiv 2602.05281).

    c_i is `confidence` in response i. The mean over the question's responses stands for the paper's c(q).
    """
    found = []
    for group, advantages_N in zip(batch.groups, advantages_QN, strict=True):
        if group.rewards is not None and bool((group.rewards > 0).any()):
            confidence_N = torch.tensor([confidence(rollout, options.least) for rollout in group.rollouts])
            advantages_N = advantages_N - options.level_weight * advantages([confidence_N], "center")[0]
        found.append(advantages_N)
    return found


def confidence(rollout: Rollout, share: float) -> float:
    """Return exp of the mean log-prob of the ceil(share T) least likely tokens; 1 for a response of no tokens."""
    if not len(rollout.logp):
        return 1.0
    count = math.ceil(whole_if_close(share * len(rollout.logp)))
    return float(np.exp(np.sort(rollout.logp)[:count].mean(dtype="float64")))


def mixed_risk(options: RiskConfig, batch: Batch, rewards_QN: list[Tensor]) -> list[Tensor]:
    """Return RiskPO's advantages of rewards 0 and 1 (arXiv 2510.00911): mixed value-at-risk over bundles of questions.

    A bundle's score is the sum of the rewards of one response to each of its questions. The advantage of a response is
    `tail_credit` of the score, averaged over all responses to the bundle's other questions, over the score's standard
    deviation and over that of the question's rewards.
    """
    found: list[Tensor] = [torch.zeros_like(rewards_N) for rewards_N in rewards_QN]
    asked = [i for i, rewards_N in enumerate(rewards_QN) if len(rewards_N)]
    for first in range(0, len(asked), options.bundle):
        bundle = asked[first : first + options.bundle]
        rates = [float(rewards_QN[i].mean()) for i in bundle]
        scores = sums_of(rates)
        std = math.sqrt(sum(rate * (1 - rate) for rate in rates))
        low, high = (quantile(scores, level) for level in (options.lower, options.upper))
        for place, i in enumerate(bundle):
            others = sums_of(rates[:place] + rates[place + 1 :])
            by_reward = [
                sum(p * tail_credit(options, score + reward, low, high) for score, p in enumerate(others))
                / (std + options.eps)
                for reward in (0, 1)
            ]
            own = float(rewards_QN[i].std(correction=1)) if len(rewards_QN[i]) > 1 else 0.0
            credit = torch.tensor(by_reward) / (own if own > 1e-3 else 1.0)
            # Equal rewards in all of a bundle prefer nothing, but for rounding.
            found[i] = credit[rewards_QN[i].long()] * (std > 0)
    return found


def tail_credit(options: RiskConfig, score: float, low: float, high: float) -> float:
    """Return the mixture of a score's credit between both quantiles and below the lower one; none is positive."""
    middle = (min(max(score, low), high) - high) / (options.upper - options.lower)
    below = min(score - low, 0.0) / options.lower
    return (options.tail_weight * below + middle) / (options.tail_weight + 1)


def sums_of(rates: Sequence[float]) -> list[float]:
    """Return the probabilities of the sums 0, 1, ... of independent rewards that are 1 with these probabilities."""
    found: np.ndarray = np.ones(1)
    for rate in rates:
        found = np.convolve(found, [1 - rate, rate])
    return [float(p) for p in found]


def quantile(probabilities: Sequence[float], level: float) -> int:
    """Return the smallest of the values 0, 1, ... whose cumulative probability reaches `level`."""
    # The sum of probabilities may miss a level that it equals by rounding.
    return int(np.searchsorted(np.cumsum(probabilities), level - 1e-12))


def _others(count: int) -> float:
    return count / (count - 1) if count > 1 else 0.0
