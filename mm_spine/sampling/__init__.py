"""Samplers: anything that turns questions into rollouts of the one policy distribution."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor

from mm_spine.types import Question, Rollout


class Sampler(Protocol):
    """What the loop and the evaluation ask for."""

    def sample(
        self, questions: Sequence[Question], n: int, *, step: int, purpose: str, greedy: bool = False, first: int = 0
    ) -> list[list[Rollout]]:
        """The rollouts `first` to `first + n - 1` of each question, in order, none for one that cannot be asked.

        The draws depend on (seed, purpose, step, question id, rollout index) alone.
        """

    def sync(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take over the trainable weights, named as `Policy.trainable` does, after an update."""


@dataclass(frozen=True, eq=False)
class Request:
    """One response to be sampled: rollout `index` of `question`, from its token `len(prefix)` on.

    `prefix` stands in the response already. `barred` token ids, each with its log-prob (nats) under the policy,
    cannot be the first one drawn.
    """

    question: Question
    index: int
    prefix: tuple[int, ...] = ()
    barred: Mapping[int, float] = field(default_factory=dict)


class Completion(NamedTuple):
    """What was drawn for a request: T token ids, the end token included, their log-probs and entropies (T, nats).

    Log-probs are the policy's, also of a first token drawn beside barred ones; entropies are exact or None.
    """

    token_ids: tuple[int, ...]
    logp: np.ndarray
    entropy: np.ndarray | None
    finish_reason: str
