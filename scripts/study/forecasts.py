#!/usr/bin/env python3
"""Hold the forecast of finished runs against what became of them: tables of verdicts and gains, and the calibration.

    python scripts/study/forecasts.py [RUN ...] [--cells FOLDER ...] > docs/results/forecast.md

Each RUN is the folder of a finished, labelled run; runs of one benchmark share their tables. Its forecast is made again
from its evaluation before adaptation, without the labels; the labels say how much the vote and the adapted model gained
over one greedy answer. Each FOLDER is an `--output` of `guard_cells.py`: its runs have their forecast in summary.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from guard_cells import SEEDS, STARTS, STEPS, guard_cells
from guards import Runs, Setting, commits_in_words, finished, pairs_by_setting
from scipy import stats

from mm_spine import evaluation
from mm_spine.benchmarks import resolve
from mm_spine.config.layers import read_yaml
from mm_spine.evaluation.forecast import WORTH, forecast
from mm_spine.files import read_json, read_json_lines
from mm_spine.intervals import Interval
from mm_spine.measures import GREEDY, MAJ_AT_N
from mm_spine.reporting.finished_run import SPLITS as TITLES
from mm_spine.types import Question

VERDICTS = ("adapt", "vote", "keep", "neither")

HEAD = f"""\
# The forecast, and what happened

Written by `scripts/study/forecasts.py` from finished runs. A row is a start: a model and the seed of its samples.
`forecast` is what one round of votes said without labels: the gain in agreement, in points with a 95 % interval over
questions, and the verdict. The other columns were found with the labels: what the vote had over the greedy answer at
the start, and how the greedy answers of the adapted models changed, in points.

A verdict counts as right: `adapt`, where the greedy answers got better; `vote`, where the start's vote was at least as
good as the adapted model's greedy answers; `keep`, where adapting gained at most {100 * WORTH:.0f} points;
`neither`, where neither the vote nor adapting gained anything.

`direct_heavy_model` is the second checkpoint of [the study](digits.md), `clean_model` one without a second habit
(`scripts/study/source_recipe.py`). `noisy_S_K` is the model of `digits` with noise of S standard deviations added to
the language model's matrices (`scripts/study/noisy_start.py`, seed K). The limits of the verdicts
(`mm_spine/evaluation/forecast.py`) were set with figures of `digits_model` and of seeds 0 and 1 of `direct_heavy_model`
in view, before the other starts were made. `SmolLM2-135M-Instruct` is the start of
[the study on real weights](real.md). How often the verdicts are right on other tasks and on larger models is not known.
"""

CELLS_HEAD = """\
## All starts, learning rates and steps

