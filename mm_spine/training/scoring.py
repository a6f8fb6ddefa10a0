"""Exact entropies for rollouts whose sampler gave none: packed forwards without gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain

import torch

from mm_spine import distributed
from mm_spine.config import RunStopped
from mm_spine.methods.method import Method
from mm_spine.methods.tokens import Tokens
from mm_spine.policy.distribution import Distribution
from mm_spine.policy.model import Policy
from mm_spine.policy.scoring import Scores, score_responses
from mm_spine.training.batch import Leaf, LeafGroup, gather_groups, merge_identical, micro_batches
from mm_spine.training.budget import TokenBudget
from mm_spine.training.parity import Gap, gap_between, joined
from mm_spine.types import Group, Rollout, Statistic


def needs_scores(groups: Sequence[Group], method: Method) -> bool:
    """Whether the method has a statistic, or reads entropies and a rollout has none (its sampler cannot give exact
    ones)."""
    if method.statistic is not None:
        return bool(groups)
    return method.entropies and any(rollout.entropy is None for group in groups for rollout in group.rollouts)


def score_on_all_ranks(
    policy: Policy,
    groups: Sequence[Group],
    distribution: Distribution,
    budget: TokenBudget,
    statistic: Statistic | None = None,
) -> tuple[list[Group], Gap]:
    """Score each rank's share of `groups` and gather them: the groups with entropies and the `statistic`, and the gap
    over all ranks."""
    share, spare = distributed.mine(groups), groups[0] if policy.partitioned else None

    def mine() -> tuple[list[Group], Gap]:
        return score(policy, share, distribution, budget.at_once, spare, statistic)

    scored, gap = distributed.on_all_or_none(lambda: budget.within(mine), stops=RunStopped)
    questions = [group.question for group in groups]
    return gather_groups(scored, questions), joined(distributed.gather([gap]))


def score(
    policy: Policy,
    groups: Sequence[Group],
    distribution: Distribution,
    token_budget: int,
    spare: Group | None = None,
    statistic: Statistic | None = None,
) -> tuple[list[Group], Gap]:
    """Return the groups with exact entropies (nats) and the `statistic` of every token, and the gap to the sampler's
    log-probs.

    The gap is over the tokens of distinct responses. With partitioned weights every rank must run as many forwards:
    those that a rank lacks are run on `spare`.
    """
    measured: dict[tuple[str, tuple[int, ...]], Scores] = {}
    statistics = () if statistic is None else (statistic,)
    gaps = []
    leaves = [_all_tokens(group) for group in groups]
    for leaf, found in score_leaves(policy, leaves, distribution, token_budget, spare, statistics):
        measured[leaf.rollout.question_id, leaf.rollout.token_ids] = found
        gaps.append(gap_between(torch.from_numpy(leaf.rollout.logp), torch.from_numpy(found.logp)))

    def with_scores(rollout: Rollout) -> Rollout:
        scores = measured[rollout.question_id, rollout.token_ids]
        return replace(rollout, entropy=scores.entropy, statistic=next(iter(scores.statistics), None))

    scored = [replace(group, rollouts=tuple(map(with_scores, group.rollouts))) for group in groups]
    return scored, joined(gaps)


def score_leaves(
    policy: Policy,
    groups: Sequence[LeafGroup],
    distribution: Distribution,
    token_budget: int,
    spare: Group | None = None,
    statistics: Sequence[Statistic] = (),
) -> Iterator[tuple[Leaf, Scores]]:
    """Yield every leaf of `groups` with the scores of all its tokens; `spare` is as in `score`."""
    batches = micro_batches(policy, groups, token_budget)
    if spare is not None:
        tokens = [rollout.token_ids for rollout in spare.rollouts[:1]]
        for _ in range(max(distributed.gather([len(batches)])) - len(batches)):
            score_responses(policy, [(spare.question, tokens)], distribution)
    for batch in batches:
        responses = [(group.question, [leaf.rollout.token_ids for leaf in group.leaves]) for group in batch]
        leaves = [leaf for group in batch for leaf in group.leaves]
        yield from zip(leaves, chain(*score_responses(policy, responses, distribution, statistics)), strict=True)


def _all_tokens(group: Group) -> LeafGroup:
    """Return the distinct responses of `group` with all tokens selected and no credit."""
    masks = [torch.ones(len(rollout.token_ids), dtype=torch.bool) for rollout in group.rollouts]
    tokens = [Tokens(mask_T, ~mask_T, None) for mask_T in masks]
    return merge_identical(replace(group, advantages=torch.zeros(len(group.rollouts))), tokens)
