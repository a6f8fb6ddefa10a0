"""What the guard does on real weights: which runs it would stop, and what stopping them saves and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def guard_part(main: Mapping[str, Sequence[Result]], guarded: Mapping[str, Sequence[Result]]) -> str:
    """Write every run with what the guard would do, and beside it the run in which it did."""
    there = {(r.cell.label, r.cell.seed): r for results in guarded.values() for r in results}
    runs = [r for label, results in main.items() if label != BASE for r in results]
    fired = {(r.cell.label, r.cell.seed): alarm_of(r.run.path) for r in runs}
    rows = [_row(r, fired[r.cell.label, r.cell.seed], there.get((r.cell.label, r.cell.seed))) for r in runs]
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
        f"{_counted(runs, fired, there)}\n\n{grid(header, rows)}"
    )


def _row(result: Result, alarm: str | None, guarded: Result | None) -> list[str]:
    fell = fall_of(result.run.path)
    back = NONE if guarded is None else str(guarded.run.summary["guard"]["rolled_back_to"])
    shown = [
        result.cell.label,
        str(result.cell.seed),
        NONE if fell is None else _signed(100 * fell),
        alarm or NONE,
        back,
    ]
    return shown + [
        NONE if run is None else arrow([run.score(when, split, GREEDY) for when in ("before", "after")], scale=100)
        for run in (result, guarded)
        for split in SPLITS
    ]


def _counted(
    runs: Sequence[Result], fired: Mapping[tuple[str, int], str | None], guarded: Mapping[tuple[str, int], Result]
) -> str:
    """Say what the guard caught and missed, and the worst run without it and with it."""
    lost = [r for r in runs if _change(r, GREEDY) < -LOST]
    missed = [r for r in lost if fired[r.cell.label, r.cell.seed] is None]
    false = [r for r in runs if r not in lost and fired[r.cell.label, r.cell.seed] is not None]
    ends = [guarded.get((r.cell.label, r.cell.seed), r) for r in runs if _known(r, fired, guarded)]
    lines = [
        f"- Of {len(runs)} runs {len(lost)} ended with greedy answers more than {LOST:g} point below the start; of "
        f"these the guard would not have stopped {len(missed)}. Of the {len(runs) - len(lost)} others it would have "
        f"stopped {len(false)}."
    ]
    if ends:
        without = [r for r in runs if _known(r, fired, guarded)]
        for measure, title in ((GREEDY, "greedy"), (PASS_AT_1, "pass@1")):
            off, on = ([_change(r, measure) for r in those] for those in (without, ends))
            lines.append(
                f"- Change of {title} on the adapted questions over the {len(ends)} of them of which both are known: "
                f"{_signed(float(np.mean(off)))} without the guard (worst {_signed(min(off))}), "
                f"{_signed(float(np.mean(on)))} with it (worst {_signed(min(on))})."
            )
    return "\n".join(lines)


def _known(
    result: Result, fired: Mapping[tuple[str, int], str | None], guarded: Mapping[tuple[str, int], Result]
) -> bool:
    """Whether it is known how the run ends with the guard: where it would not be stopped, as without."""
    key = result.cell.label, result.cell.seed
    return fired[key] is None or key in guarded


def _signed(points: float) -> str:
    return f"{points:+z.1f}"


def _change(result: Result, measure: str) -> float:
    """Return the change of a score of the adapted questions, in points."""
    before, after = (result.score(when, "adapted", measure) or 0.0 for when in ("before", "after"))
    return 100 * (after - before)
