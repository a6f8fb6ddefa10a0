"""Attention over token trees in one row, and over grouped queries while decoding.

Each node of a tree is read causally by itself and wholly by its descendants, so the tree is a list of dense or
causal parts without any mask. The parts of a query are merged by the log-sum-exp of their scores; their gradients
are each kernel's own, given the merged output and log-sum-exp (the backward of FlashAttention, Dao et al. 2022,
arXiv:2205.14135, algorithm 4, whose sums over keys split anywhere). Nothing else is stored, and nothing is N x N.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from mm_spine.policy.token_tree import Node

NAME = "mm_spine_grouped"
ALONE = 256
"""Tokens from which a node gets a kernel call of its own, without copies."""
PADDING = 1.12
"""Shorter nodes of similar length share a call, padded to at most this much."""


class Part(NamedTuple):
    """Queries at some places read keys at some places, in `rows` rows of equal length.

    `real` picks the queries that are no padding out of all rows, `places` says where they are; None: all, in order.
    """

    queries: slice | Tensor
    keys: slice | Tensor
    causal: bool = False
    rows: int = 1
    real: Tensor | None = None
    places: Tensor | None = None


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """What the tokens of one row of `length` tokens may read: nodes that cover it, depth-first.

    Of the last layer only the outputs at `wanted` (ascending places) are used: `narrowed` computes no others.
    """

    nodes: tuple[Node, ...]
    length: int
    device: torch.device
    wanted: np.ndarray
    partial: bool = False

    @cached_property
    def narrowed(self) -> AttentionPlan:
        """The plan of the last layer: outputs at `wanted`, something finite elsewhere."""
        return replace(self, partial=True)

    @cached_property
    def wanted_at(self) -> Tensor:
        """`wanted` on the device."""
        return torch.from_numpy(self.wanted).to(self.device)

    @cached_property
    def themselves(self) -> tuple[Part, ...]:
        """Nodes on themselves: every query that is computed is in exactly one."""
        lone = [node for node in self.nodes if self._is_read_by_its_end_alone(node)]
        ends = (Part(slice(node.stop - 1, node.stop), slice(node.start, node.stop)) for node in lone)
        others = [node for node in self.nodes if node not in lone and self._queries(node.start, node.stop) is not None]
        return (*ends, *(_causal_part(bucket, self.device) for bucket in _buckets(others)))

    @cached_property
    def descendants(self) -> tuple[Part, ...]:
        """What follows a node, on the node."""
        pairs = ((self._queries(node.stop, node.end), node) for node in self.nodes)
        return tuple(Part(at, slice(node.start, node.stop)) for at, node in pairs if at is not None)

    @cached_property
    def block_mask(self) -> Any:
        """The same for FlexAttention: a token is read from itself to the end of its node's descendants."""
        from torch.nn.attention.flex_attention import create_block_mask

        sizes = torch.tensor([node.stop - node.start for node in self.nodes])
        end_P = torch.tensor([node.end for node in self.nodes]).repeat_interleave(sizes).to(self.device)

        def reads(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & (query < end_P[key])

        on_cuda = self.device.type == "cuda"
        return create_block_mask(reads, None, None, self.length, self.length, str(self.device), _compile=on_cuda)

    def _wanted(self, start: int, stop: int) -> np.ndarray:
        first, last = np.searchsorted(self.wanted, (start, stop))
        return self.wanted[first:last]

    def _queries(self, start: int, stop: int) -> slice | Tensor | None:
        """Places of start..stop to compute, as a slice if they are contiguous; None if there is none."""
        if not self.partial:
            return slice(start, stop) if stop > start else None
        wanted = self._wanted(start, stop)
        if not len(wanted):
            return None
        first, last = int(wanted[0]), int(wanted[-1])
        if last - first + 1 == len(wanted):
            return slice(first, last + 1)
        return torch.from_numpy(wanted).to(self.device)

    def _is_read_by_its_end_alone(self, node: Node) -> bool:
        """As a prompt that predicts first tokens only: one query that reads the whole node."""
        return self.partial and self._wanted(node.start, node.stop).tolist() == [node.stop - 1]


def _buckets(nodes: Sequence[Node]) -> Iterator[list[Node]]:
    """Nodes of similar length, longest first."""
    bucket: list[Node] = []
    real = 0
    for node in sorted(nodes, key=lambda n: n.start - n.stop):
        size = node.stop - node.start
        widest = bucket[0].stop - bucket[0].start if bucket else 0
        if bucket and (widest >= ALONE or (len(bucket) + 1) * widest > PADDING * (real + size)):
            yield bucket
            bucket, real = [], 0
        bucket.append(node)
        real += size
    if bucket:
        yield bucket


def _causal_part(bucket: Sequence[Node], device: torch.device) -> Part:
    if len(bucket) == 1:
        whole = slice(bucket[0].start, bucket[0].stop)
        return Part(whole, whole, causal=True)
    starts, stops = (torch.tensor(column)[:, None] for column in list(zip(*bucket, strict=True))[:2])
    within = torch.arange(int((stops - starts).max()))
    at = torch.minimum(starts + within, stops - 1).flatten()
    real = (within < stops - starts).flatten().nonzero()[:, 0]
    part = Part(at.to(device), at.to(device), causal=True, rows=len(bucket))
    return part if len(real) == len(at) else part._replace(real=real.to(device), places=at[real].to(device))


class Kernel(Protocol):
    """Attention of one part: q (B, Hq, T, D) on k, v (B, Hkv, K, D); lse (B, Hq, T) is the scores' log-sum-exp."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp."""
        ...

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v through these keys, where `out` and `lse` may be of more keys than these."""
        ...


class FlashOnCPU:
    """PyTorch's flash attention for the CPU; it groups queries by itself.

    Causal parts in bf16 go through fp32: measured, the kernel's own bf16 takes 1.3 (256 tokens) to 30 times (16) as
    long backward. Dense parts are longer, and there bf16 is the faster one.
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = kernel(*_exact_if(causal, q, k, v), 0.0, causal, scale=scale)
        return out.to(q.dtype), lse

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        found = kernel(*_exact_if(causal, grad, q, k, v, out), lse, 0.0, causal, scale=scale)
        dq, dk, dv = (x.to(q.dtype) for x in found)
        return dq, dk, dv


def _exact_if(wanted: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
    """In fp32 or better, if wanted."""
    return tuple(x.to(torch.promote_types(x.dtype, torch.float32)) for x in tensors) if wanted else tensors


class PlainKernel:
    """The same in matrix products and in fp32 or better, for any device and type."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        return attend_plainly(q, k, v, scale, None, causal)

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        scores = _scores(q, k, causal, scale)
        heads, exact = k.shape[1], scores.dtype
        groups = q.shape[1] // heads
        grad, out, q_, lse = (x.unflatten(1, (heads, groups)).to(exact) for x in (grad, out, q, lse))
        probs = (scores - lse[..., None]).exp()
        through = grad @ _grouped(v, 1).to(exact).mT - (grad * out).sum(-1, keepdim=True)
        d_scores = scale * probs * through
        dq = (d_scores @ _grouped(k, 1).to(exact)).flatten(1, 2)
        dk, dv = ((left.mT @ right).sum(2) for left, right in ((d_scores, q_), (probs, grad)))
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _grouped(x: Tensor, groups: int) -> Tensor:
    """(B, H x groups, T, D) -> (B, H, groups, T, D)."""
    return x.unflatten(1, (-1, groups))


def _scores(q: Tensor, k: Tensor, causal: bool, scale: float) -> Tensor:
    """Scaled scores (B, Hkv, G, T, K), -inf where a query may not look."""
    exact = torch.promote_types(q.dtype, torch.float32)
    scores = scale * (_grouped(q, q.shape[1] // k.shape[1]).to(exact) @ _grouped(k, 1).to(exact).mT)
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return scores


def backend_name(device: torch.device, dtype: torch.dtype) -> str:
    """What computes attention over trees there: `flash_cpu`, `flex` (FlexAttention, compiled) or `plain`."""
    if device.type == "cpu" and dtype in (torch.float32, torch.float64, torch.bfloat16):
        return "flash_cpu"
    return "flex" if device.type == "cuda" else "plain"


KERNELS: dict[str, Kernel] = {"flash_cpu": FlashOnCPU(), "plain": PlainKernel()}


def tree_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: AttentionPlan,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """query (1, Hq, P, D), key and value (1, Hkv, P, D) of one row -> (1, P, Hq, D), exact for any tree."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    backend = backend or backend_name(query.device, query.dtype)
    if backend == "flex":
        return _flex(query, key, value, plan, scale).transpose(1, 2)
    row = (x[0].transpose(0, 1) for x in (query, key, value))
    return _Parts.apply(*row, plan, KERNELS[backend], scale)[None]


def _flex(query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention
    from transformers.integrations.flex_attention import compile_friendly_flex_attention

    run: Any = compile_friendly_flex_attention if query.device.type == "cuda" else flex_attention
    grouped = query.shape[1] != key.shape[1]
    found: Tensor = run(query, key, value, block_mask=plan.block_mask, scale=scale, enable_gqa=grouped)
    return found


class _Parts(torch.autograd.Function):
    """Parts merged by log-sum-exp: q (P, Hq, D), k and v (P, Hkv, D) -> (P, Hq, D)."""

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
            """(gradient of the whole, places, what this part adds there) of q, k and v."""
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
    """Room for what the parts write; zeros where they may leave gaps."""
    make = torch.zeros if plan.partial else torch.empty
    return make(tuple(shape), dtype=dtype, device=like.device)


def _read(part: Part, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _take(q, part.queries, part.rows), _take(k, part.keys, part.rows), _take(v, part.keys, part.rows)


def _take(whole: Tensor, at: slice | Tensor, rows: int) -> Tensor:
    """(P, H, ...) -> (rows, H, T, ...): a view of a slice, a copy of other places."""
    if isinstance(at, slice):
        return whole[at][None].transpose(1, 2)
    return whole.index_select(0, at).unflatten(0, (rows, -1)).transpose(1, 2)


def _without_padding(grad: Tensor, part: Part) -> Tensor:
    """`_take` for gradients: none comes from padding, or the keys before it would get some."""
    if isinstance(part.queries, slice) or part.real is None or part.places is None:
        return _take(grad, part.queries, part.rows)
    flat = grad.new_zeros(len(part.queries), *grad.shape[1:])
    flat.index_copy_(0, part.real, grad.index_select(0, part.places))
    return flat.unflatten(0, (part.rows, -1)).transpose(1, 2)


def _put(whole: Tensor, at: slice | Tensor, part: Part, piece: Tensor) -> None:
    """The inverse of `_take`, padding left out."""
    flat = piece.transpose(1, 2).flatten(0, 1)
    if isinstance(at, slice):
        whole[at] = flat
    elif part.real is None or part.places is None:
        whole.index_copy_(0, at, flat)
    else:
        whole.index_copy_(0, part.places, flat.index_select(0, part.real))


def _add(whole: Tensor, at: slice | Tensor, piece: Tensor) -> None:
    """No place occurs twice, so the sum has one order."""
    if isinstance(at, slice):
        whole[at] += piece
    else:
        whole.index_add_(0, at, piece)


def _merge(out: Tensor, lse: Tensor, at: slice | Tensor, more_1HTD: Tensor, more_lse_1HT: Tensor) -> None:
    """Give the queries at `at` more keys, in place."""
    more, more_lse = more_1HTD[0].transpose(0, 1), more_lse_1HT[0].transpose(0, 1)
    before, before_lse = (x[at] for x in (out, lse))
    share = torch.sigmoid(more_lse - before_lse)[..., None]
    out[at] = torch.lerp(before.to(share.dtype), more.to(share.dtype), share).to(out.dtype)
    lse[at] = torch.logaddexp(before_lse, more_lse)


class Context(Protocol):
    """Keys and values that a forward without gradient finds elsewhere, or leaves there, layer by layer."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """query (R, Hq, P, D), the new key and value (R, Hkv, P, D) -> output (R, P, Hq, D)."""
        ...


@torch.no_grad()
def attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None = None, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """q (B, Hq, T, D) on k and v (B, Hkv, K, D), without gradient: output, and the scores' log-sum-exp (B, Hq, T).

    `bias` (B, 1, 1, K) is added to the scores, see `no_key`.
    """
    return ATTEND.get(q.device.type, attend_plainly)(q, k, v, scale, bias, causal)


def no_key(width: int, ends_B: Tensor, dtype: torch.dtype) -> Tensor:
    """The bias (B, 1, 1, width) of keys that are real before `ends_B` only."""
    # CUDA's kernel wants rows that start at multiples of 16 bytes, and the bias in the queries' type.
    wide = torch.zeros(len(ends_B), 1, 1, -(-width // 16) * 16, dtype=dtype, device=ends_B.device)
    behind = torch.arange(wide.shape[-1], device=ends_B.device) >= ends_B[:, None, None, None]
    return wide.masked_fill_(behind, -torch.inf)[..., :width]


def attend_plainly(
    q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None, causal: bool
) -> tuple[Tensor, Tensor]:
    """`attend` in matrix products and in fp32 or better, for any device and type."""
    scores = _scores(q, k, causal, scale)
    scores = scores if bias is None else scores + bias[:, None]
    lse = scores.logsumexp(-1)
    out = (scores - lse[..., None]).exp() @ _grouped(v, 1).to(scores.dtype)
    return out.flatten(1, 2).to(q.dtype), lse.flatten(1, 2)


def _attend_on_cpu(
    q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None, causal: bool
) -> tuple[Tensor, Tensor]:
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = kernel(q, k, v, 0.0, causal, attn_mask=bias, scale=scale)
    return out, lse


def _attend_on_cuda(
    q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None, causal: bool
) -> tuple[Tensor, Tensor]:
    """By the memory-efficient kernel: it takes a bias, gives the log-sum-exp, and wants a key head a query head."""
    groups = q.shape[1] // k.shape[1]
    k, v = (x if groups == 1 else x.repeat_interleave(groups, dim=1) for x in (k, v))
    wide = None if bias is None else bias.expand(*q.shape[:3], k.shape[2])
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    out, lse, *_ = kernel(q, k, v, wide, True, 0.0, causal, scale=scale)
    return out, lse[..., : q.shape[2]]


ATTEND = {"cpu": _attend_on_cpu, "cuda": _attend_on_cuda}
"""By type of device; elsewhere `attend_plainly`."""


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
    """query (B, Hq, P, D), key and value (B, Hkv, K, D) -> output (B, P, Hq, D).

    With a `plan` (B = 1) over its tree, with a `context` as that does it; else under the boolean mask (B, 1, P, K), by
    one call that copies no key and no value: folding a group's query heads into the query length costs a copy of
    queries, few while decoding.
    """
    if plan is not None:
        if dropout:
            raise ValueError(f"attention_dropout={dropout}: training packs without dropout; set it to 0 in config.json")
        return tree_attention(query, key, value, plan, scaling), None
    if context is not None:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return context.attend(cast(int, module.layer_idx), query, key, value, scale), None
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
    """For calls with a `plan` or `context`: transformers hands any 4D mask down as it is, and makes none of its own."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)


def explicit_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """transformers' own causal and padding mask (B, 1, P, K), never left implicit; for calls that bring no mask."""
    return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})


AttentionInterface.register(NAME, grouped_attention)
# Without it transformers builds no mask for an unknown name, and a plain forward of the model would not be causal.
AttentionMaskInterface.register(NAME, explicit_mask)
