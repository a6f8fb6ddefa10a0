"""The result of a run: scores before and after adapting, the starting model's own vote, and what they mean in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mm_spine.intervals import Interval
from mm_spine.measures import ANSWER_ENTROPY, COMPARED, DISTINCT_ANSWERS, GREEDY, LABELS, MAJ_AT_N, majority_label
from mm_spine.reporting import pass_at_k, turned
from mm_spine.reporting.curves import Chart
from mm_spine.reporting.finished_run import (
    SPLITS,
    FinishedRun,
    Scores,
    UnfinishedRun,
    load_run,
    paired_difference,
)
from mm_spine.reporting.formats import NONE, percent, points
from mm_spine.reporting.saved_run import Json, SavedRun, number, section

LABEL_FREE: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "unparsed": ("without an answer", percent),
    "mean_length": ("mean length, tokens", lambda tokens: f"{tokens:,.1f}"),
    "mean_entropy": ("mean entropy, nats", lambda nats: f"{nats:.3f}"),
    ANSWER_ENTROPY: ("entropy of the answers, nats", lambda nats: f"{nats:.3f}"),
    DISTINCT_ANSWERS: ("distinct answers per question", lambda answers: f"{answers:.2f}"),
}
"""Key of an evaluation in summary.json -> name and format, of values that need no gold answer and show a collapse."""

TO_LABEL = 50
"""Questions to label after a run without gold answers: 50 tell a share to 14 points or less to each side."""

FEW = 20
"""Below this number of questions, a bootstrap interval is said to be too narrow. The number is ours."""


@dataclass(frozen=True)
class MeasureResult:
    """One measure before and after: shares in [0, 1] with 95 % intervals over questions; `gain` is paired."""

    name: str
    before: Interval | None
    after: Interval | None
    gain: Interval | None


class LabelFreeResult(NamedTuple):
    """A value that needs no gold answer, before and after, as text."""

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class SplitResult:
    """The result on one split.

    Attributes:
        name, title: the split's key and its title.
        questions, labelled: questions in all, and those with a gold answer.
        measures: the measures of `COMPARED` by key.
        over_vote: greedy score of the adapted model minus the score of the starting model's own vote, paired.
        breakdown: "before" and "after" -> tag -> value -> scores.
        label_free: values that need no gold answer.
        pass_at_k: pass@k for the k that tables show; none without gold answers.
        pass_at_k_chart: its curve over all k, None with fewer than two samples.
        turns: greedy answers and votes, right or wrong before and after.
        stepped: the run made at least one step.
        partial: some answers are partly right, so that scores are no counts of right answers.
        unpaired: why there are no differences although both evaluations have scores; else "".
        answers: how many greedy answers changed and the shares of the votes, the entry of summary.json.
        run: the run's folder.
    """

    name: str
    title: str
    questions: int
    labelled: int
    measures: Mapping[str, MeasureResult]
    over_vote: Interval | None
    breakdown: Json
    label_free: tuple[LabelFreeResult, ...] = ()
    pass_at_k: tuple[pass_at_k.PassAtK, ...] = ()
    pass_at_k_chart: Chart | None = None
    turns: turned.Turns = field(default_factory=dict)
    stepped: bool = True
    partial: bool = False
    unpaired: str = ""
    answers: Json = field(default_factory=dict)
    run: str = ""

    @property
    def known(self) -> bool:
        """Whether there is any score."""
        return any(measure.before or measure.after for measure in self.measures.values())


def split_results(saved: SavedRun) -> tuple[SplitResult, ...]:
    """Return the result on each split of which summary.json has scores."""
    run = load_run(saved.path)
    held_out = section(saved.summary, "held_out")
    evaluations = {
        "adapted": (section(saved.summary, "before"), section(saved.summary, "after")),
        "held_out": (section(held_out, "before"), section(held_out, "after")),
    }
    return tuple(
        _split_result(split, before, after, saved, run)
        for split, (before, after) in evaluations.items()
        if before or after
    )


def _split_result(
    split: str, before: Json, after: Json, saved: SavedRun, run: FinishedRun | UnfinishedRun
) -> SplitResult:
    scores: tuple[Scores, Scores] | None = None
    if isinstance(run, FinishedRun) and split in run.before and split in run.after:
        scores = run.before[split], run.after[split]
    measures = {}
    for key in COMPARED:
        label = LABELS[key]
        if key == MAJ_AT_N:
            label = majority_label(run.samples if isinstance(run, FinishedRun) else None)
        gain = paired_difference(scores[0][key], scores[1][key]) if scores else None
        measures[key] = MeasureResult(label, _saved_interval(before, key), _saved_interval(after, key), gain)
    stepped = saved.summary.get("steps") != 0
    further = _further(split, scores, run.samples) if scores and isinstance(run, FinishedRun) else {}
    over_vote = paired_difference(scores[0][MAJ_AT_N], scores[1][GREEDY]) if scores and stepped else None
    block = after or before
    return SplitResult(
        name=split,
        title=SPLITS[split],
        questions=int(number(block.get("n")) or 0),
        labelled=int(number(block.get("n_labelled")) or 0),
        measures=measures,
        over_vote=over_vote,
        breakdown=section(saved.summary, "breakdowns") if split == "adapted" else {},
        label_free=tuple(_label_free(before, after)),
        stepped=stepped,
        partial=scores is not None and any(map(_has_partial_scores, scores)),
        unpaired=run.reason if isinstance(run, UnfinishedRun) and before and after else "",
        answers=section(section(saved.summary, "answers"), split),
        run=str(saved.path),
        **further,
    )


def _further(split: str, scores: tuple[Scores, Scores], samples: int) -> dict[str, Any]:
    """Return the fields of a split's result that need every question: pass@k, and what turned right or wrong."""
    before, after = scores
    # The places give the colours of the figure of the scores.
    lines = [("before", pass_at_k.curve_of(before, samples), 1), ("after", pass_at_k.curve_of(after, samples), 0)]
    return {
        "pass_at_k": tuple(pass_at_k.rows_of(before, after, samples)),
        "pass_at_k_chart": pass_at_k.chart_of(f"pass_at_k_{split}", f"pass@k, {SPLITS[split].lower()}", lines),
        "turns": turned.turns_of(before, after),
    }


