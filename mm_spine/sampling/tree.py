"""ETMR's tree rollouts (arXiv 2508.11356, Algorithm 1), on any backend.

Roots are sampled like any response. Each forks at the tokens that it was least sure of, and a branch goes on from
the root's tokens before its fork, drawing the token there anew: what it shares with its root is sampled once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from torch import Tensor

from mm_spine.config import TreeConfig
from mm_spine.policy.model import Policy
from mm_spine.policy.scoring import score_responses
from mm_spine.sampling import Completion, Request
from mm_spine.sampling.backend import Backend, end_ids
from mm_spine.types import Question, Rollout

DECIMALS = 4
"""Of the nats that fork tokens are ranked by: what rounding differs by from batch to batch is a tie, no other fork."""

NOTHING_LEFT = 1e-6
"""Probability of all tokens that are not barred below which there are none to draw, and the leaf is sampled flat."""


@dataclass(frozen=True)
class _Asked:
    """A question of a call, and what was drawn for it, by index."""

    question: Question
    drawn: dict[int, Rollout] = field(default_factory=dict)


class _Fork(NamedTuple):
    """A token of a root, the `at`-th; its branches have the indices from `eldest` on."""

    root: Rollout
    at: int
    eldest: int


@dataclass(frozen=True, eq=False)
class _Leaf:
    """A response to be drawn: a branch of `fork`, or flat without one."""

    asked: _Asked
    index: int
    fork: _Fork | None = None


class TreeSampler:
    """Trees of 1 + branches x forks leaves from `backend`, and flat rollouts where no whole tree fits.

    Index i is of tree i // whole. A tree's first index is its root, the one 1 + k x branches + b after it is branch b
    of its k-th fork, forks in order of rank. A call for n indices from `first` on samples the trees that lie in it
    wholly, and its other indices flat: 60 votes at 2 forks and 2 branches are 12 roots and 60 leaves, 16 are 3 trees
    and a flat one. Who asks in rounds and ends them at multiples of `whole` draws what one call does. Greedy responses
    are flat: all are the same.

    The first rollouts by index, which are trained on, are whole trees and the beginning of one more. 32 of 60 leaves
    are 6 trees, a root and its first branch: 7 roots, where 12 in 60 are 6.4. Roots and branches keep their mix to
    within one leaf, and a branch is never kept without its root.

    A root with fewer tokens to fork at than `forks` forks at all of them; the leaves missing are flat. With `distinct`
    a branch is drawn from what its root and elder siblings left of the policy's distribution, hence not quite the
    policy's; log-probs are the policy's all the same.
    """

    def __init__(self, backend: Backend, tree: TreeConfig) -> None:
        self.backend, self.tree = backend, tree
        self._special = special_ids(backend.policy)

    @property
    def whole(self) -> int:
        """The leaves of one tree: rounds that end at multiples of it cut none."""
        return 1 + self.tree.branches * self.tree.forks

    def sync(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take over the trainable weights after an update."""
        self.backend.sync(weights)

    def sample(
        self, questions: Sequence[Question], n: int, *, step: int, purpose: str, greedy: bool = False, first: int = 0
    ) -> list[list[Rollout]]:
        """See `Sampler.sample`. The backend is called twice for all questions; with `distinct`, once more a branch."""
        if greedy:
            return self.backend.sample(questions, n, step=step, purpose=purpose, greedy=True, first=first)
        everyone = [_Asked(question) for question in questions if self.backend.can_ask(question)]
        indices = range(first, first + n)
        roots = [i for i in indices if i % self.whole == 0 and i + self.whole <= first + n]
        grown = {root + i for root in roots for i in range(1, self.whole)}
        self._draw([_Leaf(asked, i) for asked in everyone for i in indices if i not in grown], step, purpose)
        leaves = [leaf for asked in everyone for leaf in self._leaves(asked, roots)]
        for due in self._rounds(leaves):
            self._draw(due, step, purpose)
        found = iter([[asked.drawn[i] for i in indices] for asked in everyone])
        return [next(found) if self.backend.can_ask(question) else [] for question in questions]

    def _leaves(self, asked: _Asked, roots: Sequence[int]) -> Iterator[_Leaf]:
        """All leaves but the roots of one question's trees, in order."""
        drawn = [asked.drawn[index] for index in roots]
        signals = RANKS[self.tree.rank_by](self.backend, asked.question, drawn)
        for root, signal_T in zip(drawn, signals, strict=True):
            places = fork_places(root.token_ids, signal_T, self.tree.forks, self._special)
            for k in range(self.tree.forks):
                eldest = root.index + 1 + k * self.tree.branches
                fork = _Fork(root, places[k], eldest) if k < len(places) else None
                yield from (_Leaf(asked, eldest + b, fork) for b in range(self.tree.branches))

    def _rounds(self, leaves: Sequence[_Leaf]) -> list[Sequence[_Leaf]]:
        """What one call draws: everything, or, where a branch must know its elder siblings, one branch of each fork."""
        if not self.tree.distinct:
            return [leaves]
        branches = range(self.tree.branches)
        return [[leaf for leaf in leaves if (leaf.index % self.whole - 1) % len(branches) == b] for b in branches]

    def _draw(self, leaves: Sequence[_Leaf], step: int, purpose: str) -> None:
        if not leaves:
            return
        asked_for = [self._request(leaf) for leaf in leaves]
        drawn = self.backend.complete([request for _, request in asked_for], step=step, purpose=purpose)
        for (leaf, request), completion in zip(asked_for, drawn, strict=True):
            leaf.asked.drawn[leaf.index] = self._rollout(leaf, request, completion)

    def _request(self, leaf: _Leaf) -> tuple[_Leaf, Request]:
        """What is asked for `leaf`, and the leaf as it will be: flat, where its fork leaves it no token."""
        barred = self._barred(leaf)
        if leaf.fork is None or sum(np.exp(logp) for logp in barred.values()) >= 1 - NOTHING_LEFT:
            return replace(leaf, fork=None), Request(leaf.asked.question, leaf.index)
        return leaf, Request(leaf.asked.question, leaf.index, leaf.fork.root.token_ids[: leaf.fork.at], barred)

    def _barred(self, leaf: _Leaf) -> dict[int, float]:
        """The tokens, with log-probs, that stand at the fork already, where branches must be distinct."""
        if leaf.fork is None or not self.tree.distinct:
            return {}
        root, at, eldest = leaf.fork
        siblings = [leaf.asked.drawn[index] for index in range(eldest, leaf.index)]
        there = [root, *(sibling for sibling in siblings if sibling.fork_at == at)]
        return {rollout.token_ids[at]: float(rollout.logp[at]) for rollout in there}

    def _rollout(self, leaf: _Leaf, request: Request, completion: Completion) -> Rollout:
        if leaf.fork is None:
            return self.backend.rollout(request, completion)
        root, at, _ = leaf.fork
        whole = self.backend.rollout(request, _continued(root, at, completion))
        return replace(whole, parent=root.index, fork_at=at)


