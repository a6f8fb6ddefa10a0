"""The KL anchor: the starting policy, kept as one copy of its trainable weights, or of this rank's parts of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mm_spine.policy.head import Anchor, Divergence
from mm_spine.policy.model import Policy
from mm_spine.policy.packed import PackedBatch
from mm_spine.policy.partitioned import gathered, is_partitioned


class Reference:
    """The policy as it is when this is made, from which `anchor` measures divergence."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._starting = {name: _held(p).detach().clone() for name, p in policy.trainable().items()}
        self._on_host: dict[str, Tensor] | None = None
        head = policy.text.head.weight
        self._whole_head: Tensor | None = None
        if policy.partitioned:
            # The one weight that a rank keeps whole: it is read outside of its module.
            with gathered(head):
                self._whole_head = head.detach().clone()

    @torch.no_grad()
    def anchor(self, batch: PackedBatch, divergence: Divergence) -> Anchor:
        """Return the starting policy's hidden states at the selected positions of `batch`, with its head."""
        trainable, head = self._policy.trainable(), self._policy.text.head.weight
        named = (self._starting[name] for name, parameter in trainable.items() if parameter is head)
        starting_head = next(named, head.detach()) if self._whole_head is None else self._whole_head
        with _standing_in(trainable, self._starting):
            return Anchor(self._policy.text.trunk(batch), starting_head, divergence)

    def to_host(self) -> None:
        """Keep the copy in host memory only, until `to_card`."""
        if self._on_host is None:
            pinned = self._policy.device.type == "cuda"
            self._on_host = {n: w.cpu().pin_memory() if pinned else w for n, w in self._starting.items()}
        self._starting = self._on_host

    def to_card(self) -> None:
        """Undo `to_host`. The host keeps its copy: these weights never change."""
        self._starting = {name: weight.to(self._policy.device) for name, weight in self._starting.items()}


@contextmanager
def _standing_in(parameters: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the context, let the parameters hold `weights`."""
    # Storage is exchanged, and nothing is copied.
    own = {name: _held(parameter).data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            _held(parameter).data = weights[name]
        yield
    finally:
        for name, parameter in parameters.items():
            _held(parameter).data = own[name]


def _held(parameter: Any) -> Tensor:
    """Return what this rank holds of a parameter: itself, or its part of a partitioned one."""
    held: Tensor = parameter.ds_tensor if is_partitioned(parameter) else parameter
    return held