def _saved_interval(block: Json, key: str) -> Interval | None:
    """Return a share of summary.json and, where it has one, its interval."""
    value, bounds = number(block.get(key)), block.get(f"{key}_ci95")
    if value is None:
        return None
    if not isinstance(bounds, list) or len(bounds) != 2:
        return Interval(value, None, None)
    return Interval(value, number(bounds[0]), number(bounds[1]))


def _has_partial_scores(scores: Scores) -> bool:
    """Whether a single answer, greedy or the vote's, has a score between wrong and right."""
    # pass@1 is a mean over samples: it lies between 0 and 1 for answers that are right or wrong, too.
    return any(score not in (0, 1, None) for key in (GREEDY, MAJ_AT_N) for score in scores[key].values())


def _label_free(before: Json, after: Json) -> Iterator[LabelFreeResult]:
    for key, (name, show) in LABEL_FREE.items():
        old, new = number(before.get(key)), number(after.get(key))
        if old is not None or new is not None:
            yield LabelFreeResult(name, NONE if old is None else show(old), NONE if new is None else show(new))


def sentences(split: SplitResult) -> Iterator[str]:
    """Say in words what the run reached on a split, also when the method did not help."""
    greedy, vote = split.measures[GREEDY], split.measures[MAJ_AT_N]
    if not split.known:
        yield from _without_labels(split)
        return
    if not split.stepped and greedy.before and vote.before:
        yield _no_step(split, greedy.before, vote.name, vote.before)
        return
    if greedy.gain:
        yield _in_one_sentence(greedy.gain, split.over_vote)
    if greedy.before and greedy.after and greedy.gain:
        yield _greedy_gain(split, greedy.before, greedy.after, greedy.gain)
    if vote.before and split.over_vote:
        yield (
            f"The starting model's own vote ({vote.name}) {_scores_or_is_right(split)} {percent(vote.before.value)}: "
            f"the adapted model's greedy answers differ from it by {points(split.over_vote)}, "
            f"{_verdict(split.over_vote)}."
        )
    if split.unpaired:
        yield f"No differences can be given: {split.unpaired}."
    elif split.labelled < FEW:
        yield f"With fewer than {FEW} questions, these intervals are too narrow to be relied on."
    if told := turned.sentence(split.turns):
        yield told


