"""`mm-spine vote`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mm_spine.commands.options import AsJson, BenchmarkOption, KindOption, Plugins, SavedRows, SourceOption, SplitOption
from mm_spine.commands.printing import print_summary


def vote(
    file: SavedRows,
    kind: KindOption = None,
    benchmark: BenchmarkOption = None,
    source: SourceOption = None,
    split: SplitOption = None,
    output: Annotated[Path | None, typer.Option(help="Write a vote per row: JSON lines, in the same order.")] = None,
    as_json: AsJson = False,
    plugin: Plugins = None,
) -> None:
    """Vote over saved samples: rows with `id`, `responses`, the fields that `grade` takes, and `answer` if known."""
    from mm_spine.commands.saved_rows import grading_rules
    from mm_spine.commands.voted_rows import vote_file

    summary = vote_file(file, grading_rules(kind, benchmark, source, split), output)
    names = ("n", "responses", "share", "unparsed", "ties", "all_unparsed")
    figures: dict[str, Any] = {name: getattr(summary, name) for name in names}
    if summary.n_labelled:
        # N of maj@N is a number only where all rows have equally many samples.
        samples = summary.responses
        n = int(samples) if samples is not None and samples == int(samples) else "N"
        figures |= {"n_labelled": summary.n_labelled, f"maj@{n}": summary.maj_at_n}
        figures |= {"pass@1": summary.pass_at_1, f"pass@{n}": summary.pass_at_n}
    print_summary(figures, summary, output, as_json)
