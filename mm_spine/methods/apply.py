"""Apply a method to the groups of a step: a credit for every response, and the tokens that each loss term acts on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

import torch

from mm_spine.config import MethodConfig
from mm_spine.methods.band import Bounds, band_bounds
from mm_spine.methods.method import Batch, Method, StepLoss
from mm_spine.methods.tokens import Tokens
from mm_spine.methods.weights import select
from mm_spine.types import Group, Rollout

BAND = "band"
"""The entry of the memory with the bounds, [low, high] in nats, that `method.band_anchor=initial` keeps."""


def assign_credit(batch: Batch, method: Method, options: MethodConfig) -> list[Group]:
    """Return the groups with rewards and advantages (N,). The batch scope covers all of the batch.

    A rollout of `weight` k counts k times. A dropped one counts for nothing, and its advantage is 0.
    """
    reward = method.reward(options)
    rewards = [reward(group) for group in batch.groups]
    # Each rollout that has credit, as often as it counts: the statistics below see the expanded group.
    copies = [
        [i for i, r in enumerate(group.rollouts) if r.index not in group.dropped for _ in range(r.weight)]
        for group in batch.groups
    ]
    credited = [rewards_N[chosen] for rewards_N, chosen in zip(rewards, copies, strict=True)]
    triples = zip(batch.groups, credited, copies, strict=True)
    expanded = batch._replace(
        groups=[replace(group.at(chosen), rewards=own, dropped=frozenset()) for group, own, chosen in triples]
    )
    for step in method.credit(options):
        credited = step(expanded, credited)
    groups = []
    for group, rewards_N, chosen, advantages_M in zip(batch.groups, rewards, copies, credited, strict=True):
        # Copies of a rollout have equal advantages.
        advantages_N = torch.zeros_like(rewards_N).index_copy(0, torch.tensor(chosen, dtype=torch.long), advantages_M)
        groups.append(replace(group, rewards=rewards_N, advantages=advantages_N))
    return groups


def choose_tokens(batch: Batch, method: Method, options: MethodConfig) -> list[list[Tokens]]:
    """Select the tokens of every rollout of every group, from detached entropies.

    Bounds of the band in the memory replace those of this batch. Over the batch a rollout of `weight` k counts k
    times. The policy term has no token of a dropped rollout; band and KL keep theirs.
    """
    rollouts = [rollout for group in batch.groups for rollout in group.rollouts]
    # Where a rule sees the whole batch, it sees each rollout as often as it counts. The first copy is kept.
    copies = [i for i, rollout in enumerate(rollouts) for _ in range(rollout.weight)]
    first = list(accumulate((rollout.weight for rollout in rollouts), initial=0))[:-1]
    signals = [method.signal(rollout, batch.seed, batch.step) for rollout in first_of_equal(batch.groups)]
    policy = select([signals[i] for i in copies], method.policy_mask(options), options.mask_scope)
    if method.bounds is None:
        chosen = [Tokens(policy[i], torch.zeros_like(policy[i]), None) for i in first]
    else:
        entropies = [torch.from_numpy(rollouts[i].entropy) for i in copies]
        band = select(entropies, method.band_mask(options), options.mask_scope)
        bounds = band_bounds(entropies, band, method.bounds(options), options.band_scope)
        if BAND in batch.memory:
            fixed = Bounds(*map(torch.tensor, batch.memory[BAND]))
            bounds = [fixed] * len(bounds)
        chosen = [Tokens(policy[i], band[i], bounds[i], band[i] if method.anchor_on_forks else None) for i in first]
    anchored = options.kl != "none" and options.kl_weight > 0
    by_group, in_order = [], iter(chosen)
    for group in batch.groups:
        own = [(rollout.index in group.dropped, next(in_order)) for rollout in group.rollouts]
        by_group.append([found.without_policy(anchored) if dropped else found for dropped, found in own])
    return by_group if method.choice is None else method.choice(options)(batch, by_group)


def by_step_loss(
    batch: Batch, tokens: Sequence[Sequence[Tokens]], loss: StepLoss, options: MethodConfig, over: float
) -> tuple[float, list[list[Tokens]]]:
    """Return the loss of the step before its update, and tokens whose advantages give the policy term its gradient.

    Before the update each importance ratio is 1, so that all log-ratios are 0 and no forward is needed. `over` is the
    denominator of the policy term, which the advantages make up for.
    """
    ratios = [[torch.zeros(len(r.token_ids), requires_grad=True) for r in group.rollouts] for group in batch.groups]
    leaves = [ratio_T for group in ratios for ratio_T in group]
    value = loss(batch, ratios)
    if not value.requires_grad:
        return float(value.detach()), [list(group) for group in tokens]
    gradients = iter(torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True))

    def with_advantage(chosen: Tokens, copies: int) -> Tokens:
        # The mean over responses divides each token by the length of its response; a leaf counts `copies` times.
        length = len(chosen.policy_T) if options.policy_denominator == "response" else 1
        return chosen._replace(advantage_T=-next(gradients) * (over * length / copies))

    found = [
        [with_advantage(chosen, r.weight) for r, chosen in zip(group.rollouts, own, strict=True)]
        for group, own in zip(batch.groups, tokens, strict=True)
    ]
    return float(value.detach()), found


def first_of_equal(groups: Sequence[Group]) -> Iterator[Rollout]:
    """Yield, for each rollout, the first rollout of its group with the same tokens."""
    # A random mask is drawn by the rollout's index. Equal responses must get equal masks, or they do not merge.
    for group in groups:
        first: dict[tuple[int, ...], Rollout] = {}
        for rollout in group.rollouts:
            yield first.setdefault(rollout.token_ids, rollout)