_OF_GREEDY = {
    1: "Adapting helped: one greedy answer is better than before",
    0: "No effect on one greedy answer is shown: it may be better or worse than before",
    -1: "Adapting did harm: one greedy answer is worse than before",
}
_OF_VOTE = {
    1: "better than the starting model's own vote",
    0: "not shown to differ from the starting model's own vote, which needs no training",
    -1: "worse than the starting model's own vote, which needs no training",
}
"""Sign of a difference whose interval leaves 0 out, else 0 -> its words."""


def _in_one_sentence(gain: Interval, over_vote: Interval | None) -> str:
    """Return the verdict: against one greedy answer, and against the starting model's own vote."""
    against_greedy = _OF_GREEDY[_sign(gain)]
    if over_vote is None:
        return f"{against_greedy}."
    joined = "and" if _sign(gain) == _sign(over_vote) else "but"
    return f"{against_greedy}, {joined} {_OF_VOTE[_sign(over_vote)]}."


def _sign(difference: Interval) -> int:
    if difference.low is None or difference.high is None:
        return 0
    return 1 if difference.low > 0 else -1 if difference.high < 0 else 0


def _without_labels(split: SplitResult) -> Iterator[str]:
    """Say what changed, and how to find out whether it helped."""
    yield "No gold answers, so whether the answers got better is not known."
    count, changed = number(split.answers.get("n")), number(split.answers.get("changed"))
    shares = [number(split.answers.get(f"vote_share_{when}")) for when in ("before", "after")]
    if not count or changed is None or None in shares:
        return
    before, after = (percent(share) for share in shares if share is not None)
    yield (
        f"{changed:,.0f} of {count:,.0f} greedy answers changed; on average the vote's answer had {before} of the "
        f"samples before and {after} after. Agreement rises whether or not answers get better."
    )
    measured = {value.name: value for value in split.label_free}
    entropy, distinct = (measured.get(LABEL_FREE[key][0]) for key in (ANSWER_ENTROPY, DISTINCT_ANSWERS))
    if entropy and distinct:
        yield (
            f"A question's samples had {distinct.before} distinct answers on average before, {distinct.after} after; "
            f"their entropy went from {entropy.before} to {entropy.after} nats."
        )
    flag = "" if split.name == "adapted" else f" --split {split.name}"
    n = min(TO_LABEL, int(count))
    yield f"Label {n} of these questions to know whether it helped: mm-spine label {split.run} --n {n}{flag}"


def _no_step(split: SplitResult, greedy: Interval, vote_name: str, vote: Interval) -> str:
    on = "" if split.partial else " on"
    return (
        f"The run made no step: before and after are one evaluation. One greedy answer {_scores_or_is_right(split)} "
        f"{_share_of_questions(split, greedy)}, the model's own vote ({vote_name}){on} {percent(vote.value)}."
    )


def _greedy_gain(split: SplitResult, before: Interval, after: Interval, gain: Interval) -> str:
    on = "" if split.partial else " on"
    return (
        f"One greedy answer {_scores_or_is_right(split)} {_share_of_questions(split, after)}, before{on} "
        f"{percent(before.value)}: {points(gain)}, {_verdict(gain)}."
    )


def _scores_or_is_right(split: SplitResult) -> str:
    return "scores" if split.partial else "is right on"


def _share_of_questions(split: SplitResult, share: Interval) -> str:
    # A score is a share of the questions with a gold answer, which may not be all.
    questions = "questions" if split.labelled == split.questions else "questions with a gold answer"
    return f"{percent(share.value)} {'over' if split.partial else 'of'} {split.labelled:,} {questions}"


def _verdict(gain: Interval) -> str:
    if gain.low is None or gain.high is None:
        return "from one question"
    if gain.low > 0:
        return "a gain"
    return "a loss" if gain.high < 0 else "no difference that these questions could show"
