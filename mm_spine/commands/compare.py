"""`mm-spine compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mm_spine.commands import printing


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; several seeds of a method are averaged.")],
    output: Annotated[
        Path | None,
        typer.Option(help="Also write a page (.html), the forest plot (.pdf, .svg, .png) or the table (.tex, .csv)."),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="Test against this run's method, by pass@1, instead of the starting model's own vote."),
    ] = None,
    curves: Annotated[bool, typer.Option("--curves", help="A picture shows the curves over steps.")] = False,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            help="Further columns: pass@k, answers (how they vary), learnt (and corrupted), shares (the same by the "
            "vote's share at the start). LaTeX then has these, a picture pass@k over k."
        ),
    ] = None,
) -> None:
    """A table of runs: before, vote, after, paired differences with 95 % intervals and tests; a page or a figure."""
    from mm_spine.reporting.column_sets import columns_table
    from mm_spine.reporting.compare import compare_runs, comparison_table
    from mm_spine.reporting.comparison import write_comparison
    from mm_spine.reporting.contrasts import contrast_table
    from mm_spine.reporting.finished_run import UnfinishedRun, load_run

    if output is not None:
        write_comparison(runs, output, against, curves, columns or ())
    elif curves:
        raise ValueError("--curves needs --output with a name that ends in .pdf, .svg or .png")
    comparison = compare_runs(runs, against)
    further = [columns_table(comparison, name) for name in columns or ()]
    printing.console.print(comparison_table(comparison))
    for table in further:
        printing.console.print("", table)
    if comparison.contrasts:
        printing.console.print("", contrast_table(comparison.contrasts))
    if output is not None:
        printing.print_written(output)
    unusable = [run for run in map(load_run, runs) if isinstance(run, UnfinishedRun)]
    if unusable:
        raise ValueError(
            f"{len(unusable)} of {len(runs)} runs could not be compared: {unusable[0].path}: {unusable[0].reason}"
        )
