"""Differences between methods with paired tests, corrected for their number: what a paper states.

By default one greedy answer of the adapted model is compared with the starting model's own vote, which needs no
training. With a reference run, the samples of the adapted model (pass@1) are compared with those of that run's method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table
from scipy import stats

from mm_spine.intervals import Interval, over_seeds
from mm_spine.measures import GREEDY, MAJ_AT_N, PASS_AT_1
from mm_spine.reporting import formats
from mm_spine.reporting.finished_run import SPLITS, FinishedRun, paired_difference

BASE_VOTE = "the starting model's vote"

RESAMPLES = 9999
"""Sign flips drawn where there are too many to take all of them."""

_BATCH_VALUES = 4_000_000
"""Values that a batch of sign flips may hold: 32 MB."""


@dataclass(frozen=True)
class Contrast:
    """The difference between a method and what it is compared with, on one split.

    Attributes:
        method: the method, with the folder's name where two runs share method and seed.
        against: what it is compared with.
        seeds: the seeds that the difference is the mean of.
        questions: questions with a score in each run.
        difference: mean paired difference as a share, with its 95 % interval.
        p: two-sided p-value, None where there is nothing to test.
        p_holm: the p-value corrected by Holm's method for all contrasts of the split.
        label_free: no run of the method read labels.
    """

    method: str
    against: str
    split: str
    seeds: tuple[int, ...]
    questions: int
    difference: Interval
    p: float | None
    p_holm: float | None = None
    label_free: bool = True

    @property
    def test(self) -> str:
        """The test in words, "" without one."""
        if self.p is None:
            return ""
        return (
            f"paired t, {len(self.seeds)} seeds" if len(self.seeds) > 1 else f"sign flips, {self.questions} questions"
        )


Scored = Mapping[str, float | None]
"""Question id -> score in [0, 1], None without a gold answer."""


def contrasts(runs: Sequence[FinishedRun], reference: FinishedRun | None = None) -> list[Contrast]:
    """Compare every method with the starting model's vote or, given `reference`, with that run's method.

    The p-values of a split are corrected together. Runs without a gold answer have no contrast.
    """
    found = []
    for split in SPLITS:
        pairs = [_pair(run, reference, runs, split) for run in runs if split in run.after]
        found += holm([one for group in _grouped([pair for pair in pairs if pair]) if (one := _contrast(group, split))])
    return found


@dataclass(frozen=True)
class _Pair:
    """A run with the name and the scores that it is compared by."""

    run: FinishedRun
    name: str
    against: str
    low: Scored
    high: Scored


def _pair(run: FinishedRun, reference: FinishedRun | None, runs: Sequence[FinishedRun], split: str) -> _Pair | None:
    if reference is None:
        return _Pair(run, run.method, BASE_VOTE, run.before[split][MAJ_AT_N], run.after[split][GREEDY])
    partner = partner_of(run, reference, runs)
    if partner is None or partner is run or split not in partner.after:
        return None
    return _Pair(run, run.method, reference.method, partner.after[split][PASS_AT_1], run.after[split][PASS_AT_1])


def partner_of(run: FinishedRun, reference: FinishedRun, runs: Sequence[FinishedRun]) -> FinishedRun | None:
    """Return the run of the reference's method that has the seed of `run`: the reference, where it is one of them."""
    same = [reference, *(other for other in runs if other.method == reference.method)]
    return next((other for other in same if other.seed == run.seed), None)


def _grouped(pairs: Sequence[_Pair]) -> list[list[_Pair]]:
    """Put the seeds of a method together; runs that share method and seed stay apart, named by their folders."""
    groups: list[list[_Pair]] = []
    for method in dict.fromkeys(pair.name for pair in pairs):
        seeds = [pair for pair in pairs if pair.name == method]
        distinct = len({pair.run.seed for pair in seeds}) == len(seeds)
        groups += [seeds] if distinct else [[replace(pair, name=f"{method} ({pair.run.name})")] for pair in seeds]
    return groups


