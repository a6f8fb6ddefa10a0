"""Samplers: anything that turns questions into rollouts of the one policy distribution."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from torch import Tensor

from mm_spine.types import Question, Rollout


class Sampler(Protocol):
    """What the loop and the evaluation ask of a backend."""

    def sample(
        self, questions: Sequence[Question], n: int, *, step: int, purpose: str, greedy: bool = False
    ) -> list[list[Rollout]]:
        """n rollouts for each question, in order, none for one that cannot be asked.

        The draws depend on (seed, purpose, step, question id, rollout index) alone.
        """

    def sync(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take over the trainable weights after an update."""
