"""Label a few questions of a finished run: draw them at random, read the labels back, and grade the run by them.

The draw does not depend on what the model answered, and the sheet does not show it, so that the labelled questions
stand for all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mm_spine import evaluation, files
from mm_spine.benchmarks.own_prompts import without_request
from mm_spine.config import ConfigError
from mm_spine.evaluation import Item
from mm_spine.evaluation.turned import turned_by_split
from mm_spine.evaluation.vote_accuracy import step_accuracy
from mm_spine.files import fingerprint
from mm_spine.runs import model_card
from mm_spine.runs.folder import RunFolder
from mm_spine.runs.plan import Splits, check, load_config
from mm_spine.runs.summary import Summary, metrics_by_split
from mm_spine.types import AnswerSpec, ImageLike, LabelledSet, Question

log = logging.getLogger(__name__)

SHEET = "labels.csv"
Place = tuple[str, str]
"""(split, question id)."""

Golds = tuple[str, ...]

COLUMNS = ("id", "split", "question", "images", "form", "answer")


class LabelSheet:
    """The sheet of a finished run: questions drawn from it, to be answered by a person."""

    def __init__(self, path: Path) -> None:
        """Load the questions of the run in `path`. Raises ConfigError if it is not finished."""
        self.folder = RunFolder(path)
        if not self.folder.finished:
            raise ConfigError(f"{path}: no finished run there (no summary.json); run `mm-spine adapt` to its end first")
        self.plan = check(load_config(str(self.folder.config_file)), allow_labels=True)
        self.seed = self.plan.config.seed
        started = fingerprint.read(path)
        if started is None:
            log.warning("%s: no %s; whether the questions are still the same is not checked", path, fingerprint.FILE)
        self.started: Mapping[str, fingerprint.Digests] = (started or {}).get("questions", {})
        splits = self._load()
        self.sets = {"adapted": splits.adapted}
        if splits.held_out is not None:
            self.sets["held_out"] = splits.held_out
        self.before, self.after = (self.folder.read_items(when) for when in ("before", "after"))

    def _load(self) -> Splits:
        """Load the questions as the run asked them."""
        splits, config = self.plan.load_splits(), self.plan.config
        if self._has_asked(splits):
            return splits
        # Earlier versions asked the prompts of a folder as written, whatever the configuration said.
        prompt = config.prompt.model_copy(update={"style": "verbatim"})
        plain = replace(self.plan, config=config.model_copy(update={"prompt": prompt})).load_splits()
        return plain if self._has_asked(plain) else splits

    def _has_asked(self, splits: Splits) -> bool:
        """Whether the run has asked one of these prompts in these words."""
        then = self.started.get("adapted", {})
        return any(
            fingerprint.digest(question.prompt) == then[question.id]["prompt"]
            for question in splits.adapted.questions
            if question.id in then
        )

    @property
    def path(self) -> Path:
        """The file to fill in."""
        return self.folder.path / SHEET

    def unlabelled(self, split: str) -> list[Question]:
        """Return the questions of `split` that were evaluated and have no gold answer in the data."""
        if split not in self.sets:
            raise ConfigError(f"split={split!r}: the run evaluated {' and '.join(self.sets)}")
        labelled: LabelledSet = self.sets[split]
        evaluated = {item.id for item in self.after if item.split == split}
        return [q for q in labelled.questions if q.id in evaluated and q.id not in labelled.key]

    def draw(self, n: int, split: str = "adapted") -> int:
        """Draw `n` unlabelled questions of `split` and write the sheet. Returns how many are on it.

        A larger `n` adds to the questions of a smaller one; answers that are filled in stay. Raises ConfigError if a
        drawn question changed since the run.
        """
        filled = {(row["split"], row["id"]): row["answer"] for row in self._rows()}
        questions = self.unlabelled(split)
        if not questions:
            raise ConfigError(f"{self.folder.path}: every question of split {split!r} has an answer already")
        # An order by digests is a random one, and the same whatever else the data holds.
        drawn = sorted(questions, key=lambda question: fingerprint.digest(f"label {self.seed} {split} {question.id}"))
        self._check_unchanged(split, drawn[:n])
        rows = [_line(split, question, filled.pop((split, question.id), "")) for question in drawn[:n]]
        # What was filled in for other questions stays too.
        others = {question.id: question for other in self.sets.values() for question in other.questions}
        rows += [_line(where, others[name], answer) for (where, name), answer in filled.items() if answer.strip()]
        files.write_csv(self.path, rows)
        return len(rows)

    def apply(self) -> Summary:
        """Grade the run by the answers on the sheet, and write evaluations and summary.json again.

        An answer that does not fit its question is left out with a warning. Raises ConfigError without any answer, and
        if a question with an answer changed since the run.
        """
        rows = self._rows()
        if not rows:
            raise ConfigError(f"{self.path}: not there; draw questions with: mm-spine label {self.folder.path} --n 50")
        questions = {(split, question.id): question for split in self.sets for question in self.unlabelled(split)}
        labels: dict[Place, Golds] = {}
        # A spreadsheet counts the row of the names as 1.
        for number, row in enumerate(rows, 2):
            place, answer = (row["split"], row["id"]), row["answer"].strip()
            if not answer:
                continue
            if problem := _problem(questions.get(place), answer):
                log.warning("%s, row %d: left out: %s", self.path, number, problem)
                continue
            if labels.get(place, (answer,)) != (answer,):
                log.warning(
                    "%s, row %d: question %r has another answer above; this one counts", self.path, number, place[1]
                )
            labels[place] = (answer,)
        if not labels:
            raise ConfigError(f"{self.path}: no answer that can be used; fill in the column answer, then start again")
        for split in self.sets:
            self._check_unchanged(split, [questions[place] for place in labels if place[0] == split])
        self.folder.lock()
        try:
            return self._write(questions, labels, on_sheet=len(rows))
        finally:
            self.folder.unlock()

    def _write(self, questions: Mapping[Place, Question], labels: Mapping[Place, Golds], on_sheet: int) -> Summary:
        """Write the evaluations and summary.json with the verdicts that `labels` allow."""

        def graded(items: Iterable[Item]) -> list[Item]:
            return [
                evaluation.graded_again(item, labels.get((item.split, item.id)), questions[item.split, item.id])
                if (item.split, item.id) in questions
                else item
                for item in items
            ]

        before, after = graded(self.before), graded(self.after)
        scores = metrics_by_split(before), metrics_by_split(after)
        summary: Summary = files.read_json(self.folder.path / "summary.json")
        summary["before"], summary["after"] = (of_split["adapted"] for of_split in scores)
        if summary["held_out"] is not None:
            summary["held_out"] = {"before": scores[0]["held_out"], "after": scores[1]["held_out"]}
        summary["breakdowns"] = {"before": self._breakdown(before), "after": self._breakdown(after)}
        summary["turned"] = turned_by_split(before, after)
        summary["labels"] = {"file": SHEET, "drawn": on_sheet, "used": len(labels)}
        self.folder.write_items("before", before)
        self.folder.write_items("after", after)
        self._grade_votes(labels, summary["steps"])
        self.folder.write("summary.json", summary)
        # Its figures are those of summary.json.
        model_card.write(self.folder.path)
        return summary

    def _breakdown(self, items: Iterable[Item]) -> dict[str, dict[str, evaluation.TagScores]]:
        adapted = [item for item in items if item.split == "adapted"]
        return evaluation.breakdown(adapted, self.sets["adapted"].tags, self.plan.benchmark.breakdowns)

    def _grade_votes(self, labels: Mapping[Place, Golds], steps: int) -> None:
        """Write evaluation/steps.jsonl: how often the votes on the labelled questions were right in each step."""
        adapted = self.sets["adapted"]
        key = {**adapted.key, **{name: golds for (split, name), golds in labels.items() if split == "adapted"}}
        if not key or not steps or self.plan.config.scope == "question":
            return
        missing = self.folder.missing_rollouts(steps)
        if len(missing) < steps:
            rows = step_accuracy(self.folder.rollouts, adapted.questions, key, without=missing)
            files.write_json_lines(self.folder.evaluation_file("steps"), rows)

    def _check_unchanged(self, split: str, questions: Sequence[Question]) -> None:
        """Raise ConfigError naming the first of the questions that is not what it was when the run started."""
        then = self.started.get(split, {})
        now = fingerprint.of_questions([question for question in questions if question.id in then])
        if changed := [name for name, digests in now.items() if digests != then[name]]:
            raise ConfigError(
                f"{self.folder.path}: question {changed[0]!r} changed since the run; restore the data, then label"
            )

    def _rows(self) -> list[dict[str, str]]:
        return files.read_csv(self.path, COLUMNS) if self.path.exists() else []


def _line(split: str, question: Question, answer: str) -> dict[str, str]:
    return {
        "id": question.id,
        "split": split,
        "question": without_request(question.prompt, question.spec),
        "images": " ".join(map(_name, question.images)),
        "form": _form(question.spec),
        "answer": answer,
    }


def _name(image: ImageLike) -> str:
    return str(image) if isinstance(image, str | Path) or hasattr(image, "read_bytes") else "(in the table)"


def _form(spec: AnswerSpec) -> str:
    """Say what an answer looks like: the kind, and the options where there are any."""
    # The names of a named answer are everything that it might be, often hundreds.
    if not spec.choices or spec.kind == "named":
        return spec.kind
    return f"{spec.kind}: " + " | ".join(f"{chr(65 + i)} {choice}" for i, choice in enumerate(spec.choices))


def _problem(question: Question | None, answer: str) -> str:
    """Return why an answer cannot be used, "" if it can."""
    if question is None:
        return "no question of that id and split without an answer"
    try:
        evaluation.check_key([question], {question.id: (answer,)})
    except ValueError as error:
        return str(error)
    return ""
