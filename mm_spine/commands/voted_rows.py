"""Vote over saved samples: the result rows and the summary of `mm-spine vote`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mm_spine.commands.row_stream import RowJob, mean, run_job, verdict_fields
from mm_spine.commands.saved_rows import GradingRules, RowId, SavedRow
from mm_spine.processors.answers import grade_all, parse_all
from mm_spine.types import Answer
from mm_spine.voting import representative, vote


@dataclass(frozen=True)
class VotedRow:
    """What is written for each row. `score` to `pass_at_n` stay None without a gold; `n` counts the responses."""

    id: RowId = None
    answer: str | None = None
    share: float = 0.0
    margin: float = 0.0
    counts: Mapping[str, int] = field(default_factory=dict)
    n: int = 0
    n_parsed: int = 0
    score: float | None = None
    correct: bool | None = None
    pass_at_1: float | None = None
    pass_at_n: float | None = None
    why: str = ""
    error: bool = False


@dataclass(frozen=True)
class VoteSummary:
    """Means over the `n` rows without an error; None where there is nothing to average.

    `responses` is the mean number of responses a row, `unparsed` the share of all responses without an answer, `ties`
    and `all_unparsed` count rows. `maj_at_n`, `pass_at_1` and `pass_at_n` are means over the `n_labelled` rows with a
    gold, which is read after the vote.
    """

    rows: int
    n: int
    responses: float | None
    share: float | None
    unparsed: float | None
    ties: int
    all_unparsed: int
    n_labelled: int
    maj_at_n: float | None
    pass_at_1: float | None
    pass_at_n: float | None
    errors: int
    problems: list[str]
    checker_stopped: int
    breakdowns: dict[str, dict[str, dict[str, float]]]


@dataclass
class _VoteJob(RowJob[VotedRow]):
    """Vote over rows, keeping the sums for the summary."""

    n: int = 0
    responses: int = 0
    unparsed: int = 0
    share: float = 0.0
    ties: int = 0
    all_unparsed: int = 0
    n_labelled: int = 0
    score: float = 0.0
    pass_at_1: float = 0.0
    pass_at_n: float = 0.0
    responses_field = "responses"

    def work(self, row: SavedRow) -> VotedRow:
        """Vote without looking at the golds, then grade the winner and the samples."""
        answers = parse_all(row.responses, row.spec)
        # Ties are drawn by the id. Rows without one must not all be decided by the same draw.
        question_id = f"line {row.line}" if row.id is None else str(row.id)
        outcome, classes = vote(answers, row.spec, question_id)
        voted = VotedRow(
            row.id,
            outcome.answer,
            outcome.share,
            outcome.margin,
            dict(outcome.counts),
            len(answers),
            outcome.n_parsed,
        )
        if not row.golds:
            return replace(voted, why=row.no_gold)
        winner = representative(answers, classes, outcome.answer)
        try:
            return _graded(voted, winner, answers, row)
        except ValueError as error:
            # A gold that is not of the row's kind: the vote still counts.
            return replace(voted, why=str(error))

    def failed(self, name: RowId, why: str) -> VotedRow:
        return VotedRow(name, why=why, error=True)

    def add(self, result: VotedRow) -> None:
        self.n += 1
        self.share += result.share
        self.responses += result.n
        self.unparsed += result.n - result.n_parsed
        self.ties += result.answer is not None and result.margin == 0
        self.all_unparsed += result.answer is None
        if result.score is None or result.pass_at_1 is None or result.pass_at_n is None:
            return
        self.n_labelled += 1
        self.score += result.score
        self.pass_at_1 += result.pass_at_1
        self.pass_at_n += result.pass_at_n


def _graded(voted: VotedRow, winner: Answer | None, answers: Sequence[Answer | None], row: SavedRow) -> VotedRow:
    """Grade the winning answer and every sample, each distinct answer once."""
    verdict, *samples = grade_all([winner, *answers], row.golds, row.spec)
    scores = [float(sample.score) for sample in samples]
    return replace(voted, **verdict_fields(verdict), pass_at_1=math.fsum(scores) / len(scores), pass_at_n=max(scores))


def vote_file(path: Path, rules: GradingRules, output: Path | None = None) -> VoteSummary:
    """Vote over each row's `responses` and write a `VotedRow` per row to `output`. Raises as `run_job` does."""
    job = _VoteJob()
    tally = run_job(path, rules, output, job)
    return VoteSummary(
        rows=tally.rows,
        n=job.n,
        responses=mean(job.responses, job.n),
        share=mean(job.share, job.n),
        unparsed=mean(job.unparsed, job.responses),
        ties=job.ties,
        all_unparsed=job.all_unparsed,
        n_labelled=job.n_labelled,
        maj_at_n=mean(job.score, job.n_labelled),
        pass_at_1=mean(job.pass_at_1, job.n_labelled),
        pass_at_n=mean(job.pass_at_n, job.n_labelled),
        errors=tally.errors,
        problems=tally.problems,
        checker_stopped=tally.checker_stopped,
        breakdowns=tally.breakdowns(),
    )
