"""Attention of some queries on some keys, with the log-sum-exp by which results over several sets of keys are merged.

Two interfaces: `attend` without gradient, for decoding, and `KERNELS` with an explicit backward, for training.
Everywhere here q is (B, Hq, T, D), and k and v are (B, Hkv, K, D): Hq / Hkv query heads share a key head.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor


class Kernel(Protocol):
    """Attention of q (B, Hq, T, D) on k and v (B, Hkv, K, D); lse (B, Hq, T) is the log-sum-exp of the scores."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        """Return the output (B, Hq, T, D) and lse."""
        ...

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of q, k and v through these keys; `out` and `lse` may be over more keys than these."""
        ...


class FlashOnCPU:
    """PyTorch's flash attention for the CPU, which takes grouped queries as they are."""

    # Causal parts in bf16 go through fp32. Measured, the kernel's own bf16 takes 1.3 times (256 tokens) to 30 times
    # (16 tokens) as long backward. Dense parts are longer, and there bf16 is the faster one.

    def forward(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        operands = _in_fp32(q, k, v) if causal else (q, k, v)
        out, lse = kernel(*operands, 0.0, causal, scale=scale)
        return out.to(q.dtype), lse

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        operands = _in_fp32(grad, q, k, v, out) if causal else (grad, q, k, v, out)
        dq, dk, dv = (x.to(q.dtype) for x in kernel(*operands, lse, 0.0, causal, scale=scale))
        return dq, dk, dv


def _in_fp32(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors in fp32, or in fp64 where they are."""
    return tuple(x.to(torch.promote_types(x.dtype, torch.float32)) for x in tensors)


class PlainKernel:
    """Matrix products in fp32 or better, for any device and type."""

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


KERNELS: dict[str, Kernel] = {"flash_cpu": FlashOnCPU(), "plain": PlainKernel()}


FLASH_ATTN_TYPES = (torch.bfloat16, torch.float16)
FLASH_ATTN_WIDTH = 256
"""The widest head that flash-attn takes; the width must be a multiple of 8."""


def flash_attn_interface() -> Any:
    """Return flash-attn's module of kernels. Raises ImportError or OSError if the package is absent or broken."""
    return import_module("flash_attn.flash_attn_interface")


@cache
def flash_attn_fault() -> str:
    """Return why flash-attn cannot be imported; an empty text if it can."""
    try:
        flash_attn_interface()
    except ModuleNotFoundError as error:
        return "flash-attn is not installed" if error.name == "flash_attn" else f"flash-attn does not load ({error})"
    except (ImportError, OSError) as error:
        # A wheel that was built for another torch lacks symbols.
        return f"flash-attn does not load ({error})"
    return ""


def why_not_flash_attn(device: torch.device, dtype: torch.dtype, width: int) -> str:
    """Return why flash-attn cannot attend there with heads of `width`; an empty text if it can."""
    if fault := flash_attn_fault():
        return fault
    on_card = device.type == "cuda" and torch.cuda.is_available()
    if not on_card or torch.cuda.get_device_capability(device) < (8, 0):
        return "flash-attn needs an NVIDIA card of compute capability 8.0 or higher"
    if dtype not in FLASH_ATTN_TYPES:
        return f"flash-attn does not take {str(dtype).removeprefix('torch.')}"
    if width > FLASH_ATTN_WIDTH or width % 8:
        return f"flash-attn does not take heads of width {width}"
    return ""


def backend_name(device: torch.device, dtype: torch.dtype, width: int) -> str:
    """Return what computes attention over trees there, with heads of `width`.

    On a CPU it is `flash_cpu`; on a card `flash_attn`, or `flex` (FlexAttention, compiled) where flash-attn cannot;
    elsewhere `plain`.
    """
    if device.type == "cpu" and dtype in (torch.float32, torch.float64, torch.bfloat16):
        return "flash_cpu"
    if device.type != "cuda":
        return "plain"
    return "flex" if why_not_flash_attn(device, dtype, width) else "flash_attn"


def _grouped(x: Tensor, groups: int) -> Tensor:
    """(B, H x groups, T, D) -> (B, H, groups, T, D)."""
    return x.unflatten(1, (-1, groups))


def _scores(q: Tensor, k: Tensor, causal: bool, scale: float) -> Tensor:
    """Return the scaled scores (B, Hkv, Hq / Hkv, T, K), -inf at keys that a query may not read."""
    exact = torch.promote_types(q.dtype, torch.float32)
    scores = scale * (_grouped(q, q.shape[1] // k.shape[1]).to(exact) @ _grouped(k, 1).to(exact).mT)
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return scores


@torch.no_grad()
def attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None = None, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Attend without gradient: return the output (B, Hq, T, D) and the scores' log-sum-exp (B, Hq, T).

    `bias` (B, 1, 1 or T, K) is added to the scores (`padding_bias`, `mutual_bias`).
    """
    return ATTEND.get(q.device.type, attend_plainly)(q, k, v, scale, bias, causal)


def padding_bias(width: int, ends_B: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the bias (B, 1, 1, width) of keys that are real before `ends_B` and padding from there on."""
    # CUDA's kernel wants rows that start at multiples of 16 bytes, and the bias in the queries' type.
    wide = torch.zeros(len(ends_B), 1, 1, -(-width // 16) * 16, dtype=dtype, device=ends_B.device)
    behind = torch.arange(wide.shape[-1], device=ends_B.device) >= ends_B[:, None, None, None]
    return wide.masked_fill_(behind, -torch.inf)[..., :width]


def mutual_bias(width: int, spans: Sequence[Sequence[tuple[int, int]]], like: Tensor) -> Tensor:
    """Return the bias (B, 1, width, width) of causal rows in which the tokens of each span read one another both ways.

    It has the type and device of `like`.
    """
    # Rows start at multiples of 16 bytes, as in `padding_bias`.
    wide = torch.full((len(spans), 1, width, -(-width // 16) * 16), -torch.inf, dtype=like.dtype, device=like.device)
    wide = wide.triu_(1)
    for row, inside in zip(wide, spans, strict=True):
        for start, stop in inside:
            row[:, start:stop, start:stop] = 0
    return wide[..., :width]


def attend_plainly(
    q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None, causal: bool
) -> tuple[Tensor, Tensor]:
    """Do `attend` in matrix products and in fp32 or better, on any device and for any type."""
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
    # The memory-efficient kernel is the one that takes a bias and returns the log-sum-exp; it wants as many key heads
    # as query heads.
    groups = q.shape[1] // k.shape[1]
    k, v = (x if groups == 1 else x.repeat_interleave(groups, dim=1) for x in (k, v))
    wide = None if bias is None else bias.expand(*q.shape[:3], k.shape[2])
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    out, lse, *_ = kernel(q, k, v, wide, True, 0.0, causal, scale=scale)
    return out, lse[..., : q.shape[2]]


ATTEND = {"cpu": _attend_on_cpu, "cuda": _attend_on_cuda}
"""Type of device -> implementation of `attend`. Other devices use `attend_plainly`."""
