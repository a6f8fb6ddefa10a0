"""Paired comparisons over seeds, and Holm's correction for how many are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from mm_spine.intervals import Interval, over_seeds


class Comparison(NamedTuple):
    """A row against a reference: the mean difference with its 95 % interval, not corrected, and its p-value.

    `holm` is the p-value after Holm's correction. Both are None where the number of seeds is 1.
    """

    label: str
    seeds: int
    difference: Interval
    p: float | None
    holm: float | None = None

    @property
    def verdict(self) -> str:
        """ "better", "worse" or "", at 5 % after the correction."""
        if self.holm is None or self.holm >= 0.05:
            return ""
        return "better" if self.difference.value > 0 else "worse"


def paired_p(values: Sequence[float]) -> float | None:
    """Return the two-sided p-value of Student's t for a mean difference of 0; None for fewer than two seeds."""
    if len(values) < 2:
        return None
    # Without spread t is 0/0 or infinite.
    if np.ptp(values) == 0:
        return 1.0 if values[0] == 0 else 0.0
    return float(stats.ttest_1samp(values, 0.0).pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number m: the k-th smallest times m - k + 1, in order (Holm 1979)."""
    corrected, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = largest
    return corrected


def compared(differences: dict[str, list[float]]) -> dict[str, Comparison]:
    """Compare rows with one reference by their differences (one per seed), corrected for how many rows there are."""
    plain = {label: Comparison(label, len(d), over_seeds(d), paired_p(d)) for label, d in differences.items() if d}
    tested = [(label, found.p) for label, found in plain.items() if found.p is not None]
    corrected = dict(zip([label for label, _ in tested], holm([p for _, p in tested]), strict=True))
    return {label: found._replace(holm=corrected.get(label)) for label, found in plain.items()}
