"""`mm-spine compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mm_spine.commands import printing


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; differences are taken from the first.")],
    output: Annotated[
        Path | None, typer.Option(help="Also write a page (.html: table and curves) or a picture (.png: curves).")
    ] = None,
) -> None:
    """A table of runs: before, vote, after, paired differences with 95 % intervals; overlaid curves with --output."""
    from mm_spine.reporting.finished_run import UnfinishedRun, load_run
    from mm_spine.reporting.report import write_comparison

    if output is not None:
        write_comparison(runs, output)
    printing.print_runs(runs)
    if output is not None:
        printing.print_written(output)
    unusable = [run for run in map(load_run, runs) if isinstance(run, UnfinishedRun)]
    if unusable:
        raise ValueError(
            f"{len(unusable)} of {len(runs)} runs could not be compared: {unusable[0].path}: {unusable[0].reason}"
        )
