"""`mm-spine report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mm_spine.commands import printing


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The output folder of a run, finished or not.")],
    output: Annotated[Path | None, typer.Option(help="Write only the page, to this file.")] = None,
) -> None:
    """A run as one page: result, curves, tokens, changed questions; also each figure as PNG in RUN/figures."""
    from mm_spine.reporting.report import write_report

    printing.print_written(write_report(run, output))
