#!/usr/bin/env python3
"""Write what the guard did, and what the labels say of that, from the cells of `guard_cells.py` that are finished.

    python scripts/study/guards.py FOLDER [FOLDER ...] > docs/results/guard.md

Each FOLDER is an `--output` of `guard_cells.py`. Its runs in `warn/` had `guard.act=warn`: they say when the guard
would have fired and what happened without it. The run in `stop/` of the same start, rate, steps, method and seed says
what happens with it, and whether it fired; of two of them that of the later folder counts, so that a newer guard needs
no new runs in `warn/`. Where the guard would not have fired and there is no such run, both are the same. Runs in
`settle/` end by themselves.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from guard_cells import SEEDS, SETTLE, STEPS, GuardCell, guard_cells
from tables import grid

from mm_spine.config.layers import read_yaml
from mm_spine.files import read_json
from mm_spine.intervals import over_seeds
from mm_spine.measures import GREEDY, PASS_AT_1

LOST = 1.0
"""A run that ends this many points of pass@1 below its start, or further, has lost; the guard may not cost more."""

HEAD = """\
# The guard, and what it did

Written by `scripts/study/guards.py` from finished runs of `digits` (`scripts/study/guard_cells.py`): 256 adapted
questions, figures in percent, means over seeds with 95 % intervals (Student's t over seeds; none for one seed). The
labels were read after the runs. `fired` counts the seeds in which the guard stopped the run; `lost` those that without
the guard ended more than one point of pass@1 below their start.

The limits (`guard:` in [the configuration](../config.md)) were set with seeds 0 and 1 of `digits_model` and
`direct_heavy_model` in view, at learning rates of 2e-4 and 2e-3; no run of the tables has these seeds. `agreement` came
later: the tables had shown slow losses of `clean_model` that the other signals missed. Its limit was set with 16 runs
of 12 steps of seeds 0 and 1 in view: over 96 questions none of those that gained more than one point fell below 0, each
of those that lost more than one fell by 6.8 points or more, and so did two that changed by less (`clean_model`).
That only states whose agreement has not fallen are gone back to was added when 9 stopping runs of seeds 2 and 3 were
known. `greedy`, the look at greedy answers at the end, came last, for a loss on [real weights](real.md) that the other
signals do not see. Its limit was set with 19 runs of seeds 0 and 1: those whose greedy answers got worse by more than
one point fell by 9.8 points or more, the others by 8.2 at most. Of the runs of 12 steps it changes three, which were
run again: states that had been gone back to were better than the start by 0.2 to 4.5 points of pass@1, but had left its
votes. All runs are of one task, with models of 2.2M parameters. `digits_model` has two habits of which the better one
is the stronger, in `direct_heavy_model` the worse one is, and `clean_model` was taught one habit.
"""

COLUMNS = (
    *("start", "lr", "method", "seeds", "lost", "fired", "pass@1: start → without / with"),
    *("change without", "change with", "greedy: start → without / with"),
)

WORDS = COLUMNS.index("method") + 1
"""How many of the first columns of the tables are words."""

SETTLED_HEAD = """\
## Where to stop

`guard.settle={limit:g}` ends a run once at most that share of the votes has changed since the same questions were asked
the last time, over 256 such votes. It reads no label. The value was chosen by runs of 120 steps of seeds 0 and 1. A run
that settles is the run of the fixed number of steps up to where it ends. `spared` is the share of the rollouts' tokens
that the run did not sample. Where no seed has both runs, a line has no figures.
"""

SETTLED_COLUMNS = (
    *("start", "lr", "method", "seeds", "settled", "after steps", "spared"),
    *("pass@1: start → fixed / settled", "difference", "greedy: start → fixed / settled", "difference"),
)


class Setting(NamedTuple):
    """A cell: what runs are grouped by."""

    model: str
    lr: float
    steps: int
    method: str

    def __str__(self) -> str:
        return f"{self.model}, lr {self.lr:g}, {self.steps} steps, {self.method}"


ALONE_COLUMNS = (
    *("start", "lr", "steps", "method", "seeds", "stopped after", "pass@1: start → with", "change with"),
    "greedy: start → with",
)

Runs = Mapping[tuple[Setting, int], Mapping[str, Any]]
"""Summaries of finished runs by setting and seed; the steps of a setting are those that were asked for."""


@dataclass(frozen=True)
class Pair:
    """The figures in percent of one seed: at the start, after the run without the guard, and after the one with it.

    `without`, `with_guard` and `cost` are points of pass@1.
    """

    seed: int
    start: Mapping[str, float]
    off: Mapping[str, float]
    on: Mapping[str, float]
    fired: bool

    @property
    def without(self) -> float:
        return self.off[PASS_AT_1] - self.start[PASS_AT_1]

    @property
    def with_guard(self) -> float:
        return self.on[PASS_AT_1] - self.start[PASS_AT_1]

    @property
    def cost(self) -> float:
        return self.off[PASS_AT_1] - self.on[PASS_AT_1]

    @property
    def lost(self) -> bool:
        return self.without < -LOST


def finished(folders: Iterable[Path], kind: str) -> tuple[Runs, set[str]]:
    """Return the finished runs in `kind`/ of the folders, and the commits that made them."""
    found, commits = {}, set[str]()
    for path in (path for folder in folders for path in sorted((folder / kind).glob("*/summary.json"))):
        config, summary = read_yaml(path.parent / "config.yaml"), read_json(path)
        optim, name = config["optim"], Path(str(summary["model"])).name
        found[Setting(name, optim["lr"], optim["steps"], str(summary["method"])), int(summary["seed"])] = summary
        commits.add(str(read_json(path.parent / "environment.json")["commit"])[:8])
    return found, commits


def pairs_by_setting(warned: Runs, stopped: Runs) -> tuple[dict[Setting, list[Pair]], list[str]]:
    """Pair the runs. Also name those that the guard would stop and whose run in `stop/` is not finished."""
    found: dict[Setting, list[Pair]] = {}
    alone = []
    calm = {key: summary for key, summary in stopped.items() if not summary["guard"]["fired"]}
    for (setting, seed), summary in sorted({**calm, **warned}.items()):
        other = stopped.get((setting, seed), summary)
        if other is summary and summary["guard"]["fired"]:
            alone.append(f"{setting}, seed {seed}")
            continue
        fired = bool(other["guard"]["fired"])
        figures = (percent(run[when]) for run, when in ((summary, "before"), (summary, "after"), (other, "after")))
        found.setdefault(setting, []).append(Pair(seed, *figures, fired))
    return found, alone


def alone_by_setting(warned: Runs, stopped: Runs) -> dict[Setting, list[Mapping[str, Any]]]:
    """Return the runs that the guard stopped and whose run without it is not finished."""
    found: dict[Setting, list[Mapping[str, Any]]] = {}
    for (setting, seed), summary in sorted(stopped.items()):
        if summary["guard"]["fired"] and (setting, seed) not in warned:
            found.setdefault(setting, []).append(summary)
    return found


def alone_row(setting: Setting, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write a line of the table of runs of which only the guarded one is finished."""
    start, end = ([percent(run[when]) for run in runs] for when in ("before", "after"))
    steps = sorted(run["steps"] for run in runs)
    moved = [after[PASS_AT_1] - before[PASS_AT_1] for before, after in zip(start, end, strict=True)]
    arrows = [
        " → ".join(f"{np.mean([figures[measure] for figures in side]):.1f}" for side in (start, end))
        for measure in (PASS_AT_1, GREEDY)
    ]
    return [
        setting.model, f"{setting.lr:g}", str(setting.steps), f"`{setting.method}`", str(len(runs)),
        span(steps), arrows[0], mean_with_bounds(moved), arrows[1],
    ]  # fmt: skip


def span(numbers: Sequence[int]) -> str:
    """Write the first and the last of sorted numbers."""
    return str(numbers[0]) if numbers[0] == numbers[-1] else f"{numbers[0]}–{numbers[-1]}"


def alone_section(alone: Mapping[Setting, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """Yield the lines on runs of which only the guarded one is finished."""
    runs = [run for of_one in alone.values() for run in of_one]
    moved = [percent(run["after"])[PASS_AT_1] - percent(run["before"])[PASS_AT_1] for run in runs]
    below = sum(change < -LOST for change in moved)
    yield "\n## With the guard alone\n"
    yield (
        f"{plural(len(runs), 'run')} that the guard stopped, and whose run without it is not finished: what it saved "
        f"or cost there is not known. {below} of them ended more than one point of pass@1 below the start, the worst "
        f"by {min(moved):+z.1f} points.\n"
    )
    yield grid(ALONE_COLUMNS, (alone_row(setting, of_one) for setting, of_one in alone.items()), 4)


def percent(block: object) -> dict[str, float]:
    """Return the two figures of a block of summary.json in percent."""
    assert isinstance(block, Mapping)
    return {measure: 100 * block[measure] for measure in (GREEDY, PASS_AT_1)}


def mean_with_bounds(values: Sequence[float]) -> str:
    """Write the mean in points, signed, with the 95 % interval over seeds where there are several."""
    found = over_seeds(values)
    bounds = "" if found.low is None or found.high is None else f" [{found.low:+.1f}, {found.high:+.1f}]"
    return f"{found.value:+z.1f}{bounds}"


def change(pairs: Sequence[Any], measure: str, sides: Sequence[str]) -> str:
    """Write the means of a measure at the start and after the two runs of a pair."""
    start, *ends = (f"{np.mean([getattr(pair, side)[measure] for pair in pairs]):.1f}" for side in ("start", *sides))
    return f"{start} → {' / '.join(ends)}"


def row(setting: Setting, pairs: Sequence[Pair]) -> list[str]:
    """Write a line of the table of a number of steps."""
    return [
        setting.model, f"{setting.lr:g}", f"`{setting.method}`", str(len(pairs)), str(sum(pair.lost for pair in pairs)),
        str(sum(pair.fired for pair in pairs)), change(pairs, PASS_AT_1, ("off", "on")),
        mean_with_bounds([pair.without for pair in pairs]), mean_with_bounds([pair.with_guard for pair in pairs]),
        change(pairs, GREEDY, ("off", "on")),
    ]  # fmt: skip


def progress(found: Mapping[Setting, Sequence[Pair]], alone: Sequence[str]) -> Iterator[str]:
    """Say how much of the study is finished, and what was left out."""
    planned = [cell for cell in guard_cells() if cell.act == "warn"]
    for steps in STEPS:
        wanted = {key_of(cell) for cell in planned if cell.steps == steps}
        there = {(setting, pair.seed) for setting, pairs in found.items() for pair in pairs} & wanted
        settings = {setting for setting, _ in wanted}
        full = sum(all((setting, seed) in there for seed in SEEDS) for setting in settings)
        yield (
            f"- {steps} steps: {len(there)} of {len(wanted)} runs are finished. Of {len(settings)} cells {full} have "
            f"all {len(SEEDS)} seeds, {len(settings - {setting for setting, _ in there})} have none."
        )
    if alone:
        yield (
            f"- Left out, because the guard would have stopped {plural(len(alone), 'run')} of which the one that it "
            f"stops is not finished: {'; '.join(alone)}."
        )


def key_of(cell: GuardCell) -> tuple[Setting, int]:
    """Return the setting and the seed of a cell."""
    return Setting(cell.start, float(cell.rate), cell.steps, cell.method), cell.seed


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def demands(found: Mapping[Setting, Sequence[Pair]]) -> Iterator[str]:
    """Check what the guard must show, and say what it got wrong."""
    pairs = [pair for of_one in found.values() for pair in of_one]
    below = {
        str(setting): f"{mean_with_bounds([pair.with_guard for pair in of_one])}, {plural(len(of_one), 'seed')}"
        for setting, of_one in found.items()
        if np.mean([pair.with_guard for pair in of_one]) < -LOST
    }
    without = sum(np.mean([pair.without for pair in of_one]) < -LOST for of_one in found.values())
    yield (
        f"1. With the guard no cell's mean pass@1 ends more than one point below its start: {verdict(not below)}. Of "
        f"{plural(len(found), 'cell')} {len(below)} end below that, without the guard {without}."
        + "".join(f"\n   - {name}: {interval}" for name, interval in below.items())
    )
    gained = {str(setting): [pair for pair in of_one if pair.without > 0] for setting, of_one in found.items()}
    gains = [pair.cost for of_one in gained.values() for pair in of_one]
    dear = {
        name: [pair.cost for pair in of_one if pair.cost > LOST]
        for name, of_one in gained.items()
        if any(pair.cost > LOST for pair in of_one)
    }
    if gains:
        over = sum(map(len, dear.values()))
        yield (
            f"2. On runs that gain without the guard it costs at most one point: {verdict(not dear)}. "
            f"{plural(len(gains), 'run')} gained; the guard cost {np.mean(gains):+.1f} points on average (below zero: "
            f"it gained), more than one point in {over}, at most {max(gains):+.1f}."
            + "".join(f"\n   - {name}: {', '.join(f'{x:+.1f}' for x in costs)}" for name, costs in dear.items())
        )
    else:
        yield "2. On runs that gain without the guard it costs at most one point: no run gained."
    lost, kept = [pair for pair in pairs if pair.lost], [pair for pair in pairs if not pair.lost]
    late = sum(pair.fired and pair.with_guard < -LOST for pair in pairs)
    yield (
        f"\nMisses: of {plural(len(lost), 'run')} that lost without the guard it did not stop "
        f"{sum(not pair.fired for pair in lost)}. False alarms: of {len(kept)} others it stopped "
        f"{sum(pair.fired for pair in kept)}. Too late: {late} that it stopped had lost all the same."
    )


def verdict(met: bool) -> str:
    return "met" if met else "NOT met"


@dataclass(frozen=True)
class SettledPair:
    """One seed with a fixed number of steps and with settled votes: figures in percent, steps, and tokens sampled."""

    seed: int
    start: Mapping[str, float]
    fixed: Mapping[str, float]
    settled: Mapping[str, float]
    ended: bool
    steps: int
    spared: float

    def differs(self, measure: str) -> float:
        return self.settled[measure] - self.fixed[measure]


def settled_by_setting(warned: Runs, stopped: Runs, settling: Runs) -> dict[Setting, list[SettledPair]]:
    """Pair each run of `settle/` with the one of a fixed number of steps; where the guard stops that, with that one."""
    found: dict[Setting, list[SettledPair]] = {}
    for (setting, seed), own in sorted(settling.items()):
        pairs = found.setdefault(setting, [])
        fixed = warned.get((setting, seed))
        if fixed is not None and fixed["guard"]["fired"]:
            fixed = stopped.get((setting, seed))
        if fixed is None:
            continue
        pairs.append(
            SettledPair(
                seed, percent(own["before"]), percent(fixed["after"]), percent(own["after"]),
                own["stopped_by"] == "settled", own["steps"],
                1 - own["tokens"]["sampled"] / fixed["tokens"]["sampled"],
            )
        )  # fmt: skip
    return found


def settled_row(setting: Setting, pairs: Sequence[SettledPair]) -> list[str]:
    """Write a line of the table of settled votes."""
    words = [setting.model, f"{setting.lr:g}", f"`{setting.method}`", str(len(pairs))]
    if not pairs:
        return [*words, *["–"] * (len(SETTLED_COLUMNS) - len(words))]
    steps = span(sorted(pair.steps for pair in pairs))
    figures = [
        text
        for measure in (PASS_AT_1, GREEDY)
        for text in (
            change(pairs, measure, ("fixed", "settled")),
            mean_with_bounds([pair.differs(measure) for pair in pairs]),
        )
    ]
    spared = f"{100 * np.mean([pair.spared for pair in pairs]):.0f} %"
    return [*words, str(sum(pair.ended for pair in pairs)), f"{steps} of {setting.steps}", spared, *figures]


def commits_in_words(commits: Iterable[str]) -> str:
    return ", ".join(f"`{commit}`" for commit in sorted(commits)) or "none"


def settled_section(folders: Sequence[Path], warned: Runs, stopped: Runs) -> Iterator[str]:
    """Yield the lines on where votes settle, next to runs of a fixed number of steps."""
    settling, commits = finished(folders, "settle")
    settled = settled_by_setting(warned, stopped, settling)
    planned, both = sum(cell.act == "settle" for cell in guard_cells()), sum(map(len, settled.values()))
    yield f"\n{SETTLED_HEAD.format(limit=SETTLE)}"
    made = f" (commit {commits_in_words(commits)})" if settling else ""
    yield f"{len(settling)} of {planned} runs that settle are finished{made}; {both} have the other run, too.\n"
    if settled:
        yield grid(SETTLED_COLUMNS, (settled_row(setting, pairs) for setting, pairs in settled.items()), WORDS)


def page(folders: Sequence[Path]) -> Iterator[str]:
    """Yield the lines of the page."""
    (warned, commits), (stopped, later) = finished(folders, "warn"), finished(folders, "stop")
    found, alone = pairs_by_setting(warned, stopped)
    seeds = sorted({pair.seed for pairs in found.values() for pair in pairs})
    yield HEAD
    yield f"Commit of the runs: {commits_in_words(commits | later)}. Seeds: {', '.join(map(str, seeds)) or 'none'}.\n"
    yield from progress(found, alone)
    if found:
        yield "\n## What it must show\n"
        yield from demands(found)
    for steps in sorted({setting.steps for setting in found}):
        chosen = {setting: pairs for setting, pairs in found.items() if setting.steps == steps}
        yield f"\n## {steps} steps\n"
        yield grid(COLUMNS, (row(setting, pairs) for setting, pairs in chosen.items()), WORDS)
    if only_guarded := alone_by_setting(warned, stopped):
        yield from alone_section(only_guarded)
    yield from settled_section(folders, warned, stopped)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="an --output of guard_cells.py")
    print("\n".join(page(parser.parse_args().folders)))


if __name__ == "__main__":
    main()
