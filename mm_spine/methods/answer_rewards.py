"""Rewards from the shares of answers and from how sure responses are: pure functions (options, group) -> (N,).

A rollout of `weight` k counts k times, a dropped one not at all. A response without an answer belongs to no class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from mm_spine.methods.rewards import majority_reward, mean_entropies
from mm_spine.methods.sections import DareConfig, EmRlConfig, PearConfig, ScrlConfig, TtrvConfig
from mm_spine.types import Group, Rollout, Vote


def vote_shares(vote: Vote) -> dict[str | None, float]:
    """Return class -> its share of all votes, of which those without an answer are a part; empty without a winner."""
    if vote.answer is None:
        return {}
    # Not the winner's share divided by its votes: a share of 3/24 must equal a threshold of 0.125.
    votes = round(vote.counts[vote.answer] / vote.share)
    return {name: count / votes for name, count in vote.counts.items()}


def answer_entropy(shares: Mapping[str | None, float]) -> float:
    """Return the entropy of the classes, nats, their shares scaled to 1; 0 without classes."""
    total = sum(shares.values())
    return math.fsum(-share / total * math.log(share / total) for share in shares.values())


def frequency(options: TtrvConfig, group: Group) -> Tensor:
    """Reward the share of the response's answer, minus alpha times the entropy of the answers over its maximum.

    Source: TTRV, arXiv 2510.06783. The maximum is log K of the K classes, as in the authors' code.
    """
    shares = vote_shares(group.vote)
    spread = answer_entropy(shares) / math.log(len(shares)) if len(shares) > 1 else 0.0
    return torch.tensor([shares.get(answer, 0.0) - options.alpha * spread for answer in group.answers])


def certainty(options: EmRlConfig, group: Group) -> Tensor:
    """Reward low token entropies or a high log-probability of the response, nats, over its tokens.

    Source: EM-RL-token and EM-RL-sequence, arXiv 2505.15134.
    """
    if options.level == "token":
        mean_N = -mean_entropies(group.rollouts)
    else:
        mean_N = torch.tensor([float(r.logp.mean()) if len(r.logp) else 0.0 for r in group.rollouts])
    return mean_N if options.over_tokens == "mean" else mean_N * torch.tensor([len(r.logp) for r in group.rollouts])


def selective(options: ScrlConfig, group: Group) -> Tensor:
    """Reward the winner of a clear vote, punish rare answers of unsure responses, and -1 without an answer.

    Source: SCRL, arXiv 2603.19880, with the rewards of the authors' code, "binary" or "continuous".
    """
    vote, shares, entropy_N = group.vote, vote_shares(group.vote), mean_entropies(group.rollouts)
    of_class = _class_means(group, entropy_N)
    overall = _mean(entropy_N, _weights(group))
    clear = vote.share >= options.consensus and vote.margin > options.margin

    def reward(answer: str | None) -> float:
        if answer is None:
            return -1.0
        share, gap = shares[answer], of_class[answer] - overall if answer in of_class else 0.0
        chosen = clear and answer == vote.answer
        rare = not chosen and share < options.rare and gap >= 0
        if options.label_reward == "binary":
            return float(chosen) - float(rare)
        return (share if chosen else share - options.rare if rare else 0.0) - options.gap_weight * gap

    return torch.tensor([reward(answer) for answer in group.answers])


def distribution(options: DareConfig, group: Group) -> Tensor:
    """Reward p(y) + bonus (1 - n(y)/M)(1 - u(y)), p(y) proportional to n(y)/(u(y) + eps); 0 where p(y) is too small.

    n(y) counts the responses with answer y, u(y) is the mean of their mean token entropies, nats. Answers with p(y)
    below `prune` are left out, and p, n and M are those of the others. Source: DARE, arXiv 2601.21804.
    """
    weight_N = _weights(group)
    unsure = _class_means(group, mean_entropies(group.rollouts))
    count = {name: float(weight_N[_members(group, name)].sum()) for name in unsure}
    score = {name: count[name] / (unsure[name] + options.uncertainty_eps) for name in unsure}
    kept = {name: value for name, value in score.items() if value >= options.prune * sum(score.values())}
    total, votes = sum(kept.values()), sum(count[name] for name in kept)
    rewards = {
        name: value / total + options.bonus * (1 - count[name] / votes) * (1 - unsure[name])
        for name, value in kept.items()
    }
    return torch.tensor([rewards.get(answer, 0.0) if answer is not None else 0.0 for answer in group.answers])


def within_limit(options: object, group: Group) -> Tensor:
    """Reward the vote's winner, and 0 for a response that reached the limit on its tokens (DLER, arXiv 2510.15110)."""
    ended = torch.tensor([float(rollout.finish_reason != "length") for rollout in group.rollouts])
    return majority_reward(group) * ended


def phased(options: PearConfig, group: Group) -> Tensor:
    """Reward min(1, r_i - max(0, h_think - weight h_answer)), r_i the vote's reward (PEAR, arXiv 2510.08026).

    h_think is the mean token entropy (nats) up to the end of the thinking, h_answer that after it. A response without
    a tag that closes the thinking is thinking throughout.
    """

    def excess(rollout: Rollout) -> float:
        end = len(rollout.token_ids) if rollout.thinking is None else rollout.thinking
        thought, answer = (_part(rollout, part) for part in (slice(0, end), slice(end, None)))
        think, said = mean_entropies([thought, answer]).tolist()
        return max(0.0, think - options.answer_entropy * said)

    return (majority_reward(group) - torch.tensor([excess(r) for r in group.rollouts])).clamp(max=1.0)


def _part(rollout: Rollout, part: slice) -> Rollout:
    return rollout if rollout.entropy is None else replace(rollout, entropy=rollout.entropy[part])


def _weights(group: Group) -> Tensor:
    return torch.tensor([0.0 if r.index in group.dropped else float(r.weight) for r in group.rollouts])


def _members(group: Group, name: str) -> Tensor:
    return torch.tensor([answer == name for answer in group.answers], dtype=torch.bool)


def _mean(values_N: Tensor, weights_N: Tensor) -> float:
    return float((values_N.double() * weights_N).sum() / weights_N.sum().clamp(min=1))


def _class_means(group: Group, values_N: Tensor) -> dict[str, float]:
    """Return class -> the mean of its responses' values; no entry for a class of dropped responses only."""
    weight_N, found = _weights(group), dict[str, float]()
    for name in dict.fromkeys(answer for answer in group.answers if answer is not None):
        own_N = weight_N * _members(group, name)
        if own_N.any():
            found[name] = _mean(values_N, own_N)
    return found
