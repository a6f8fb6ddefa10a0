"""pass@k of finished runs: curves over k before and after, and differences paired by question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mm_spine.intervals import Interval
from mm_spine.measures import mean_pass_at_k, pass_at_k, shown_k
from mm_spine.reporting.curves import Chart, Series
from mm_spine.reporting.finished_run import RIGHT_SAMPLES, Scores, mean_of, paired_difference


class PassAtK(NamedTuple):
    """pass@k of one split for one k, before and after, with the paired difference."""

    k: int
    before: float | None
    after: float | None
    gain: Interval | None


def at_shown_k(curve: Sequence[float]) -> dict[int, float]:
    """Return k -> pass@k for the k that tables show, from the values for k = 1, 2, ..."""
    return {k: curve[k - 1] for k in shown_k(len(curve))}


def curve_of(scores: Scores, samples: int) -> list[float]:
    """Return the mean pass@k of an evaluation for k = 1 to `samples`; empty without gold answers."""
    counts = [(samples, int(right)) for right in scores[RIGHT_SAMPLES].values() if right is not None]
    return mean_pass_at_k(counts)


def rows_of(before: Scores, after: Scores, samples: int) -> list[PassAtK]:
    """Return pass@k before and after for the k that tables show; none without gold answers in both."""
    rows = []
    for k in shown_k(samples):
        old, new = (_by_question(scores, samples, k) for scores in (before, after))
        rows.append(PassAtK(k, mean_of(old), mean_of(new), paired_difference(old, new)))
    return [row for row in rows if row.gain is not None]


def _by_question(scores: Scores, samples: int, k: int) -> Mapping[str, float | None]:
    return {
        name: None if right is None else pass_at_k(samples, int(right))[k - 1]
        for name, right in scores[RIGHT_SAMPLES].items()
    }


def chart_of(name: str, title: str, curves: Sequence[tuple[str, Sequence[float], int]]) -> Chart | None:
    """Return a chart of (label, pass@k for k = 1, 2, ..., place) lines; None where no line has two points."""
    lines = [
        Series(label, tuple(range(1, len(curve) + 1)), tuple(curve), place)
        for label, curve, place in curves
        if len(curve) > 1
    ]
    return Chart(name, title, "share", tuple(lines), "share", over="k") if lines else None
