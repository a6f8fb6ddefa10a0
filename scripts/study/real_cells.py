#!/usr/bin/env python3
"""Run the study on real pretrained weights: SmolLM2-135M-Instruct on facts and flags, methods and controls over seeds.

    scripts/study_real.sh [--jobs 1] [--only GLOB] [--report-only] [--output runs/study_real]

Cells, seed by seed, each a folder of `--output`:

    <task>/<method>/seed_<k>       the task's own configuration, with the guard only warning
    rate-x5/..., rate-x25/...      `capitals` at 5 and 25 times the learning rate
    votes/none/seed_<k>            `capitals` at the start with 64 samples a question, for fair votes and pass@k
    guarded/<method>/seed_<k>      `capitals` with the guard; only where it would have stopped the run above

A cell is finished when its summary.json exists; finished cells are skipped, half-written ones redone. `real_page.py`
writes docs/results/real.md from the finished ones.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cells import BASE
from run_cells import Stopped, Task, choose, drive, perform, tasks

from mm_spine.config import RunConfig

log = logging.getLogger("study")

ROOT = Path(__file__).resolve().parents[2]
MODEL, SEEING = ROOT / "models" / "SmolLM2-135M-Instruct", ROOT / "models" / "flags"
"""What `scripts/real.sh` makes; the second with `scripts/real.sh flags`."""

TASKS: Mapping[str, Path] = {"capitals": MODEL, "capital_of": MODEL, "flags": SEEING}
"""Task -> the folder of its model."""

FIRST = "capitals"
"""The task of the learning rates, the votes and the guard."""

METHODS = (BASE, "ttrl", "spine", "random-mask", "forks-only", "spine-v2", "ettrl")
SEEDS = 5
RATES, RATED = (5, 25), ("ttrl", "spine")
"""Multiples of the default learning rate, and the methods that run at them."""

SAMPLES = 64
"""Samples a question of `votes/`, from which votes of 16 are drawn, too."""

GUARDED = "guarded"
"""The cells in which the guard stops. In all others it only warns, so that a method's own effect is seen."""

COMMON = ("reporting.images=false",)


@dataclass(frozen=True)
class RealCell:
    """One run of the study; `factor` multiplies the learning rate."""

    group: str
    task: str
    label: str
    seed: int
    factor: int = 1
    model: str | None = None
    lean: bool = False

    @property
    def name(self) -> str:
        return f"{self.group}/{self.label}/seed_{self.seed}"

    @property
    def before(self) -> str | None:
        """The cell whose evaluation of the same start it takes over."""
        own = self.label == BASE
        return None if own else RealCell(self.task, self.task, BASE, self.seed).name

    @property
    def without_guard(self) -> str:
        """The cell with the same settings in which the guard only warns."""
        return RealCell(self.task, self.task, self.label, self.seed).name

    @property
    def needs(self) -> tuple[str, ...]:
        before = () if self.before is None else (self.before,)
        return (*before, self.without_guard) if self.group == GUARDED else before

    def config(self, output: Path) -> RunConfig:
        """Resolve the configuration; it takes "before" over only from a cell that is finished."""
        # Imported here: it loads torch, which a process that only receives cells does not need.
        from mm_spine.runs.plan import load_config

        own = [*COMMON, f"guard.act={'stop' if self.group == GUARDED else 'warn'}", f"model.path={TASKS[self.task]}"]
        if self.group == "votes":
            own += [f"evaluation.samples={SAMPLES}"]
        if self.factor != 1:
            own += [f"optim.lr={self.factor * load_config(self.task, own).optim.lr:g}"]
        if self.before is not None and (output / self.before / "summary.json").is_file():
            own += [f"evaluation.before={output / self.before}"]
        return load_config(self.task, own, self.label, self.seed)


def real_cells() -> list[RealCell]:
    """List the cells in the order in which they are run."""
    first = list(_task(FIRST))
    guarded = [RealCell(GUARDED, FIRST, cell.label, cell.seed, lean=True) for cell in first if cell.label != BASE]
    return [*first, *guarded, *_rates(), *_votes(), *(cell for task in TASKS if task != FIRST for cell in _task(task))]


def stopped(cell: RealCell, output: Path) -> bool | None:
    """Return whether the guard would have stopped the run of a cell of `guarded/`; None while that is not finished."""
    # Imported here: it loads torch, which a process that only receives cells does not need.
    from real_guard import alarm_of

    run = output / cell.without_guard
    return alarm_of(run) is not None if (run / "summary.json").is_file() else None


def do(task: Task, output: Path) -> str | None:
    """Do a task in its folder; nothing where the guard would not have stopped the run. Returns why it failed."""
    cell = task.cell
    if isinstance(cell, RealCell) and cell.group == GUARDED and not (fires := stopped(cell, output)):
        return f"{cell.without_guard} is not finished" if fires is None else None
    return perform(task, output)


def _task(task: str) -> Iterator[RealCell]:
    for seed in range(SEEDS):
        for label in METHODS:
            yield RealCell(task, task, label, seed)


def _rates() -> Iterator[RealCell]:
    for seed in range(SEEDS):
        for factor in RATES:
            for label in RATED:
                yield RealCell(f"rate-x{factor}", FIRST, label, seed, factor, lean=True)


def _votes() -> Iterator[RealCell]:
    for seed in range(SEEDS):
        yield RealCell("votes", FIRST, BASE, seed)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/study_real.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: %(default)s)")
    parser.add_argument("--only", action="append", metavar="GLOB", help="cells by name, e.g. 'capitals/spine/*'")
    parser.add_argument("--report-only", action="store_true", help="run nothing, write the page")
    parser.add_argument("--output", type=Path, default=Path("runs/study_real"), help="default: %(default)s")
    parser.add_argument("--results", type=Path, default=Path("docs/results"), help="default: %(default)s")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs}: at least 1")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    output, failed = options.output.absolute(), False
    if not options.report_only:
        chosen = choose(real_cells(), options.only)
        for model in dict.fromkeys(TASKS[cell.task] for cell in chosen):
            if not (model / "config.json").is_file():
                made = "scripts/real.sh flags" if model == SEEING else "scripts/real.sh"
                parser.error(f"{model.relative_to(ROOT)}: no model; {made} makes it")
        # The workers inherit it.
        os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // options.jobs))
        todo = tasks(chosen, output)
        log.info("%d tasks to do", len(todo))
        try:
            failed = any(reason is not None for reason in drive(todo, output, options.jobs, do).values())
        except Stopped as stopped:
            log.warning("stopped: run this again to go on, with --report-only for the report of what is finished")
            return 128 + stopped.number
    from real_page import write_page

    log.info("report: %s", write_page(output, options.results))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
