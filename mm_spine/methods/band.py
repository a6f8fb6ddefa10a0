"""Bounds of SPINE's entropy band: between which entropies the forking tokens are kept (arXiv 2511.17938).

Pure functions on the entropies (nats) of the selected tokens. Nothing here carries a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mm_spine.methods.weights import Scope, detached, linear_quantile


class Bounds(NamedTuple):
    """The entropy band [low, high] of a set of forking tokens: detached scalars, nats."""

    low: Tensor
    high: Tensor


BoundsRule = Callable[[Tensor], Bounds]
"""(entropies of S >= 1 forking tokens) -> their band."""


def quantile_bounds(forks_S: Tensor, low: float = 0.10, high: float = 0.50) -> Bounds:
    """Return SPINE v1's band: the linear quantiles `low` and `high` of the S >= 1 forking entropies."""
    values = detached(forks_S)
    return Bounds(linear_quantile(values, low), linear_quantile(values, high))


def median_mad_bounds(forks_S: Tensor) -> Bounds:
    """Return SPINE v2's band: [max(c - s, 0), c] with c the median and s = max(1.4826 MAD, 1e-6), S >= 1."""
    values = detached(forks_S)
    centre = linear_quantile(values, 0.5)
    spread = (1.4826 * linear_quantile((values - centre).abs(), 0.5)).clamp(min=1e-6)
    return Bounds((centre - spread).clamp(min=0), centre)


def band_bounds(entropies: Sequence[Tensor], masks: Sequence[Tensor], rule: BoundsRule, scope: Scope) -> list[Bounds]:
    """Return one band per rollout, from its own selected tokens or from those of the whole batch.

    A rollout without a selected token gets [0, 0]. None of its tokens is in the band term: leave it out of averages.
    """
    forks = [entropy_T[mask_T].detach() for entropy_T, mask_T in zip(entropies, masks, strict=True)]
    if scope == "response" or not forks:
        return [_bounds(forks_S, rule) for forks_S in forks]
    return [_bounds(torch.cat(forks), rule)] * len(forks)


def _bounds(forks_S: Tensor, rule: BoundsRule) -> Bounds:
    if len(forks_S):
        return rule(forks_S)
    zero = forks_S.new_zeros(())
    return Bounds(zero, zero)
