"""Find the questions whose answer changed between the two evaluations, and save what the report shows of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mm_spine.files import read_json_lines, write_json_lines
from mm_spine.reporting.saved_run import Json, attempt, read_answers
from mm_spine.reporting.thumbnails import save_thumbnails
from mm_spine.types import Question

PICTURED = 200
"""Questions of each kind of change whose images are saved for the report."""

Answers = Mapping[tuple[str, str], Mapping[str, str]]
"""(split, question id) -> row of answers.csv."""


class Change(NamedTuple):
    """One question: its lines of evaluation/before.jsonl and after.jsonl, and its row of answers.csv ({}: none)."""

    before: Json
    after: Json
    answers: Mapping[str, str] = {}

    @property
    def key(self) -> tuple[str, str]:
        """(split, question id)."""
        return str(self.after["split"]), str(self.after["id"])


class Changes(NamedTuple):
    """All questions that changed, the largest change first.

    Attributes:
        learnt: the greedy answer was wrong and is right; sorted by the rise of right answers among the samples.
        corrupted: the greedy answer was right and is wrong; sorted by their fall.
        moved: there is no gold answer, and the greedy answer or the vote's is another one; sorted by the rise of the
            vote's new answer among the samples.
    """

    learnt: tuple[Change, ...]
    corrupted: tuple[Change, ...]
    moved: tuple[Change, ...]

    def all(self) -> Iterator[Change]:
        """Yield every change."""
        for changes in self:
            yield from changes


def find_changes(before: Sequence[Json], after: Sequence[Json], answers: Answers | None = None) -> Changes:
    """Compare the lines of both evaluations, for the questions that are in both.

    Without `answers`, changes of greedy answers without a gold answer are not found.
    """
    old = {(line["split"], line["id"]): line for line in before}
    learnt, corrupted, moved = [], [], []
    for line in after:
        key = line["split"], line["id"]
        if key not in old:
            continue
        change = Change(old[key], line, (answers or {}).get((str(key[0]), str(key[1])), {}))
        was, now = _is_correct(change.before), _is_correct(change.after)
        if was is False and now is True:
            learnt.append(change)
        elif was is True and now is False:
            corrupted.append(change)
        elif was is None and now is None and _is_another(change):
            moved.append(change)
    return Changes(
        learnt=tuple(sorted(learnt, key=lambda change: _right(change.before) - _right(change.after))),
        corrupted=tuple(sorted(corrupted, key=lambda change: _right(change.after) - _right(change.before))),
        moved=tuple(sorted(moved, key=_fall_of_vote)),
    )


def changes_of(run: Path) -> Changes:
    """Read the changes of a run from its evaluations, and from answers.csv where that can be read."""
    before, after = (read_json_lines(run / "evaluation" / f"{when}.jsonl") for when in ("before", "after"))
    return find_changes(before, after, attempt(lambda: read_answers(run / "answers.csv"), []))


def _is_another(change: Change) -> bool:
    voted = _identity(change.before["vote"]) != _identity(change.after["vote"])
    return voted or change.answers.get("changed") == "yes"


def _right(line: Json) -> float:
    """Return the share of right samples, 0 where they are not graded."""
    verdicts = line["verdicts"] or ()
    return sum(bool(verdict["correct"]) for verdict in verdicts) / max(len(verdicts), 1)


def _fall_of_vote(change: Change) -> float:
    """Return the share that the vote's new answer had before, minus its share after: the largest rise is the least."""
    name = _class_of_vote(change.after)
    return _share(change.before, name) - _share(change.after, name)


def _class_of_vote(line: Json) -> object:
    classes = [name for name in line["classes"] if name is not None]
    return max(dict.fromkeys(classes), key=classes.count, default=None)


def _share(line: Json, name: object) -> float:
    return list(line["classes"]).count(name) / max(len(line["classes"]), 1)


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


def save_for_report(run: Path, found: Changes, questions: Iterable[Question], images: bool) -> None:
    """Write the prompts of the changed questions to evaluation/questions.jsonl and, with `images`, thumbnails.

    Thumbnails are of the first `PICTURED` questions of each kind of change. `questions` are those of both splits, in
    the run's order.
    """
    splits = {name: split for split, name in (change.key for change in found.all())}
    pictured = {change.key[1] for changes in found for change in changes[:PICTURED]}
    lines = []
    for question in questions:
        if question.id not in splits:
            continue
        lines.append({"id": question.id, "split": splits[question.id], "prompt": question.prompt})
        if images and question.id in pictured:
            save_thumbnails(run / "images", question)
    write_json_lines(run / "evaluation" / "questions.jsonl", lines)
