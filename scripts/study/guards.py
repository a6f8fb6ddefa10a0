#!/usr/bin/env python3
"""Compare runs of `digits` with the guard and without it: a table of what it did and what the labels say of that.

    python scripts/study/guards.py --warned RUN [RUN ...] --stopped RUN [RUN ...] > docs/results/guard.md

Each RUN is a finished, labelled run. Those of `--warned` had `guard.act=warn`: they say when the guard would have fired
and what happened without it. Where it would have, the run of `--stopped` with the same model, method, seed, rate
and steps, and `guard.act=stop`, says what happens with it. Where it would not have, both are the same run.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mm_spine.config.layers import read_yaml
from mm_spine.files import read_json
from mm_spine.intervals import over_seeds
from mm_spine.measures import GREEDY, PASS_AT_1

HEAD = """\
# The guard, and what it did

Written by `scripts/study/guards.py` from finished runs of `digits`: 256 adapted questions, figures in percent, means
over seeds. The labels were read after the runs. `fired` counts the seeds in which the guard stopped the run; `lost`
counts the seeds that without the guard ended below their start by more than one point of pass@1.

The limits (`guard:` in [the configuration](../config.md)) were set with other seeds of these two starting models in
view, at learning rates of 2e-4 and 2e-3. All runs are of one task, with models of 2.2M parameters.

The runs were made at commit `8edc9079`, one of the stopped ones at `f729079a`. In between, all signals but `kept` came
to be judged also where few votes are sure. Judged again by the new rule, the lines of `guard.jsonl` of these runs stop
the same ones after the same steps.
"""


COLUMNS = (
    *("model", "lr", "steps", "method", "seeds", "lost", "fired"),
    *("greedy: start → without / with", "pass@1: start → without / with", "pass@1 with the guard, change"),
)


class Setting(NamedTuple):
    """What runs are grouped by."""

    model: str
    lr: float
    steps: int
    method: str


@dataclass(frozen=True)
class Pair:
    """The figures in percent of one seed: at the start, after the run without the guard, and after the one with it."""

    seed: int
    start: Mapping[str, float]
    off: Mapping[str, float]
    on: Mapping[str, float]
    fired: bool


def runs_by_key(folders: Iterable[Path]) -> dict[tuple[Setting, int], Mapping[str, Any]]:
    """Return the summaries of finished runs by setting and seed."""
    found = {}
    for folder in folders:
        config, summary = read_yaml(folder / "config.yaml"), read_json(folder / "summary.json")
        optim = config["optim"]
        name = Path(str(summary["model"])).name
        found[Setting(name, optim["lr"], optim["steps"], str(summary["method"])), int(summary["seed"])] = summary
    return found


def pairs_by_setting(warned: Iterable[Path], stopped: Iterable[Path]) -> dict[Setting, list[Pair]]:
    """Pair the runs. Raises ValueError where the guard would have stopped a run and no run shows it."""
    without, with_guard = runs_by_key(warned), runs_by_key(stopped)
    found: dict[Setting, list[Pair]] = {}
    for (setting, seed), summary in sorted(without.items()):
        guard = summary["guard"]
        if guard["fired"] and (setting, seed) not in with_guard:
            raise ValueError(f"{setting}, seed {seed}: the guard would have stopped it; run it with guard.act=stop too")
        other = with_guard[setting, seed] if guard["fired"] else summary
        pair = Pair(
            seed,
            *(_percent(run[when]) for run, when in ((summary, "before"), (summary, "after"), (other, "after"))),
            guard["fired"],
        )
        found.setdefault(setting, []).append(pair)
    return found


def _percent(block: object) -> dict[str, float]:
    assert isinstance(block, Mapping)
    return {measure: 100 * block[measure] for measure in (GREEDY, PASS_AT_1)}


def row(setting: Setting, pairs: list[Pair]) -> str:
    """Write a line of the table."""

    def mean(side: str, measure: str) -> str:
        return f"{np.mean([getattr(pair, side)[measure] for pair in pairs]):.1f}"

    changes = over_seeds([pair.on[PASS_AT_1] - pair.start[PASS_AT_1] for pair in pairs])
    bounds = "" if changes.low is None or changes.high is None else f" [{changes.low:+.1f}, {changes.high:+.1f}]"
    fired = [pair for pair in pairs if pair.fired]
    lost = sum(pair.off[PASS_AT_1] < pair.start[PASS_AT_1] - 1 for pair in pairs)
    cells = [
        setting.model, f"{setting.lr:g}", str(setting.steps), f"`{setting.method}`", str(len(pairs)), str(lost),
        str(len(fired)), *(f"{mean('start', m)} → {mean('off', m)} / {mean('on', m)}" for m in (GREEDY, PASS_AT_1)),
        f"{changes.value:+.1f}{bounds}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def verdicts(pairs: Iterable[Pair]) -> str:
    """Count the runs that the guard judged rightly and wrongly."""
    counts = {(lost, fired): 0 for lost in (True, False) for fired in (True, False)}
    for pair in pairs:
        counts[pair.off[PASS_AT_1] < pair.start[PASS_AT_1] - 1, pair.fired] += 1
    lost, others = (counts[lost, True] + counts[lost, False] for lost in (True, False))
    return (
        f"Of {lost} runs that lost without the guard it stopped {counts[True, True]}; of {others} others it stopped "
        f"{counts[False, True]}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warned", nargs="+", type=Path, required=True, help="runs with guard.act=warn")
    parser.add_argument("--stopped", nargs="*", type=Path, default=[], help="runs with guard.act=stop")
    given = parser.parse_args()
    by_setting = pairs_by_setting(given.warned, given.stopped)
    print(HEAD)
    print(f"| {' | '.join(COLUMNS)} |\n| --- | ---: | ---: | --- | ---: | ---: | ---: | --- | --- | --- |")
    for setting, pairs in by_setting.items():
        print(row(setting, pairs))
    print(f"\n{verdicts(pair for pairs in by_setting.values() for pair in pairs)}")


if __name__ == "__main__":
    main()
