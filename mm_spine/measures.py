"""The measures of an evaluation: their keys in the files of a run, their order and names; and functions that compute
some of them from plain values: the evaluation from what it graded, reports from the lines of its files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import accumulate
from math import log
from operator import mul
from typing import NamedTuple, TypedDict

GREEDY, PASS_AT_1, MAJ_AT_N, PASS_AT_N = "greedy", "pass_at_1", "maj_at_n", "pass_at_n"

LABELS = {GREEDY: "greedy", PASS_AT_1: "pass@1", MAJ_AT_N: "maj@N", PASS_AT_N: "pass@N"}
"""Key in summary.json -> name in tables, in the order of the files."""

COMPARED = (GREEDY, PASS_AT_1, MAJ_AT_N)
"""The measures that reports and comparisons show, in the order of their columns."""

PASS_AT_K, ANSWER_ENTROPY, DISTINCT_ANSWERS = "pass_at_k", "answer_entropy", "distinct_answers"
"""Keys of the measures that are computed here."""

VOTE = "vote"
"""Key of the votes beside `GREEDY`, where questions are counted that turned right or wrong."""

SHARE_BINS = ((0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0), (1.0, 1.0))
"""Bins of the vote's share at the start: above low, up to high. A share of 1 is in the last one only. They are ours."""


def majority_label(samples: int | None) -> str:
    """Return the vote's name with the number of votes, "maj@16"; "maj@N" where that is not known."""
    return LABELS[MAJ_AT_N] if samples is None else f"maj@{samples}"


@cache
def pass_at_k(samples: int, right: int) -> tuple[float, ...]:
    """Return the unbiased pass@k of one question for k = 1 to `samples`, of which `right` are right.

    It is 1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, equation 1): the share of all ways to draw k of
    the n samples that hold a right one. The ratio is a product of k factors in [0, 1], so no large number is formed.
    """
    wrong = samples - right
    factors = (max(wrong - drawn, 0) / (samples - drawn) for drawn in range(samples))
    return tuple(1.0 - all_wrong for all_wrong in accumulate(factors, mul))


def mean_pass_at_k(counts_Q: Iterable[tuple[int, int]]) -> list[float]:
    """Return the mean over questions of pass@k for k = 1 up to the fewest samples of a question.

    `counts_Q` has the samples and the right ones among them of each question.
    """
    curves = [pass_at_k(samples, right) for samples, right in counts_Q]
    return [sum(of_k) / len(of_k) for of_k in zip(*curves, strict=False)]


def shown_k(samples: int) -> list[int]:
    """Return the k that tables show of pass@k: powers of two, and the number of samples."""
    return sorted({2**power for power in range(samples.bit_length())} | {samples}) if samples else []


def answer_entropy(classes: Sequence[str | None]) -> float:
    """Return the entropy in nats of one question's samples over its vote classes; at most the log of their number.

    Samples that do not vote (None: no answer, or cut off) are one class together: a model that stops answering does not
    count as sure. It is the discrete semantic entropy of arXiv 2302.09664, with votes as meanings.
    """
    n = len(classes)
    return sum(count / n * log(n / count) for count in Counter(classes).values())


def distinct_answers(classes: Sequence[str | None]) -> int:
    """Return how many vote classes the samples of one question have; having no answer is none."""
    return len(set(classes) - {None})


def vote_share(classes: Sequence[str | None]) -> float:
    """Return the share of all samples in the largest vote class, in [0, 1]; 0 where none voted."""
    votes = Counter(name for name in classes if name is not None)
    return max(votes.values()) / len(classes) if votes else 0.0


def vote_is_right(vote: object, answers: Sequence[object], right: Sequence[bool]) -> bool:
    """Whether the vote's answer is right, as the sample is that gave it; False where nothing won."""
    return vote is not None and any(flag for answer, flag in zip(answers, right, strict=True) if answer == vote)


class Turn(NamedTuple):
    """One question: whether it was right before and is right after, and the vote's share of samples at the start."""

    before: bool
    after: bool
    share: float

    @property
    def learnt(self) -> bool:
        """Wrong before, right after."""
        return self.after and not self.before

    @property
    def corrupted(self) -> bool:
        """Right before, wrong after."""
        return self.before and not self.after


class TurnBin(TypedDict):
    """The `n` questions of one of `SHARE_BINS`; `right_before` of them were right before."""

    low: float
    high: float
    n: int
    right_before: int
    learnt: int
    corrupted: int


class Turned(TypedDict):
    """How many of `n` questions with a gold answer were learnt (wrong before, right after) and corrupted (right before,
    wrong after), and the vote's mean share of the samples at the start on those; None where there are none."""

    n: int
    right_before: int
    learnt: int
    corrupted: int
    learnt_share: float | None
    corrupted_share: float | None
    bins: list[TurnBin]


def turned(turns: Sequence[Turn]) -> Turned:
    """Count the questions learnt and corrupted, in all and by the vote's share at the start."""
    learnt = [turn.share for turn in turns if turn.learnt]
    corrupted = [turn.share for turn in turns if turn.corrupted]
    bins = []
    for place, (low, high) in enumerate(SHARE_BINS):
        inside = [turn for turn in turns if _bin_of(turn.share) == place]
        bins.append(
            TurnBin(
                low=low,
                high=high,
                n=len(inside),
                right_before=sum(turn.before for turn in inside),
                learnt=sum(turn.learnt for turn in inside),
                corrupted=sum(turn.corrupted for turn in inside),
            )
        )
    return Turned(
        n=len(turns),
        right_before=sum(turn.before for turn in turns),
        learnt=len(learnt),
        corrupted=len(corrupted),
        learnt_share=sum(learnt) / len(learnt) if learnt else None,
        corrupted_share=sum(corrupted) / len(corrupted) if corrupted else None,
        bins=bins,
    )


def _bin_of(share: float) -> int:
    if share == 1.0:
        return len(SHARE_BINS) - 1
    return next(place for place, (_, high) in enumerate(SHARE_BINS) if share <= high)
