"""The one policy distribution: pi = softmax(mask(logits) / temperature), vision specials masked.

Sampler, trainer, reference and every entropy use these functions, so that they cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

VISION_SPECIALS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")

IMPOSSIBLE = -1e4
"""A log-probability in -inf's place where 0 x -inf would be nan: its exponential is 0 in every precision."""


@dataclass(frozen=True)
class Distribution:
    """`temperature` > 0; `banned` token ids can never be sampled: after one, no forward would fit its images."""

    temperature: float = 1.0
    banned: tuple[int, ...] = ()

    def log_probs(self, logits: Tensor) -> Tensor:
        """(..., V) logits -> (..., V) log-probabilities in nats, fp32 whatever the weights' type."""
        logits = logits.float()
        if self.banned:
            logits = logits.index_fill(-1, _places(self.banned, logits.device), float("-inf"))
        return torch.log_softmax(logits / self.temperature, dim=-1)


@cache
def _places(ids: tuple[int, ...], device: torch.device) -> Tensor:
    """Once a device, not once a token: a copy to a card waits for it."""
    return torch.tensor(ids, device=device)


def banned_ids(tokenizer: Any) -> tuple[int, ...]:
    """Ids of the vision specials that this tokenizer knows."""
    ids = (tokenizer.convert_tokens_to_ids(token) for token in VISION_SPECIALS)
    return tuple(sorted(i for i in ids if i is not None and i != tokenizer.unk_token_id))


def entropy_of(log_probs_SV: Tensor) -> Tensor:
    """H = -sum_v pi log pi over the full vocabulary, shape (S,), nats; banned tokens (-inf) add nothing."""
    return -(log_probs_SV.exp() * log_probs_SV.clamp(min=IMPOSSIBLE)).sum(-1)
