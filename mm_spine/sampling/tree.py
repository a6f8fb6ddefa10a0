"""Tree rollouts of ETMR (arXiv:2508.11356, algorithm 1), on any backend.

Roots are sampled like any response. Each root forks at the tokens that it was least sure of. A branch keeps the root's
tokens before its fork and draws the rest anew, so that what it shares with its root is sampled once.
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
from mm_spine.sampling.backend import Backend
from mm_spine.types import Question, Rollout

DECIMALS = 4
"""Decimals of the nats that fork tokens are ranked by. Values that differ by rounding between batches are then ties."""

NOTHING_LEFT = 1e-6
"""If all tokens that are not barred have less probability than this together, the leaf is sampled flat."""


@dataclass(frozen=True)
class _Leaves:
    """The rollouts of one question that were drawn in a call, by index."""

    question: Question
    drawn: dict[int, Rollout] = field(default_factory=dict)


class _Fork(NamedTuple):
    """A fork at token `at` of a root. Its branches have the indices from `eldest` on."""

    root: Rollout
    at: int
    eldest: int


@dataclass(frozen=True, eq=False)
class _Leaf:
    """A response to draw: a branch of `fork`, or a flat response if there is none."""

    leaves: _Leaves
    index: int
    fork: _Fork | None = None


class TreeSampler:
    """Sample trees of 1 + branches * forks leaves from `backend`, and flat rollouts where no whole tree fits.

    Index i belongs to tree i // whole. A tree's first index is its root; index 1 + k * branches + b after it is branch
    b of its k-th fork, forks in order of rank. A call for the indices first to first + n - 1 samples the trees that
    lie in it whole, and its other indices flat: with 2 forks and 2 branches, 60 votes are 12 trees, and 16 votes are 3
    trees and a flat response. Rounds that end at multiples of `whole` draw what one call draws. Greedy responses are
    flat, because all of them are the same.

    A root with fewer tokens to fork at than `forks` forks at all of them, and the missing leaves are flat. With
    `distinct` a branch is drawn from what its root and elder siblings left of the policy's distribution, so its first
    token does not follow the policy exactly; log-probs are the policy's all the same.
    """

    # Training uses the first rollouts by index, which are whole trees and the beginning of one more. 32 of 60 leaves
    # are 6 trees, a root and its first branch: 7 roots, where the share of 12 in 60 would be 6.4. So the mix of roots
    # and branches is kept to within one leaf, and a branch is never kept without its root.

    def __init__(self, backend: Backend, tree: TreeConfig) -> None:
        self.backend, self.tree = backend, tree
        self._special = special_ids(backend.policy)

    @property
    def whole(self) -> int:
        """The leaves of one tree. Rounds that end at multiples of it cut no tree."""
        return 1 + self.tree.branches * self.tree.forks

    @property
    def version(self) -> int:
        """The version of the weights that the backend samples with."""
        return self.backend.version

    def sync(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take over the trainable weights after an update."""
        self.backend.sync(weights)

    def sample(
        self, questions: Sequence[Question], n: int, *, step: int, purpose: str, greedy: bool = False, first: int = 0
    ) -> list[list[Rollout]]:
        """See `Sampler.sample`. The backend is called once for roots and once for branches, with `distinct` B times."""
        if greedy:
            return self.backend.sample(questions, n, step=step, purpose=purpose, greedy=True, first=first)
        asked = [_Leaves(question) if self.backend.can_ask(question) else None for question in questions]
        every = [leaves for leaves in asked if leaves is not None]

        # First the roots of whole trees and the flat responses, for all questions at once.
        indices = range(first, first + n)
        roots = [i for i in indices if i % self.whole == 0 and i + self.whole <= first + n]
        branches = {root + i for root in roots for i in range(1, self.whole)}
        self._draw([_Leaf(leaves, i) for leaves in every for i in indices if i not in branches], step, purpose)

        # Then the branches, which need their roots; distinct ones need their elder siblings, too.
        pending = [leaf for leaves in every for leaf in self._grow(leaves, roots)]
        if not self.tree.distinct:
            self._draw(pending, step, purpose)
        else:
            for b in range(self.tree.branches):
                due = [leaf for leaf in pending if (leaf.index % self.whole - 1) % self.tree.branches == b]
                self._draw(due, step, purpose)
        return [[] if leaves is None else [leaves.drawn[i] for i in indices] for leaves in asked]

    def _grow(self, leaves: _Leaves, roots: Sequence[int]) -> Iterator[_Leaf]:
        """Yield all leaves of one question's trees except their roots, in order of index."""
        drawn = [leaves.drawn[index] for index in roots]
        signals = RANKS[self.tree.rank_by](self.backend, leaves.question, drawn)
        for root, signal_T in zip(drawn, signals, strict=True):
            places = fork_places(root.token_ids, signal_T, self.tree.forks, self._special)
            for k in range(self.tree.forks):
                eldest = root.index + 1 + k * self.tree.branches
                fork = _Fork(root, places[k], eldest) if k < len(places) else None
                yield from (_Leaf(leaves, eldest + b, fork) for b in range(self.tree.branches))

    def _draw(self, pending: Sequence[_Leaf], step: int, purpose: str) -> None:
        """Draw all of `pending` in one call of the backend."""
        if not pending:
            return
        pairs = [self._request(leaf) for leaf in pending]
        completions = self.backend.complete([request for _, request in pairs], step=step, purpose=purpose)
        for (leaf, request), completion in zip(pairs, completions, strict=True):
            leaf.leaves.drawn[leaf.index] = self._rollout(leaf.fork, request, completion)

    def _request(self, leaf: _Leaf) -> tuple[_Leaf, Request]:
        """Return the request for `leaf`, and the leaf itself, flat if its fork leaves no token to draw."""
        barred = self._barred(leaf)
        if leaf.fork is None or sum(np.exp(logp) for logp in barred.values()) >= 1 - NOTHING_LEFT:
            return replace(leaf, fork=None), Request(leaf.leaves.question, leaf.index)
        return leaf, Request(leaf.leaves.question, leaf.index, leaf.fork.root.token_ids[: leaf.fork.at], barred)

    def _barred(self, leaf: _Leaf) -> dict[int, float]:
        """Return the tokens that stand at the leaf's fork already, with log-probs, if branches must be distinct."""
        if leaf.fork is None or not self.tree.distinct:
            return {}
        root, at, eldest = leaf.fork
        siblings = [leaf.leaves.drawn[index] for index in range(eldest, leaf.index)]
        # A sibling that was sampled flat does not stand at this fork.
        there = [root, *(sibling for sibling in siblings if sibling.fork_at == at)]
        return {rollout.token_ids[at]: float(rollout.logp[at]) for rollout in there}

    def _rollout(self, fork: _Fork | None, request: Request, drawn: Completion) -> Rollout:
        """Return the rollout of `drawn`, with the root's tokens, log-probs and entropies before the fork."""
        if fork is None:
            return self.backend.rollout(request, drawn)
        root, at = fork.root, fork.at
        entropy = None
        if root.entropy is not None and drawn.entropy is not None:
            entropy = np.concatenate([root.entropy[:at], drawn.entropy])
        tokens = (*root.token_ids[:at], *drawn.token_ids)
        whole = Completion(tokens, np.concatenate([root.logp[:at], drawn.logp]), entropy, drawn.finish_reason)
        return replace(self.backend.rollout(request, whole), parent=root.index, fork_at=at)


