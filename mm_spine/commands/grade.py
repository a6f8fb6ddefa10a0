"""`mm-spine grade`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mm_spine.commands.options import AsJson, BenchmarkOption, KindOption, Plugins, SavedRows, SourceOption, SplitOption
from mm_spine.commands.printing import print_summary


def grade(
    file: SavedRows,
    kind: KindOption = None,
    benchmark: BenchmarkOption = None,
    source: SourceOption = None,
    split: SplitOption = None,
    output: Annotated[Path | None, typer.Option(help="Write a verdict per row: JSON lines, in the same order.")] = None,
    as_json: AsJson = False,
    plugin: Plugins = None,
) -> None:
    """Grade saved responses: rows with `id`, `response`, `answer`, and where needed `choices`, `precision`, ..."""
    from mm_spine.commands.graded_rows import grade_file
    from mm_spine.commands.saved_rows import grading_rules

    summary = grade_file(file, grading_rules(kind, benchmark, source, split), output)
    figures = {"accuracy (mean score)": summary.accuracy, "n": summary.n, "unparsed": summary.unparsed}
    # The two differ where scores are fractions, as in VQA.
    if summary.correct != summary.accuracy:
        figures["correct"] = summary.correct
    print_summary(figures, summary, output, as_json)
