"""Find the questions whose answer changed between the two evaluations, and save what the report shows of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mm_spine.files import write_json_lines
from mm_spine.reporting.saved_run import Json
from mm_spine.reporting.thumbnails import save_thumbnails
from mm_spine.types import Question

MAX_SHOWN = 40
"""Questions of each kind of change that the report shows."""


class Change(NamedTuple):
    """One question: its lines of evaluation/before.jsonl and evaluation/after.jsonl."""

    before: Json
    after: Json

    @property
    def key(self) -> tuple[str, str]:
        """(split, question id)."""
        return str(self.after["split"]), str(self.after["id"])


class Changes(NamedTuple):
    """All questions that changed, in the order of the evaluation.

    Attributes:
        gained: the greedy answer was wrong and is right.
        lost: the greedy answer was right and is wrong.
        moved: there is no gold answer, and the vote has another winner.
    """

    gained: tuple[Change, ...]
    lost: tuple[Change, ...]
    moved: tuple[Change, ...]

    def shown(self) -> Iterator[Change]:
        """Yield the first `MAX_SHOWN` of each kind."""
        for changes in self:
            yield from changes[:MAX_SHOWN]


def find_changes(before: Sequence[Json], after: Sequence[Json]) -> Changes:
    """Compare the lines of both evaluations, for the questions that are in both."""
    old = {(line["split"], line["id"]): line for line in before}
    gained, lost, moved = [], [], []
    for line in after:
        if (line["split"], line["id"]) not in old:
            continue
        change = Change(old[line["split"], line["id"]], line)
        was, now = _is_correct(change.before), _is_correct(change.after)
        if was is False and now is True:
            gained.append(change)
        elif was is True and now is False:
            lost.append(change)
        elif was is None and now is None and _identity(change.before["vote"]) != _identity(change.after["vote"]):
            moved.append(change)
    return Changes(tuple(gained), tuple(lost), tuple(moved))


def _is_correct(line: Json) -> bool | None:
    greedy = line["greedy"]
    return bool(greedy["correct"]) if isinstance(greedy, Mapping) and "correct" in greedy else None


def _identity(answer: object) -> object:
    """Return what equal answers have in common: the saved key, or the text for kinds of answers without keys."""
    key = answer.get("key") if isinstance(answer, Mapping) else None
    return answer_text(answer) if key is None else key


def answer_text(answer: object) -> str | None:
    """Return the text of a saved answer; None where no answer was parsed."""
    return str(answer.get("text")) if isinstance(answer, Mapping) else None


def save_for_report(run: Path, shown: Iterable[Change], questions: Iterable[Question], images: bool) -> None:
    """Write the prompts of the `shown` questions to evaluation/questions.jsonl and, with `images`, their thumbnails.

    `questions` are those of both splits, in the run's order.
    """
    keys = {change.key[1]: change.key for change in shown}
    lines = []
    for question in questions:
        if question.id not in keys:
            continue
        split, name = keys[question.id]
        lines.append({"id": name, "split": split, "prompt": question.prompt})
        if images:
            save_thumbnails(run / "images", question)
    write_json_lines(run / "evaluation" / "questions.jsonl", lines)
