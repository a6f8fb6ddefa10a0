"""Leave responses out of the policy term to keep the entropy of the policy within a range (arXiv 2604.26326)."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from mm_spine.methods.apply import credited_places
from mm_spine.methods.laid import advantages_of
from mm_spine.methods.method import Batch
from mm_spine.methods.rewards import mean_entropies
from mm_spine.methods.sections import EntrocraftConfig
from mm_spine.methods.tokens import Tokens

START = "start_entropy"
"""The entry of the memory with `level` of the first step, nats."""


def level(batch: Batch) -> float:
    """Return the mean of the mean token entropies of all responses with credit, nats; 0 without any."""
    parts = [mean_entropies(group.rollouts)[credited_places(group)] for group in batch.groups]
    entropies = [entropy for part_M in parts for entropy in part_M.tolist()]
    return fmean(entropies) if entropies else 0.0


def bounds(options: EntrocraftConfig, step: int) -> tuple[float, float]:
    """Return the range of a step: from `entropy_range` in a straight line to `entropy_range_end`, then constant."""
    done = min(1.0, step / options.anneal_steps) if options.anneal_steps else 0.0
    (low, high), (low_end, high_end) = options.entropy_range, options.entropy_range_end
    return low + done * (low_end - low), high + done * (high_end - high)


def towards_range(options: EntrocraftConfig, batch: Batch, tokens: list[list[Tokens]]) -> list[list[Tokens]]:
    """Leave out responses of negative advantage while the entropy is above its range, of positive while it is below.

    Source: Entrocraft, arXiv 2604.26326, Algorithm 1. The range is in units of the first step's entropy.
    """
    now = level(batch)
    low, high = (bound * batch.memory.get(START, now) for bound in bounds(options, batch.step))
    drift = (now > high) - (now < low)

    def kept(chosen: Tokens, advantage: float) -> Tokens:
        return chosen.without_policy(options.kl_acts) if drift * advantage < 0 else chosen

    return [
        [kept(*pair) for pair in zip(own, advantages_of(group).tolist(), strict=True)]
        for own, group in zip(tokens, batch.groups, strict=True)
    ]


def remember_start(options: EntrocraftConfig, batch: Batch, tokens: list[list[Tokens]]) -> Mapping[str, Any]:
    """Remember the entropy of the first step that has any: a range around 0 would leave out all that lost."""
    start = batch.memory.get(START) or level(batch)
    return {START: start} if start else {}
