"""Tree rollouts of ETMR (arXiv:2508.11356, algorithm 1), on any backend.

Roots are sampled like any response. Each root forks at the tokens that it was least sure of. A branch keeps the root's
tokens before its fork and draws the rest anew, so that what it shares with its root is sampled once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.random import Generator

from mm_spine.config import TreeConfig
from mm_spine.policy.model import Policy
from mm_spine.sampling import Request
from mm_spine.sampling.backend import Backend
from mm_spine.sampling.growing import GrowingSampler, entropies_of, special_ids
from mm_spine.types import Growth, Question, Rollout

DECIMALS = 4
"""Decimals of the nats that fork tokens are ranked by. Values that differ by rounding between batches are then ties."""

NOTHING_LEFT = 1e-6
"""If all tokens that are not barred have less probability than this together, the leaf is sampled flat."""

RANKS: Mapping[str, Callable[[Rollout], np.ndarray]] = {
    "surprisal": lambda root: -root.logp,
    "entropy": entropies_of,
}
"""`sampling.tree.rank_by` -> the signal at whose highest values roots fork, (T,), nats."""


class TreeSampler(GrowingSampler):
    """Sample trees of 1 + branches * forks leaves; see `GrowingSampler`.

    A tree's first index is its root; index 1 + k * branches + b after it is branch b of its k-th fork, forks in order
    of rank: with 2 forks and 2 branches, 60 votes are 12 trees. 32 of these 60 leaves are 6 trees, a root and its
    first branch: 7 roots, where the share of 12 in 60 would be 6.4.
    """

    def __init__(self, backend: Backend, tree: TreeConfig) -> None:
        super().__init__(backend, tree_growth(tree, backend.policy))


def tree_growth(tree: TreeConfig, policy: Policy) -> Growth:
    """Return how trees grow.

    A root with fewer tokens to fork at than `forks` forks at all of them, and the missing leaves are flat. With
    `distinct` a branch is drawn from what its root and elder siblings left of the policy's distribution, so its first
    token does not follow the policy exactly; log-probs are the policy's all the same.
    """
    special = special_ids(policy)

    def propose(question: Question, drawn: Sequence[Rollout], rng: Generator) -> list[Request]:
        root = drawn[0]
        places = fork_places(root.token_ids, RANKS[tree.rank_by](root), tree.forks, special)
        asked: list[Request] = []
        for k in range(tree.forks):
            eldest = root.index + 1 + k * tree.branches
            siblings = range(eldest, eldest + tree.branches)
            elder = [rollout for rollout in drawn if rollout.index in siblings]
            # Distinct branches of a fork follow one another: each bars what its elder siblings began with.
            next_ones = siblings[len(elder) :][:1] if tree.distinct else siblings
            at = places[k] if k < len(places) else None
            asked += [_leaf(question, index, root, at, elder, tree.distinct) for index in next_ones]
        return asked

    return Growth(1 + tree.branches * tree.forks, propose, reads_entropies=tree.rank_by == "entropy")


def _leaf(
    question: Question, index: int, root: Rollout, at: int | None, elder: Sequence[Rollout], distinct: bool
) -> Request:
    """Ask for a branch at token `at` of `root` beside its `elder` siblings, or for a flat leaf if none can be drawn."""
    if at is None:
        return Request(question, index)
    # A sibling that was sampled flat does not stand at this fork.
    there = [root, *(sibling for sibling in elder if sibling.fork_at == at)] if distinct else []
    barred = {rollout.token_ids[at]: float(rollout.logp[at]) for rollout in there}
    if sum(np.exp(logp) for logp in barred.values()) >= 1 - NOTHING_LEFT:
        return Request(question, index)
    return Request(question, index, root.token_ids[:at], barred, root.index)


def fork_places(token_ids: Sequence[int], signal_T: np.ndarray, forks: int, special: frozenset[int]) -> list[int]:
    """Return the `forks` positions of highest signal (nats), highest first, ties by position.

    There are fewer if fewer tokens are not in `special`.
    """
    eligible = [t for t, token in enumerate(token_ids) if token not in special]
    rank = np.round(signal_T, DECIMALS)
    return sorted(eligible, key=lambda t: (-rank[t], t))[:forks]
