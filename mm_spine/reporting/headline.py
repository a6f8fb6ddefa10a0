"""What a run gained, in figures and in one sentence: before and after, and the base model's own vote beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mm_spine.intervals import Interval
from mm_spine.reporting import compare
from mm_spine.reporting.folder import Row, Saved, number, section

LABELS = {"greedy": "greedy", "pass_at_1": "pass@1", "maj_at_n": "maj@N"}
SCORES = {"greedy": compare.GREEDY, "pass_at_1": compare.PASS_AT_1, "maj_at_n": compare.MAJ_AT_N}
LABEL_FREE = {
    "unparsed": ("without an answer", lambda value: percent(value)),
    "mean_length": ("mean length, tokens", lambda value: f"{value:,.1f}"),
    "mean_entropy": ("mean entropy, nats", lambda value: f"{value:.3f}"),
}
"""What shows a collapse where no gold answer does: keys of a block of summary.json."""

FEW = 20
"""Questions below which a bootstrap interval is said to be too narrow. The number is ours."""

SPLITS = {"adapted": "Adapted questions", "held_out": "Held-out questions"}


@dataclass(frozen=True)
class Measure:
    """One figure before and after, shares in [0, 1] with 95 % intervals over questions; `gain` is paired."""

    name: str
    before: Interval | None
    after: Interval | None
    gain: Interval | None


@dataclass(frozen=True)
class Split:
    """The figures of one split. `over_vote` is the adapted model's greedy score less the starting model's own vote.

    `label_free` are (name, before, after) of what needs no gold answer. `partial`: some answers are partly right.
    `unpaired` says why there are no differences, where both evaluations have figures.
    """

    name: str
    title: str
    questions: int
    labelled: int
    measures: tuple[Measure, ...]
    over_vote: Interval | None
    breakdown: Mapping[str, Any]
    label_free: tuple[tuple[str, str, str], ...] = ()
    stepped: bool = True
    partial: bool = False
    unpaired: str = ""

    @property
    def known(self) -> bool:
        return any(measure.before or measure.after for measure in self.measures)


def headline(saved: Saved) -> tuple[Split, ...]:
    """The splits that summary.json has figures of."""
    found = compare.load(saved.path)
    run = found if isinstance(found, compare.Run) else None
    held_out = section(saved.summary, "held_out")
    blocks = {
        "adapted": (section(saved.summary, "before"), section(saved.summary, "after")),
        "held_out": (section(held_out, "before"), section(held_out, "after")),
    }
    unpaired = found.note if isinstance(found, compare.Row) else ""
    return tuple(_split(name, *pair, saved, run, unpaired) for name, pair in blocks.items() if any(pair))


def _split(name: str, before: Row, after: Row, saved: Saved, run: compare.Run | None, unpaired: str) -> Split:
    scores = (run.before[name], run.after[name]) if run and name in run.after and name in run.before else None
    samples = f"maj@{run.samples}" if run else "maj@N"
    measures = tuple(
        Measure(
            samples if key == "maj_at_n" else label,
            _interval(before, key),
            _interval(after, key),
            compare.paired(scores[0][SCORES[key]], scores[1][SCORES[key]]) if scores else None,
        )
        for key, label in LABELS.items()
    )
    stepped = saved.summary.get("steps") != 0
    over_vote = compare.paired(scores[0][compare.MAJ_AT_N], scores[1][compare.GREEDY]) if scores and stepped else None
    block = after or before
    shown = (scores[i][name].values() for i in (0, 1) for name in (compare.GREEDY, compare.MAJ_AT_N)) if scores else ()
    return Split(
        name=name,
        title=SPLITS[name],
        questions=int(number(block.get("n")) or 0),
        labelled=int(number(block.get("n_labelled")) or 0),
        measures=measures,
        over_vote=over_vote,
        breakdown=section(saved.summary, "breakdowns") if name == "adapted" else {},
        label_free=tuple(_label_free(before, after)),
        stepped=stepped,
        partial=any(score not in (0, 1, None) for values in shown for score in values),
        unpaired=unpaired if before and after else "",
    )


def _label_free(before: Row, after: Row) -> Iterator[tuple[str, str, str]]:
    for key, (name, show) in LABEL_FREE.items():
        values = [number(block.get(key)) for block in (before, after)]
        if any(value is not None for value in values):
            old, new = ("–" if value is None else show(value) for value in values)
            yield name, old, new


def _interval(block: Row, key: str) -> Interval | None:
    value, bounds = number(block.get(key)), block.get(f"{key}_ci95")
    if value is None:
        return None
    whole = isinstance(bounds, list) and len(bounds) == 2
    low, high = (number(bound) for bound in bounds) if whole else (None, None)  # type: ignore[union-attr]
    return Interval(value, low, high)


def sentences(split: Split) -> Iterator[str]:
    """What the split says in words, a method that does not help included."""
    greedy, vote = split.measures[0], split.measures[2]
    if not split.known:
        yield "No gold answers: what the adaptation was worth cannot be said; see the shares and curves below."
        return
    right = "scores" if split.partial else "is right on"
    if not split.stepped and greedy.before and vote.before:
        yield (
            f"The run made no step: before and after are one evaluation. One greedy answer {right} "
            f"{_of(split, greedy.before)}, the model's own vote ({vote.name}){'' if split.partial else ' on'} "
            f"{percent(vote.before.value)}."
        )
        return
    if greedy.before and greedy.after and greedy.gain:
        yield (
            f"One greedy answer {right} {_of(split, greedy.after)}, before{'' if split.partial else ' on'} "
            f"{percent(greedy.before.value)}: {points(greedy.gain)}, {_reading(greedy.gain)}."
        )
    if vote.before and split.over_vote:
        yield (
            f"The starting model's own vote ({vote.name}) alone {right} {percent(vote.before.value)}: the "
            f"adapted model's greedy answers differ from it by {points(split.over_vote)}, {_reading(split.over_vote)}."
        )
    if split.unpaired:
        yield f"No differences can be given: {split.unpaired}."
    elif split.labelled < FEW:
        yield f"With fewer than {FEW} questions such intervals are too narrow to rest on."


def _of(split: Split, value: Interval) -> str:
    """A share of the questions that it is a share of: those with a gold answer."""
    which = "questions" if split.labelled == split.questions else "questions with a gold answer"
    return f"{percent(value.value)} {'over' if split.partial else 'of'} {split.labelled:,} {which}"


def _reading(gain: Interval) -> str:
    if gain.low is None or gain.high is None:
        return "from one question"
    if gain.low > 0:
        return "a gain"
    return "a loss" if gain.high < 0 else "no difference that these questions could show"


def percent(value: float) -> str:
    """A share in percent, one decimal."""
    return f"{100 * value:.1f}\u00a0%"


def points(gain: Interval) -> str:
    """A difference of shares in percentage points with its interval."""
    return " ".join(filter(None, (compare.signed(gain.value), "points", compare.bounds(gain))))
