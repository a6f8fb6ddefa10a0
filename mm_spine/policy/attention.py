"""Scaled dot-product attention for grouped queries that copies no key and no value.

transformers repeats keys and values for every query head whenever a mask is given; folding a group's
query heads into the query length instead costs a copy of the queries, which are few while decoding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

NAME = "mm_spine_grouped"


def grouped_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query (B, Hq, P, D), key and value (B, Hkv, K, D), boolean mask (B, 1, P, K) -> output (B, P, Hq, D)."""
    rows, query_heads, length, width = query.shape
    groups = query_heads // key.shape[1]
    folded = query.reshape(rows, key.shape[1], groups * length, width)
    if attention_mask is not None and length > 1:
        attention_mask = attention_mask.repeat(1, 1, groups, 1)
    output = torch.nn.functional.scaled_dot_product_attention(
        folded, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
    )
    return output.reshape(rows, query_heads, length, width).transpose(1, 2), None


def explicit_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """transformers' own causal and padding mask (B, 1, P, K), never left implicit; for calls that bring no mask."""
    return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})


AttentionInterface.register(NAME, grouped_attention)
# Without it transformers builds no mask for an unknown name, and a plain forward of the model would not be causal.
AttentionMaskInterface.register(NAME, explicit_mask)
