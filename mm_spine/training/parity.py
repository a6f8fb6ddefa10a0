"""Parity: how far the sampler's log-probs are from the trainer's, and when that ends the run.

Four faults are told from rounding, which differs by dtype and model. A large gap by its mean. A sampler that cuts its
distribution by the probability that it leaves out, which is 0 for rounding and for other weights. A temperature that
differs by its slope: rounding does not grow with the log-prob, a temperature does. Weights that are not the sampler's
by the mean gap, held against that of the run's first step on the same statistic.

The limits are our choice, from what `scripts/bench/parity_limits.py` measures (docs/numbers.md has its table).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mm_spine.policy.errors import ParityError
from mm_spine.training.batch import MicroBatch
from mm_spine.types import StepReport, TokenStats

PARITY_LIMITS = {torch.float32: 0.01, torch.bfloat16: 0.1}
"""Mean gap in nats above which a run ends, by the weights' dtype, unless `engine.parity_limit` is set."""

DRIFT_FLOORS = {torch.float32: 1e-5, torch.bfloat16: 1e-3}
"""Mean gap in nats below which nothing counts as drift, by the weights' dtype.

A first step of tokens of which the policy is nearly certain has hardly any gap, and is no measure for the others.
"""

DRIFT_FACTOR = 3.0
"""How many times the mean gap of the first step a later one may be."""

SLOPE_LIMIT = 0.02
"""Largest slope of the gap over the log-prob. A temperature that differs by 5 % has a slope of 0.03 to 0.05."""

SLOPE_LIMIT_OF_ONE = 0.1
"""The same where one token carries the gap (`carried_by` below 2): through one token goes a line of any slope."""

SLOPE_FLOORS = {torch.float32: 1e-6, torch.bfloat16: 5e-5}
"""KL estimate in nats below which no slope is tested, by the weights' dtype.

Among tokens of which the policy is nearly certain, rounding alone can have a slope. Another temperature moves the
distribution.
"""

MISSING_LIMIT = 0.001
"""Largest probability, by the trainer's policy, of what the sampler never draws."""

ERRORS = 4.0
"""By how many standard errors a figure must lie above its limit, so that few tokens stop no run."""


class Gap(NamedTuple):
    """Sampler minus trainer log-probs over some tokens, as sums that add up over batches and ranks; nats.

    `tokens` counts them, `total` sums |gap|, `kl` sums the KL estimate, `most` is the largest |gap|. `kl2` sums the
    squared KL estimate, `gap` and `gap2` the gap and its square, `logp`, `logp2` and `cross` the sampler's log-probs,
    their squares and their products with the gap.
    """

    tokens: float = 0.0
    total: float = 0.0
    kl: float = 0.0
    most: float = 0.0
    kl2: float = 0.0
    gap: float = 0.0
    gap2: float = 0.0
    logp: float = 0.0
    logp2: float = 0.0
    cross: float = 0.0


def gap_between(sampler_S: Tensor, trainer_S: Tensor) -> Gap:
    """Return the gap over S tokens. The KL estimate is k3 of sampler and trainer on the sampler's draws."""
    gap_S = sampler_S - trainer_S
    if not len(gap_S):
        return Gap()
    size_S = gap_S.abs()
    kl_S = torch.expm1(-gap_S) + gap_S
    exact = [x.double() for x in (kl_S, gap_S, sampler_S)]
    sums = [size_S.sum().double(), kl_S.sum().double(), size_S.max().double()]
    moments = [
        a @ b for a, b in ((exact[0], exact[0]), (exact[1], exact[1]), (exact[2], exact[2]), (exact[1], exact[2]))
    ]
    # One copy from the card for all of them.
    total, kl, most, kl2, gap2, logp2, cross, gap, logp = torch.stack(
        [*sums, *moments, exact[1].sum(), exact[2].sum()]
    ).tolist()
    return Gap(float(len(gap_S)), total, kl, most, kl2, gap, gap2, logp, logp2, cross)


def gap_of(micro: MicroBatch, stats: TokenStats) -> Gap:
    """Return the gap over the selected tokens of a micro-batch that this step's policy drew."""
    selected_NT = stats.selected_NT if micro.replayed_N is None else stats.selected_NT & ~micro.replayed_N[:, None]
    return gap_between(micro.sampled_logp_NT[selected_NT], stats.logp_NT.detach()[selected_NT])


def joined(gaps: Sequence[Gap]) -> Gap:
    """Add up the gaps of several batches or ranks."""
    if not gaps:
        return Gap()
    return Gap(*map(sum, zip(*gaps, strict=True)))._replace(most=max(gap.most for gap in gaps))


def mean_with_error(gap: Gap) -> tuple[float, float]:
    """Return the mean of |gap| and its standard error, nats."""
    n = max(gap.tokens, 1)
    mean = gap.total / n
    return mean, math.sqrt(max(gap.gap2 / n - mean**2, 0.0) / n)


