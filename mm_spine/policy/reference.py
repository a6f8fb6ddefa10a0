"""The KL anchor: the starting policy, kept as copies of its trainable weights only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mm_spine.policy.head import Anchor, Divergence
from mm_spine.policy.model import Policy
from mm_spine.policy.packed import PackedBatch


class Reference:
    """Copies the trainable weights now; `anchor` runs the trunk with them and puts the others back."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._starting = policy.weights()
        head = policy.text.head.weight
        self._head = head.detach().clone() if head.requires_grad else head

    @torch.no_grad()
    def anchor(self, batch: PackedBatch, divergence: Divergence) -> Anchor:
        """The starting policy's hidden states at the selected positions of `batch`."""
        with self._active():
            return Anchor(self._policy.text.trunk(batch), self._head, divergence)

    @contextmanager
    def _active(self) -> Iterator[None]:
        current = self._policy.weights()
        self._policy.restore(self._starting)
        try:
            yield
        finally:
            self._policy.restore(current)
