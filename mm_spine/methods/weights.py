"""Which tokens train, and between which entropies they are kept: pure functions on small tensors.

A rule turns the entropies of one response, or of a whole batch laid end to end, into a mask: (T,) nats -> (T,) bool.
`select` gives a rule its scope. Entropies of a batch are ragged: one (T,) tensor per rollout, T = 0 allowed.
Nothing here carries a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Scope = Literal["response", "batch"]
MaskRule = Callable[[Tensor], Tensor]


class Bounds(NamedTuple):
    """The entropy band [low, high] of a set of forking tokens: detached scalars, nats."""

    low: Tensor
    high: Tensor


BoundsRule = Callable[[Tensor], Bounds]


def top_quantile(entropy_T: Tensor, share: float) -> Tensor:
    """H_t >= the linear quantile 1 - share; ties kept, at least one token (arXiv 2506.01939; TRL's rule).

    Shapes (T,) -> (T,) bool. Raises ValueError unless 0 < share <= 1.
    """
    _check_share(share)
    values = _values(entropy_T)
    return values >= linear_quantile(values, 1 - share) if len(values) else _nothing(entropy_T)


def top_k(entropy_T: Tensor, share: float) -> Tensor:
    """Exactly ceil(share T) tokens of highest entropy, the earlier position first among equals; (T,) -> (T,) bool.

    Raises ValueError unless 0 < share <= 1.
    """
    _check_share(share)
    order = torch.argsort(_values(entropy_T), descending=True, stable=True)
    mask = _nothing(entropy_T)
    mask[order[: _count(share, len(entropy_T))]] = True
    return mask


def lowest(entropy_T: Tensor, share: float) -> Tensor:
    """H_t <= the linear quantile `share`: the mirror image of `top_quantile`, with its ties; (T,) -> (T,) bool."""
    return top_quantile(-entropy_T, share)


def everything(entropy_T: Tensor) -> Tensor:
    """All tokens (TTRL); (T,) -> (T,) bool."""
    return torch.ones_like(entropy_T, dtype=torch.bool)


def otsu(entropy_T: Tensor, bins: int = 100) -> Tensor:
    """H_t >= Otsu's threshold (SPINE v2, arXiv 2511.17938); all-equal entropies select all; (T,) -> (T,) bool."""
    return entropy_T.detach().double() >= otsu_threshold(entropy_T, bins)


def otsu_threshold(entropy_T: Tensor, bins: int = 100) -> float:
    """The centre (nats) of the histogram bin that ends the lower class at the largest between-class variance.

    Equal bins over [min, max], the last one closed; the first of equal maxima. All-equal entropies give their value,
    no tokens infinity. Raises ValueError for fewer than two bins. Source: Otsu 1979, eq. 18.
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
    """The rule's mask of each response: on each alone, or on all tokens of the batch at once."""
    if scope == "response" or not entropies:
        return [rule(entropy_T) for entropy_T in entropies]
    mask = rule(torch.cat(list(entropies)))
    return list(torch.split(mask, [len(entropy_T) for entropy_T in entropies]))


def quantile_bounds(forks_S: Tensor, low: float = 0.10, high: float = 0.50) -> Bounds:
    """SPINE v1 (arXiv 2511.17938): the linear quantiles `low` and `high` of the S forking entropies, S >= 1."""
    values = _values(forks_S)
    return Bounds(linear_quantile(values, low), linear_quantile(values, high))


def median_mad_bounds(forks_S: Tensor) -> Bounds:
    """SPINE v2 (arXiv 2511.17938): [max(c - s, 0), c], c the median, s = max(1.4826 MAD, 1e-6), S >= 1."""
    values = _values(forks_S)
    centre = linear_quantile(values, 0.5)
    spread = (1.4826 * linear_quantile((values - centre).abs(), 0.5)).clamp(min=1e-6)
    return Bounds((centre - spread).clamp(min=0), centre)


def band_bounds(entropies: Sequence[Tensor], masks: Sequence[Tensor], rule: BoundsRule, scope: Scope) -> list[Bounds]:
    """One band per rollout, from its own selected tokens or from those of the whole batch.

    A rollout with none selected gets [0, 0], which no token will use: leave it out of averages.
    """
    forks = [entropy_T[mask_T].detach() for entropy_T, mask_T in zip(entropies, masks, strict=True)]
    if scope == "response" or not forks:
        return [_bounds(forks_S, rule) for forks_S in forks]
    return [_bounds(torch.cat(forks), rule)] * len(forks)


def linear_quantile(values_S: Tensor, q: float) -> Tensor:
    """The quantile q with linear interpolation between order statistics, a scalar; any S >= 1.

    As torch.quantile, but without its limit of 2^24 values, and with the rank in double precision: in single, a
    whole rank can come out just above itself and lose the token it names. Raises ValueError without values.
    """
    if not len(values_S):
        raise ValueError("the quantile of no tokens is undefined: give at least one entropy")
    ordered = values_S.sort().values
    rank = _whole_if_close(q * (len(ordered) - 1))
    below = math.floor(rank)
    return torch.lerp(ordered[below], ordered[math.ceil(rank)], rank - below)


def _otsu_bin(counts_B: Tensor) -> int:
    """In units of bins all sums are whole numbers, so equal maxima are equal to the last bit."""
    counts = counts_B.double()
    positions = torch.arange(len(counts), dtype=torch.float64, device=counts.device)
    below, moment = counts.cumsum(0), (counts * positions).cumsum(0)
    total, total_moment = below[-1], moment[-1]
    pairs = (below * (total - below)).clamp(min=1)
    variance = (total_moment * below - total * moment) ** 2 / pairs
    return int(variance[:-1].argmax())


def _bounds(forks_S: Tensor, rule: BoundsRule) -> Bounds:
    if len(forks_S):
        return rule(forks_S)
    zero = forks_S.new_zeros(())
    return Bounds(zero, zero)


def _values(entropy_T: Tensor) -> Tensor:
    return entropy_T.detach().to(torch.promote_types(entropy_T.dtype, torch.float32))


def _nothing(entropy_T: Tensor) -> Tensor:
    return torch.zeros_like(entropy_T, dtype=torch.bool)


def _count(share: float, length: int) -> int:
    return math.ceil(_whole_if_close(share * length))


def _whole_if_close(number: float) -> float:
    """0.07 * 100 is 7.000000000000001, but means 7."""
    return round(number) if abs(number - round(number)) < 1e-6 else number


def _check_share(share: float) -> None:
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], found {share}")
