"""The vocabulary projection of selected tokens only, in chunks, with log-probs, entropies and divergences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mm_spine.policy.distribution import IMPOSSIBLE, Distribution, entropy_of, logits_of
from mm_spine.types import Statistic

CHUNK_BYTES = 64 * 2**20
"""Bytes of one chunk of logits in fp32 on a CPU, and on a GPU without much room."""

LARGEST_CHUNK = 2**30
"""Bytes above which a chunk gains nothing on a GPU: 1,766 rows of a vocabulary of 151,936."""

CHUNKS_ALIVE = 10
"""Tensors of a chunk's size that live at a time with a divergence, at most. Without one there are three."""

CHUNK_SHARE = 0.25
"""Share of a GPU's free memory that the tensors of a chunk may take."""

Divergence = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(log_probs_SV, reference_log_probs_SV, target_S) -> divergence of each token (S,), nats."""


class Anchor(NamedTuple):
    """The reference policy at the same S positions: hidden states, head weight, and the divergence from it (None where
    only statistics read its log-probs)."""

    hidden_SD: Tensor
    weight_VD: Tensor
    divergence: Divergence | None


class Projected(NamedTuple):
    """For each selected token: log-prob of the token drawn, entropy, divergence from the anchor (or 0), all nats; and
    the values of the statistics asked for."""

    logp_S: Tensor
    entropy_S: Tensor
    kl_S: Tensor
    statistics: tuple[Tensor, ...] = ()

    def flat(self) -> tuple[Tensor, ...]:
        return (*self[:3], *self.statistics)


def _projected(flat: Sequence[Tensor]) -> Projected:
    logp_S, entropy_S, kl_S, *statistics = flat
    return Projected(logp_S, entropy_S, kl_S, tuple(statistics))


class SelectedHead(nn.Module):
    """Project selected tokens on the vocabulary, one chunk of `chunk_bytes` at a time; None: as the device has room.

    Log-probs of all chunks but the last are computed again in the backward pass.
    """

    # A module of its own that owns the weight, so that ZeRO stage 3 gathers the weight around `forward`.

    def __init__(self, weight: nn.Parameter, chunk_bytes: int | None = None) -> None:
        super().__init__()
        self.weight = weight
        self.chunk_bytes = chunk_bytes

    def forward(
        self,
        hidden_SD: Tensor,
        target_S: Tensor,
        distribution: Distribution,
        anchor: Anchor | None = None,
        statistics: Sequence[Statistic] = (),
    ) -> Projected:
        chunk_bytes = self.chunk_bytes or chunk_bytes_on(hidden_SD.device)
        rows = max(1, chunk_bytes // (4 * len(self.weight)))
        settings = distribution, anchor, tuple(statistics)
        return _projected(_Projection.apply(hidden_SD, self.weight, target_S, settings, rows))


def chunk_bytes_on(device: torch.device) -> int:
    """Return the bytes of a chunk: by the memory that is free now on a GPU, the same always elsewhere."""
    if device.type != "cuda":
        return CHUNK_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    return chunk_bytes_within(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def chunk_bytes_within(free: int) -> int:
    """Return CHUNK_BYTES, doubled while the tensors of a chunk take no more than their share of `free` bytes."""
    # Doubling keeps the sums of a step the same over small changes of what is free.
    chunk = CHUNK_BYTES
    while chunk < LARGEST_CHUNK and 2 * chunk * CHUNKS_ALIVE <= CHUNK_SHARE * free:
        chunk *= 2
    return chunk


class _LogProbs(NamedTuple):
    """Log-probs of one chunk of C tokens, the policy's and the anchor's."""

    policy_CV: Tensor
    anchor_CV: Tensor | None


@dataclass(frozen=True, eq=False)
class _Head:
    """What a chunk, a slice of the S selected tokens, is computed from."""

    hidden_SD: Tensor
    weight_VD: Tensor
    target_S: Tensor
    distribution: Distribution
    anchor: Anchor | None
    statistics: Sequence[Statistic]

    def log_probs(self, chunk: slice) -> _LogProbs:
        policy_CV = self.distribution.log_probs(logits_of(self.hidden_SD[chunk], self.weight_VD))
        if self.anchor is None:
            return _LogProbs(policy_CV, None)
        anchor_CV = logits_of(self.anchor.hidden_SD[chunk], self.anchor.weight_VD)
        return _LogProbs(policy_CV, self.distribution.log_probs(anchor_CV))

    def measure(self, chunk: slice, found: _LogProbs) -> Projected:
        logp_C = found.policy_CV.gather(-1, self.target_S[chunk, None])[:, 0]
        kl_C = torch.zeros_like(logp_C)
        if self.anchor is not None and self.anchor.divergence is not None and found.anchor_CV is not None:
            kl_C = self.anchor.divergence(found.policy_CV, found.anchor_CV, self.target_S[chunk])
        values = (value(found.policy_CV, found.anchor_CV, self.target_S[chunk]) for value in self.statistics)
        return Projected(logp_C, entropy_of(found.policy_CV), kl_C, tuple(values))

    def logits_gradient(self, chunk: slice, found: _LogProbs, entropy_C: Tensor, upstream: Projected) -> Tensor:
        """Return the gradient of the loss by the chunk's logits (C, V). Overwrites the policy's log-probs.

        With p the probabilities and H the entropy: d logp = onehot - p for the token drawn and dH = -p (log p + H),
        both divided by the temperature. The gradient d of divergence and statistics by the log-probs becomes
        d - p sum(d).
        """
        # In place wherever possible: each of these tensors has the size of a chunk. For a banned token p is 0, and so
        # are all terms.
        by_logp_C, by_entropy_C1 = upstream.logp_S[chunk], upstream.entropy_S[chunk, None]
        by_log_p_CV = self._by_log_probs(chunk, found, upstream)
        total_C = by_logp_C if by_log_p_CV is None else by_logp_C + by_log_p_CV.sum(-1)
        p_CV = found.policy_CV.exp()
        slope_CV = found.policy_CV.clamp_(min=IMPOSSIBLE).add_(entropy_C[:, None]).mul_(by_entropy_C1)
        gradient_CV = slope_CV.add_(total_C[:, None]).mul_(p_CV.neg_())
        if by_log_p_CV is not None:
            gradient_CV.add_(by_log_p_CV)
        gradient_CV.scatter_add_(-1, self.target_S[chunk, None], by_logp_C[:, None])
        return gradient_CV.div_(self.distribution.temperature)

    def _by_log_probs(self, chunk: slice, found: _LogProbs, upstream: Projected) -> Tensor | None:
        """Return the gradient of divergence and statistics by the policy's log-probs (C, V), None without any."""
        divergence = None if self.anchor is None else self.anchor.divergence
        if not self.statistics and divergence is None:
            return None
        with torch.enable_grad():
            log_p_CV = found.policy_CV.detach().requires_grad_()
            values = [value(log_p_CV, found.anchor_CV, self.target_S[chunk]) for value in self.statistics]
            weights = [weight_S[chunk] for weight_S in upstream.statistics]
            if divergence is not None and found.anchor_CV is not None:
                values.append(divergence(log_p_CV, found.anchor_CV, self.target_S[chunk]))
                weights.append(upstream.kl_S[chunk])
        return torch.autograd.grad(values, log_p_CV, weights)[0]


