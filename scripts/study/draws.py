"""Share what the studies of sampling on `digits` need: saved draws, intervals, table cells, the command line."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from mm_spine.benchmarks import digits
from mm_spine.intervals import Interval, bootstrap_ci
from mm_spine.policy.model import Policy
from mm_spine.types import LabelledSet, Question, Rollout

T = TypeVar("T")

Drawn = Sequence[Sequence[Rollout]]
"""The rollouts of each question."""

MAX_NEW_TOKENS = 48


@dataclass(frozen=True)
class Saved:
    """A sampler that returns the rollouts of each question that were drawn before."""

    drawn: Mapping[str, Sequence[Rollout]]

    @classmethod
    def of(cls, questions: Sequence[Question], drawn: Sequence[Sequence[Rollout]]) -> Saved:
        return cls({question.id: group for question, group in zip(questions, drawn, strict=True)})

    def sample(self, questions: Sequence[Question], n: int, *, first: int = 0, **how: Any) -> list[list[Rollout]]:
        return [list(self.drawn[question.id][first : first + n]) for question in questions]

    def sync(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Do nothing: no weights are used."""


def drawn_tokens(drawn: Drawn) -> int:
    """Count the tokens that were generated: of a branch, those from its fork on."""
    return sum(rollout.own_tokens for group in drawn for rollout in group)


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table of a page, one line a row."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows))


def over_questions(values_SQ: np.ndarray) -> Interval:
    """Return the mean and its interval over questions, each averaged over the seeds."""
    by_question = values_SQ.mean(axis=0)
    return Interval(float(by_question.mean()), *bootstrap_ci(by_question))


def percent(interval: Interval) -> str:
    """Write an interval of shares, in percent, as a cell of a table."""
    value, low, high = (None if x is None else 100 * x for x in interval)
    return f"{value:.1f}" if low is None or high is None else f"{value:.1f} [{low:.1f}, {high:.1f}]"


def plain(table: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Convert rows (named tuples) to values that JSON can hold."""
    return {
        name: {k: list(v) if isinstance(v, Interval) else v for k, v in row._asdict().items()}
        for name, row in table.items()
    }


class Start(NamedTuple):
    """The starting model and the questions of a study."""

    policy: Policy
    labelled: LabelledSet


def command_line(what: str) -> argparse.ArgumentParser:
    """Make the parser with the options that every study has."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--questions", type=int, default=256, help="the first so many of the split")
    parser.add_argument("--split", default="adapt", choices=digits.SPLITS)
    parser.add_argument("--json", action="store_true", help="print the figures as one last line of JSON")
    return parser


def each_seed(options: argparse.Namespace, run: Callable[[Start, int], T]) -> list[T]:
    """Call `run` on the starting model with each seed, and print how long each seed took."""
    disable_progress_bar()
    whole = digits.load(options.split)
    labelled = LabelledSet(whole.questions[: options.questions], whole.key)
    start = Start(Policy.load(digits.MODEL_DIR), labelled)
    found = []
    for seed in range(options.seeds):
        started = time.perf_counter()
        found.append(run(start, seed))
        print(f"seed {seed}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    return found
