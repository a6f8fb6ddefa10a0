"""Read the finished cells of the study, and compare them: paired differences with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from cells import Cell, missing
from habits import shares
from scipy import stats

from mm_spine.files import read_json, read_json_lines
from mm_spine.intervals import Interval, bootstrap_ci, over_seeds
from mm_spine.reporting.finished_run import FinishedRun, Scores, load_run


@dataclass(frozen=True)
class Result:
    """A finished cell: its scores per question, its steps with what the labels say of them, and its surroundings."""

    cell: Cell
    run: FinishedRun
    steps: Sequence[Mapping[str, Any]]
    environment: Mapping[str, Any]
    repeated: Mapping[str, Any] | None = None

    def trace(self, key: str) -> np.ndarray:
        """Return one figure per step, nan where a step has no value."""
        return np.array([np.nan if step.get(key) is None else step[key] for step in self.steps], dtype=np.float64)

    def scores(self, when: str, split: str, measure: str) -> Mapping[str, float | None]:
        """Return question id -> score in [0, 1]; empty if that split was not evaluated."""
        side: Mapping[str, Scores] = {"before": self.run.before, "after": self.run.after}[when]
        return side.get(split, {}).get(measure, {})

    def score(self, when: str, split: str, measure: str) -> float | None:
        """Return the mean over the labelled questions, in [0, 1]; None without one."""
        values = [v for v in self.scores(when, split, measure).values() if v is not None]
        return float(np.mean(values)) if values else None

    def switch(self) -> int | None:
        """Return the first step whose direct share is below half of step 0's; None without one."""
        direct = self.trace("direct")
        below = np.flatnonzero(direct < direct[0] / 2) if len(direct) else np.array([])
        return int(below[0]) if len(below) else None


def load(cell: Cell, output: Path) -> Result | str:
    """Load a cell's result, or return why there is none."""
    if (reason := missing(cell, output)) is not None:
        return reason
    folder = output / cell.name
    loaded = load_run(folder)
    if not isinstance(loaded, FinishedRun):
        return loaded.note
    again = folder / "repeated.json"
    repeated = read_json(again) if again.is_file() else None
    return Result(cell, loaded, _steps(folder), read_json(folder / "environment.json"), repeated)


def _steps(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of steps.jsonl, each with what was graded afterwards and the share of each habit."""
    graded = {row["step"]: row for row in _lines(folder / "evaluation" / "steps.jsonl")}
    rows = []
    for row in _lines(folder / "steps.jsonl"):
        after = graded.get(row["step"], {})
        saved = folder / "rollouts" / f"step_{row['step']:06d}.parquet"
        found = _habits_and_entropy(saved) if saved.is_file() else {"entropy_top": None}
        rows.append({**after, **row, **found})
    return rows


def _lines(path: Path) -> list[dict[str, Any]]:
    return read_json_lines(path) if path.is_file() else []


def _habits_and_entropy(saved: Path) -> dict[str, float | None]:
    """Return `direct` and `reasoned`, the shares of these habits, and `entropy_top` of a step's saved rollouts."""
    table = pq.read_table(saved, columns=["text", "entropy"])
    found = shares(table["text"].to_pylist())
    habits = {name: found.get(name, 0.0) for name in ("direct", "reasoned")} if found else {}
    return {**habits, "entropy_top": entropy_at_forks(table["entropy"].combine_chunks())}


def entropy_at_forks(column: Any, share: float = 0.2) -> float | None:
    """Return the mean entropy (nats) of the `share` of each response's tokens that have the highest.

    The tokens are the same for every method, whichever ones it trains. None without a token.
    """
    responses = np.split(np.asarray(column.flatten(), dtype=np.float64), np.cumsum(column.value_lengths())[:-1])
    tops = [h[h >= np.quantile(h, 1 - share)] for h in responses if len(h)]
    return float(np.concatenate(tops).mean()) if tops else None


@dataclass(frozen=True)
class Difference:
    """A mean difference as a share, with its 95 % interval over seeds and the one over questions."""

    seeds: Interval
    questions: Interval

    @property
    def claimed(self) -> Interval:
        """Return the wider of the two; without bounds for one seed, whose spread over seeds is unknown."""
        if self.seeds.low is None or self.seeds.high is None:
            return self.seeds
        return max(self.seeds, self.questions, key=lambda i: (i.high or 0.0) - (i.low or 0.0))


def detectable(values: Sequence[float], power: float = 0.8) -> float | None:
    """Return the true difference that a 95 % interval over these seeds would tell from 0 with probability `power`."""
    n = len(values)
    if n < 2:
        return None
    return float((stats.t.ppf(0.975, n - 1) + stats.t.ppf(power, n - 1)) * np.std(values, ddof=1) / np.sqrt(n))


Scored = tuple[str, str]
""" "before" or "after", and a measure."""


def difference(pairs: Sequence[tuple[Result, Result]], split: str, old: Scored, new: Scored) -> Difference | None:
    """Subtract, paired by seed and question, `old` of each pair's first from `new` of its second, in [-1, 1]."""
    rows = [(a.scores(old[0], split, old[1]), b.scores(new[0], split, new[1])) for a, b in pairs]
    shared = [q for q in (rows[0][0] if rows else ()) if all(r.get(q) is not None for row in rows for r in row)]
    if not shared:
        return None
    sides_2SQ = np.array([[[row[side][q] for q in shared] for row in rows] for side in (0, 1)], dtype=np.float64)
    table_SQ = sides_2SQ[1] - sides_2SQ[0]
    mean_Q = table_SQ.mean(0)
    questions = Interval(float(mean_Q.mean()), *bootstrap_ci(mean_Q))
    return Difference(over_seeds(table_SQ.mean(1).tolist()), questions)


def gain(results: Sequence[Result], split: str, measure: str) -> Difference | None:
    return difference([(r, r) for r in results], split, ("before", measure), ("after", measure))


def verdict(interval: Interval) -> str:
    """Say whether a 95 % interval excludes 0."""
    if interval.low is None or interval.high is None:
        return "one seed, no interval"
    return "excludes 0, higher" if interval.low > 0 else "excludes 0, lower" if interval.high < 0 else "includes 0"


Results = Mapping[str, Mapping[str, Sequence[Result]]]
"""Group -> label -> finished cells in the order of their seeds; labels without one are left out."""


def paired(main: Mapping[str, Sequence[Result]], label: str, reference: str) -> list[tuple[Result, Result]]:
    """Pair (reference, other) for the seeds that both have finished."""
    first = {r.cell.seed: r for r in main.get(reference, ())}
    return [(first[r.cell.seed], r) for r in main.get(label, ()) if r.cell.seed in first]


def seed_differences(pairs: Sequence[tuple[Result, Result]], split: str, measure: str) -> list[float]:
    scores = [(a.score("after", split, measure), b.score("after", split, measure)) for a, b in pairs]
    return [b - a for a, b in scores if a is not None and b is not None]


def known(result: Result, key: str) -> bool:
    return bool(np.isfinite(result.trace(key)).any())
