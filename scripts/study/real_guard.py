"""What the guard does on real weights: which runs it would stop, and what stopping them saves and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from cells import BASE
from results import Result
from tables import NONE, arrow, grid

from mm_spine.benchmarks import resolve
from mm_spine.config import GuardConfig
from mm_spine.config.layers import read_yaml
from mm_spine.evaluation import Item
from mm_spine.files import read_json
from mm_spine.measures import GREEDY, PASS_AT_1
from mm_spine.reporting.finished_run import SPLITS
from mm_spine.runs.folder import RunFolder
from mm_spine.runs.greedy_check import greedy_fall
from mm_spine.runs.guard import starts
from mm_spine.types import Question

LIMIT = GuardConfig().greedy
LOST = 1.0
"""A run whose greedy answers end this many points below their start, or further, has lost."""


def alarm_of(run: Path) -> str | None:
    """Return the signal by which the guard would have stopped a run in which it only warned, None for none.

    Runs of a guard that did not ask greedily yet are judged by their last evaluation: the questions are the same ones.
    """
    guard = read_json(run / "summary.json")["guard"]
    if guard["fired"]:
        return str(guard["signal"])
    fell = fall_of(run)
    return "greedy" if fell is not None and fell > LIMIT else None


@cache
def fall_of(run: Path) -> float | None:
    """Return by how much the share of greedy answers that are the start's vote fell, over the adapted questions."""
    folder = RunFolder(run)
    before, after = folder.read_items("before"), folder.read_items("after")
    said = {item.id: item.greedy_text for item in after}
    limits = GuardConfig(greedy_over=len(before))
    return greedy_fall(_adapted(run, before), starts(before), limits, lambda asked: {q.id: said[q.id] for q in asked})


def _adapted(run: Path, before: Sequence[Item]) -> list[Question]:
    asked = {item.id for item in before if item.split == "adapted"}
    return [question for question in _questions(read_yaml(run / "config.yaml")["benchmark"]) if question.id in asked]


@cache
def _questions(name: str) -> tuple[Question, ...]:
    benchmark = resolve(name)
    return benchmark.load(benchmark.adapt_split).questions


def alarm_in_words(guard: Mapping[str, Any]) -> str:
    return f"{guard['signal']} at step {guard['step']}"


@dataclass(frozen=True)
class Watched:
    """A run in which the guard only warned, the signal that would have stopped it, and the run that it stopped."""

    result: Result
    alarm: str | None
    guarded: Result | None

    @property
    def ended(self) -> Result | None:
        """How it ends with the guard: as without where that would not stop it; None while that is not known."""
        return self.result if self.alarm is None else self.guarded

    @property
    def lost(self) -> bool:
        return points_gained(self.result, GREEDY) < -LOST


def guard_part(main: Mapping[str, Sequence[Result]], guarded: Mapping[str, Sequence[Result]]) -> str:
    """Write every run with what the guard would do, and beside it the run in which it did."""
    there = {(r.cell.label, r.cell.seed): r for results in guarded.values() for r in results}
    runs = [
        Watched(r, alarm_of(r.run.path), there.get((r.cell.label, r.cell.seed)))
        for label, results in main.items()
        if label != BASE
        for r in results
    ]
    header = [
        *("method", "seed", "fall, points", "stopped by", "weights of step"),
        *(f"{kind}{split.replace('_', '-')}" for kind in ("greedy, ", "guarded, ") for split in SPLITS),
    ]  # fmt: skip
    return (
        "## The guard\n\n`fall`: by how many points fewer of the adapted questions' greedy answers are the start's "
        "votes after the run than before it. No label is read for it. The guard allows "
        f"{100 * LIMIT:g} points: of 19 runs of `digits` of seeds 0 and 1 those whose greedy answers got worse by more "
        "than one point fell by 9.8 points or more, the others by 8.2 at most. Seven of the runs below were known: "
        "`ttrl` with seeds 0 to 2, `spine` and `random-mask` with seeds 0 and 1. `stopped by`: the signal by which the "
        "guard stops the run. `greedy`: greedy answers that are right, in percent, before → after, where it only "
        "warned; `guarded`: where it stopped the run, and took back its weights to those of the step named.\n\n"
        f"{_counted(runs)}\n\n{grid(header, map(_row, runs))}"
    )


def _row(watched: Watched) -> list[str]:
    cell, fell, guarded = watched.result.cell, fall_of(watched.result.run.path), watched.guarded
    moved = NONE if fell is None else _signed(100 * fell)
    back = NONE if guarded is None else str(guarded.run.summary["guard"]["rolled_back_to"])
    return [cell.label, str(cell.seed), moved, watched.alarm or NONE, back] + [
        NONE if run is None else arrow([run.score(when, split, GREEDY) for when in ("before", "after")], scale=100)
        for run in (watched.result, guarded)
        for split in SPLITS
    ]


def _counted(runs: Sequence[Watched]) -> str:
    """Say what the guard caught and missed, and the worst run without it and with it."""
    lost, others = [each for each in runs if each.lost], [each for each in runs if not each.lost]
    lines = [
        f"- Of {len(runs)} runs {len(lost)} ended with greedy answers more than {LOST:g} point below the start; of "
        f"these the guard would not have stopped {sum(each.alarm is None for each in lost)}. Of the {len(others)} "
        f"others it would have stopped {sum(each.alarm is not None for each in others)}."
    ]
    ends = [(each.result, each.ended) for each in runs if each.ended is not None]
    for measure, title in ((GREEDY, "greedy"), (PASS_AT_1, "pass@1")) if ends else ():
        off, on = ([points_gained(run, measure) for run in side] for side in zip(*ends, strict=True))
        lines.append(
            f"- Change of {title} on the adapted questions over the {len(ends)} of them of which both are known: "
            f"{_signed(float(np.mean(off)))} without the guard (worst {_signed(min(off))}), "
            f"{_signed(float(np.mean(on)))} with it (worst {_signed(min(on))})."
        )
    return "\n".join(lines)


def _signed(points: float) -> str:
    return f"{points:+z.1f}"


def points_gained(result: Result, measure: str) -> float:
    """Return the change of a score of the adapted questions, in points. Raises ValueError where none has a label."""
    before, after = (result.score(when, "adapted", measure) for when in ("before", "after"))
    if before is None or after is None:
        raise ValueError(f"{result.run.path}: no adapted question has a gold answer")
    return 100 * (after - before)
