"""What tree rollouts cost: tokens drawn over the tokens of their leaves, and where the trees fork."""

from __future__ import annotations

from collections.abc import Sequence

from mm_spine.types import Rollout


def token_ratio(rollouts: Sequence[Rollout]) -> float:
    """Return the tokens drawn over the tokens of flat responses of the same lengths, sum(T - t) / sum(T).

    t is the place of a response's fork, 0 for a flat one. The ratio is 1 without any tokens.
    """
    drawn = sum(rollout.own_tokens for rollout in rollouts)
    flat = sum(len(rollout.token_ids) for rollout in rollouts)
    return drawn / flat if flat else 1.0


def ratio_by_forks(rollouts: Sequence[Rollout]) -> float:
    """Return the token ratio by the places of the forks only: each branch counts as long as its root.

    For one tree of N forks with B branches each, at t_k of T tokens, it is (1 + B sum_k(1 - t_k/T)) / (1 + B N)
    (ETMR, arXiv:2508.11356). Several trees, and flat rollouts, weigh by T. The root of every branch must be among the
    rollouts.
    """
    lengths = _lengths(rollouts)
    own = [lengths[r.question_id, r.index if r.parent is None else r.parent] for r in rollouts]
    flat = sum(own)
    return (flat - sum(r.fork_at or 0 for r in rollouts)) / flat if flat else 1.0


def fork_depths(rollouts: Sequence[Rollout]) -> list[float]:
    """Return t/T of every fork, in [0, 1), where T are the tokens of its root."""
    lengths = _lengths(rollouts)
    forks = dict.fromkeys((r.question_id, r.parent, r.fork_at) for r in rollouts)
    return [at / lengths[name, root] for name, root, at in forks if root is not None and at is not None]


def _lengths(rollouts: Sequence[Rollout]) -> dict[tuple[str, int], int]:
    return {(r.question_id, r.index): len(r.token_ids) for r in rollouts}
