"""Which tokens train: masks from token entropies, pure functions on small tensors.

A rule turns the entropies of one response, or of a whole batch laid end to end, into a mask: (T,) nats -> (T,) bool.
`select` applies a rule in its scope. The entropies of a batch are ragged: one (T,) tensor per rollout, T = 0 allowed.
Nothing here carries a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

Scope = Literal["response", "batch"]
MaskRule = Callable[[Tensor], Tensor]
"""(entropies of T tokens, nats) -> (T,) bool."""


def top_quantile(entropy_T: Tensor, share: float) -> Tensor:
    """Select H_t >= the linear quantile 1 - share; ties kept, at least one token (arXiv 2506.01939; TRL's rule).

    Shapes (T,) -> (T,) bool. Raises ValueError unless 0 < share <= 1.
    """
    _check_share(share)
    values = detached(entropy_T)
    return values >= linear_quantile(values, 1 - share) if len(values) else _nothing(entropy_T)


def top_k(entropy_T: Tensor, share: float) -> Tensor:
    """Select exactly ceil(share T) tokens of highest entropy, earlier positions first among equals; (T,) -> (T,) bool.

    Raises ValueError unless 0 < share <= 1.
    """
    _check_share(share)
    order = torch.argsort(detached(entropy_T), descending=True, stable=True)
    mask = _nothing(entropy_T)
    mask[order[: _count(share, len(entropy_T))]] = True
    return mask


def lowest(entropy_T: Tensor, share: float) -> Tensor:
    """Select H_t <= the linear quantile `share`, ties kept: `top_quantile` mirrored; (T,) -> (T,) bool."""
    return top_quantile(-entropy_T, share)


def everything(entropy_T: Tensor) -> Tensor:
    """Select all tokens (TTRL); (T,) -> (T,) bool."""
    return torch.ones_like(entropy_T, dtype=torch.bool)


def otsu(entropy_T: Tensor, bins: int = 100) -> Tensor:
    """Select H_t >= Otsu's threshold (SPINE v2, arXiv 2511.17938), all where all are equal; (T,) -> (T,) bool."""
    return entropy_T.detach().double() >= otsu_threshold(entropy_T, bins)


def otsu_threshold(entropy_T: Tensor, bins: int = 100) -> float:
    """Return the centre (nats) of the histogram bin that ends the lower class at the largest between-class variance.

    Bins have equal width over [min, max]; the last one is closed. Of equal maxima the first counts. All-equal
    entropies give their own value, no tokens infinity. Raises ValueError for fewer than two bins.
    Source: Otsu 1979, eq. 18.
    """
    if bins < 2:
        raise ValueError(f"otsu: bins must be at least 2, found {bins}")
    if not len(entropy_T):
        return math.inf
    values = entropy_T.detach().double()
    least, most = float(values.min()), float(values.max())
    edges = torch.linspace(least, most, bins + 1, dtype=torch.float64, device=values.device)
    counts = torch.bincount(torch.bucketize(values, edges[1:-1], right=True), minlength=bins)
    return least + (_otsu_bin(counts) + 0.5) * (most - least) / bins


def select(entropies: Sequence[Tensor], rule: MaskRule, scope: Scope) -> list[Tensor]:
    """Return the mask of each response: `rule` sees one response at a time, or all tokens of the batch at once."""
    if scope == "response" or not entropies:
        return [rule(entropy_T) for entropy_T in entropies]
    mask = rule(torch.cat(list(entropies)))
    return list(torch.split(mask, [len(entropy_T) for entropy_T in entropies]))


def linear_quantile(values_S: Tensor, q: float) -> Tensor:
    """Return the quantile q with linear interpolation between order statistics, a scalar; any S >= 1.

    Raises ValueError without values.
    """
    # torch.quantile takes at most 2^24 values, and computes the rank in single precision. There a whole rank can come
    # out just above itself, and the token of that rank falls below its own quantile.
    if not len(values_S):
        raise ValueError("the quantile of no tokens is undefined: give at least one entropy")
    ordered = values_S.sort().values
    rank = whole_if_close(q * (len(ordered) - 1))
    below = math.floor(rank)
    return torch.lerp(ordered[below], ordered[math.ceil(rank)], rank - below)


def detached(entropy_T: Tensor) -> Tensor:
    """Return the entropies without their gradient, in fp32 or wider, as quantiles need them."""
    return entropy_T.detach().to(torch.promote_types(entropy_T.dtype, torch.float32))


def _otsu_bin(counts_B: Tensor) -> int:
    # In units of bins all sums are whole numbers, so that equal maxima are equal to the last bit.
    counts = counts_B.double()
    positions = torch.arange(len(counts), dtype=torch.float64, device=counts.device)
    below, moment = counts.cumsum(0), (counts * positions).cumsum(0)
    total, total_moment = below[-1], moment[-1]
    pairs = (below * (total - below)).clamp(min=1)
    variance = (total_moment * below - total * moment) ** 2 / pairs
    return int(variance[:-1].argmax())


def _nothing(entropy_T: Tensor) -> Tensor:
    return torch.zeros_like(entropy_T, dtype=torch.bool)


def _count(share: float, length: int) -> int:
    return math.ceil(whole_if_close(share * length))


def whole_if_close(number: float) -> float:
    """Return a number without its rounding error where a whole one is meant."""
    # 0.07 * 100 is 7.000000000000001 and 0.29 * 100 is 28.999999999999996.
    return round(number) if abs(number - round(number)) < 1e-6 else number


def _check_share(share: float) -> None:
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], found {share}")
