"""Samplers, which turn questions into rollouts of the one policy distribution, and what they are asked with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from mm_spine.sampling.phase import Script
from mm_spine.types import Question, Request, Rollout

__all__ = ["Completion", "Draw", "PhasedSampler", "Request", "Sampler"]


class Sampler(Protocol):
    """What the adaptation loop and the evaluation draw rollouts from."""

    def sample(
        self, questions: Sequence[Question], n: int, *, step: int, purpose: str, greedy: bool = False, first: int = 0
    ) -> list[list[Rollout]]:
        """Return the rollouts `first` to `first + n - 1` of each question, in order; none if it cannot be asked.

        The draws depend on (seed, purpose, step, question id, rollout index) and on nothing else.
        """

    def sync(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take over the trainable weights, named as `Policy.trainable` names them, after an update."""


class Draw(Protocol):
    """Draw the rollouts `first` to `first + n - 1` of `question`, in order, as a script; none if it cannot be asked."""

    def __call__(self, question: Question, n: int, first: int = 0) -> Script[list[Rollout]]: ...


@runtime_checkable
class PhasedSampler(Protocol):
    """A sampler that takes further requests while others are drawn: `run` drives scripts made of `draw` in one phase.

    What is drawn for an index is what `Sampler.sample` draws for it.
    """

    @property
    def draw(self) -> Draw:
        """See `Draw`."""

    def run(self, scripts: Sequence[Script[Any]], *, step: int, purpose: str) -> list[Any]:
        """Run `scripts` to their ends; return their results, in order."""


class Completion(NamedTuple):
    """What was drawn for a request: T token ids, the end token included, with log-probs and entropies (T,), nats.

    Log-probs are the policy's, also of a first token that was drawn beside barred ones. Entropies are exact or None.
    `finish_reason` is "stop" after an end token, else "length".
    """

    token_ids: tuple[int, ...]
    logp: np.ndarray
    entropy: np.ndarray | None
    finish_reason: str
