"""Stream a file of saved rows through grading or voting: one row out for each row in, in the same order.

A row that cannot be used costs only itself: it scores 0, says why, is marked `error`, and counts in no mean.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from mm_spine.commands.saved_rows import (
    BadRow,
    GradingRules,
    RowId,
    SavedRow,
    is_scalar,
    numbered_lines,
    read_fields,
    read_row,
)
from mm_spine.files import write_json_lines
from mm_spine.processors.answers import checker
from mm_spine.types import Verdict

LISTED_PROBLEMS = 5
"""How many problems a summary lists; the rows written hold all of them."""


class ResultRow(Protocol):
    """What grading and voting write of a row have in common."""

    @property
    def score(self) -> float | None: ...
    @property
    def why(self) -> str: ...
    @property
    def error(self) -> bool: ...


R = TypeVar("R", bound=ResultRow)


class RowJob(ABC, Generic[R]):
    """What a command does with each row, and the sums that it keeps over the rows without an error."""

    responses_field: str
    """The field that holds the responses: `response` or `responses`."""

    @abstractmethod
    def work(self, row: SavedRow) -> R:
        """Grade or vote. Raises BadRow or ValueError for a row that cannot be used."""

    @abstractmethod
    def failed(self, name: RowId, why: str) -> R:
        """Return the result of a row that cannot be used."""

    @abstractmethod
    def add(self, result: R) -> None:
        """Add a result without an error to the sums."""


@dataclass
class TagSum:
    """The rows that share one value of a tag: how many, and the sum of their scores."""

    n: int = 0
    score: float = 0.0


@dataclass
class Tally:
    """What every summary ends with: rows, errors, the first problems, stops of the formula checker, scores by tag."""

    rows: int = 0
    errors: int = 0
    problems: list[str] = field(default_factory=list)
    checker_stopped: int = 0
    _by_tag: dict[str, dict[str, TagSum]] = field(default_factory=dict)

    def add(self, result: ResultRow, tags: Mapping[str, str], problem: str) -> None:
        """Count one row; its score also under each of its tags."""
        self.rows += 1
        self.errors += result.error
        if problem and len(self.problems) < LISTED_PROBLEMS:
            self.problems.append(problem)
        if result.error or result.score is None:
            return
        for tag, value in tags.items():
            scores = self._by_tag.setdefault(tag, {}).setdefault(value, TagSum())
            scores.n += 1
            scores.score += result.score

    def breakdowns(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return tag -> value -> `n` and `accuracy`, values in order."""
        return {
            tag: {value: {"n": of.n, "accuracy": of.score / of.n} for value, of in sorted(values.items())}
            for tag, values in self._by_tag.items()
        }


def mean(total: float, n: int) -> float | None:
    """Return total / n, None for n = 0."""
    return total / n if n else None


def verdict_fields(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict's fields as a result row holds them: plain Python numbers."""
    return {"score": float(verdict.score), "correct": bool(verdict.correct), "why": verdict.why}


def run_job(path: Path, rules: GradingRules, output: Path | None, job: RowJob[R]) -> Tally:
    """Run `job` on each row of `path`, writing the results to `output` as JSON lines.

    Raises:
        ValueError: the file is missing or empty, a row names no kind and no option does, or `output` cannot be written.
    """
    tally = Tally()

    def results() -> Iterator[R]:
        for number, line in numbered_lines(path):
            result, tags, problem = _result(line, number, rules, job)
            tally.add(result, tags, problem)
            if not result.error:
                job.add(result)
            yield result
        if tally.rows == 0:
            raise ValueError(f"{path}: the file is empty; write one JSON object per line")

    _check_files(path, output)
    failures_before = len(checker.failures())
    if output is None:
        deque(results(), maxlen=0)
    else:
        write_json_lines(output, results())
    tally.checker_stopped = len(checker.failures()) - failures_before
    return tally


def _check_files(path: Path, output: Path | None) -> None:
    """Raise ValueError if the input is no file or the output cannot be written."""
    if not path.is_file():
        raise ValueError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}; give a file of JSON lines")
    if output is None:
        return
    if output.is_dir():
        raise ValueError(f"{output}: a folder; give --output a file")
    if output.resolve() == path.resolve():
        raise ValueError(f"{output}: --output is the input; give it another name")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{output}: cannot be written: {error.filename} is no folder ({error.strerror})") from error
    if not os.access(output.parent, os.W_OK):
        raise ValueError(f"{output}: cannot be written: no permission to write into {output.parent}")


def _result(line: bytes, number: int, rules: GradingRules, job: RowJob[R]) -> tuple[R, Mapping[str, str], str]:
    """Return the result of one line, its tags, and what was wrong with it (empty: nothing)."""
    fields: Mapping[str, Any] = {}
    try:
        fields = read_fields(line)
        row = read_row(fields, number, rules, job.responses_field)
        result = _guarded(job, row)
    except BadRow as error:
        name = fields.get("id") if is_scalar(fields.get("id")) else None
        why = f"line {number}: {error}"
        return job.failed(name, why), {}, why
    # A vote needs no gold, so a gold that cannot be used costs only the grade.
    ungraded = result.score is None and fields.get("answer") is not None
    return result, row.tags, f"line {number}, voted but not graded: {result.why}" if ungraded else ""


def _guarded(job: RowJob[R], row: SavedRow) -> R:
    """Run the job on a row, any error in it as BadRow: the file may have taken days to sample."""
    try:
        return job.work(row)
    except BadRow:
        raise
    except ValueError as error:
        raise BadRow(str(error)) from error
    except Exception as error:
        raise BadRow(f"{type(error).__name__} while grading: {error}") from error
