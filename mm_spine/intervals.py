"""Confidence intervals: over questions by the bootstrap, over seeds by Student's t."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Interval(NamedTuple):
    """An estimate and its 95 % interval, as shares. The bounds are None where there is only one value."""

    value: float
    low: float | None
    high: float | None


def bootstrap_ci(values_Q: Sequence[float] | np.ndarray, seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the mean of (Q,) values, resampling questions (Efron 1979).

    Questions are taken as independent, so the interval is too narrow where many share an image. Raises ValueError where
    there are no values.
    """
    values = np.asarray(values_Q, dtype=np.float64)
    if values.size == 0:
        raise ValueError("no values to resample")
    if values.size == 1:
        return float(values[0]), float(values[0])
    interval = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=draws,
        # At most 32 MB of indices (int64) at a time.
        batch=max(1, 4_000_000 // values.size),
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def over_seeds(values: Sequence[float]) -> Interval:
    """Return the mean of one value per seed and its Student's t interval (n - 1 degrees of freedom).

    With one seed there are no bounds.
    """
    mean, n = float(np.mean(values)), len(values)
    if n == 1:
        return Interval(mean, None, None)
    half = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half)
