"""Apply a method to the groups of a step: a credit for every response, and the tokens that each loss term acts on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from mm_spine.config import MethodConfig
from mm_spine.methods import credit
from mm_spine.methods.band import Bounds, band_bounds
from mm_spine.methods.table import Method
from mm_spine.methods.weights import select
from mm_spine.types import Group, Rollout


class Tokens(NamedTuple):
    """The selected tokens of one response: the masks of the policy term and of the band, each (T,) bool.

    `bounds` is the entropy band in nats, None where the method has no band.
    """

    policy_T: Tensor
    band_T: Tensor
    bounds: Bounds | None


def assign_credit(groups: Sequence[Group], method: Method, options: MethodConfig) -> list[Group]:
    """Return the groups with rewards and advantages (N,). The batch scope covers all of `groups`."""
    reward, shape = method.reward(options), method.shape(options)
    rewards = [reward(group) for group in groups]
    advantages = credit.advantages(rewards, options.advantage, options.std, options.eps)
    return [
        replace(group, rewards=rewards_N, advantages=shape(advantages_N, credit.mean_entropies(group.rollouts)))
        for group, rewards_N, advantages_N in zip(groups, rewards, advantages, strict=True)
    ]


def choose_tokens(
    groups: Sequence[Group],
    method: Method,
    options: MethodConfig,
    seed: int,
    step: int,
    fixed_bounds: Bounds | None = None,
) -> list[list[Tokens]]:
    """Select the tokens of every rollout of every group, from detached entropies.

    `fixed_bounds` replace the bounds of this batch (`method.band_anchor=initial`).
    """
    signals = [method.signal(rollout, seed, step) for rollout in _first_of_equal(groups)]
    policy = select(signals, method.policy_mask(options), options.mask_scope)
    if method.bounds is None:
        chosen = [Tokens(policy_T, torch.zeros_like(policy_T), None) for policy_T in policy]
    else:
        entropies = [torch.from_numpy(rollout.entropy) for group in groups for rollout in group.rollouts]
        band = select(entropies, method.band_mask(options), options.mask_scope)
        bounds = band_bounds(entropies, band, method.bounds(options), options.band_scope)
        if fixed_bounds is not None:
            bounds = [fixed_bounds] * len(bounds)
        chosen = [Tokens(*parts) for parts in zip(policy, band, bounds, strict=True)]
    in_order = iter(chosen)
    return [[next(in_order) for _ in group.rollouts] for group in groups]


def _first_of_equal(groups: Sequence[Group]) -> Iterator[Rollout]:
    """Yield, for each rollout, the first rollout of its group with the same tokens."""
    # A random mask is drawn by the rollout's index. Equal responses must get equal masks, or they do not merge.
    for group in groups:
        first: dict[tuple[int, ...], Rollout] = {}
        for rollout in group.rollouts:
            yield first.setdefault(rollout.token_ids, rollout)
