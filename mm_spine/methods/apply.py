"""Apply a method to the groups of a step: a credit for every response, and the tokens that each loss term acts on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
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
    """The selected tokens of one response: the masks of the policy term, the band and the KL, each (T,) bool.

    `bounds` is the entropy band in nats, None where the method has no band. The KL acts on the tokens of the policy
    term where `kl_T` is None.
    """

    policy_T: Tensor
    band_T: Tensor
    bounds: Bounds | None
    kl_T: Tensor | None = None

    @property
    def anchored_T(self) -> Tensor:
        """The mask of the KL, (T,) bool."""
        return self.policy_T if self.kl_T is None else self.kl_T

    @property
    def any_T(self) -> Tensor:
        """The tokens on which some term acts, (T,) bool."""
        return self.policy_T | self.band_T | self.anchored_T


def assign_credit(groups: Sequence[Group], method: Method, options: MethodConfig) -> list[Group]:
    """Return the groups with rewards and advantages (N,). The batch scope covers all of `groups`.

    A rollout of `weight` k counts k times. A dropped one counts for nothing, and its advantage is 0.
    """
    reward, shape = method.reward(options), method.shape(options)
    rewards = [reward(group) for group in groups]
    # Each rollout that has credit, as often as it counts: the statistics below see the expanded group.
    copies = [
        [i for i, r in enumerate(group.rollouts) if r.index not in group.dropped for _ in range(r.weight)]
        for group in groups
    ]
    expanded = [rewards_N[chosen] for rewards_N, chosen in zip(rewards, copies, strict=True)]
    advantages = credit.advantages(expanded, options.advantage, options.std, options.eps)
    credited = []
    for group, rewards_N, chosen, advantages_M in zip(groups, rewards, copies, advantages, strict=True):
        shaped_M = shape(advantages_M, [group.rollouts[i] for i in chosen])
        # Copies of a rollout have equal advantages.
        advantages_N = torch.zeros_like(rewards_N).index_copy(0, torch.tensor(chosen, dtype=torch.long), shaped_M)
        credited.append(replace(group, rewards=rewards_N, advantages=advantages_N))
    return credited


def choose_tokens(
    groups: Sequence[Group],
    method: Method,
    options: MethodConfig,
    seed: int,
    step: int,
    fixed_bounds: Bounds | None = None,
) -> list[list[Tokens]]:
    """Select the tokens of every rollout of every group, from detached entropies.

    `fixed_bounds` replace the bounds of this batch (`method.band_anchor=initial`). Over the batch a rollout of
    `weight` k counts k times. The policy term has no token of a dropped rollout; band and KL keep theirs.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    # Where a rule sees the whole batch, it sees each rollout as often as it counts. The first copy is kept.
    copies = [i for i, rollout in enumerate(rollouts) for _ in range(rollout.weight)]
    first = list(accumulate((rollout.weight for rollout in rollouts), initial=0))[:-1]
    signals = [method.signal(rollout, seed, step) for rollout in _first_of_equal(groups)]
    policy = select([signals[i] for i in copies], method.policy_mask(options), options.mask_scope)
    if method.bounds is None:
        chosen = [Tokens(policy[i], torch.zeros_like(policy[i]), None) for i in first]
    else:
        entropies = [torch.from_numpy(rollouts[i].entropy) for i in copies]
        band = select(entropies, method.band_mask(options), options.mask_scope)
        bounds = band_bounds(entropies, band, method.bounds(options), options.band_scope)
        if fixed_bounds is not None:
            bounds = [fixed_bounds] * len(bounds)
        chosen = [Tokens(policy[i], band[i], bounds[i], band[i] if method.anchor_on_forks else None) for i in first]
    by_group, in_order = [], iter(chosen)
    for group in groups:
        own = [(rollout.index in group.dropped, next(in_order)) for rollout in group.rollouts]
        by_group.append([_without_policy(found, options) if dropped else found for dropped, found in own])
    return by_group


def _without_policy(tokens: Tokens, options: MethodConfig) -> Tokens:
    """Return the tokens of a dropped rollout: those of band and KL."""
    nothing_T = torch.zeros_like(tokens.policy_T)
    anchored = options.kl != "none" and options.kl_weight > 0
    return tokens._replace(policy_T=nothing_T, kl_T=tokens.anchored_T if anchored else nothing_T)


def _first_of_equal(groups: Sequence[Group]) -> Iterator[Rollout]:
    """Yield, for each rollout, the first rollout of its group with the same tokens."""
    # A random mask is drawn by the rollout's index. Equal responses must get equal masks, or they do not merge.
    for group in groups:
        first: dict[tuple[int, ...], Rollout] = {}
        for rollout in group.rollouts:
            yield first.setdefault(rollout.token_ids, rollout)