def special_ids(policy: Policy) -> frozenset[int]:
    """Return the token ids at which no root forks: special tokens, end tokens and banned ones."""
    added = policy.tokenizer.added_tokens_decoder.items()
    marked = {token_id for token_id, token in added if token.special}
    return frozenset({*policy.tokenizer.all_special_ids, *marked, *policy.banned, *policy.end_ids})


def fork_places(token_ids: Sequence[int], signal_T: np.ndarray, forks: int, special: frozenset[int]) -> list[int]:
    """Return the `forks` positions of highest signal (nats), highest first, ties by position.

    There are fewer if fewer tokens are not in `special`.
    """
    eligible = [t for t, token in enumerate(token_ids) if token not in special]
    rank = np.round(signal_T, DECIMALS)
    return sorted(eligible, key=lambda t: (-rank[t], t))[:forks]


def surprisals(backend: Backend, question: Question, roots: Sequence[Rollout]) -> list[np.ndarray]:
    """Return -log pi of each root's tokens (T,), nats, by the sampler's log-probs."""
    return [-root.logp for root in roots]


def entropies(backend: Backend, question: Question, roots: Sequence[Rollout]) -> list[np.ndarray]:
    """Return the exact entropies of each root's tokens (T,), nats: the sampler's, or those of one forward."""
    known = [root.entropy for root in roots if root.entropy is not None]
    if len(known) == len(roots):
        return known
    responses = [root.token_ids for root in roots]
    return [
        scores.entropy for scores in score_responses(backend.policy, [(question, responses)], backend.distribution)[0]
    ]


RANKS: Mapping[str, Callable[[Backend, Question, Sequence[Rollout]], list[np.ndarray]]] = {
    "surprisal": surprisals,
    "entropy": entropies,
}
"""`sampling.tree.rank_by` -> the signal at whose highest values roots fork."""
