"""Grade saved responses: the result rows and the summary of `mm-spine grade`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mm_spine.commands.row_stream import RowJob, mean, run_job, verdict_fields
from mm_spine.commands.saved_rows import BadRow, GradingRules, RowId, SavedRow
from mm_spine.processors.answers import grade, parse


@dataclass(frozen=True)
class GradedRow:
    """What is written for each row. The defaults are those of a row that cannot be graded."""

    id: RowId = None
    parsed: str | None = None
    score: float = 0.0
    correct: bool = False
    why: str = ""
    error: bool = False


@dataclass(frozen=True)
class GradeSummary:
    """Means over the `n` rows without an error; None where there is none.

    `accuracy` is the mean score, `correct` the share of correct responses, `unparsed` the share without an answer.
    `checker_stopped` counts pairs of formulas that hit the checker's limits and count as different; `breakdowns` are
    by the benchmark's tags.
    """

    rows: int
    n: int
    accuracy: float | None
    correct: float | None
    unparsed: float | None
    errors: int
    problems: list[str]
    checker_stopped: int
    breakdowns: dict[str, dict[str, dict[str, float]]]


@dataclass
class _GradeJob(RowJob[GradedRow]):
    """Grade rows, keeping the sums for the summary."""

    n: int = 0
    score: float = 0.0
    correct: int = 0
    unparsed: int = 0
    responses_field = "response"

    def work(self, row: SavedRow) -> GradedRow:
        if not row.golds:
            raise BadRow(row.no_gold)
        answer = parse(row.responses[0], row.spec)
        verdict = grade(answer, row.golds, row.spec)
        return GradedRow(row.id, None if answer is None else answer.text, **verdict_fields(verdict))

    def failed(self, name: RowId, why: str) -> GradedRow:
        return GradedRow(name, why=why, error=True)

    def add(self, result: GradedRow) -> None:
        self.n += 1
        self.score += result.score
        self.correct += result.correct
        self.unparsed += result.parsed is None


def grade_file(path: Path, rules: GradingRules, output: Path | None = None) -> GradeSummary:
    """Grade each row's `response` and write a `GradedRow` per row to `output`. Raises as `run_job` does."""
    job = _GradeJob()
    tally = run_job(path, rules, output, job)
    return GradeSummary(
        rows=tally.rows,
        n=job.n,
        accuracy=mean(job.score, job.n),
        correct=mean(job.correct, job.n),
        unparsed=mean(job.unparsed, job.n),
        errors=tally.errors,
        problems=tally.problems,
        checker_stopped=tally.checker_stopped,
        breakdowns=tally.breakdowns(),
    )
