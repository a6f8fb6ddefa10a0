"""Measure rollouts for a method's reward by a further forward without gradient, of the policy or of another model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from mm_spine import distributed
from mm_spine.config import MethodConfig, RunStopped
from mm_spine.methods.method import Asks, Judge, Method
from mm_spine.methods.tokens import Tokens
from mm_spine.policy.distribution import Distribution
from mm_spine.policy.model import Policy
from mm_spine.training.batch import Leaf, LeafGroup, gather_groups
from mm_spine.training.budget import TokenBudget
from mm_spine.training.scoring import score_leaves
from mm_spine.types import Ask, Group, Rollout


def measure_on_all_ranks(
    policy: Policy,
    groups: Sequence[Group],
    method: Method,
    options: MethodConfig,
    distribution: Distribution,
    budget: TokenBudget,
) -> list[Group]:
    """Return the groups with `measured` as the method's `asks` or `judge` says. Each rank measures its share."""
    share, spare = distributed.mine(groups), groups[0] if policy.partitioned and groups else None

    def measure() -> list[Group]:
        if method.asks is not None:
            asks = method.asks(options)
            return budget.within(lambda: answer(policy, share, asks, distribution, budget.at_once, spare))
        assert method.judge is not None
        return judged(policy, share, method.judge(options))

    measured = distributed.on_all_or_none(measure, stops=RunStopped)
    return gather_groups(measured, [group.question for group in groups])


def answer(
    policy: Policy,
    groups: Sequence[Group],
    asks: Asks,
    distribution: Distribution,
    token_budget: int,
    spare: Group | None = None,
) -> list[Group]:
    """Return the groups with the log-probs (K,), nats, of the counted tokens of what `asks` asks of each rollout.

    Equal asks of a question are scored once. `spare` is as in `scoring.score`.
    """
    asked = [asks(group, policy.tokenizer) for group in groups]
    leaves = [_leaves(group, own) for group, own in zip(groups, asked, strict=True)]
    scored = score_leaves(policy, [group for group in leaves if group.leaves], distribution, token_budget, spare)
    found = {(leaf.rollout.question_id, leaf.rollout.token_ids): scores.logp for leaf, scores in scored}

    def counted(group: Group, ask: Ask | None) -> np.ndarray | None:
        return None if ask is None else found[group.question.id, ask.token_ids][len(ask.token_ids) - ask.counted :]

    return [
        replace(group, measured=tuple(counted(group, ask) for ask in own))
        for group, own in zip(groups, asked, strict=True)
    ]


def _leaves(group: Group, asked: Sequence[Ask | None]) -> LeafGroup:
    """Return what is asked of a group as if it were distinct responses, all tokens selected."""
    leaves = []
    for index, ids in enumerate(dict.fromkeys(ask.token_ids for ask in asked if ask is not None)):
        rollout = Rollout(group.question.id, index, ids, "", np.zeros(len(ids), np.float32), None, "stop")
        mask_T = torch.ones(len(ids), dtype=torch.bool)
        leaves.append(Leaf(rollout, 0.0, Tokens(mask_T, ~mask_T, None)))
    return LeafGroup(group.question, tuple(leaves))


def judged(policy: Policy, groups: Sequence[Group], judge: Judge) -> list[Group]:
    """Return the groups with what another model says of each rollout."""
    return [
        replace(group, measured=tuple(judge(group, policy.pictures(group.question), policy.device))) for group in groups
    ]
