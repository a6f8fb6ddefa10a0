"""The loss of a step: policy term, entropy band and KL, each with its weight and its denominator."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mm_spine.config import Denominator, MethodConfig
from mm_spine.methods.method import Objective, Term, View
from mm_spine.methods.terms import (
    denominator,
    hinge_band,
    kl_exact,
    kl_of_drawn,
    surrogate_of,
    token_weights,
    truncated_ratio,
    weighted_mean,
)
from mm_spine.methods.tokens import Tokens
from mm_spine.policy.head import Divergence
from mm_spine.policy.text import Trained
from mm_spine.training.batch import MicroBatch, prefers
from mm_spine.types import Group

ON_THE_BOUND = 1e-4
"""Nats within which an entropy equals a bound: far above the rounding of fp32, far below what a step moves."""

ON_THE_BOUND_HALF = 2.0**-5
"""The same for half floats, times the square root of (2 layers + 1) / 3; see `on_the_bound`."""


class Denominators(NamedTuple):
    """The tokens or responses that each term is averaged over, of the whole step and all ranks, by `weight`."""

    policy: float
    band: float
    kl: float
    terms: tuple[float, ...] = ()


class Rules(NamedTuple):
    """What a method says of the loss: what the policy term maximises, the further terms, and how the anchor follows."""

    objective: Objective = surrogate_of
    terms: Sequence[Term] = ()
    anchor_decay: float | None = None


USUAL = Rules()
"""The clipped surrogate without further terms."""


class Losses(NamedTuple):
    """The weighted terms whose sum is minimised."""

    policy: Tensor
    band: Tensor
    kl: Tensor
    terms: tuple[Tensor, ...] = ()

    @property
    def total(self) -> Tensor:
        """The sum of all terms."""
        return sum(self.terms, self.policy + self.band + self.kl)


def on_the_bound(dtype: torch.dtype, layers: int) -> float:
    """Return the nats within which an entropy equals a bound, for weights of `dtype` and a model of `layers` layers."""
    # In bfloat16 each of the 2 layers + 1 sums and norms that a hidden state goes through rounds it by at most 2^-8 of
    # itself, so that it is off by r = 2^-8 sqrt((2 layers + 1) / 3) in the root mean square. With logits in fp32, the
    # entropies of sampler and trainer differ by less than 8 r for 99 % of the tokens: measured 3.1 to 7.5 r, on random
    # models of 4 families and of 2 to 36 layers (scripts/bench/bf16_drift.py --noise).
    if torch.finfo(dtype).bits > 16:
        return ON_THE_BOUND
    return ON_THE_BOUND_HALF * math.sqrt((2 * layers + 1) / 3)


def denominators(
    groups: Sequence[Group], tokens: Sequence[Sequence[Tokens]], options: MethodConfig, terms: Sequence[Term] = ()
) -> Denominators:
    """Count what each term acts on, over the kept rollouts of the step.

    The policy term acts on all but dropped rollouts; where advantages are 0 it is 0, and counts (TRL). Band, KL and the
    further `terms` act on all groups, under `unanimous: skip` only on those with an advantage. A token counts once,
    whatever its weight in a further term.
    """
    flat = [chosen for group in tokens for chosen in group]
    lengths = torch.tensor([len(t.policy_T) for t in flat])

    credited, regularised = [], []
    for group, chosen in zip(groups, tokens, strict=True):
        acts = options.unanimous == "regularise" or prefers(group, chosen)
        for rollout in group.rollouts:
            credited.append(0 if rollout.index in group.dropped else rollout.weight)
            regularised.append(rollout.weight if acts else 0)
    credited_N, regularised_N = torch.tensor(credited), torch.tensor(regularised)

    def count(masks: Iterable[Tensor], weights_N: Tensor, kind: Denominator) -> float:
        selected_N = torch.tensor([int((mask_T != 0).sum()) for mask_T in masks])
        return float(denominator(lengths, selected_N, weights_N, kind))

    return Denominators(
        count((t.policy_T for t in flat), credited_N, options.policy_denominator),
        count((t.band_T for t in flat), regularised_N, options.band_denominator),
        count((t.anchored_T for t in flat), regularised_N, options.kl_denominator),
        tuple(count((t.weights_of(term.name) for t in flat), regularised_N, term.denominator) for term in terms),
    )


def losses(
    trained: Trained,
    micro: MicroBatch,
    old_logp_NT: Tensor,
    options: MethodConfig,
    over: Denominators,
    on_bound: float = ON_THE_BOUND,
    rules: Rules = USUAL,
) -> Losses:
    """Return this micro-batch's part of the step's loss: policy term, band, KL and further terms, each weighted.

    An entropy within `on_bound` nats of a bound of the band counts as equal to it.
    """
    stats = trained.stats

    def mean(values_NT: Tensor, mask_NT: Tensor, count: float, kind: Denominator) -> Tensor:
        weight_N = token_weights(micro.length_N, micro.weight_N, kind)
        return weighted_mean(values_NT, mask_NT, weight_N, values_NT.new_tensor(count))

    low, high = micro.limits(options)
    advantage_NT = micro.advantage_NT
    view = View(stats.logp_NT, old_logp_NT, micro.sampled_logp_NT, stats.entropy_NT, advantage_NT, low, high)
    below_NT, above_NT = hinge_band(stats.entropy_NT, micro.low_N1, micro.high_N1)
    below_NT, above_NT = (_beyond(hinge_NT, on_bound) for hinge_NT in (below_NT, above_NT))
    hinges_NT = options.band_low_weight * below_NT + options.band_high_weight * above_NT
    further, measured = [], iter(trained.statistics)
    for term, count in zip(rules.terms, over.terms, strict=True):
        own = view if term.statistic is None else view._replace(statistic_NT=next(measured))
        # Without weights of its own a term acts where the policy term does.
        weight_NT = micro.weights.get(term.name, micro.policy_NT)
        further.append(term.coefficient * mean(term.value(own) * weight_NT, weight_NT, count, term.denominator))
    objective_NT = rules.objective(view)
    if options.truncate is not None:
        objective_NT = objective_NT * truncated_ratio(old_logp_NT, micro.sampled_logp_NT, options.truncate)
    return Losses(
        -mean(objective_NT, micro.policy_NT, over.policy, options.policy_denominator),
        mean(hinges_NT, micro.band_NT, over.band, options.band_denominator),
        options.kl_weight * mean(trained.kl_NT, micro.kl_NT, over.kl, options.kl_denominator),
        tuple(further),
    )


def _beyond(hinge_NT: Tensor, on_bound: float) -> Tensor:
    """Return the hinge, 0 for a token that lies on its bound up to rounding."""
    # A quantile is often some token's own entropy. The last bit, which another batch or rank may change, would
    # otherwise decide whether that token gets the hinge's whole slope or none.
    return hinge_NT.where(hinge_NT > on_bound, 0.0)


def _exact(log_probs_SV: Tensor, reference_SV: Tensor, target_S: Tensor) -> Tensor:
    return kl_exact(log_probs_SV, reference_SV)


DIVERGENCES: dict[str, Divergence | None] = {"none": None, "k3": kl_of_drawn, "exact": _exact}
"""`method.kl` -> the divergence from the starting policy, computed where the head has the full distribution."""
