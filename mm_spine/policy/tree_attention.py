"""Exact attention over token trees that lie in one row, without a mask.

Each node of a tree is read causally by its own tokens and whole by its descendants, so attention over the tree is a
list of causal and dense parts. The parts of a query are merged by the log-sum-exp of their scores. The gradient of a
part is its kernel's own, given the merged output and log-sum-exp: the backward of FlashAttention (Dao et al. 2022,
arXiv:2205.14135, algorithm 4) sums over keys, and these sums may be split anywhere. Nothing of size P x P is stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mm_spine.policy.kernels import KERNELS, Kernel, backend_name
from mm_spine.policy.token_tree import Node
from mm_spine.policy.varlen_attention import Call, varlen_attention, varlen_calls

OWN_CALL = 256
"""Tokens from which a node gets a kernel call of its own, which needs no copies."""
PADDING = 1.12
"""Shorter nodes of similar length share a call; together they are padded to at most this multiple of their tokens."""


class Part(NamedTuple):
    """Queries at some places of the row read keys at some places, in `rows` rows of equal length.

    Rows may be padded. `real` then picks the queries that are no padding out of all rows, and `places` says where in
    the row they belong. Both are None without padding.
    """

    queries: slice | Tensor
    keys: slice | Tensor
    causal: bool = False
    rows: int = 1
    real: Tensor | None = None
    places: Tensor | None = None


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """Which tokens of a row of `length` tokens read which: `nodes` cover the row, depth-first.

    The tokens of `mutual` nodes read one another both ways, as those of an image do in Gemma 3. Of the last layer only
    the outputs at `wanted` (ascending places) are used; `narrowed` computes no others.
    """

    nodes: tuple[Node, ...]
    length: int
    device: torch.device
    wanted: np.ndarray
    partial: bool = False
    mutual: frozenset[Node] = frozenset()

    @cached_property
    def narrowed(self) -> AttentionPlan:
        """The plan of the last layer: outputs at `wanted`, finite values elsewhere."""
        return replace(self, partial=True)

    @cached_property
    def wanted_at(self) -> Tensor:
        """`wanted` on the device."""
        return torch.from_numpy(self.wanted).to(self.device)

    @cached_property
    def themselves(self) -> tuple[Part, ...]:
        """Parts in which a node reads itself. Every query that is computed is in exactly one of them."""
        lone = [node for node in self.nodes if self._is_read_by_its_end_only(node)]
        ends = (Part(slice(node.stop - 1, node.stop), slice(node.start, node.stop)) for node in lone)
        others = [node for node in self.nodes if node not in lone and self._queries(node.start, node.stop) is not None]
        causal = [node for node in others if node not in self.mutual]
        pairs = ((self._queries(node.start, node.stop), node) for node in others if node in self.mutual)
        both_ways = (Part(at, slice(node.start, node.stop)) for at, node in pairs if at is not None)
        return (*ends, *both_ways, *(_causal_part(bucket, self.device) for bucket in _buckets(causal)))

    @cached_property
    def descendants(self) -> tuple[Part, ...]:
        """Parts in which the descendants of a node read the node."""
        pairs = ((self._queries(node.stop, node.end), node) for node in self.nodes)
        return tuple(Part(at, slice(node.start, node.stop)) for at, node in pairs if at is not None)

    @cached_property
    def calls(self) -> tuple[Call, ...]:
        """The same parts as calls of flash-attn, without padding."""
        return varlen_calls(self.nodes, self.wanted if self.partial else None, self.device, self.mutual)

    @cached_property
    def block_mask(self) -> Any:
        """FlexAttention's mask: a token is read from its own place to the end of its node's descendants."""
        from torch.nn.attention.flex_attention import create_block_mask

        sizes = torch.tensor([node.stop - node.start for node in self.nodes])
        end_P = torch.tensor([node.end for node in self.nodes]).repeat_interleave(sizes).to(self.device)

        def reads(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & (query < end_P[key])

        if self.mutual:
            node_P = torch.arange(len(sizes)).repeat_interleave(sizes).to(self.device)
            both = torch.tensor([node in self.mutual for node in self.nodes]).repeat_interleave(sizes).to(self.device)

            def reads(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                return ((key <= query) & (query < end_P[key])) | (both[key] & (node_P[query] == node_P[key]))

        on_cuda = self.device.type == "cuda"
        return create_block_mask(reads, None, None, self.length, self.length, str(self.device), _compile=on_cuda)

    def _wanted(self, start: int, stop: int) -> np.ndarray:
        first, last = np.searchsorted(self.wanted, (start, stop))
        return self.wanted[first:last]

    def _queries(self, start: int, stop: int) -> slice | Tensor | None:
        """Return the places in start..stop to compute, as a slice if they are contiguous; None if there are none."""
        if not self.partial:
            return slice(start, stop) if stop > start else None
        wanted = self._wanted(start, stop)
        if not len(wanted):
            return None
        first, last = int(wanted[0]), int(wanted[-1])
        if last - first + 1 == len(wanted):
            return slice(first, last + 1)
        return torch.from_numpy(wanted).to(self.device)

    def _is_read_by_its_end_only(self, node: Node) -> bool:
        # A prompt that predicts only first tokens: one query that reads the whole node, without a causal mask.
        return self.partial and self._wanted(node.start, node.stop).tolist() == [node.stop - 1]


def _buckets(nodes: Sequence[Node]) -> Iterator[list[Node]]:
    """Yield nodes of similar length together, longest first."""
    bucket: list[Node] = []
    real = 0
    for node in sorted(nodes, key=lambda n: n.start - n.stop):
        size = node.stop - node.start
        widest = bucket[0].stop - bucket[0].start if bucket else 0
        if bucket and (widest >= OWN_CALL or (len(bucket) + 1) * widest > PADDING * (real + size)):
            yield bucket
            bucket, real = [], 0
        bucket.append(node)
        real += size
    if bucket:
        yield bucket


def _causal_part(bucket: Sequence[Node], device: torch.device) -> Part:
    """Return the part in which each node of the bucket reads itself, padded to the longest with its last token."""
    if len(bucket) == 1:
        whole = slice(bucket[0].start, bucket[0].stop)
        return Part(whole, whole, causal=True)
    starts, stops = (torch.tensor(column)[:, None] for column in list(zip(*bucket, strict=True))[:2])
    within = torch.arange(int((stops - starts).max()))
    at = torch.minimum(starts + within, stops - 1).flatten()
    real = (within < stops - starts).flatten().nonzero()[:, 0]
    part = Part(at.to(device), at.to(device), causal=True, rows=len(bucket))
    return part if len(real) == len(at) else part._replace(real=real.to(device), places=at[real].to(device))


def tree_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: AttentionPlan,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Attend in one row: query (1, Hq, P, D), key and value (1, Hkv, P, D) -> (1, P, Hq, D).

    `backend` defaults to `backend_name`'s, `scale` to D ** -0.5.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    backend = backend or backend_name(query.device, query.dtype, query.shape[-1])
    if backend == "flex":
        return _flex(query, key, value, plan, scale).transpose(1, 2)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if backend == "flash_attn":
        return varlen_attention(q, k, v, plan.calls, scale)[None]
    return _Parts.apply(q, k, v, plan, KERNELS[backend], scale)[None]


def _flex(query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention
    from transformers.integrations.flex_attention import compile_friendly_flex_attention

    run: Any = compile_friendly_flex_attention if query.device.type == "cuda" else flex_attention
    grouped = query.shape[1] != key.shape[1]
    found: Tensor = run(query, key, value, block_mask=plan.block_mask, scale=scale, enable_gqa=grouped)
    return found


class _Parts(torch.autograd.Function):
    """Attention in parts merged by log-sum-exp: q (P, Hq, D), k and v (P, Hkv, D) -> (P, Hq, D)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, kernel: Kernel, scale: float) -> Tensor:
        out = _blank(q, q.shape, q.dtype, plan)
        lse = _blank(q, q.shape[:2], torch.promote_types(q.dtype, torch.float32), plan)
        for part in plan.themselves:
            found = kernel.forward(*_read(part, q, k, v), part.causal, scale)
            for whole, piece in zip((out, lse), found, strict=True):
                _put(whole, part.queries, part, piece)
        for part in plan.descendants:
            _merge(out, lse, part.queries, *kernel.forward(*_read(part, q, k, v), False, scale))
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.plan, ctx.kernel, ctx.scale = plan, kernel, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        found = tuple(_blank(x, x.shape, x.dtype, ctx.plan) for x in (q, k, v))

        def pieces(part: Part) -> Iterator[tuple[Tensor, slice | Tensor, Tensor]]:
            """Return (gradient of the whole, places, what this part adds there) of q, k and v."""
            merged = (_take(x, part.queries, part.rows) for x in (out, lse))
            arguments = (_without_padding(grad, part), *_read(part, q, k, v), *merged, part.causal, ctx.scale)
            return zip(found, (part.queries, part.keys, part.keys), ctx.kernel.backward(*arguments), strict=True)

        for part in ctx.plan.themselves:
            for whole, at, piece in pieces(part):
                _put(whole, at, part, piece)
        for part in ctx.plan.descendants:
            for whole, at, piece in pieces(part):
                _add(whole, at, piece[0].transpose(0, 1))
        return (*found, None, None, None)


