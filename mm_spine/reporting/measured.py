"""What a comparison may show of a run beside its scores: pass@k, how answers vary, what was learnt and corrupted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np

from mm_spine.intervals import Interval, over_seeds
from mm_spine.measures import ANSWER_ENTROPY, DISTINCT_ANSWERS
from mm_spine.reporting.finished_run import VOTE_SHARE, Scores, mean_of, paired_difference
from mm_spine.reporting.formats import Pair
from mm_spine.reporting.pass_at_k import curve_of, rows_of
from mm_spine.reporting.turned import Turns, turns_of

Key = TypeVar("Key")

ANSWERS = (VOTE_SHARE, ANSWER_ENTROPY, DISTINCT_ANSWERS)
"""Measures of how the answers to a question vary. They need no gold answer."""


class BeforeAfter(NamedTuple):
    """A value before and after, and the difference: paired by question for one run, over seeds for a mean."""

    pair: Pair
    gain: Interval | None


@dataclass(frozen=True)
class Measured:
    """What is measured of one run on one split, or of several seeds of a method.

    Attributes:
        pass_at_k: by k, for the k that tables show; empty without gold answers.
        answers: the measures of `ANSWERS`.
        curves: pass@k for k = 1, 2, ... before and after; empty without gold answers.
        turns: the questions with a gold answer, right or wrong before and after; of several seeds all of them.
        asked: questions in all.
    """

    pass_at_k: Mapping[int, BeforeAfter] = field(default_factory=dict)
    answers: Mapping[str, BeforeAfter] = field(default_factory=dict)
    curves: tuple[Sequence[float], Sequence[float]] = ((), ())
    turns: Turns = field(default_factory=dict)
    asked: int = 0


def measure(before: Scores, after: Scores, samples: int) -> Measured:
    """Return what is measured of one split of a run."""
    pass_at_k = {row.k: BeforeAfter((row.before, row.after), row.gain) for row in rows_of(before, after, samples)}
    answers = {
        name: BeforeAfter((mean_of(old), mean_of(new)), paired_difference(old, new))
        for name, old, new in ((name, before[name], after[name]) for name in ANSWERS)
    }
    curves = curve_of(before, samples), curve_of(after, samples)
    return Measured(pass_at_k, answers, curves, turns_of(before, after), len(before[VOTE_SHARE]))


def mean_measured(group: Sequence[Measured]) -> Measured:
    """Return the means over the seeds of a method."""
    before, after = (mean_curve([one.curves[place] for one in group]) for place in (0, 1))
    turns = {by: [turn for one in group for turn in one.turns.get(by, ())] for by in group[0].turns}
    pass_at_k, answers = _means([one.pass_at_k for one in group]), _means([one.answers for one in group])
    return Measured(pass_at_k, answers, (before, after), turns, group[0].asked)


def _means(tables: Sequence[Mapping[Key, BeforeAfter]]) -> dict[Key, BeforeAfter]:
    """Return the means of the entries that all seeds have."""
    shared = [key for key in tables[0] if all(key in table for table in tables)]
    found = {key: [table[key] for table in tables] for key in shared}
    return {
        key: BeforeAfter(mean_pair([each.pair for each in seeds]), mean_gain([each.gain for each in seeds]))
        for key, seeds in found.items()
    }


def mean_curve(curves: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean of the curves that are not empty, as far as the shortest of them goes."""
    known = [curve for curve in curves if curve]
    return [float(np.mean(of_k)) for of_k in zip(*known, strict=False)]


def mean_gain(differences: Sequence[Interval | None]) -> Interval | None:
    """Return the mean of the seeds' differences with an interval by Student's t over the seeds (n - 1).

    It says what another seed would do on the same questions. The interval of one run says what other questions would.
    """
    values = [difference.value for difference in differences if difference is not None]
    return over_seeds(values) if values else None


def mean_pair(pairs: Sequence[Pair]) -> Pair:
    """Return the means before and after, each over the pairs that have it."""
    columns = [[value for value in column if value is not None] for column in zip(*pairs, strict=True)]
    before, after = (float(np.mean(column)) if column else None for column in columns)
    return before, after
