"""The scores of a finished run, and what else is measured of its answers, question by question, from its output folder.

Everything is computed from the saved verdicts and vote classes, so that neither a gold answer nor a grader is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mm_spine.files import read_json, read_json_lines
from mm_spine.intervals import Interval, bootstrap_ci
from mm_spine.measures import (
    ANSWER_ENTROPY,
    DISTINCT_ANSWERS,
    GREEDY,
    LABELS,
    MAJ_AT_N,
    PASS_AT_1,
    answer_entropy,
    distinct_answers,
    vote_is_right,
    vote_share,
)
from mm_spine.reporting.saved_run import Json
from mm_spine.words import visible_line

SPLITS = {"adapted": "Adapted questions", "held_out": "Held-out questions"}
"""Split -> its title, in the order of every table."""

SUMMARY_KEYS = ("benchmark", "method", "model", "seed", "label_free")
"""Keys that summary.json must have for a comparison."""

VOTE_SHARE, RIGHT_SAMPLES, GREEDY_IS_RIGHT, VOTE_IS_RIGHT = "vote_share", "right_samples", "greedy_right", "vote_right"
"""What is known of a question beside its scores: the vote's share, how many samples are right, and whether the greedy
answer and the vote's are (1 or 0)."""

Scores = Mapping[str, Mapping[str, float | None]]
"""Measure -> question id -> value, a score in [0, 1] or what else is measured, None where it needs a gold answer and
there is none; of one split of one evaluation."""


@dataclass(frozen=True)
class FinishedRun:
    """A run with both evaluations.

    Attributes:
        path: its output folder.
        summary: summary.json.
        samples: samples per question in the evaluations, the N of maj@N.
        before, after: split -> scores.
    """

    path: Path
    summary: Json
    samples: int
    before: Mapping[str, Scores]
    after: Mapping[str, Scores]

    @property
    def name(self) -> str:
        """The folder's name as tables and pages show it."""
        return visible_line(self.path.name)

    @property
    def method(self) -> str:
        return visible_line(str(self.summary["method"]))

    @property
    def seed(self) -> int:
        return int(self.summary["seed"])


@dataclass(frozen=True)
class UnfinishedRun:
    """A folder that holds no finished run, and why."""

    path: Path
    reason: str

    @property
    def name(self) -> str:
        """The folder's name as tables and pages show it."""
        return visible_line(self.path.name)


def load_run(path: Path) -> FinishedRun | UnfinishedRun:
    """Read the scores of the run in `path`."""
    if not path.is_dir():
        return UnfinishedRun(path, "no such folder")
    if not (path / "summary.json").exists():
        return UnfinishedRun(path, "unfinished: no summary.json")
    try:
        summary = read_json(path / "summary.json")
        if missing := [name for name in SUMMARY_KEYS if name not in dict(summary)]:
            return UnfinishedRun(path, f"summary.json has no {', '.join(missing)}")
        before, after = (read_json_lines(path / "evaluation" / f"{when}.jsonl") for when in ("before", "after"))
        return _finished(path, summary, before, after)
    except FileNotFoundError as error:
        return UnfinishedRun(path, f"unfinished: no {Path(error.filename).relative_to(path)}")
    except (ValueError, OSError) as error:
        return UnfinishedRun(path, str(error))
    except (KeyError, TypeError) as error:
        return UnfinishedRun(path, f"written by another version ({error!r})")


def _finished(path: Path, summary: Json, before: Sequence[Json], after: Sequence[Json]) -> FinishedRun:
    asked_before, asked_after = ({(line["split"], line["id"]) for line in lines} for lines in (before, after))
    if not asked_after or asked_before != asked_after:
        raise ValueError(
            f"before.jsonl has {len(asked_before)} questions and after.jsonl {len(asked_after)}, not the same ones"
        )
    splits = {split for split, _ in asked_after}
    return FinishedRun(
        path=path,
        summary=summary,
        samples=len(after[0]["texts"]),
        before={split: _scores(before, split) for split in splits},
        after={split: _scores(after, split) for split in splits},
    )


def _greedy(line: Json) -> float | None:
    return None if line["greedy"] is None else line["greedy"]["score"]


def _pass_at_1(line: Json) -> float | None:
    return None if line["verdicts"] is None else float(np.mean([verdict["score"] for verdict in line["verdicts"]]))


def _maj_at_n(line: Json) -> float | None:
    return line["vote_score"]


def _right_samples(line: Json) -> int | None:
    return None if line["verdicts"] is None else sum(bool(verdict["correct"]) for verdict in line["verdicts"])


def _greedy_is_right(line: Json) -> float | None:
    return None if line["greedy"] is None else float(bool(line["greedy"]["correct"]))


def _vote_is_right(line: Json) -> float | None:
    if line["verdicts"] is None:
        return None
    return float(vote_is_right(line["vote"], line["answers"], [bool(each["correct"]) for each in line["verdicts"]]))


# The same measures as in mm_spine.evaluation, which must not be imported here: computed from lines of its files.
_MEASURES: Mapping[str, Callable[[Json], float | None]] = {
    GREEDY: _greedy,
    PASS_AT_1: _pass_at_1,
    MAJ_AT_N: _maj_at_n,
    RIGHT_SAMPLES: _right_samples,
    GREEDY_IS_RIGHT: _greedy_is_right,
    VOTE_IS_RIGHT: _vote_is_right,
    VOTE_SHARE: lambda line: vote_share(line["classes"]),
    ANSWER_ENTROPY: lambda line: answer_entropy(line["classes"]),
    DISTINCT_ANSWERS: lambda line: distinct_answers(line["classes"]),
}


def _scores(lines: Sequence[Json], split: str) -> Scores:
    chosen = [line for line in lines if line["split"] == split]
    scores = {name: {line["id"]: measure(line) for line in chosen} for name, measure in _MEASURES.items()}
    for name, by_question in scores.items():
        for question_id, score in by_question.items():
            if score is not None and not np.isfinite(score):
                raise ValueError(f"question {question_id!r}: its {LABELS.get(name, name)} is no number; evaluate again")
    return scores


def mean_of(scores: Mapping[str, float | None]) -> float | None:
    """Return the mean over the questions that have a value; None where none has."""
    known = [score for score in scores.values() if score is not None]
    return float(np.mean(known)) if known else None


def paired_difference(before: Mapping[str, float | None], after: Mapping[str, float | None]) -> Interval | None:
    """Return the mean of after - before over the questions, with a 95 % bootstrap interval.

    Both map question ids to scores. Questions without a score are left out; None when none has one.
    """
    pairs = [(old, after[question_id]) for question_id, old in before.items()]
    differences = np.array([new - old for old, new in pairs if old is not None and new is not None])
    if differences.size == 0:
        return None
    # One question says nothing of how much others would vary.
    bounds = (None, None) if differences.size == 1 else bootstrap_ci(differences)
    return Interval(float(differences.mean()), *bounds)
