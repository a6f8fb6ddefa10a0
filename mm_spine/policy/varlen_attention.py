"""Exact attention over token trees by the variable-length kernels of flash-attn, one call for each level of the tree.

The first call reads each node causally by itself. A further one for each level reads the nodes of that level by their
descendants; nodes of one level have different descendants, so that a call reads each query once. Results are merged by
the log-sum-exp of their scores, and each call's backward gets the merged output and log-sum-exp, as in
`tree_attention`.

Signatures and shapes are those of flash-attn 2.8.3: tokens of all sequences in one row, int32 bounds, log-sum-exp
(heads, tokens) in fp32, and a causal mask that is aligned with the last query and the last key.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mm_spine.policy.kernels import flash_attn_interface
from mm_spine.policy.token_tree import Node


class Call(NamedTuple):
    """One kernel call: sequence i has the queries bounds_q[i]..bounds_q[i + 1] of those at `queries`, keys likewise."""

    queries: slice | Tensor
    keys: slice | Tensor
    bounds_q: Tensor
    bounds_k: Tensor
    longest_q: int
    longest_k: int
    causal: bool


def varlen_calls(
    nodes: Sequence[Node], wanted: np.ndarray | None, device: torch.device, mutual: Collection[Node] = ()
) -> tuple[Call, ...]:
    """Return the calls that compute the outputs at the ascending places `wanted`, all for None; none if it is empty.

    `nodes` lie depth-first. The tokens of `mutual` nodes read one another both ways.
    """

    def places(start: int, stop: int) -> np.ndarray:
        if wanted is None:
            return np.arange(start, stop)
        first, last = np.searchsorted(wanted, (start, stop))
        return wanted[first:last]

    own: list[tuple[np.ndarray, np.ndarray]] = []
    levels: list[list[tuple[np.ndarray, np.ndarray]]] = []
    ends: list[int] = []
    for node in nodes:
        while ends and ends[-1] <= node.start:
            ends.pop()
        levels.extend([] for _ in range(len(ends) + 1 - len(levels)))
        mine, below = places(node.start, node.stop), places(node.stop, node.end)
        if node in mutual:
            # Its own tokens read it as its descendants do.
            mine, below = mine[:0], np.concatenate([mine, below])
        if len(mine):
            # The mask is aligned with the last query: keys behind it are left out.
            last = mine[-1] + 1
            own.append((np.arange(mine[0], last), np.arange(node.start, last)))
        if len(below):
            levels[len(ends)].append((below, np.arange(node.start, node.stop)))
        ends.append(node.end)
    return tuple(_call(pairs, pairs is own, device) for pairs in (own, *levels) if pairs)


def _call(pairs: Sequence[tuple[np.ndarray, np.ndarray]], causal: bool, device: torch.device) -> Call:
    queries, keys = zip(*pairs, strict=True)
    bounds = [np.cumsum([0, *map(len, each)]) for each in (queries, keys)]
    bounds_q, bounds_k = (torch.from_numpy(x.astype(np.int32)).to(device) for x in bounds)
    longest_q, longest_k = (max(map(len, each)) for each in (queries, keys))
    return Call(_at(queries, device), _at(keys, device), bounds_q, bounds_k, longest_q, longest_k, causal)


def _at(pieces: Sequence[np.ndarray], device: torch.device) -> slice | Tensor:
    """Return the places as a slice if they are contiguous, which costs no copy."""
    at = np.concatenate(pieces)
    if at[-1] - at[0] + 1 == len(at) and (np.diff(at) == 1).all():
        return slice(int(at[0]), int(at[-1]) + 1)
    return torch.from_numpy(at).to(device)


def varlen_attention(q: Tensor, k: Tensor, v: Tensor, calls: Sequence[Call], scale: float) -> Tensor:
    """Attend in one row: q (P, Hq, D), k and v (P, Hkv, D) -> (P, Hq, D), 0 where no call has a query."""
    found: Tensor = _Varlen.apply(q, k, v, calls, scale)
    return found


class _Varlen(torch.autograd.Function):
    """The calls merged by log-sum-exp. Sums over calls are taken in fp32, and rounded once."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, calls: Sequence[Call], scale: float) -> Tensor:
        exact = torch.promote_types(q.dtype, torch.float32)
        merged = q.new_zeros(q.shape, dtype=exact)
        # Nothing is read yet: what comes first takes it all, also where no causal call has the query.
        lse_HP = q.new_full((q.shape[1], q.shape[0]), -torch.inf, dtype=torch.float32)
        for call in calls:
            at = call.queries
            more, more_lse_HT = _forward(call, q, k, v, scale)
            if call.causal:
                # The first call.
                merged[at], lse_HP[:, at] = more.to(exact), more_lse_HT
            else:
                before_HT = lse_HP[:, at]
                share = torch.sigmoid(more_lse_HT - before_HT).T[..., None].to(exact)
                merged[at] = torch.lerp(merged[at], more.to(exact), share)
                lse_HP[:, at] = torch.logaddexp(before_HT, more_lse_HT)
        out = merged.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, lse_HP)
        ctx.calls, ctx.scale = calls, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse_HP = ctx.saved_tensors
        exact = torch.promote_types(q.dtype, torch.float32)
        found = tuple(torch.zeros(x.shape, dtype=exact, device=x.device) for x in (q, k, v))
        for call in ctx.calls:
            pieces = _backward(call, grad, q, k, v, out, lse_HP, ctx.scale)
            for whole, at, piece in zip(found, (call.queries, call.keys, call.keys), pieces, strict=True):
                # No place occurs twice in `at`, so the order of the sum is fixed.
                whole[at] += piece.to(exact)
        return (*(x.to(q.dtype) for x in found), None, None)


def _forward(call: Call, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return the output (T, Hq, D) and the log-sum-exp (Hq, T) of one call's T queries over its keys."""
    out, lse_HT, *_ = flash_attn_interface()._flash_attn_varlen_forward(
        q[call.queries],
        k[call.keys],
        v[call.keys],
        call.bounds_q,
        call.bounds_k,
        call.longest_q,
        call.longest_k,
        dropout_p=0.0,
        softmax_scale=scale,
        causal=call.causal,
    )
    return out, lse_HT


def _backward(
    call: Call, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse_HP: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of one call's queries, keys and values; `out` and `lse_HP` are over all calls."""
    read = q[call.queries], k[call.keys], v[call.keys]
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in read)
    flash_attn_interface()._flash_attn_varlen_backward(
        grad[call.queries].contiguous(),
        *read,
        out[call.queries],
        lse_HP[:, call.queries].contiguous(),
        dq,
        dk,
        dv,
        call.bounds_q,
        call.bounds_k,
        call.longest_q,
        call.longest_k,
        dropout_p=0.0,
        softmax_scale=scale,
        causal=call.causal,
        window_size_left=-1,
        window_size_right=-1,
        softcap=0.0,
        alibi_slopes=None,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return dq, dk, dv
