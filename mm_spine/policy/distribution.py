"""The one policy distribution: pi = softmax(mask(logits) / temperature), vision specials masked.

Sampler, trainer, reference and every entropy use these functions, so that they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

IMPOSSIBLE = -1e4
"""Stands for a log-probability of -inf where 0 * -inf would be nan. Its exponential is 0 in every precision."""

HALVES = (torch.bfloat16, torch.float16)

PIECE = 2**20
"""Weights of the head that are held in fp32 at a time where they are half floats: 4 MB, which stay in the cache."""


@dataclass(frozen=True)
class Distribution:
    """The policy's distribution at `temperature` > 0, without the `banned` token ids."""

    # Vision specials are banned because a response that holds one would need an image for it in every later forward.

    temperature: float = 1.0
    banned: tuple[int, ...] = ()

    def scaled(self, logits: Tensor, out: Tensor | None = None) -> Tensor:
        """Mask logits (..., V) and divide them by the temperature, in fp32 whatever the weights' type.

        The result is a copy, in `out` if that is given.
        """
        found = logits.float().clone() if out is None else out.copy_(logits)
        if self.banned:
            found.index_fill_(-1, _places(self.banned, logits.device), float("-inf"))
        return found.div_(self.temperature)

    def log_probs(self, logits: Tensor) -> Tensor:
        """Map logits (..., V) to log-probabilities (..., V) in nats, in fp32 whatever the weights' type."""
        return torch.log_softmax(self.scaled(logits), dim=-1)


def logits_of(hidden_SD: Tensor, weight_VD: Tensor) -> Tensor:
    """Return the logits (S, V) of hidden states under the head's weight, without gradient for half floats.

    Half floats are multiplied and summed in fp32, and the sum stays in fp32.
    """
    # A product in bfloat16 keeps 8 bits of each logit: at a logit of 20 that is a step of 1/8 nat.
    if weight_VD.dtype not in HALVES:
        return hidden_SD @ weight_VD.T
    if weight_VD.is_cuda and "dtype" in torch.ops.aten.mm.overloads():
        return torch.mm(hidden_SD, weight_VD.T, out_dtype=torch.float32)
    hidden = hidden_SD.float()
    found = hidden.new_empty(len(hidden_SD), len(weight_VD))
    rows = max(1, PIECE // weight_VD.shape[1])
    for first in range(0, len(weight_VD), rows):
        part = slice(first, first + rows)
        torch.mm(hidden, weight_VD[part].float().T, out=found[:, part])
    return found


@cache
def _places(ids: tuple[int, ...], device: torch.device) -> Tensor:
    # Cached, because a copy to a card for every token would wait for the card.
    return torch.tensor(ids, device=device)


def banned_ids(tokenizer: Any, tokens: Iterable[str]) -> tuple[int, ...]:
    """Return the ids of those `tokens` that this tokenizer knows, ascending."""
    ids = (tokenizer.convert_tokens_to_ids(token) for token in tokens)
    return tuple(sorted(i for i in ids if i is not None and i != tokenizer.unk_token_id))


def entropy_of(log_probs_SV: Tensor) -> Tensor:
    """Return H = -sum_v pi_v log pi_v over the full vocabulary, (S,), nats. Banned tokens (-inf) add nothing."""
    return -(log_probs_SV.exp() * log_probs_SV.clamp(min=IMPOSSIBLE)).sum(-1)
