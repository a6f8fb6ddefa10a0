"""The attention that transformers' models call: over token trees, through a decoding context, or under a mask."""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from mm_spine.policy.tree_attention import AttentionPlan, tree_attention

NAME = "mm_spine_grouped"


class Context(Protocol):
    """Keys and values that a forward without gradient reads from elsewhere, or leaves there, layer by layer."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attend: query (R, Hq, P, D), the new key and value (R, Hkv, P, D) -> output (R, P, Hq, D)."""
        ...


def grouped_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    plan: AttentionPlan | None = None,
    context: Context | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend: query (B, Hq, P, D), key and value (B, Hkv, K, D) -> output (B, P, Hq, D).

    A `plan` (B = 1) attends over its tree, a `context` as its `attend` does. Without either, the boolean
    `attention_mask` (B, 1, P, K) applies. Raises ValueError for a plan with dropout.
    """
    if plan is not None:
        if dropout:
            raise ValueError(f"attention_dropout={dropout}: training packs without dropout; set it to 0 in config.json")
        return tree_attention(query, key, value, plan, scaling), None
    if context is not None:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return context.attend(cast(int, module.layer_idx), query, key, value, scale), None
    # Folding a group's query heads into the query length copies queries, which are few while decoding, and no keys.
    rows, query_heads, length, width = query.shape
    groups = query_heads // key.shape[1]
    folded = query.reshape(rows, key.shape[1], groups * length, width)
    if attention_mask is not None and length > 1:
        attention_mask = attention_mask.repeat(1, 1, groups, 1)
    output = torch.nn.functional.scaled_dot_product_attention(
        folded, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
    )
    return output.reshape(rows, query_heads, length, width).transpose(1, 2), None


def no_mask(device: torch.device) -> Tensor:
    """Return the mask for calls with a `plan` or a `context`, which ignore it."""
    # transformers passes any 4D mask on as it is; without one it would build its own, of size P x P.
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)


def explicit_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """Return transformers' causal and padding mask (B, 1, P, K), never left implicit."""
    return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})


AttentionInterface.register(NAME, grouped_attention)
# Without it transformers builds no mask for an unknown name, and a plain forward of the model would not be causal.
AttentionMaskInterface.register(NAME, explicit_mask)
