"""The head of a report: the result as its title, the verdict, and what forecast, guard and settled votes said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mm_spine.intervals import Interval
from mm_spine.measures import GREEDY, MAJ_AT_N
from mm_spine.reporting.formats import compact, count, pair, signed, signed_bounds
from mm_spine.reporting.result import SplitResult, sentences
from mm_spine.reporting.saved_run import SavedRun, number, section


class HeadFigure(NamedTuple):
    """One of the two figures of a title: the figure, what it is of, and its details."""

    figure: str
    words: str
    detail: str


@dataclass(frozen=True)
class Headline:
    """The head of a page.

    Attributes:
        title: the result in one line, for the window and where there are no figures.
        figures: the title's figures; none where there is no result.
        of: the questions that the figures are of.
        verdict: the result in words, "" without one.
        notes: what the forecast and the guard said, and that the votes had settled.
    """

    title: str
    figures: tuple[HeadFigure, ...] = ()
    of: str = ""
    verdict: str = ""
    notes: tuple[str, ...] = ()


def headline(saved: SavedRun, splits: Sequence[SplitResult], name: str) -> Headline:
    """Return the head of the report of a run that is called `name`, from its first split with a result."""
    notes = tuple(_notes(saved))
    split = next((one for one in splits if one.known), splits[0] if splits else None)
    if split is None:
        return Headline(name if saved.summary else f"Unfinished: {name}", notes=notes)
    figures = tuple(_figures(split))
    title = ", ".join(f"{figure.figure} {figure.words}" for figure in figures) or _without_figures(split, name)
    counted = split.labelled if split.known else split.questions
    of = f"{counted:,} {split.title.lower()}" + (" with a gold answer" if 0 < split.labelled < split.questions else "")
    return Headline(title, figures, of, next(sentences(split), ""), notes)


def _without_figures(split: SplitResult, name: str) -> str:
    return f"No step was made: {name}" if not split.stepped else name


def _figures(split: SplitResult) -> Iterator[HeadFigure]:
    """Yield the title's two figures: against one greedy answer and against the vote, or without answers what changed.

    There are none for a run without steps or without both evaluations.
    """
    if not split.stepped:
        return
    greedy, vote = split.measures[GREEDY], split.measures[MAJ_AT_N]
    if greedy.gain and greedy.before and greedy.after:
        yield _gain(greedy.gain, "over one greedy answer", greedy.before.value, greedy.after.value)
        if split.over_vote and vote.before:
            yield _gain(split.over_vote, f"over the free vote ({vote.name})", vote.before.value, greedy.after.value)
        return
    asked, changed = number(split.answers.get("n")), number(split.answers.get("changed"))
    if split.known or not asked or changed is None:
        return
    yield HeadFigure(f"{count(changed)} of {count(asked)}", "greedy answers changed", "better or worse is not known")
    old, new = (number(split.answers.get(f"vote_share_{when}")) for when in ("before", "after"))
    if old is not None and new is not None:
        words = "of the samples agree with the vote"
        yield HeadFigure(f"{pair((old, new))} %", words, "mean over the questions; it rises if answers get worse, too")


def _gain(gain: Interval, words: str, before: float, after: float) -> HeadFigure:
    detail = f"{pair((before, after))} % {signed_bounds(gain)}".rstrip()
    # A minus as wide as the plus: it stands in large type.
    return HeadFigure(f"{signed(gain.value)} points".replace("-", "\u2212"), words, detail)


GUARD_SIGNALS = {
    "kept": "the share of the start's sure votes that are still the same",
    "spread": "the entropy of the answers to all questions, as a share of the start's,",
    "agreement": "the fall of the share of responses that give the start's votes",
    "greedy": "the fall of the share of greedy answers that are the start's votes",
    "unparsed": "the rise of the share of responses without an answer",
    "length": "the length of responses, as a multiple of the start's,",
}
"""Signal of the guard -> what it measures."""


def _notes(saved: SavedRun) -> Iterator[str]:
    """Yield what the forecast said before the run, where its votes had settled, and what its guard did."""
    forecast, guard = section(saved.summary, "forecast"), section(saved.summary, "guard")
    said = forecast.get("sentences")
    if isinstance(said, list) and said:
        # The last one is the verdict.
        yield f"Before the first step. {said[-1]}"
    settled = section(saved.summary, "settled").get("sentence")
    if isinstance(settled, str):
        yield settled
    if guard.get("fired") is not True:
        return
    where = f" at step {compact(guard.get('step'))}" if number(guard.get("step")) is not None else ""
    measured = ""
    if "signal" in guard:
        limit = number(guard.get("limit"))
        bound = "" if limit is None else f", with a limit of {compact(limit)}"
        signal = GUARD_SIGNALS.get(str(guard["signal"]), str(guard["signal"]))
        measured = f": {signal} was {compact(guard.get('value'))}{bound}"
    back = number(guard.get("rolled_back_to"))
    if back is None:
        went = "It only warned."
    else:
        went = f"The weights are those {'of the start' if back == 0 else f'after step {back:.0f}'}."
    yield f"The guard fired{where}{measured}. {went}"
