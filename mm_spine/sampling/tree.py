"""Tree rollouts of ETMR (arXiv:2508.11356, algorithm 1), on any backend.

Roots are sampled like any response. Each root forks at the tokens that it was least sure of. A branch keeps the root's
tokens before its fork and draws the rest anew, so that what it shares with its root is sampled once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from mm_spine.config import TreeConfig
from mm_spine.policy.model import Policy
from mm_spine.policy.scoring import score_responses
from mm_spine.sampling import Completion, Request
from mm_spine.sampling.backend import Backend
from mm_spine.sampling.phase import Script
from mm_spine.types import Question, Rollout

DECIMALS = 4
"""Decimals of the nats that fork tokens are ranked by. Values that differ by rounding between batches are then ties."""

NOTHING_LEFT = 1e-6
"""If all tokens that are not barred have less probability than this together, the leaf is sampled flat."""


class _Fork(NamedTuple):
    """A fork at token `at` of a root."""

    root: Rollout
    at: int


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

    def run(self, scripts: Sequence[Script[Any]], *, step: int, purpose: str) -> list[Any]:
        """Run scripts of requests to their ends in one phase of the backend; return their results, in order."""
        return self.backend.run(scripts, step=step, purpose=purpose)

    def sample(
        self, questions: Sequence[Question], n: int, *, step: int, purpose: str, greedy: bool = False, first: int = 0
    ) -> list[list[Rollout]]:
        """See `Sampler.sample`."""
        if greedy:
            return self.backend.sample(questions, n, step=step, purpose=purpose, greedy=True, first=first)
        return self.run([self.draw(question, n, first) for question in questions], step=step, purpose=purpose)

    def draw(self, question: Question, n: int, first: int = 0) -> Script[list[Rollout]]:
        """Draw the trees and flat rollouts `first` to `first + n - 1` of `question`, as a script.

        Branches follow as soon as their root is drawn, distinct ones as soon as their elder siblings are.
        """
        if not self.backend.can_ask(question):
            return []
        indices = range(first, first + n)
        roots = [i for i in indices if i % self.whole == 0 and i + self.whole <= first + n]
        branches = {root + i for root in roots for i in range(1, self.whole)}
        alone = [i for i in indices if i not in branches]
        if self.tree.rank_by == "entropy" and not self.backend.gives_entropies:
            # Branches wait for all roots of the question, so that one forward computes the prompt once for all.
            leaves = yield [self._flat(question, i) for i in alone]
            drawn = [leaf for leaf in leaves if leaf.index in roots]
            signals = entropies(self.backend, question, drawn)
            grown = yield [self._grow(question, *pair) for pair in zip(drawn, signals, strict=True)]
        else:
            leaves = []
            grown = yield [self._tree(question, i) if i in roots else self._alone(question, i) for i in alone]
        return sorted(chain(leaves, *grown), key=lambda rollout: rollout.index)

    def _alone(self, question: Question, index: int) -> Script[list[Rollout]]:
        return [(yield from self._flat(question, index))]

    def _tree(self, question: Question, index: int) -> Script[list[Rollout]]:
        """Draw a root and then its branches."""
        root = yield from self._flat(question, index)
        (signal_T,) = RANKS[self.tree.rank_by](self.backend, question, [root])
        return [root, *(yield from self._grow(question, root, signal_T))]

    def _grow(self, question: Question, root: Rollout, signal_T: np.ndarray) -> Script[list[Rollout]]:
        """Draw the leaves of a tree except its root, in order of index."""
        places = fork_places(root.token_ids, signal_T, self.tree.forks, self._special)
        forks = [_Fork(root, at) for at in places]
        missing = [None] * (self.tree.forks - len(places))
        eldest = range(root.index + 1, root.index + self.whole, self.tree.branches)
        drawn = yield [self._branches(question, *pair) for pair in zip([*forks, *missing], eldest, strict=True)]
        return list(chain(*drawn))

    def _branches(self, question: Question, fork: _Fork | None, eldest: int) -> Script[list[Rollout]]:
        """Draw the branches of a fork, which have the indices from `eldest` on; without a fork, flat leaves."""
        indices = range(eldest, eldest + self.tree.branches)
        if not self.tree.distinct:
            return (yield [self._branch(question, index, fork) for index in indices])
        elder: list[Rollout] = []
        for index in indices:
            elder.append((yield from self._branch(question, index, fork, elder)))
        return elder

    def _branch(
        self, question: Question, index: int, fork: _Fork | None, elder: Sequence[Rollout] = ()
    ) -> Script[Rollout]:
        """Draw a branch of `fork` beside its `elder` siblings, a flat leaf if the fork leaves no token to draw."""
        barred = self._barred(fork, elder)
        if fork is None or sum(np.exp(logp) for logp in barred.values()) >= 1 - NOTHING_LEFT:
            return (yield from self._flat(question, index))
        request = Request(question, index, fork.root.token_ids[: fork.at], barred)
        (completion,) = yield [request]
        return self._joined(fork, request, completion)

    def _flat(self, question: Question, index: int) -> Script[Rollout]:
        request = Request(question, index)
        (completion,) = yield [request]
        return self.backend.rollout(request, completion)

    def _barred(self, fork: _Fork | None, elder: Sequence[Rollout]) -> dict[int, float]:
        """Return the tokens that stand at the fork already, with log-probs, if branches must be distinct."""
        if fork is None or not self.tree.distinct:
            return {}
        # A sibling that was sampled flat does not stand at this fork.
        there = [fork.root, *(sibling for sibling in elder if sibling.fork_at == fork.at)]
        return {rollout.token_ids[fork.at]: float(rollout.logp[fork.at]) for rollout in there}

    def _joined(self, fork: _Fork, request: Request, drawn: Completion) -> Rollout:
        """Return the rollout of `drawn`, with the root's tokens, log-probs and entropies before the fork."""
        root, at = fork
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
