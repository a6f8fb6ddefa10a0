"""Read the start of the study on real weights: its 64 samples a question, fair votes from them, and what it knew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mm_spine.files import read_json, read_json_lines
from mm_spine.processors.answers import parse
from mm_spine.types import AnswerSpec
from mm_spine.voting import rank

DRAWS = 200
"""Random subsets a question, over which a smaller vote is averaged."""


@dataclass(frozen=True)
class Start:
    """The evaluation of a start with many samples: split -> question id -> its line."""

    seed: int
    lines: Mapping[str, Mapping[str, Mapping[str, Any]]]

    def line(self, question: str) -> Mapping[str, Any]:
        """Return the line of a question. Raises KeyError where it was not asked."""
        return {name: line for asked in self.lines.values() for name, line in asked.items()}[question]


Lines = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Split -> question id -> its line of an evaluation."""


def read_lines(run: Path, when: str) -> Lines:
    """Read the evaluation "before" or "after" a run."""
    lines: dict[str, dict[str, Any]] = {}
    for line in read_json_lines(run / "evaluation" / f"{when}.jsonl"):
        lines.setdefault(line["split"], {})[line["id"]] = line
    return lines


def read_start(run: Path) -> Start:
    """Read the evaluation before a run."""
    return Start(int(read_json(run / "summary.json")["seed"]), read_lines(run, "before"))


def fair_vote(start: Start, split: str, votes: int) -> float | None:
    """Return how often a vote of `votes` samples is right, in [0, 1], over random subsets of those that were drawn."""
    asked = start.lines.get(split, {})
    if not asked:
        return None
    rng = np.random.default_rng([votes, start.seed])
    return float(np.mean([_vote(name, line, votes, rng) for name, line in asked.items()]))


def _vote(question: str, line: Mapping[str, Any], votes: int, rng: np.random.Generator) -> float:
    classes = line["classes"]
    # The grader's verdict on a class is that on its first sample, as for every vote.
    right: dict[str, bool] = {}
    for name, verdict in zip(classes, line["verdicts"], strict=True):
        if name is not None:
            right.setdefault(name, bool(verdict["correct"]))
    subsets = 1 if votes >= len(classes) else DRAWS
    wins = [winner(question, rng.permutation(len(classes))[:votes], classes) for _ in range(subsets)]
    return float(np.mean([right.get(name, False) for name in wins if name is not None] + [False] * wins.count(None)))


def winner(question: str, chosen: Sequence[int] | np.ndarray, classes: Sequence[str | None]) -> str | None:
    """Return the class that the chosen samples elect, None where none of them votes."""
    counts = Counter(name for i in chosen if (name := classes[int(i)]) is not None)
    return rank(counts, question)[0][0] if counts else None


SOURCES = ("form", "known", "new")
"""What an answer may have come from that adapting set right; `source` says what they mean."""


def source(line: Mapping[str, Any], spec: AnswerSpec, golds: Sequence[str]) -> str:
    """Say what kept the start's greedy response from being right.

    "form": it gave no answer, or it held a right name among other words. "known": it named something else, but one of
    the samples is right. "new": none is.
    """
    text = line["greedy_text"]
    if parse(text, spec) is None or any(gold.casefold() in text.casefold() for gold in golds):
        return "form"
    return "known" if any(verdict["correct"] for verdict in line["verdicts"]) else "new"