def carried_by(gap: Gap) -> float:
    """Return by how many tokens the KL estimate is carried: 1 if one has all of it, all if it is equal for all."""
    return gap.kl**2 / gap.kl2 if gap.kl2 > 0 else 0.0


def slope_with_error(gap: Gap) -> tuple[float, float]:
    """Return the least-squares slope of the gap over the sampler's log-prob and its standard error.

    It is near 1 - (sampler's temperature / trainer's), and near 0 for rounding. Both are 0 where log-probs are equal or
    too few.
    """
    n = gap.tokens
    spread = gap.logp2 - gap.logp**2 / n if n > 2 else 0.0
    if spread <= 1e-9 * max(gap.logp2, 1.0):
        return 0.0, 0.0
    shared = gap.cross - gap.gap * gap.logp / n
    slope = shared / spread
    rest = max(gap.gap2 - gap.gap**2 / n - slope * shared, 0.0)
    return slope, math.sqrt(rest / (n - 2) / spread)


def missing_with_error(gap: Gap) -> tuple[float, float]:
    """Return the probability that the sampler never draws from, by the trainer's policy, and its standard error.

    It is 1 - E[trainer's / sampler's probability] over the sampler's draws: 0 for any two policies that can draw the
    same tokens, whatever their weights and temperatures; above 0 where the sampler cuts its distribution.
    """
    n = max(gap.tokens, 1)
    return (gap.gap - gap.kl) / n, math.sqrt(max(gap.gap2 / n - (gap.gap / n) ** 2, 0.0) / n)


class ParityWatch:
    """Checks the gap of each step of a run against limits, and against `first`.

    `first` holds for each statistic the most (nats) that the mean gap of its first step can have been: the mean and 4
    standard errors. Gaps over all sampled tokens and over selected tokens are two statistics, which are never compared.
    Checkpoints hold `first`, so that a resumed run is held against the first step of all and not against its own.
    """

    def __init__(self, dtype: torch.dtype, limit: float | None) -> None:
        self.dtype, self.limit = dtype, limit
        self.first: dict[str, float] = {}

    def check(self, report: StepReport, gap: Gap, statistic: str) -> None:
        """Write `gap` into `report`. Raises ParityError where sampler and trainer cannot be the same policy.

        `statistic` names the tokens of the gap. Call it before any weight moves: the rollouts of another policy must
        train nothing. If `engine.parity_limit` is set, only the mean gap is held against it.
        """
        tokens = max(gap.tokens, 1)
        mean, error = mean_with_error(gap)
        report.parity_mean, report.parity_max, report.parity_kl = mean, gap.most, gap.kl / tokens
        limit = self.limit or PARITY_LIMITS[self.dtype]
        # Not `mean > limit`, which lets nan pass.
        if not mean <= limit:
            raise ParityError(
                f"step {report.step}: sampler and trainer log-probs differ by {mean:.3g} nats on average "
                f"(engine.parity_limit={limit}): check that the sampler took over the last weights, and that "
                "temperature and dtype are the same on both sides"
            )
        if not gap.tokens:
            return
        # Kept also where a limit is set: a run may be resumed without one.
        first = self.first.setdefault(statistic, mean + ERRORS * error)
        why = None if self.limit is not None else _problem(gap, self.dtype, first, statistic)
        if why is not None:
            raise ParityError(f"step {report.step}: {why}, or set engine.parity_limit to check the mean gap only")


def _problem(gap: Gap, dtype: torch.dtype, first: float, statistic: str) -> str | None:
    """Say what tells the sampler's policy from the trainer's, None if nothing does; see `ParityWatch.first`."""
    missing, error = missing_with_error(gap)
    if missing - ERRORS * error > MISSING_LIMIT:
        return (
            f"the sampler leaves out tokens that have a probability of {missing:.3g} by the trainer's policy (allowed "
            f"are {MISSING_LIMIT}): turn off its top-p, top-k and min-p, and see that its log-probs are normalised"
        )
    slope, error = slope_with_error(gap)
    steepest = SLOPE_LIMIT if carried_by(gap) >= 2 else SLOPE_LIMIT_OF_ONE
    if gap.kl / gap.tokens > SLOPE_FLOORS[dtype] and abs(slope) - ERRORS * error > steepest:
        return (
            f"the gap between sampler and trainer log-probs grows with the log-prob (slope {slope:.3g}, allowed are "
            f"{steepest}): one side samples or scores at another temperature; make them the same"
        )
    mean, error = mean_with_error(gap)
    if mean - ERRORS * error > max(DRIFT_FLOORS[dtype], DRIFT_FACTOR * first):
        return (
            f"sampler and trainer log-probs differ by {mean:.3g} nats on average over {statistic} tokens, by at most "
            f"{first:.3g} in the first step: the sampler has not taken over the last weights; check sampler.sync"
        )
    return None
