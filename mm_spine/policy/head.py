"""Select, then project: only the tokens that need a distribution get one."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mm_spine.objective import entropy_of
from mm_spine.policy.distribution import Distribution

Divergence = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(log_probs_SV, reference_log_probs_SV, target_S) -> divergence per token (S,), nats."""


class Anchor(NamedTuple):
    """The reference policy at the same S positions: hidden states (S, D), head weight (V, D), and what to compare."""

    hidden_SD: Tensor
    weight_VD: Tensor
    divergence: Divergence


class Projected(NamedTuple):
    """Per selected token: log-probability of the token drawn, entropy, divergence from the anchor (or zeros)."""

    logp_S: Tensor
    entropy_S: Tensor
    kl_S: Tensor


class SelectedHead(nn.Module):
    """Owns the vocabulary projection, so that ZeRO-3 gathers it around `forward`.

    Never holds (tokens x vocabulary) for more than one chunk: later chunks are recomputed in backward.
    """

    def __init__(self, weight: nn.Parameter, chunk: int = 4096) -> None:
        super().__init__()
        self.weight = weight
        self.chunk = chunk

    def forward(
        self, hidden_SD: Tensor, target_S: Tensor, distribution: Distribution, anchor: Anchor | None = None
    ) -> Projected:
        parts = []
        for at in range(0, max(len(target_S), 1), self.chunk):
            piece = slice(at, at + self.chunk)
            there = None if anchor is None else anchor._replace(hidden_SD=anchor.hidden_SD[piece])
            arguments = (hidden_SD[piece], target_S[piece], distribution, there)
            if len(target_S) > self.chunk and torch.is_grad_enabled():
                parts.append(checkpoint(self._project, *arguments, use_reentrant=False))
            else:
                parts.append(self._project(*arguments))
        return Projected(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _project(
        self, hidden_SD: Tensor, target_S: Tensor, distribution: Distribution, anchor: Anchor | None
    ) -> Projected:
        log_probs_SV = distribution.log_probs(hidden_SD @ self.weight.T)
        logp_S = log_probs_SV.gather(-1, target_S[:, None])[:, 0]
        kl_S = torch.zeros_like(logp_S)
        if anchor is not None:
            reference_SV = distribution.log_probs(anchor.hidden_SD @ anchor.weight_VD.T)
            kl_S = anchor.divergence(log_probs_SV, reference_SV, target_S)
        return Projected(logp_S, entropy_of(log_probs_SV), kl_S)
