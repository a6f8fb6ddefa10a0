"""`mm-spine label`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mm_spine.commands import printing
from mm_spine.commands.options import Plugins


def label(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    n: Annotated[int | None, typer.Option(min=1, help="Draw so many questions at random into RUN/labels.csv.")] = None,
    split: Annotated[str, typer.Option(help="Draw from the questions adapted to, or from held_out.")] = "adapted",
    plugin: Plugins = None,
) -> None:
    """Label some questions of a run to know whether it helped: draw them with --n, fill them in, call it again."""
    from mm_spine.reporting.report import write_report
    from mm_spine.runs.labels import LabelSheet

    sheet = LabelSheet(run)
    if n is not None:
        count = sheet.draw(n, split)
        printing.print_line(f"{sheet.path}: {count} questions; fill in the column answer, then: mm-spine label {run}")
        return
    sheet.apply()
    printing.print_runs([run])
    printing.print_result(run)
    write_report(run)
    printing.print_written(run / "report.html")