def _continued(root: Rollout, at: int, drawn: Completion) -> Completion:
    """The root's first `at` tokens and what was drawn behind them."""
    entropy = None
    if root.entropy is not None and drawn.entropy is not None:
        entropy = np.concatenate([root.entropy[:at], drawn.entropy])
    tokens = (*root.token_ids[:at], *drawn.token_ids)
    return Completion(tokens, np.concatenate([root.logp[:at], drawn.logp]), entropy, drawn.finish_reason)


def special_ids(policy: Policy) -> frozenset[int]:
    """Token ids at which nothing forks: special tokens, those that end a response, and the banned ones."""
    added = policy.tokenizer.added_tokens_decoder.items()
    marked = {token_id for token_id, token in added if token.special}
    return frozenset({*policy.tokenizer.all_special_ids, *marked, *policy.banned, *end_ids(policy)})


def fork_places(token_ids: Sequence[int], signal_T: np.ndarray, forks: int, special: frozenset[int]) -> list[int]:
    """The `forks` positions of highest signal (nats), highest first, ties by position; fewer where fewer may fork."""
    eligible = [t for t, token in enumerate(token_ids) if token not in special]
    rank = np.round(signal_T, DECIMALS)
    return sorted(eligible, key=lambda t: (-rank[t], t))[:forks]


def surprisals(backend: Backend, question: Question, roots: Sequence[Rollout]) -> list[np.ndarray]:
    """-log pi of each root's tokens (T,), nats, by the sampler's own log-probs."""
    return [-root.logp for root in roots]


def entropies(backend: Backend, question: Question, roots: Sequence[Rollout]) -> list[np.ndarray]:
    """The exact entropies of each root's tokens (T,), nats: the sampler's, or else from one forward of the policy."""
    known = [root.entropy for root in roots if root.entropy is not None]
    if len(known) == len(roots):
        return known
    asked = (question, [root.token_ids for root in roots])
    return [scores.entropy for scores in score_responses(backend.policy, [asked], backend.distribution)[0]]


RANKS: Mapping[str, Callable[[Backend, Question, Sequence[Rollout]], list[np.ndarray]]] = {
    "surprisal": surprisals,
    "entropy": entropies,
}
"""`sampling.tree.rank_by` -> what roots fork at the highest of."""


def token_ratio(fork_at: Sequence[int | None], lengths: Sequence[int]) -> float:
    """Tokens drawn for these responses, over those of flat sampling: sum(T - t)/sum(T), where a flat one has t = 0.

    1 where there are no tokens at all.
    """
    flat = sum(lengths)
    return (flat - sum(at or 0 for at in fork_at)) / flat if flat else 1.0


def ratio_by_forks(rollouts: Sequence[Rollout]) -> float:
    """The token ratio by the fork positions alone, each branch counted as long as its root.

    For one tree (1 + B sum_k(1 - t_k/T))/(1 + B N), N forks of B branches at t_k of T tokens (arXiv 2508.11356, ETMR);
    several trees, and flat rollouts, weigh by T. Every branch's root must be among the rollouts.
    """
    lengths = _lengths(rollouts)
    own = [lengths[r.question_id, r.index if r.parent is None else r.parent] for r in rollouts]
    return token_ratio([r.fork_at for r in rollouts], own)


def fork_depths(rollouts: Sequence[Rollout]) -> list[float]:
    """t/T of every fork, in [0, 1), T the tokens of its root: their mean is what the token ratio follows."""
    lengths = _lengths(rollouts)
    forks = dict.fromkeys((r.question_id, r.parent, r.fork_at) for r in rollouts)
    return [at / lengths[name, root] for name, root, at in forks if root is not None and at is not None]


def _lengths(rollouts: Sequence[Rollout]) -> dict[tuple[str, int], int]:
    return {(r.question_id, r.index): len(r.token_ids) for r in rollouts}
