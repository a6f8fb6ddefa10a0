"""The one policy distribution: pi = softmax(mask(logits) / temperature), vision specials masked.

Sampler, trainer, reference and every entropy use these functions, so that they cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mm_spine.processors.chat import VISION_SPECIALS

IMPOSSIBLE = -1e4
"""Stands for a log-probability of -inf where 0 * -inf would be nan. Its exponential is 0 in every precision."""


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


@cache
def _places(ids: tuple[int, ...], device: torch.device) -> Tensor:
    # Cached, because a copy to a card for every token would wait for the card.
    return torch.tensor(ids, device=device)


def banned_ids(tokenizer: Any) -> tuple[int, ...]:
    """Return the ids of the vision specials that this tokenizer knows, ascending."""
    ids = (tokenizer.convert_tokens_to_ids(token) for token in VISION_SPECIALS)
    return tuple(sorted(i for i in ids if i is not None and i != tokenizer.unk_token_id))


def entropy_of(log_probs_SV: Tensor) -> Tensor:
    """Return H = -sum_v pi_v log pi_v over the full vocabulary, (S,), nats. Banned tokens (-inf) add nothing."""
    return -(log_probs_SV.exp() * log_probs_SV.clamp(min=IMPOSSIBLE)).sum(-1)
