"""The KL anchor: the starting policy, or a moving average of the policy, kept as one copy of the trainable weights, or
of this rank's parts of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mm_spine.policy.distribution import HALVES
from mm_spine.policy.head import Anchor, Divergence
from mm_spine.policy.model import Policy
from mm_spine.policy.packed import PackedBatch
from mm_spine.policy.partitioned import gathered, is_partitioned

WHOLE_HEAD = "whole head"
"""The name of the whole head in `Reference.state`, where the rank holds only parts of the other weights."""


class Reference:
    """The policy from which `anchor` measures divergence: as it is when this is made, until `follow` moves it."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._weights = {name: _held(p).detach().clone() for name, p in policy.trainable().items()}
        self._on_host: dict[str, Tensor] | None = None
        # The averages in fp32, of weights that are half floats: these would round a small step away.
        self._exact: dict[str, Tensor] = {}
        head = policy.text.head.weight
        self._whole_head: Tensor | None = None
        if policy.partitioned:
            # The one weight that a rank keeps whole: it is read outside of its module.
            with gathered(head):
                self._whole_head = head.detach().clone()

    @torch.no_grad()
    def anchor(self, batch: PackedBatch, divergence: Divergence | None) -> Anchor:
        """Return the anchoring policy's hidden states at the selected positions of `batch`, with its head."""
        trainable, head = self._policy.trainable(), self._policy.text.head.weight
        named = (self._weights[name] for name, parameter in trainable.items() if parameter is head)
        own_head = next(named, head.detach()) if self._whole_head is None else self._whole_head
        with _standing_in(trainable, self._weights):
            return Anchor(self._policy.text.trunk(batch), own_head, divergence)

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Move the anchor towards the policy: each weight becomes `decay` times itself plus 1 - `decay` times the
        policy's. Averages of half floats are kept in fp32."""
        for name, parameter in self._policy.trainable().items():
            self._average(name, self._weights[name], _held(parameter), decay)
        if self._whole_head is not None:
            head = self._policy.text.head.weight
            with gathered(head):
                self._average(WHOLE_HEAD, self._whole_head, head, decay)
        if self._weights is not self._on_host:
            self._on_host = None

    def _average(self, name: str, weight: Tensor, now: Tensor, decay: float) -> None:
        if weight.dtype in HALVES:
            exact = self._exact.setdefault(name, weight.float())
            weight.copy_(exact.lerp_(now.detach().to(exact), 1 - decay))
        else:
            weight.lerp_(now.detach().to(weight), 1 - decay)

    def state(self) -> dict[str, Tensor]:
        """Return the weights by name, averages of half floats in fp32."""
        whole = {} if self._whole_head is None else {WHOLE_HEAD: self._whole_head}
        return {**self._weights, **whole, **self._exact}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned."""
        for name, weight in self.state().items():
            place = self._whole_head if name == WHOLE_HEAD and self._whole_head is not None else self._weights[name]
            if place.dtype in HALVES and state[name].dtype not in HALVES:
                self._exact[name] = state[name].to(weight.device, copy=True)
            place.copy_(state[name])
        if self._weights is not self._on_host:
            self._on_host = None

    def to_host(self) -> None:
        """Keep the copy in host memory only, until `to_card`."""
        if self._on_host is None:
            pinned = self._policy.device.type == "cuda"
            self._on_host = {n: w.cpu().pin_memory() if pinned else w for n, w in self._weights.items()}
        self._weights = self._on_host

    def to_card(self) -> None:
        """Undo `to_host`. The host keeps its copy, which is good until `follow` moves the weights."""
        self._weights = {name: weight.to(self._policy.device) for name, weight in self._weights.items()}


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