The cells of [the guard's study](guard.md), adapted questions only: each start, learning rate, number of steps and
method, with the guard on, as it is by default. `without` is the mean change without the guard. The forecast knows
nothing of the rate and the steps that will be chosen.
"""

BINS = ((-100.0, 0.0), (0.0, 5.0), (5.0, 15.0), (15.0, 100.0))
"""Predicted gains that are taken together, in points: above the first, up to and including the second."""


@dataclass(frozen=True)
class Outcome:
    """A run: its forecast on a split, and the changes in points that the labels show there.

    `gain` is the predicted one, in points; `without` is what `greedy_gain` would have been without the guard.
    """

    start: str
    column: str
    gain: Interval
    verdict: str
    vote_gain: float
    greedy_gain: float
    without: float | None = None

    @property
    def right(self) -> bool:
        """Whether the verdict was right, as the page defines it."""
        return {
            "adapt": self.greedy_gain > 0,
            "vote": self.vote_gain >= self.greedy_gain,
            "keep": self.greedy_gain <= 100 * WORTH,
            "neither": max(self.vote_gain, self.greedy_gain) <= 0,
        }[self.verdict]


def outcomes(runs: Iterable[Path], split: str, questions: Sequence[Question]) -> Iterator[Outcome]:
    """Read the finished runs. Raises ValueError for one without labels on the split."""
    for run in runs:
        summary = read_json(run / "summary.json")
        before, after = (
            [evaluation.from_json(row) for row in read_json_lines(run / "evaluation" / f"{when}.jsonl")]
            for when in ("before", "after")
        )
        start, end = ([item for item in items if item.split == split] for items in (before, after))
        found = forecast(questions, start)
        scores = evaluation.metrics(start), evaluation.metrics(end)
        if found is None or scores[0][GREEDY] is None or scores[1][GREEDY] is None or scores[0][MAJ_AT_N] is None:
            raise ValueError(f"{run}: no forecast or no labels on the split {split}")
        yield Outcome(
            f"{Path(summary['model']).name}, seed {summary['seed']}",
            f"`{summary['method']}`",
            Interval(*(None if bound is None else 100 * bound for bound in found.gain)),
            found.verdict,
            100 * (scores[0][MAJ_AT_N] - scores[0][GREEDY]),
            100 * (scores[1][GREEDY] - scores[0][GREEDY]),
        )


def of_cells(warned: Runs, stopped: Runs) -> dict[Setting, list[Outcome]]:
    """Return the outcomes of the guard's cells, each with the guard and without it."""
    found: dict[Setting, list[Outcome]] = {}
    for setting, pairs in pairs_by_setting(warned, stopped)[0].items():
        for pair in pairs:
            key = setting, pair.seed
            summary: Mapping[str, Any] = warned[key] if key in warned else stopped[key]
            expected, before = summary["forecast"], summary["before"]
            found.setdefault(setting, []).append(
                Outcome(
                    f"{setting.model}, seed {pair.seed}",
                    f"{setting.lr:g} `{setting.method}`",
                    Interval(100 * expected["gain"], *(100 * bound for bound in expected["gain_ci95"])),
                    expected["verdict"],
                    100 * (before[MAJ_AT_N] - before[GREEDY]),
                    pair.on[GREEDY] - pair.start[GREEDY],
                    pair.off[GREEDY] - pair.start[GREEDY],
                )
            )
    return found


def table(rows: Sequence[Outcome]) -> Iterator[str]:
    """Yield a row per start, a column per method or cell."""
    columns = sorted({row.column for row in rows if row.column != "`none`"}, key=_rate_first)
    yield "| start | forecast, points | verdict | vote − greedy | " + " | ".join(columns) + " |"
    yield "| --- | ---: | --- | ---: |" + " ---: |" * len(columns)
    for start in dict.fromkeys(row.start for row in rows):
        own = [row for row in rows if row.start == start]
        first = own[0]
        assert first.gain.low is not None and first.gain.high is not None
        gains = {row.column: f"{row.greedy_gain:+.1f}" for row in own}
        interval = f"{first.gain.value:+.1f} [{first.gain.low:+.1f}, {first.gain.high:+.1f}]"
        cells = [start, interval, first.verdict, f"{first.vote_gain:+.1f}", *(gains.get(name, "–") for name in columns)]
        yield "| " + " | ".join(cells) + " |"


def _rate_first(column: str) -> tuple[float, str]:
    rate, _, method = column.rpartition(" ")
    return float(rate or 0), method


def tally(rows: Sequence[Outcome]) -> Iterator[str]:
    """Yield a row per verdict: how many adapted runs got better, and of how many the verdict was right."""
    adapted = [row for row in rows if row.column != "`none`"]
    guarded = any(row.without is not None for row in adapted)
    yield f"| verdict | runs | mean change |{' without |' if guarded else ''} got better | got worse | right |"
    yield "| --- | ---: | ---: |" + " ---: |" * (3 + guarded)
    for verdict in VERDICTS:
        own = [row for row in adapted if row.verdict == verdict]
        if own:
            changes = [row.greedy_gain for row in own]
            better, worse = sum(x > 0 for x in changes), sum(x < 0 for x in changes)
            without = f" {_mean(own, 'without')} |" if guarded else ""
            yield (
                f"| {verdict} | {len(own)} | {_mean(own, 'greedy_gain')} |{without} {better} | {worse} | "
                f"{sum(row.right for row in own)} |"
            )


def _mean(rows: Sequence[Outcome], name: str) -> str:
    return f"{np.mean([getattr(row, name) for row in rows]):+.1f}"


def calibration(rows: Sequence[Outcome]) -> Iterator[str]:
    """Yield the predicted gains, in bins, beside what the same runs gained; the runs of one start share a forecast."""
    yield "| predicted gain | starts | runs | predicted | vote − greedy | mean change | without |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for low, high in BINS:
        own = [row for row in rows if low < row.gain.value <= high]
        if own:
            name = f"up to {high:g}" if low == BINS[0][0] else f"above {low:g}"
            name += f", up to {high:g}" if (low, high) in BINS[1:-1] else ""
            predicted = f"{np.mean([row.gain.value for row in own]):+.1f}"
            means = [_mean(own, key) for key in ("vote_gain", "greedy_gain", "without")]
            yield f"| {name} | {len({row.start for row in own})} | {len(own)} | {' | '.join((predicted, *means))} |"


def agreement(rows: Sequence[Outcome]) -> str:
    """Say how far predicted gains lie from what happened, and whether they order the runs rightly."""
    predicted_R, happened_R = np.array([row.gain.value for row in rows]), np.array([row.greedy_gain for row in rows])
    low_R, high_R = np.array([row.gain.low for row in rows]), np.array([row.gain.high for row in rows])
    within = int(((low_R <= happened_R) & (happened_R <= high_R)).sum())
    off_R = happened_R - predicted_R
    said = (
        f"{within} of {len(rows)} changes lie in the interval of their forecast; on average a change is "
        f"{off_R.mean():+.1f} points from it, {np.abs(off_R).mean():.1f} either way."
    )
    if len({*predicted_R}) < 3 or len({*happened_R}) < 2:
        return said
    rho = stats.spearmanr(predicted_R, happened_R).statistic
    return f"{said} Spearman's rank correlation of forecasts and changes: {rho:.2f}."


def cell_sections(folders: Sequence[Path]) -> Iterator[str]:
    """Yield the lines on the cells of the guard's study."""
    (warned, commits), (stopped, later) = finished(folders, "warn"), finished(folders, "stop")
    found = of_cells(warned, stopped)
    planned = sum(cell.act == "warn" for cell in guard_cells())
    yield CELLS_HEAD
    yield (
        f"{sum(map(len, found.values()))} of {planned} runs of {len(STARTS)} starts and {len(SEEDS)} seeds are "
        f'finished (commit {commits_in_words(commits | later)}); "–" is one that is not.'
    )
    for steps in STEPS:
        chosen = {setting: own for setting, own in found.items() if setting.steps == steps}
        rows = sorted((row for own in chosen.values() for row in own), key=lambda row: row.start)
        if not rows:
            continue
        yield f"\n### {steps} steps\n"
        yield from table(rows)
        yield ""
        yield from tally(rows)
        for rate in sorted({setting.lr for setting in chosen}):
            own = [row for setting, of_one in chosen.items() if setting.lr == rate for row in of_one]
            yield f"\nCalibration at a rate of {rate:g}, {steps} steps:\n"
            yield from calibration(own)
            yield f"\n{agreement(own)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--cells", nargs="+", type=Path, default=[], help="an --output of guard_cells.py")
    given = parser.parse_args()
    if not given.runs and not given.cells:
        parser.error("give runs, or --cells")
    print(HEAD)
    if given.cells:
        print("\n".join(cell_sections(given.cells)), end="\n\n")
    by_benchmark: dict[str, list[Path]] = {}
    for run in given.runs:
        by_benchmark.setdefault(read_yaml(run / "config.yaml")["benchmark"], []).append(run)
    for name, runs in by_benchmark.items():
        benchmark = resolve(name)
        for split, asked in (("adapted", benchmark.adapt_split), ("held_out", benchmark.held_out_split)):
            if asked is None:
                continue
            rows = list(outcomes(runs, split, benchmark.load(asked).questions))
            print(f"## `{name}`: {TITLES[split][0].lower()}{TITLES[split][1:]} of other runs\n")
            print("\n".join([*table(rows), "", *tally(rows), ""]))


if __name__ == "__main__":
    main()