def _contrast(group: Sequence[_Pair], split: str) -> Contrast | None:
    """Return the contrast of the seeds of one method; None where no question has both scores."""
    known = [(pair, values) for pair in group if (values := _differences(pair)).size]
    if not known:
        return None
    first, values_Q = known[0]
    means_S = [float(values.mean()) for _, values in known]
    several = len(known) > 1
    interval = over_seeds(means_S) if several else paired_difference(first.low, first.high)
    assert interval is not None, "there are differences"
    # Seeds that end alike by chance, as two on few questions do, tell nothing of how far others would differ.
    if several and np.ptp(means_S) == 0:
        interval = Interval(interval.value, None, None)
    return Contrast(
        method=first.name,
        against=first.against,
        split=split,
        seeds=tuple(pair.run.seed for pair, _ in known),
        questions=min(values.size for _, values in known),
        difference=interval,
        p=t_test(means_S) if several else sign_flip_test(values_Q),
        label_free=all(bool(pair.run.summary["label_free"]) for pair, _ in known),
    )


def _differences(pair: _Pair) -> np.ndarray:
    """Return the differences of the questions that have both scores, (Q,)."""
    both = ((old, pair.high.get(name)) for name, old in pair.low.items())
    return np.array([new - old for old, new in both if old is not None and new is not None])


def t_test(means_S: Sequence[float]) -> float | None:
    """Return the two-sided p-value of Student's paired t-test over seeds; None where all differences are equal."""
    if len(means_S) < 2 or np.ptp(means_S) == 0:
        return None
    return float(stats.ttest_1samp(means_S, 0.0).pvalue)


def sign_flip_test(differences_Q: np.ndarray) -> float | None:
    """Return the two-sided p-value of the paired permutation test over questions; None without two questions.

    Under the null hypothesis a difference has either sign with equal probability. All sign flips are taken where there
    are at most `RESAMPLES`, else so many are drawn, always the same ones. For answers that are right or wrong, all of
    them together are McNemar's exact test.
    """
    if differences_Q.size < 2:
        return None
    # A difference of 0 is 0 under either sign: it changes no sum.
    moved = differences_Q[differences_Q != 0]
    # A single difference is as far from 0 under either sign.
    if moved.size < 2:
        return 1.0
    # The sum and not the mean: of whole numbers it is exact, so that equal sums are found equal.
    tested = stats.permutation_test(
        (moved,),
        lambda x, axis: np.sum(x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, _BATCH_VALUES // moved.size),
        rng=np.random.default_rng(0),
    )
    return float(min(1.0, tested.pvalue))


def holm(tested: Sequence[Contrast]) -> list[Contrast]:
    """Correct the p-values of the contrasts together by Holm's method (1979)."""
    known = sorted(contrast.p for contrast in tested if contrast.p is not None)
    corrected: dict[float, float] = {}
    highest = 0.0
    for place, p in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - place) * p))
        corrected.setdefault(p, highest)
    return [replace(one, p_holm=None if one.p is None else corrected[one.p]) for one in tested]


def contrast_table(found: Sequence[Contrast]) -> Table:
    """Return the contrasts as a table for the terminal: points, and p-values by Holm's method for all of a split."""
    against = found[0].against
    table = Table(
        title=escape(f"{measure_of(against)}, minus {against}, in points"), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0),
        pad_edge=False, show_edge=False,
    )  # fmt: skip
    table.add_column("method", overflow="fold")
    for name in ("difference", "p", "p (Holm)"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("test", overflow="fold")
    for split in dict.fromkeys(one.split for one in found):
        table.add_row(f"[bold]{split}[/bold]")
        for one in found:
            if one.split == split:
                cells = (
                    method_words(one),
                    formats.points_only(one.difference),
                    p_words(one.p),
                    p_words(one.p_holm),
                    test_words(one),
                )
                table.add_row(*map(escape, cells))
        table.add_section()
    return table


def measure_of(against: str) -> str:
    """Return what is compared: one greedy answer with a vote, pass@1 with another run."""
    return "One greedy answer after adapting" if against == BASE_VOTE else "pass@1 after adapting"


def method_words(contrast: Contrast) -> str:
    """Return the method's name, marked where it reads labels."""
    return contrast.method if contrast.label_free else f"{contrast.method} (uses labels)"


def p_words(p: float | None) -> str:
    """Return a p-value with three decimals, "< 0.001" below."""
    if p is None:
        return formats.NONE
    return "< 0.001" if p < 0.0005 else f"{p:.3f}"


def test_words(contrast: Contrast) -> str:
    """Return the test in words, or why there is none."""
    if contrast.test:
        return contrast.test
    return "none: one question" if len(contrast.seeds) == 1 else "none: the seeds do not differ"
