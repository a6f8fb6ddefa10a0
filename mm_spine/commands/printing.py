"""What commands print: the console, the number format, and the tables that several of them share."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mm_spine.words import visible, visible_line

if TYPE_CHECKING:
    from mm_spine.commands.graded_rows import GradeSummary
    from mm_spine.commands.voted_rows import VoteSummary
    from mm_spine.config import RunConfig

console = Console()

LISTED = 10
"""How many skipped questions and bad rows are printed; summary.json lists all of them."""


def number(value: Any) -> str:
    """Format a value: whole numbers with separators, floats with four digits, lists item by item."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    return "[" + ", ".join(map(number, value)) + "]" if isinstance(value, list) else str(value)


def print_line(text: str) -> None:
    """Print a line as it is: no markup is read in it, and no line break put into it. Control characters are escaped."""
    console.print(visible(text), markup=False, soft_wrap=True)


def print_written(path: Path) -> None:
    """Print where a command has written its result."""
    print_line(f"written to {path}")


def print_own_values(config: RunConfig, target: str, overrides: Sequence[str], sections: Sequence[str] = ()) -> None:
    """Print the values of own.yaml that a folder is run with, only those of `sections` if there are any."""
    from mm_spine.config.layers import parse_overrides
    from mm_spine.runs import own

    # Before the processes of a run know each other, only the launcher's variable tells them apart.
    if own.applies_to(target) and os.environ.get("RANK", "0") == "0":
        for line in own.used_lines(config, parse_overrides(overrides), sections):
            print_line(line)


def print_runs(runs: Sequence[Path]) -> None:
    """Print the table that compares runs."""
    from mm_spine.reporting.compare import compare_runs, comparison_table

    console.print(comparison_table(compare_runs(runs)))


def print_result(run: Path) -> None:
    """Print in words what a run reached, as its report says it."""
    from mm_spine.reporting.result import sentences, split_results
    from mm_spine.reporting.saved_run import read_run

    for split in split_results(read_run(run)):
        print_line(" ".join([f"{split.title}.", *sentences(split)]))


def print_mapping(title: str, values: Mapping[str, Any]) -> None:
    """Print names and values as a table of two columns."""
    table = Table("", "", title=shown(title), title_justify="left", show_header=False)
    for name, value in values.items():
        table.add_row(shown(name), shown(number(value)))
    console.print(table)


def shown(text: str) -> str:
    """Return text from data as a cell of a table shows it: on one line, without markup or control characters."""
    return escape(visible_line(text))


def print_breakdown(tag: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the figures for each value of a tag: a row per value, a column per figure."""
    table = Table(shown(tag), *next(iter(rows.values())), title_justify="left")
    for value, figures in rows.items():
        table.add_row(shown(value), *map(number, figures.values()))
    console.print(table)


def print_losses(skipped: Iterable[str], bad_rows: Iterable[str]) -> None:
    """Print how many questions could not be asked and how many rows could not be read, and the first of each."""
    losses = {"questions could not be asked": list(skipped), "rows of the data lost something": list(bad_rows)}
    for what, reasons in losses.items():
        if reasons:
            print_line(f"{len(reasons)} {what}:")
        for reason in reasons[:LISTED]:
            print_line(f"  {visible_line(reason)}")
        if len(reasons) > LISTED:
            print_line(f"  ... and {len(reasons) - LISTED} more")


def print_summary(
    figures: Mapping[str, Any], summary: GradeSummary | VoteSummary, output: Path | None, as_json: bool
) -> None:
    """Print what `grade` and `vote` end with: figures, breakdowns, unusable rows; with `as_json` the summary last."""
    print_mapping("", figures)
    for tag, rows in summary.breakdowns.items():
        print_breakdown(tag, rows)
    if summary.errors:
        print_line(f"{summary.errors} of {summary.rows} rows could not be used and are in no mean:")
    for problem in summary.problems:
        print_line(f"  {visible_line(problem)}")
    if summary.checker_stopped:
        print_line(f"{summary.checker_stopped} pairs of formulas hit the checker's limits and count as different")
    if output is not None:
        print_written(output)
    if as_json:
        print(json.dumps(asdict(summary), ensure_ascii=False))
    if summary.errors == summary.rows:
        raise ValueError(f"none of the {summary.rows} rows could be used; line by line: {summary.problems[0]}")
