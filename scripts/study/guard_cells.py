#!/usr/bin/env python3
"""Run the cells of the study of the guard: three starts, rates and numbers of steps, with the guard and without it.

    python scripts/study/guard_cells.py --output runs/guard [--jobs 2] [--only GLOB]

A cell is a folder of `--output`:

    before_<start>_<seed>                            the evaluation of a start, which its runs share
    warn/<start>_<rate>_<steps>_<method>_<seed>      the guard only warns: what happens without it
    stop/...                                         the guard stops; only where the one that warns would have
    settle/...                                       ends where its votes have settled, at the default rate

Cells that have a summary.json are skipped, half-written ones are redone: call it again to go on. The starts
`clean_model` and `direct_heavy_model` are built in `--output` where they are not there yet (minutes).
`scripts/study/guards.py` and `scripts/study/forecasts.py --cells` write the tables.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import run_cells
from cells import BASE, CLEAN, HEAVY, digits_config
from run_cells import Stopped, Task, choose, drive, perform

from mm_spine.config import RunConfig
from mm_spine.files import read_json

log = logging.getLogger("study")

SHIPPED = "digits_model"
STARTS = (SHIPPED, HEAVY, CLEAN)
"""The start of `digits` with two habits, one in which the wrong habit is the stronger one, and one without a second."""

RATES = ("2.0e-4", "8.0e-4", "2.0e-3")
"""The default learning rate of `digits`, and 4 and 10 times as much."""

STEPS = (12, 120)
METHODS = ("ttrl", "spine")
SEEDS = (2, 3, 4, 5)
"""The limits of the guard and of settled votes were chosen with seeds 0 and 1."""

SETTLE = 0.01
"""The share of changed votes at which a run of `settle/` ends."""

COMMON = ("threads=1", "reporting.images=false", "reporting.rollouts=false", "evaluation.held_out=false")


@dataclass(frozen=True)
class GuardCell:
    """One run of the study, or with `act` "before" the evaluation of a start, of which only start and seed matter."""

    act: Literal["before", "warn", "stop", "settle"]
    start: str
    seed: int
    rate: str = RATES[0]
    steps: int = 0
    method: str = BASE

    @property
    def name(self) -> str:
        if self.act == "before":
            return f"before_{self.start}_{self.seed}"
        return f"{self.act}/{self.start}_{self.rate}_{self.steps}_{self.method}_{self.seed}"

    @property
    def label(self) -> str:
        return self.method

    @property
    def model(self) -> str | None:
        """The checkpoint to build first; the shipped one is there."""
        return None if self.start == SHIPPED else self.start

    @property
    def before(self) -> str:
        return GuardCell("before", self.start, self.seed).name

    @property
    def warning(self) -> str:
        """The cell in which the guard only warned."""
        return GuardCell("warn", self.start, self.seed, self.rate, self.steps, self.method).name

    @property
    def needs(self) -> tuple[str, ...]:
        models = () if self.model is None else (self.model,)
        earlier = {"before": (), "warn": (self.before,), "settle": (self.before,), "stop": (self.before, self.warning)}
        return models + earlier[self.act]

    def config(self, output: Path) -> RunConfig:
        """Resolve the configuration."""
        own = [] if self.model is None else [f"model.path={output / self.model}"]
        if self.act != "before":
            own += [f"optim.lr={self.rate}", f"optim.steps={self.steps}", f"evaluation.before={output / self.before}"]
        own += {"warn": ["guard.act=warn"], "settle": [f"guard.settle={SETTLE}"]}.get(self.act, [])
        return digits_config([*COMMON, *own], self.method, self.seed)


def guard_cells() -> list[GuardCell]:
    """List the cells in the order in which they are run: short runs first, seed by seed."""
    # Runs of both numbers of steps share the evaluation of their start.
    return [*dict.fromkeys(_runs()), *_settling()]


def _runs() -> Iterator[GuardCell]:
    for steps in STEPS:
        for seed in SEEDS:
            for start in STARTS:
                yield GuardCell("before", start, seed)
                for method in METHODS:
                    for rate in RATES:
                        yield GuardCell("warn", start, seed, rate, steps, method)
                        yield GuardCell("stop", start, seed, rate, steps, method)


def _settling() -> Iterator[GuardCell]:
    for seed in SEEDS:
        for start in STARTS:
            for method in METHODS:
                yield GuardCell("settle", start, seed, RATES[0], max(STEPS), method)


def fires(cell: GuardCell, output: Path) -> bool | None:
    """Return whether the guard fired in the run in which it only warned, None while that run is not finished."""
    summary = output / cell.warning / "summary.json"
    return bool(read_json(summary)["guard"]["fired"]) if summary.is_file() else None


def tasks(chosen: Iterable[GuardCell], output: Path) -> list[Task]:
    """List what is to be done, without runs that the guard would not stop: they would be those of `warn/` again."""
    return run_cells.tasks((c for c in chosen if c.act != "stop" or fires(c, output) is not False), output)


def do(task: Task, output: Path) -> str | None:
    """Do a task in its folder. Returns why it failed, None where it did not or where there was nothing to do."""
    cell = task.cell
    if not isinstance(cell, GuardCell):
        return perform(task, output)
    if cell.act != "before" and not (output / cell.before / "summary.json").is_file():
        return f"{cell.before} is not finished"
    if cell.act == "stop":
        fired = fires(cell, output)
        if not fired:
            return f"{cell.warning} is not finished" if fired is None else None
    return perform(task, output)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/guard"), help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes, one thread each (default: %(default)s)")
    parser.add_argument("--only", action="append", metavar="GLOB", help="cells by name, e.g. '*_12_ttrl_2'")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs}: at least 1")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    # The workers inherit it.
    os.environ["OMP_NUM_THREADS"] = "1"
    output = options.output.absolute()
    todo = tasks(choose(guard_cells(), options.only), output)
    log.info("%d tasks to do", len(todo))
    try:
        ended = drive(todo, output, options.jobs, do)
    except Stopped as stopped:
        log.warning("stopped: run this again to go on")
        return 128 + stopped.number
    return int(any(reason is not None for reason in ended.values()))


if __name__ == "__main__":
    sys.exit(main())
