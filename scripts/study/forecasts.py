#!/usr/bin/env python3
"""Hold the forecast of finished runs against what became of them: a table of verdicts and gains.

    python scripts/study/forecasts.py RUN [RUN ...] > docs/results/forecast.md

Each RUN is the folder of a finished, labelled run of `digits`. The forecast is made again from its evaluation before
adaptation, without the labels; the labels say how much the vote and the adapted model gained over one greedy answer.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mm_spine import evaluation
from mm_spine.benchmarks.digits import BENCHMARK
from mm_spine.evaluation.forecast import Forecast, forecast
from mm_spine.files import read_json, read_json_lines
from mm_spine.measures import GREEDY, MAJ_AT_N
from mm_spine.reporting.finished_run import SPLITS as TITLES
from mm_spine.types import Question

SPLITS = {"adapted": BENCHMARK.adapt_split, "held_out": BENCHMARK.held_out_split}

HEAD = """\
# The forecast, and what happened

Written by `scripts/study/forecasts.py` from finished runs of `digits`. A row is a start: a model and the seed of its
samples. `forecast` is what one round of votes said without labels: the gain in agreement, in points with a 95 %
interval over questions, and the verdict. The other columns were found with the labels: what the vote had over the
greedy answer at the start, and how the greedy answers of the adapted models changed, by method.

`direct_heavy_model` is the second checkpoint of [the study](digits.md). `noisy_S_K` is the model of `digits` with noise
of S standard deviations added to the language model's matrices (`scripts/study/noisy_start.py`, seed K). The limits of
the verdicts (`mm_spine/evaluation/forecast.py`) were set with figures of `digits_model` and of seeds 0 and 1 of
`direct_heavy_model` in view, before the other starts were made. How often the verdicts are right on other tasks and on
larger models is not known.
"""


@dataclass(frozen=True)
class Outcome:
    """A run: its forecast on a split, and the changes in points that the labels show there."""

    start: str
    method: str
    forecast: Forecast
    vote_gain: float
    greedy_gain: float


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
            summary["method"],
            found,
            100 * (scores[0][MAJ_AT_N] - scores[0][GREEDY]),
            100 * (scores[1][GREEDY] - scores[0][GREEDY]),
        )


def table(rows: Sequence[Outcome]) -> list[str]:
    """Write a row per start, a column per method."""
    methods = sorted({row.method for row in rows if row.method != "none"})
    lines = [
        "| start | forecast, points | verdict | vote − greedy | " + " | ".join(f"`{name}`" for name in methods) + " |",
        "| --- | ---: | --- | ---: |" + " ---: |" * len(methods),
    ]
    for start in dict.fromkeys(row.start for row in rows):
        own = [row for row in rows if row.start == start]
        first = own[0].forecast
        assert first.gain.low is not None and first.gain.high is not None
        gains = {row.method: f"{row.greedy_gain:+.1f}" for row in own}
        interval = f"{100 * first.gain.value:+.1f} [{100 * first.gain.low:+.1f}, {100 * first.gain.high:+.1f}]"
        cells = [
            start,
            interval,
            first.verdict,
            f"{own[0].vote_gain:+.1f}",
            *(gains.get(name, "–") for name in methods),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def tally(rows: Sequence[Outcome]) -> list[str]:
    """Count, for each verdict, the adapted runs whose greedy answers got better."""
    lines = ["| verdict | runs | mean change | got better | got worse |", "| --- | ---: | ---: | ---: | ---: |"]
    for verdict in ("adapt", "vote", "keep", "neither"):
        changes = [row.greedy_gain for row in rows if row.forecast.verdict == verdict and row.method != "none"]
        if changes:
            better, worse = sum(x > 0 for x in changes), sum(x < 0 for x in changes)
            lines.append(f"| {verdict} | {len(changes)} | {np.mean(changes):+.1f} | {better} | {worse} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a finished run of digits")
    runs = parser.parse_args().runs
    print(HEAD)
    for split, name in SPLITS.items():
        rows = list(outcomes(runs, split, BENCHMARK.load(name, None, "reason").questions))
        print(f"## {TITLES[split]}\n")
        print("\n".join([*table(rows), "", *tally(rows), ""]))


if __name__ == "__main__":
    main()
