"""Grade the votes and rewards of a run's steps, from its saved rollouts, after the training."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import pyarrow.parquet as pq

from mm_spine.evaluation import mean_or_none
from mm_spine.processors.answers import grade, grade_all, parse_all
from mm_spine.types import AnswerKey, AnswerSpec, Question
from mm_spine.voting import representative


class StepAccuracy(TypedDict):
    """One row of evaluation/steps.jsonl, as TTRL logs them (arXiv 2504.16084, section 3).

    `majority_ratio` is over all `questions`. The others are over the labelled ones, None where there are none:
    label_accuracy 1[vote correct], reward_accuracy mean_i 1[r_i(vote) == r_i(truth)], pass_at_n,
    ground_truth_ratio mean_i 1[r_i(truth)].
    """

    step: int
    questions: int
    majority_ratio: float | None
    label_accuracy: float | None
    reward_accuracy: float | None
    pass_at_n: float | None
    ground_truth_ratio: float | None


def step_accuracy(
    rollouts_dir: Path, questions: Sequence[Question], key: AnswerKey, without: Container[int] = ()
) -> list[StepAccuracy]:
    """Compute the rows of evaluation/steps.jsonl after the run, from its saved `step_*.parquet`, in order of steps.

    The steps of `without` are left out. Raises ValueError naming a question that is not among `questions`.
    """
    known = {question.id: question for question in questions}
    paths = {int(path.stem.removeprefix("step_")): path for path in rollouts_dir.glob("step_*.parquet")}
    rows = [_step_row(path, known, key) for step, path in paths.items() if step not in without]
    return sorted(rows, key=lambda row: row["step"])


_COLUMNS = ("step", "question_id", "index", "text", "answer", "vote")


def _step_row(path: Path, known: Mapping[str, Question], key: AnswerKey) -> StepAccuracy:
    groups: dict[str, list[dict[str, Any]]] = {}
    rows = pq.read_table(path, columns=list(_COLUMNS)).to_pylist()
    for row in rows:
        groups.setdefault(row["question_id"], []).append(row)
    if unknown := groups.keys() - known.keys():
        raise ValueError(f"{path.name}: question {min(unknown)!r} is not among the {len(known)} questions given")
    graded = [_graded_question(groups[name], known[name].spec, key[name]) for name in groups if name in key]
    return StepAccuracy(
        step=rows[0]["step"] if rows else int(path.stem.removeprefix("step_")),
        questions=len(groups),
        majority_ratio=mean_or_none([float(np.mean([_agrees(row) for row in group])) for group in groups.values()]),
        label_accuracy=mean_or_none([question.label_accuracy for question in graded]),
        reward_accuracy=mean_or_none([question.reward_accuracy for question in graded]),
        pass_at_n=mean_or_none([question.pass_at_n for question in graded]),
        ground_truth_ratio=mean_or_none([question.ground_truth_ratio for question in graded]),
    )


def _agrees(row: Mapping[str, Any]) -> bool:
    """r_i(vote): whether the rollout's class won. Unparsed responses never win, so None does not agree with None."""
    return row["vote"] is not None and row["answer"] == row["vote"]


class _GradedQuestion(NamedTuple):
    """One question of one step. The names are those of `StepAccuracy`."""

    label_accuracy: float
    reward_accuracy: float
    pass_at_n: float
    ground_truth_ratio: float


def _graded_question(rows: Sequence[Mapping[str, Any]], spec: AnswerSpec, gold: Sequence[str]) -> _GradedQuestion:
    answers = parse_all([row["text"] for row in rows], spec)
    verdicts = grade_all(answers, gold, spec)
    # The vote is graded through a response that gave it. The name of a class need not parse back into an answer.
    vote = representative(answers, [row["answer"] for row in rows], rows[0]["vote"])
    agreement = [_agrees(row) == verdict.correct for row, verdict in zip(rows, verdicts, strict=True)]
    return _GradedQuestion(
        label_accuracy=float(grade(vote, gold, spec).correct),
        reward_accuracy=float(np.mean(agreement)),
        pass_at_n=max(verdict.score for verdict in verdicts),
        ground_truth_ratio=float(np.mean([verdict.correct for verdict in verdicts])),
    )
