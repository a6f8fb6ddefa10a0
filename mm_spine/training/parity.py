"""Parity: how far the sampler's log-probs are from the trainer's, and when that ends the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mm_spine.config import RunStopped
from mm_spine.training.batch import MicroBatch
from mm_spine.types import StepReport, TokenStats

PARITY_LIMITS = {torch.float32: 0.01, torch.bfloat16: 0.1}
"""Mean gap in nats above which a run ends, by the weights' dtype, unless `engine.parity_limit` is set. Our choice."""


class ParityError(RunStopped):
    """Sampler and trainer disagree about the policy."""


class Gap(NamedTuple):
    """Sampler minus trainer log-probs over some tokens.

    `tokens` counts them, `total` sums |gap|, `kl` sums the KL estimate, `most` is the largest |gap|; all in nats.
    """

    tokens: float = 0.0
    total: float = 0.0
    kl: float = 0.0
    most: float = 0.0


def gap_between(sampler_S: Tensor, trainer_S: Tensor) -> Gap:
    """Return the gap over S tokens. The KL estimate is k3 of sampler and trainer on the sampler's draws."""
    gap_S = sampler_S - trainer_S
    if not len(gap_S):
        return Gap()
    size_S = gap_S.abs()
    return Gap(float(len(gap_S)), float(size_S.sum()), float((torch.expm1(-gap_S) + gap_S).sum()), float(size_S.max()))


def gap_of(micro: MicroBatch, stats: TokenStats) -> Gap:
    """Return the gap over the selected tokens of a micro-batch."""
    selected_NT = stats.selected_NT
    return gap_between(micro.sampled_logp_NT[selected_NT], stats.logp_NT.detach()[selected_NT])


def joined(gaps: Sequence[Gap]) -> Gap:
    """Add up the gaps of several batches or ranks."""
    if not gaps:
        return Gap()
    tokens, total, kl, most = zip(*gaps, strict=True)
    return Gap(sum(tokens), sum(total), sum(kl), max(most))


def check_parity(report: StepReport, gap: Gap, dtype: torch.dtype, limit: float | None) -> None:
    """Write `gap` into `report`. Raises ParityError where its mean exceeds `limit`, or the one of `dtype` if None.

    Call it before any weight moves: the rollouts of another policy must train nothing.
    """
    tokens = max(gap.tokens, 1)
    report.parity_mean, report.parity_max, report.parity_kl = gap.total / tokens, gap.most, gap.kl / tokens
    limit = limit or PARITY_LIMITS[dtype]
    # Not `mean > limit`, which lets nan pass.
    if not report.parity_mean <= limit:
        raise ParityError(
            f"step {report.step}: sampler and trainer log-probs differ by {report.parity_mean:.3g} nats on average "
            f"(engine.parity_limit={limit}): check that the sampler took over the last weights, and that "
            "temperature and dtype are the same on both sides"
        )
