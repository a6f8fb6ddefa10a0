"""Parity: how far the sampler's log-probs are from the trainer's, and when that ends the run.

Three faults are told from rounding, which differs by dtype and model. A large gap by its mean. A temperature that
differs by its slope: rounding does not grow with the log-prob, a temperature does. Weights that are not the sampler's
by the KL estimate, held against that of the run's first step on the same statistic.
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
"""Mean gap in nats above which a run ends, by the weights' dtype, unless `engine.parity_limit` is set. Our choice."""

KL_FLOORS = {torch.float32: 1e-6, torch.bfloat16: 3e-4}
"""KL estimate in nats below which nothing counts as drift, by the weights' dtype. Our choice.

Measured in bfloat16 on the digits and tiny models (4 methods and seeds, both backends): at most 1.3e-4 and 1.3e-3 where
all is right, 6e-4 and 2.5e-2 with weights that are five small LoRA steps old.
"""

KL_FACTOR = 10.0
"""How many times the KL estimate of the first step a later one may be. Our choice; measured: at most 3 where all is
right."""

SLOPE_LIMIT = 0.05
"""Largest slope of the gap over the log-prob. Our choice; measured: at most 0.018 where all is right, 0.34 to 0.41 for
a sampler at temperature 1 and a trainer at 0.7."""

ERRORS = 4.0
"""By how many standard errors slope and KL estimate must lie above their limits, so that few tokens stop no run."""


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
    """Return the gap over the selected tokens of a micro-batch."""
    selected_NT = stats.selected_NT
    return gap_between(micro.sampled_logp_NT[selected_NT], stats.logp_NT.detach()[selected_NT])


def joined(gaps: Sequence[Gap]) -> Gap:
    """Add up the gaps of several batches or ranks."""
    if not gaps:
        return Gap()
    return Gap(*map(sum, zip(*gaps, strict=True)))._replace(most=max(gap.most for gap in gaps))


def kl_with_error(gap: Gap) -> tuple[float, float]:
    """Return the mean of the KL estimate and its standard error, nats."""
    n = max(gap.tokens, 1)
    mean = gap.kl / n
    return mean, math.sqrt(max(gap.kl2 / n - mean**2, 0.0) / n)


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
    """Checks the gap of each step of a run against `first`, that of the first step for each statistic.

    Gaps over all sampled tokens and over selected tokens are two statistics, which are never compared. Checkpoints hold
    `first`, so that a resumed run is held against the first step of all and not against its own.
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
        report.parity_mean, report.parity_max, report.parity_kl = gap.total / tokens, gap.most, gap.kl / tokens
        limit = self.limit or PARITY_LIMITS[self.dtype]
        # Not `mean > limit`, which lets nan pass.
        if not report.parity_mean <= limit:
            raise ParityError(
                f"step {report.step}: sampler and trainer log-probs differ by {report.parity_mean:.3g} nats on average "
                f"(engine.parity_limit={limit}): check that the sampler took over the last weights, and that "
                "temperature and dtype are the same on both sides"
            )
        if self.limit is None and gap.tokens:
            self._check_slope(report, gap)
            self._check_drift(report, gap, statistic)

    def _check_slope(self, report: StepReport, gap: Gap) -> None:
        # Among tokens of which the policy is nearly certain, rounding alone can have a slope. Another temperature moves
        # the distribution: with T 1 against 0.7 the KL estimate is more than 70 times this floor.
        if kl_with_error(gap)[0] <= KL_FLOORS[self.dtype]:
            return
        slope, error = slope_with_error(gap)
        if abs(slope) - ERRORS * error > SLOPE_LIMIT:
            raise ParityError(
                f"step {report.step}: the gap between sampler and trainer log-probs grows with the log-prob (slope "
                f"{slope:.3g}, allowed are {SLOPE_LIMIT}): one side samples or scores at another temperature; make "
                "them the same, or set engine.parity_limit to check the mean gap only"
            )

    def _check_drift(self, report: StepReport, gap: Gap, statistic: str) -> None:
        mean, error = kl_with_error(gap)
        allowed = max(KL_FLOORS[self.dtype], KL_FACTOR * self.first.setdefault(statistic, mean))
        if mean - ERRORS * error > allowed:
            raise ParityError(
                f"step {report.step}: sampler and trainer are {mean:.3g} nats apart (KL estimate over {statistic} "
                f"tokens), {self.first[statistic]:.3g} in the first step: the sampler has not taken over the last "
                "weights; check sampler.sync, or set engine.parity_limit to check the mean gap only"
            )
