"""Adapt the embedded model to unlabelled handwritten digits with SPINE and its controls, and compare the results."""

from __future__ import annotations

import argparse
import logging
import shutil
import time
from pathlib import Path

from mm_spine.commands.printing import console, print_runs
from mm_spine.commands.terminal import start_logging

METHODS = ("none", "ttrl", "spine", "random-mask")
"""Methods in the order of the table; the evaluation before adapting is run for the first and shared by the others."""


def main() -> None:
    """Run each of `METHODS` on `digits` with the same seed and print one table of the results."""
    parser = argparse.ArgumentParser(prog="scripts/demo.sh", description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("runs/demo"), help="folder of the runs (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="configuration, e.g. optim.steps=4")
    arguments = parser.parse_args()
    start_logging()
    started = time.perf_counter()
    folders = [run_method(name, arguments.output, arguments.seed, arguments.overrides) for name in METHODS]
    report(folders, time.perf_counter() - started)


def run_method(name: str, output: Path, seed: int, overrides: list[str]) -> Path:
    """Run one method in the folder `output/name`, which is emptied first. Returns that folder."""
    from mm_spine.runs.listeners.live import watching
    from mm_spine.runs.plan import load_config
    from mm_spine.runs.run import run

    folder, shared = output / name, output / METHODS[0]
    shutil.rmtree(folder, ignore_errors=True)
    before = [] if folder == shared else [f"evaluation.before={shared}"]
    logging.info("method %s", name)
    with watching() as listener:
        run(load_config("digits", [*overrides, *before], name, seed), folder, listener=listener)
    return folder


def report(folders: list[Path], seconds: float) -> None:
    """Print the table of the runs, the seconds that they took and the files of their folders."""
    print_runs(folders)
    console.print(f"\n{len(folders)} runs in {seconds:.0f} s. Each folder under {folders[0].parent}/ holds:")
    for name, what in (
        ("report.html", "all of it as one page: result, curves, tokens, the questions that changed"),
        ("summary.json", "figures with intervals, seconds, tokens, what was frozen"),
        ("steps.jsonl", "a line per step: vote share, entropies, band, losses, sampler-trainer gap"),
        ("rollouts/", "every response with its answer, reward, advantage, token entropies and mask"),
        ("evaluation/", "a verdict per question and sample, before and after"),
        ("adapted/", "the adapted model, for from_pretrained"),
    ):
        console.print(f"  {name:14s} {what}")


if __name__ == "__main__":
    main()
