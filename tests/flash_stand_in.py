"""flash-attn 2.8.3 in plain torch: its variable-length functions with their signatures, shapes and demands.

Unlike the real kernels they also take fp32 and fp64, so that exactness can be tested on a CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from mm_spine.policy import kernels

calls: list[tuple[int, int, bool]] = []
"""Of every forward call: sequences, tokens of the queries, causal."""


def _check(q: Tensor, k: Tensor, v: Tensor, bounds_q: Tensor, bounds_k: Tensor, most_q: int, most_k: int) -> None:
    assert q.dim() == k.dim() == 3 and k.shape == v.shape and q.shape[1] % k.shape[1] == 0
    assert q.shape[2] == k.shape[2] <= 256 and q.shape[2] % 8 == 0
    assert q.dtype == k.dtype == v.dtype and all(x.stride(-1) == 1 for x in (q, k, v))
    for bounds, tokens, most in ((bounds_q, len(q), most_q), (bounds_k, len(k), most_k)):
        sizes = bounds.diff().tolist()
        assert bounds.dtype == torch.int32 and bounds.is_contiguous() and len(bounds) == len(bounds_q)
        assert int(bounds[0]) == 0 and int(bounds[-1]) == tokens and min(sizes) >= 1 and max(sizes) <= most


def _sequences(bounds_q: Tensor, bounds_k: Tensor) -> Iterator[tuple[slice, slice]]:
    edges = [list(zip(x[:-1].tolist(), x[1:].tolist(), strict=True)) for x in (bounds_q, bounds_k)]
    for at_q, at_k in zip(*edges, strict=True):
        yield slice(*at_q), slice(*at_k)


def _scores(q_THD: Tensor, k_KHD: Tensor, scale: float, causal: bool) -> Tensor:
    """(Hq, T, K); a causal mask is aligned with the last query and the last key."""
    keys = k_KHD.repeat_interleave(q_THD.shape[1] // k_KHD.shape[1], dim=1)
    scores = scale * torch.einsum("thd,khd->htk", q_THD, keys)
    if causal:
        ones = torch.ones(scores.shape[1:], dtype=torch.bool)
        scores = scores.masked_fill(ones.triu(scores.shape[2] - scores.shape[1] + 1), -torch.inf)
    return scores


def _exact(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.to(torch.promote_types(x.dtype, torch.float32)) for x in tensors)


def _flash_attn_varlen_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int = -1,
    window_size_right: int = -1,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    return_softmax: bool = False,
    block_table: Tensor | None = None,
    leftpad_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
    zero_tensors: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(output (T, Hq, D), softmax_lse (Hq, T) in fp32, nothing, the state of the dropout)."""
    assert dropout_p == 0.0 and (window_size_left, window_size_right, softcap, alibi_slopes) == (-1, -1, 0.0, None)
    _check(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    calls.append((len(cu_seqlens_q) - 1, len(q), causal))
    out, lse = torch.empty_like(q), torch.empty(q.shape[1], len(q), dtype=torch.float32)
    for at_q, at_k in _sequences(cu_seqlens_q, cu_seqlens_k):
        one, keys, values = _exact(q[at_q], k[at_k], v[at_k])
        scores = _scores(one, keys, softmax_scale, causal)
        values = values.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        out[at_q] = torch.einsum("htk,khd->thd", scores.softmax(-1), values).to(q.dtype)
        lse[:, at_q] = scores.logsumexp(-1).float()
    return out, lse, torch.empty(0, dtype=q.dtype), torch.empty(2, dtype=torch.int64)


def _flash_attn_varlen_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    deterministic: bool,
    rng_state: Tensor | None = None,
    zero_tensors: bool = False,
) -> Tensor:
    """Fill dq, dk and dv from the output and the log-sum-exp that are given; return the rows' sums (Hq, T + ...)."""
    _check(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    assert softmax_lse.shape == (q.shape[1], len(q)) and softmax_lse.dtype == torch.float32
    assert softmax_lse.is_contiguous() and dout.shape == out.shape == q.shape and dout.dtype == out.dtype == q.dtype
    assert dq is not None and dk is not None and dv is not None
    assert (dq.shape, dk.shape, dv.shape) == (q.shape, k.shape, v.shape)
    groups = q.shape[1] // k.shape[1]
    for at_q, at_k in _sequences(cu_seqlens_q, cu_seqlens_k):
        grad, one, there = _exact(dout[at_q], q[at_q], out[at_q])
        keys, values = (x.repeat_interleave(groups, dim=1) for x in _exact(k[at_k], v[at_k]))
        probs = (_scores(one, _exact(k[at_k])[0], softmax_scale, causal) - softmax_lse[:, at_q, None]).exp()
        through = torch.einsum("thd,khd->htk", grad, values) - (grad * there).sum(-1).T[..., None]
        scores = softmax_scale * probs * through
        dq[at_q] = torch.einsum("htk,khd->thd", scores, keys).to(q.dtype)
        for whole, left, right in ((dk, scores, one), (dv, probs, grad)):
            whole[at_k] = torch.einsum("htk,thd->khd", left, right).unflatten(1, (-1, groups)).sum(2).to(k.dtype)
    return torch.empty(q.shape[1], len(q) + 128 * (len(cu_seqlens_q) - 1))


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Any:
    """The output (T, Hq, D); with `return_attn_probs` also softmax_lse (Hq, T)."""
    assert window_size == (-1, -1) and softcap == 0.0
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    bounds, most = (cu_seqlens_q, cu_seqlens_k), (int(max_seqlen_q), int(max_seqlen_k))
    out, lse, *_ = _flash_attn_varlen_forward(q, k, v, *bounds, *most, dropout_p, scale, causal)
    return (out, lse, None) if return_attn_probs else out


def install(patch: pytest.MonkeyPatch) -> None:
    """Let `import flash_attn` find these functions, on a card that can run them."""
    package, interface, padding = (
        ModuleType(name) for name in ("flash_attn", "flash_attn.flash_attn_interface", "flash_attn.bert_padding")
    )
    for name in ("_flash_attn_varlen_forward", "_flash_attn_varlen_backward", "flash_attn_varlen_func"):
        setattr(interface, name, globals()[name])
    package.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    for module, names in (
        (package, ("flash_attn_func", "flash_attn_with_kvcache")),
        (padding, ("pad_input", "unpad_input", "index_first_axis")),
    ):
        for name in names:
            setattr(module, name, lambda *args, **kwargs: pytest.fail("not a variable-length call"))
    for module in (package, interface, padding):
        patch.setitem(sys.modules, module.__name__, module)
    patch.setattr(kernels, "flash_attn_fault", lambda: "")
    calls.clear()