def _blank(like: Tensor, shape: Sequence[int], dtype: torch.dtype, plan: AttentionPlan) -> Tensor:
    """Return room for what the parts write, zeroed where they may leave gaps."""
    make = torch.zeros if plan.partial else torch.empty
    return make(tuple(shape), dtype=dtype, device=like.device)


def _read(part: Part, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _take(q, part.queries, part.rows), _take(k, part.keys, part.rows), _take(v, part.keys, part.rows)


def _take(whole: Tensor, at: slice | Tensor, rows: int) -> Tensor:
    """(P, H, ...) -> (rows, H, T, ...): a view where `at` is a slice, else a copy."""
    if isinstance(at, slice):
        return whole[at][None].transpose(1, 2)
    return whole.index_select(0, at).unflatten(0, (rows, -1)).transpose(1, 2)


def _without_padding(grad: Tensor, part: Part) -> Tensor:
    """Do `_take` for the output's gradient, with zeros at padding."""
    # Padding repeats a real query: with a gradient of its own, the keys that it reads would be counted again.
    if isinstance(part.queries, slice) or part.real is None or part.places is None:
        return _take(grad, part.queries, part.rows)
    flat = grad.new_zeros(len(part.queries), *grad.shape[1:])
    flat.index_copy_(0, part.real, grad.index_select(0, part.places))
    return flat.unflatten(0, (part.rows, -1)).transpose(1, 2)


def _put(whole: Tensor, at: slice | Tensor, part: Part, piece: Tensor) -> None:
    """Write `piece` back to where `_take` took it from, without padding."""
    flat = piece.transpose(1, 2).flatten(0, 1)
    if isinstance(at, slice):
        whole[at] = flat
    elif part.real is None or part.places is None:
        whole.index_copy_(0, at, flat)
    else:
        whole.index_copy_(0, part.places, flat.index_select(0, part.real))


def _add(whole: Tensor, at: slice | Tensor, piece: Tensor) -> None:
    # No place occurs twice in `at`, so the order of the sum is fixed, on a card too.
    if isinstance(at, slice):
        whole[at] += piece
    else:
        whole.index_add_(0, at, piece)


def _merge(out: Tensor, lse: Tensor, at: slice | Tensor, more_1HTD: Tensor, more_lse_1HT: Tensor) -> None:
    """Merge the result over more keys into `out` and `lse` at the queries `at`, in place."""
    more, more_lse = more_1HTD[0].transpose(0, 1), more_lse_1HT[0].transpose(0, 1)
    before, before_lse = (x[at] for x in (out, lse))
    share = torch.sigmoid(more_lse - before_lse)[..., None]
    out[at] = torch.lerp(before.to(share.dtype), more.to(share.dtype), share).to(out.dtype)
    lse[at] = torch.logaddexp(before_lse, more_lse)
