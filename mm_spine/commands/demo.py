"""`mm-spine demo`: adapt the embedded model to unlabelled handwritten digits with SPINE and its controls."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from mm_spine.commands.options import Overrides
from mm_spine.commands.printing import console, print_runs
from mm_spine.config import ConfigError

METHODS = ("none", "ttrl", "spine", "random-mask")
"""Methods in the order of the table; the evaluation before adapting is run for the first and shared by the others."""

FILES = (
    ("report.html", "all of it as one page: result, curves, tokens, the questions that changed"),
    ("summary.json", "figures with intervals, seconds, tokens, what was frozen"),
    ("steps.jsonl", "a line per step: vote share, entropies, band, losses, sampler-trainer gap"),
    ("rollouts/", "every response with its answer, reward, advantage, token entropies and mask"),
    ("evaluation/", "a verdict per question and sample, before and after"),
    ("adapted/", "the adapted model, for from_pretrained"),
)


def demo(
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option(help="Folder of the runs. Those of an earlier demo there are replaced.")] = (
        Path("runs/demo")
    ),
    seed: Annotated[int, typer.Option(help="Seeds every draw.")] = 0,
) -> None:
    """Try it: adapt the embedded model to real handwriting with four methods, in two to three minutes on a CPU."""
    check_replaceable(output)
    started = time.perf_counter()
    folders = [run_method(name, output, seed, overrides or ()) for name in METHODS]
    report(folders, time.perf_counter() - started)


def check_replaceable(output: Path) -> None:
    """Raise ConfigError if a folder that the demo would replace holds anything but a run."""
    for folder in (output / name for name in METHODS):
        if folder.exists() and not (folder / "config.yaml").is_file():
            raise ConfigError(
                f"{folder}: in the way of the demo, and holds no run; move it, or choose another --output"
            )


def run_method(name: str, output: Path, seed: int, overrides: Sequence[str]) -> Path:
    """Run one method in the folder `output/name`, which is emptied first. Returns that folder."""
    from mm_spine.runs.listeners.live import watching
    from mm_spine.runs.plan import load_config
    from mm_spine.runs.run import run

    folder, shared = output / name, output / METHODS[0]
    before = [] if folder == shared else [f"evaluation.before={shared}"]
    # Wrong overrides are found before the runs of an earlier demo are removed.
    config = load_config("digits", [*overrides, *before], name, seed)
    shutil.rmtree(folder, ignore_errors=True)
    logging.info("method %s", name)
    with watching() as listener:
        run(config, folder, listener=listener)
    return folder


def report(folders: list[Path], seconds: float) -> None:
    """Print the table of the runs, the seconds that they took and the files of their folders."""
    print_runs(folders)
    console.print(f"\n{len(folders)} runs in {seconds:.0f} s. Each folder under {folders[0].parent}/ holds:")
    for name, what in FILES:
        console.print(f"  {name:14s} {what}")
