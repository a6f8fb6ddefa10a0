"""A sampler whose rollouts grow further ones: a proposal says what is drawn next from what is drawn already."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
from torch import Tensor

from mm_spine.draws import generator
from mm_spine.policy.model import Policy
from mm_spine.policy.scoring import score_responses
from mm_spine.sampling import Completion, Request
from mm_spine.sampling.backend import Backend
from mm_spine.sampling.phase import Script
from mm_spine.types import Growth, Question, Rollout


class GrowingSampler:
    """Sample families from `backend`, and flat rollouts where no whole family fits.

    Index i belongs to family i // size; the first index of a family is its root's. A call for the indices first to
    first + n - 1 samples the families that lie in it whole, and its other indices flat: with families of 5, 16 votes
    are 3 families and a flat response. Rounds that end at multiples of `whole` draw what one call draws. Greedy
    responses are flat, because all of them are the same.
    """

    # Training uses the first rollouts by index, which are whole families and the beginning of one more. So the mix of
    # roots and others is kept to within one family, and nothing is kept without its root.

    def __init__(self, backend: Backend, growth: Growth) -> None:
        self.backend, self.growth = backend, growth
        self._call: tuple[object, ...] = ()

    @property
    def whole(self) -> int:
        """The rollouts of one family. Rounds that end at multiples of it cut no family."""
        return self.growth.size

    @property
    def version(self) -> int:
        """The version of the weights that the backend samples with."""
        return self.backend.version

    def sync(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take over the trainable weights after an update."""
        self.backend.sync(weights)

    def run(self, scripts: Sequence[Script[Any]], *, step: int, purpose: str) -> list[Any]:
        """Run scripts of requests to their ends in one phase of the backend; return their results, in order."""
        # A script is made before the step is known, and begins here.
        self._call = (purpose, step)
        return self.backend.run(scripts, step=step, purpose=purpose)

    def sample(
        self, questions: Sequence[Question], n: int, *, step: int, purpose: str, greedy: bool = False, first: int = 0
    ) -> list[list[Rollout]]:
        """See `Sampler.sample`."""
        if greedy:
            return self.backend.sample(questions, n, step=step, purpose=purpose, greedy=True, first=first)
        return self.run([self.draw(question, n, first) for question in questions], step=step, purpose=purpose)

    def draw(self, question: Question, n: int, first: int = 0) -> Script[list[Rollout]]:
        """Draw the families and flat rollouts `first` to `first + n - 1` of `question`, as a script.

        What is proposed follows as soon as it is: no family waits for another.
        """
        if not self.backend.can_ask(question):
            return []
        indices = range(first, first + n)
        roots = [i for i in indices if i % self.whole == 0 and i + self.whole <= first + n]
        grown = {root + i for root in roots for i in range(1, self.whole)}
        alone = [i for i in indices if i not in grown]
        if self.growth.reads_entropies and not self.backend.gives_entropies:
            # Families wait for all roots of the question, so that one forward computes the prompt once for all.
            leaves = yield [self._drawn(Request(question, i)) for i in alone]
            drawn = [leaf for leaf in leaves if leaf.index in roots]
            known = with_entropies(self.backend, question, drawn)
            further = yield [self._grow(question, root) for root in known]
        else:
            leaves = []
            further = yield [self._family(question, i) if i in roots else self._alone(question, i) for i in alone]
        return sorted(chain(leaves, *further), key=lambda rollout: rollout.index)

    def _alone(self, question: Question, index: int) -> Script[list[Rollout]]:
        return [(yield from self._drawn(Request(question, index)))]

    def _family(self, question: Question, index: int) -> Script[list[Rollout]]:
        """Draw a root and then what grows from it."""
        root = yield from self._drawn(Request(question, index))
        (known,) = with_entropies(self.backend, question, [root]) if self.growth.reads_entropies else [root]
        return [root, *(yield from self._grow(question, known))]

    def _grow(self, question: Question, root: Rollout) -> Script[list[Rollout]]:
        """Draw the rollouts of a family except its root, in no order."""
        drawn, asked = [root], {root.index}
        family = range(root.index, root.index + self.whole)

        def follow() -> Script[None]:
            if len(asked) == self.whole:
                return
            rng = generator(self.backend.seed, "grow", *self._call, question.id, root.index)
            new = [ask for ask in self.growth.propose(question, drawn, rng) if ask.index not in asked]
            if strange := [ask.index for ask in new if ask.index not in family]:
                raise ValueError(
                    f"question {question.id!r}: proposed was rollout {strange[0]}, which is not of the family {family}"
                )
            asked.update(ask.index for ask in new)
            yield [one(ask) for ask in new]

        def one(ask: Request) -> Script[None]:
            drawn.append((yield from self._drawn(ask, drawn)))
            yield from follow()

        yield from follow()
        drawn += yield [self._drawn(Request(question, i)) for i in family if i not in asked]
        return drawn[1:]

    def _drawn(self, request: Request, family: Sequence[Rollout] = ()) -> Script[Rollout]:
        """Draw a rollout, with the tokens, log-probs and entropies of its parent's beginning if it has a parent."""
        (drawn,) = yield [request]
        if request.parent is None:
            return self.backend.rollout(request, drawn)
        (parent,) = (rollout for rollout in family if rollout.index == request.parent)
        at, entropy = len(request.prefix), None
        if parent.entropy is not None and drawn.entropy is not None:
            entropy = np.concatenate([parent.entropy[:at], drawn.entropy])
        tokens = (*request.prefix, *drawn.token_ids)
        whole = Completion(tokens, np.concatenate([parent.logp[:at], drawn.logp]), entropy, drawn.finish_reason)
        return replace(self.backend.rollout(request, whole), parent=parent.index, fork_at=at)


def special_ids(policy: Policy) -> frozenset[int]:
    """Return the token ids from which nothing is drawn anew: special tokens, end tokens and banned ones."""
    added = policy.tokenizer.added_tokens_decoder.items()
    marked = {token_id for token_id, token in added if token.special}
    return frozenset({*policy.tokenizer.all_special_ids, *marked, *policy.banned, *policy.end_ids})


def entropies_of(root: Rollout) -> np.ndarray:
    """Return the root's token entropies (T,), nats. Raises ValueError where it has none."""
    if root.entropy is None:
        raise ValueError(
            f"question {root.question_id!r}, rollout {root.index}: no token entropies; a `Growth` whose proposal reads "
            "them says reads_entropies=True"
        )
    return root.entropy


def with_entropies(backend: Backend, question: Question, roots: Sequence[Rollout]) -> list[Rollout]:
    """Return the roots with exact entropies: the sampler's, or those of one forward."""
    if all(root.entropy is not None for root in roots):
        return list(roots)
    responses = [root.token_ids for root in roots]
    (scores,) = score_responses(backend.policy, [(question, responses)], backend.distribution)
    return [replace(root, entropy=score.entropy) for root, score in zip(roots, scores, strict=True)]