class _Projection(torch.autograd.Function):
    """`Projected` in chunks of `rows` tokens, with the gradients by hidden states and head weight."""

    # Compared with an activation checkpoint per chunk this takes two thirds of the time and half the memory, measured
    # at a vocabulary of 151,936 on a CPU: the head's gradient is summed in place, and no chunk is copied.

    @staticmethod
    def forward(
        ctx: Any,
        hidden_SD: Tensor,
        weight_VD: Tensor,
        target_S: Tensor,
        settings: tuple[Distribution, Anchor | None, tuple[Statistic, ...]],
        rows: int,
    ) -> tuple[Tensor, ...]:
        head = _Head(hidden_SD, weight_VD, target_S, *settings)
        ctx.chunks = [slice(at, at + rows) for at in range(0, max(len(target_S), 1), rows)]
        parts = [head.measure(chunk, head.log_probs(chunk)) for chunk in ctx.chunks[:-1]]
        ctx.last = head.log_probs(ctx.chunks[-1])
        parts.append(head.measure(ctx.chunks[-1], ctx.last))
        found = _projected([torch.cat(column) for column in zip(*(part.flat() for part in parts), strict=True)])
        # The parameter itself is saved: under ZeRO stage 3 the backward pass finds it gathered again.
        ctx.save_for_backward(hidden_SD, weight_VD, target_S, found.entropy_S)
        ctx.settings = settings
        return found.flat()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden_SD, weight_VD, target_S, entropy_S = ctx.saved_tensors
        head = _Head(hidden_SD, weight_VD, target_S, *ctx.settings)
        by_hidden_SD = torch.empty_like(hidden_SD)
        by_weight_VD: Tensor | None = None
        last, ctx.last = ctx.last, None
        for chunk in reversed(ctx.chunks):
            found, last = last or head.log_probs(chunk), None
            by_logits_CV = head.logits_gradient(chunk, found, entropy_S[chunk], _projected(upstream))
            del found
            by_logits_CV = by_logits_CV.to(weight_VD.dtype)
            by_hidden_SD[chunk] = by_logits_CV @ weight_VD
            if ctx.needs_input_grad[1]:
                by_weight_VD = _add_product(by_weight_VD, by_logits_CV.T, hidden_SD[chunk])
        return by_hidden_SD, None if by_weight_VD is None else by_weight_VD.to(weight_VD.dtype), None, None, None


def _add_product(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """Return total + left @ right, in fp32 or better and in place; the product itself if `total` is None."""
    if total is None:
        return left @ right
    total = total.to(torch.promote_types(total.dtype, torch.float32))
    if total.dtype != left.dtype:
        return total.add_(left @ right)
    # Not `addmm_`, which torch's counter of FLOPs does not see.
    return torch.addmm(total, left, right, out=total)
