"""Count the work of a step, compute the work it needs, and measure the matmul rate to compare wall time with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula
from workload import Sizes, Work

FORWARD_PRODUCTS, BACKWARD_PRODUCTS = 2, 5
"""Matrix products over (query, key) pairs: QK and PV; then QK again and the gradients of P, V, Q and K."""

_flash: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _pairs(query: Sequence[int], key: Sequence[int], causal: bool) -> int:
    """Count the (query, key) pairs that the kernel computes; it skips those that a causal mask hides."""
    q, k = query[-2], key[-2]
    return q * (q + 1) // 2 + q * (k - q) if causal and k >= q else q * k


@register_flop_formula(_flash)  # type: ignore[untyped-decorator]
def _flash_flops(
    query: Sequence[int], key: Sequence[int], value: Any, dropout: float = 0.0, causal: bool = False, **_: Any
) -> int:
    return 2 * FORWARD_PRODUCTS * query[0] * query[1] * query[3] * _pairs(query, key, causal)


@register_flop_formula(_flash_backward)  # type: ignore[untyped-decorator]
def _flash_backward_flops(
    grad: Any, query: Sequence[int], key: Sequence[int], value: Any, out: Any, lse: Any, dropout: float, causal: bool,
    **_: Any,
) -> int:  # fmt: skip
    return 2 * BACKWARD_PRODUCTS * query[0] * query[1] * query[3] * _pairs(query, key, causal)


class Counter:
    """Calls steps and adds up the floating-point operations of their matrix products, convolutions and attention."""

    def __init__(self) -> None:
        self.flops = 0

    def __call__(self, step: Callable[[], object]) -> None:
        counter = FlopCounterMode(display=False)
        with counter:
            step()
        self.flops += counter.get_total_flops()


def counted(step: Callable[[], object]) -> int:
    """Count the floating-point operations of one call of `step`."""
    counter = Counter()
    counter(step)
    return counter.flops


class Needed(NamedTuple):
    """Compute the work that an exact update needs, warm: floating-point operations of its matrix products."""

    trunk: float
    attention: float
    head: float

    @property
    def total(self) -> float:
        return self.trunk + self.attention + self.head


def needed(sizes: Sizes, work: Work, prompt_tokens: int) -> Needed:
    """The arithmetic, for L prompt tokens and distinct responses whose last selected token follows n_i others.

    Tokens: P = L + sum n_i, of which S predict a selected token. Pairs: L (L + 1) / 2 + sum (n_i L + n_i (n_i + 1) / 2)
    in all layers but the last, and in the last one what the S predicting tokens see.
    trunk: 3 x 2 x weights x tokens, forward once and backward twice; the last layer's keys and values are of all P
    tokens, the rest of it of S; attention: (2 + 5) products x 2 x hidden x pairs; head: 3 x 2 x hidden x vocabulary x
    selected tokens. No entropy pass: a random selection needs none.
    """
    tokens = pairs = read = predicting = selected = 0.0
    for group in work.tokens:
        chosen = [set(tokens.policy_T.nonzero()[:, 0].tolist()) for tokens in group]
        inputs = [max(each) for each in chosen]  # predicting token t takes the t before it
        ends = [prompt_tokens + t for each in chosen for t in each if t]
        ends += [prompt_tokens] if any(0 in each for each in chosen) else []  # the prompt's end predicts first tokens
        tokens += prompt_tokens + sum(inputs)
        pairs += prompt_tokens * (prompt_tokens + 1) / 2 + sum(n * prompt_tokens + n * (n + 1) / 2 for n in inputs)
        read, predicting = read + sum(ends), predicting + len(ends)
        selected += sum(map(len, chosen))
    keys = 2 * sizes.hidden * sizes.key_heads * sizes.head_dim
    rest = 2 * sizes.hidden**2 + 3 * sizes.hidden * sizes.intermediate
    trunk = sizes.layers * keys * tokens + rest * ((sizes.layers - 1) * tokens + predicting)
    seen = (sizes.layers - 1) * pairs + read
    products = FORWARD_PRODUCTS + BACKWARD_PRODUCTS
    return Needed(6 * trunk, 2 * products * sizes.hidden * seen, 6 * sizes.hidden * sizes.vocab * selected)


class Matmul:
    """One large square product to measure the machine with, in the step's dtype."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        side = 8192 if device.type == "cuda" else 1024
        self.a, self.b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        self.flops = 2.0 * side**3

    def __call__(self) -> Tensor:
        return self.a @ self.b
