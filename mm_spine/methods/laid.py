"""The tokens of a whole step laid end to end, for rules that compare tokens over the step, and back on responses.

S tokens of the policy term, those of all ranks, a rollout of `weight` k k times. Values are computed in float64, so
that copies of a response get the same to the last bit of fp32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mm_spine.methods.method import Batch
from mm_spine.methods.tokens import Tokens
from mm_spine.methods.weights import whole_if_close
from mm_spine.types import Group, Rollout


class Laid(NamedTuple):
    """The S tokens: log-probs of the sampler and entropies, both in nats, and the advantages of their responses.

    Entropies are nan where nothing measured them.
    """

    logp_S: Tensor
    entropy_S: Tensor
    advantage_S: Tensor


Measure = Callable[[Laid], Tensor]
"""(S >= 1 tokens) -> a value of each (S,)."""


def over_the_step(batch: Batch, tokens: Sequence[Sequence[Tokens]], measure: Measure) -> list[list[Tensor]]:
    """Return the values of each rollout's tokens, (T,) in fp32: 0 where the policy term does not act.

    `batch` has advantages.
    """
    rollouts, advantages = rollouts_of(batch), [a for group in batch.groups for a in advantages_of(group)]
    laid = Laid(
        lay(batch, tokens, [torch.from_numpy(r.logp) for r in rollouts]),
        lay(batch, tokens, [_entropies(r) for r in rollouts]),
        lay(batch, tokens, [a.expand(len(r.token_ids)) for r, a in zip(rollouts, advantages, strict=True)]),
    )
    values_S = (measure(laid) if len(laid.logp_S) else laid.logp_S).float()
    flat = [chosen for own in tokens for chosen in own]
    sizes = [int(t.policy_T.sum()) for t, r in zip(flat, rollouts, strict=True) for _ in range(r.weight)]
    pieces = iter(values_S.split(sizes))

    def placed(rollout: Rollout, chosen: Tokens) -> Tensor:
        # Copies are alike: the first one stands for all.
        first, *_ = [next(pieces) for _ in range(rollout.weight)]
        return torch.zeros(len(chosen.policy_T)).masked_scatter(chosen.policy_T, first)

    pairs = zip(batch.groups, tokens, strict=True)
    return [[placed(r, t) for r, t in zip(group.rollouts, own, strict=True)] for group, own in pairs]


def rollouts_of(batch: Batch) -> list[Rollout]:
    """Return the rollouts of the step in order."""
    return [rollout for group in batch.groups for rollout in group.rollouts]


def advantages_of(group: Group) -> Tensor:
    """Return the advantages (N,) of a group. Raises ValueError where it has none yet."""
    if group.advantages is None:
        raise ValueError(f"{group.question.id}: no advantages yet; call assign_credit first")
    return group.advantages


def lay(batch: Batch, tokens: Sequence[Sequence[Tokens]], values: Sequence[Tensor]) -> Tensor:
    """Lay `values`, (T,) of each rollout of the step, end to end where the policy term acts: (S,) in float64."""
    flat = [chosen for own in tokens for chosen in own]
    triples = zip(values, flat, rollouts_of(batch), strict=True)
    parts = [value_T[chosen.policy_T].double() for value_T, chosen, r in triples for _ in range(r.weight)]
    return torch.cat([torch.zeros(0, dtype=torch.float64), *parts])


def replaced(
    tokens: Sequence[Sequence[Tokens]], values: Sequence[Sequence[Tensor]], change: Callable[[Tokens, Tensor], Tokens]
) -> list[list[Tokens]]:
    """Apply `change` to the tokens of each rollout and its values (T,)."""
    pairs = zip(tokens, values, strict=True)
    return [[change(t, value_T) for t, value_T in zip(own, found, strict=True)] for own, found in pairs]


def with_advantages(batch: Batch, tokens: Sequence[Sequence[Tokens]], measure: Measure) -> list[list[Tokens]]:
    """Give the tokens of the policy term the advantages that `measure` returns."""
    found = over_the_step(batch, tokens, measure)
    return replaced(tokens, found, lambda chosen, value_T: chosen._replace(advantage_T=value_T))


def covariance(laid: Laid) -> Tensor:
    """Return (A - mean A) (log p - mean log p) of S tokens, the means over them (arXiv 2505.22617, eq. 10)."""
    return (laid.advantage_S - laid.advantage_S.mean()) * (laid.logp_S - laid.logp_S.mean())


def largest(values_S: Tensor, share: float) -> Tensor:
    """Select the floor(share S) largest of S >= 1 values, at least one; ties of the last one are kept; (S,) bool."""
    count = max(math.floor(whole_if_close(share * len(values_S))), 1)
    return values_S >= values_S.topk(count).values[-1]


def unit_range(values_S: Tensor) -> Tensor:
    """Map S >= 1 values linearly on [0, 1]; all-equal ones on 0."""
    least, most = values_S.min(), values_S.max()
    return (values_S - least) / (most - least) if most > least else torch.zeros_like(values_S)


def _entropies(rollout: Rollout) -> Tensor:
    if rollout.entropy is None:
        return torch.full((len(rollout.token_ids),), torch.nan)
    return torch.from_numpy(rollout.entropy)
