"""Further columns of a comparison: tables beside that of the scores, as text, and the same for CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from rich import box
from rich.markup import escape
from rich.table import Table

from mm_spine.intervals import Interval
from mm_spine.measures import ANSWER_ENTROPY, DISTINCT_ANSWERS, GREEDY, PASS_AT_K, SHARE_BINS, VOTE, Turned, turned
from mm_spine.reporting import formats
from mm_spine.reporting.compare import Comparison, ComparisonRow, of_paper
from mm_spine.reporting.curves import Chart
from mm_spine.reporting.finished_run import SPLITS, VOTE_SHARE
from mm_spine.reporting.measured import ANSWERS, BeforeAfter, mean_curve
from mm_spine.reporting.pass_at_k import chart_of
from mm_spine.reporting.turned import bin_name, share_words
from mm_spine.words import nearest


class Cell(NamedTuple):
    """A cell: its figure, and a second line below it."""

    text: str
    detail: str = ""


class TableRow(NamedTuple):
    """A run, or the mean of a method over seeds."""

    method: str
    seed: str
    seeds: int
    cells: Sequence[Cell]


class Section(NamedTuple):
    """The rows of one split."""

    title: str
    questions: int
    rows: Sequence[TableRow]


class FurtherTable(NamedTuple):
    """A table of further columns, as text."""

    title: str
    note: str
    heads: Sequence[str]
    sections: Sequence[Section]


class ColumnSet(NamedTuple):
    """Columns that belong together: their table's title and note, their heads, and the cells of a row among all rows.

    `of_all`: they are of all questions, also those without a gold answer.
    """

    title: str
    note: str
    heads: Callable[[Sequence[ComparisonRow]], list[str]]
    cells: Callable[[ComparisonRow, Sequence[ComparisonRow]], list[Cell]]
    of_all: bool = False


def _numbers(value: float | None, digits: int) -> str:
    return formats.NONE if value is None else f"{value:.{digits}f}"


def _difference(gain: Interval | None, digits: int) -> str:
    if gain is None:
        return ""
    # Adding 0.0 turns -0.0 into 0.0.
    value, low, high = (None if each is None else f"{round(each, digits) + 0.0:+.{digits}f}" for each in gain)
    return f"{value}" if low is None or high is None else f"{value} [{low}, {high}]"


def _value(found: BeforeAfter | None, digits: int | None) -> Cell:
    """Return a share in percent where `digits` is None, else the value with so many decimals."""
    if found is None:
        return Cell(formats.NONE)
    if digits is None:
        return Cell(formats.pair(found.pair), "" if found.gain is None else formats.points_only(found.gain))
    return Cell(" → ".join(_numbers(value, digits) for value in found.pair), _difference(found.gain, digits))


def _ks(rows: Sequence[ComparisonRow]) -> list[int]:
    return sorted({k for row in rows for k in row.measured.pass_at_k})


def _pass_at_k_cells(row: ComparisonRow, rows: Sequence[ComparisonRow]) -> list[Cell]:
    return [_value(row.measured.pass_at_k.get(k), None) for k in _ks(rows)]


_DIGITS = {VOTE_SHARE: None, ANSWER_ENTROPY: 3, DISTINCT_ANSWERS: 2}
"""Measure of the answers -> its decimals; None: in percent."""

_ANSWER_HEADS = {
    VOTE_SHARE: "vote share, %",
    ANSWER_ENTROPY: "entropy, nats",
    DISTINCT_ANSWERS: "distinct answers",
}


def _turned(row: ComparisonRow, by: str) -> Turned:
    return turned(row.measured.turns.get(by, ()))


def _learnt_cells(row: ComparisonRow, _: Sequence[ComparisonRow]) -> list[Cell]:
    cells = []
    for by in (GREEDY, VOTE):
        found = _turned(row, by)
        for count, share in (
            (found["learnt"], found["learnt_share"]),
            (found["corrupted"], found["corrupted_share"]),
        ):
            text = f"{count:,} of {found['n']:,}" if found["n"] else formats.NONE
            cells.append(Cell(text, f"share {share_words(share)}" if found["n"] else ""))
    return cells


def _share_cells(row: ComparisonRow, _: Sequence[ComparisonRow]) -> list[Cell]:
    found = _turned(row, GREEDY)
    if not found["n"]:
        return [Cell(formats.NONE)] * len(SHARE_BINS)
    return [Cell(f"+{each['learnt']:,} -{each['corrupted']:,}", f"of {each['n']:,}") for each in found["bins"]]


COLUMN_SETS: Mapping[str, ColumnSet] = {
    "pass@k": ColumnSet(
        "pass@k before → after, in percent",
        "pass@k: at least one of k samples is right, estimated without bias from all samples (arXiv 2107.03374)",
        lambda rows: [f"pass@{k}" for k in _ks(rows)],
        _pass_at_k_cells,
    ),
    "answers": ColumnSet(
        "How the answers to a question vary, before → after",
        "means over all questions, also those without a gold answer. entropy: of the samples' answers; those without "
        "an answer count as one more",
        lambda rows: list(_ANSWER_HEADS.values()),
        lambda row, _: [_value(row.measured.answers.get(name), _DIGITS[name]) for name in ANSWERS],
        of_all=True,
    ),
    "learnt": ColumnSet(
        "Questions learnt and corrupted",
        "learnt: wrong before, right after; corrupted: right before, wrong after. share: mean share of the start's "
        "votes on these questions. Of several seeds all questions are counted",
        lambda rows: ["greedy learnt", "greedy corrupted", "vote learnt", "vote corrupted"],
        _learnt_cells,
    ),
    "shares": ColumnSet(
        "Greedy answers learnt (+) and corrupted (-), by the vote's share at the start",
        "share: of all samples, for the vote's answer before the first step. Of several seeds all questions are "
        "counted",
        lambda rows: [bin_name(low, high) for low, high in SHARE_BINS],
        _share_cells,
    ),
}
"""Name -> further columns of a comparison."""


def further_table(comparison: Comparison, name: str, for_paper: bool = False) -> FurtherTable:
    """Return the table of a set of columns; for a paper, of several seeds of a method only the mean.

    Raises ValueError for a name that is not one of `COLUMN_SETS`.
    """
    if name not in COLUMN_SETS:
        raise ValueError(f"--columns {name}: no such columns; {nearest(name, COLUMN_SETS)}")
    chosen, rows = COLUMN_SETS[name], comparison.compared
    heads = chosen.heads(rows)
    sections = []
    for split, title in SPLITS.items():
        if of_split := [row for row in rows if row.split == split]:
            shown = of_paper(of_split) if for_paper else of_split
            lines = [TableRow(row.method_text, row.seed_text, row.seeds, chosen.cells(row, rows)) for row in shown]
            questions = of_split[0].measured.asked if chosen.of_all else of_split[0].questions
            sections.append(Section(title, questions, lines))
    return FurtherTable(chosen.title, chosen.note, heads, sections)


def columns_table(comparison: Comparison, name: str) -> Table:
    """Return a set of columns as a table for the terminal."""
    found = further_table(comparison, name)
    table = Table(title=escape(found.title), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.caption, table.caption_justify = escape(found.note), "left"
    table.add_column("method", overflow="fold")
    for head in ("seed", *found.heads):
        table.add_column(escape(head), justify="right")
    for section in found.sections:
        table.add_row(f"[bold]{escape(section.title)}[/bold]", f"n={section.questions}")
        for row in section.rows:
            cells = [f"{cell.text}\n{_below(cell.detail)}".rstrip() for cell in row.cells]
            table.add_row(*map(escape, (row.method, row.seed, *cells)))
        table.add_section()
    return table


def _below(detail: str) -> str:
    """Put an interval on a line of its own, so that columns stay narrow."""
    return detail.replace(" [", "\n[")


def pass_at_k_charts(comparison: Comparison) -> list[Chart]:
    """Return a chart of pass@k over k for each split: the start, and each method after adapting, of seeds the mean."""
    charts = []
    for split, title in SPLITS.items():
        rows = [row for row in comparison.compared if row.split == split]
        shown = of_paper(rows)
        start = mean_curve([row.measured.curves[0] for row in rows if row.seed is not None])
        names = [row.method for row in shown]
        lines = [("before", start, 0)]
        for place, row in enumerate(shown, 1):
            name = f"{row.method}, seed {row.seed}" if names.count(row.method) > 1 else row.method
            lines.append((name, list(row.measured.curves[1]), place))
        if chart := chart_of(f"pass_at_k_{split}", f"pass@k, {title.lower()}", lines):
            charts.append(chart)
    return charts


def csv_cells(row: ComparisonRow, rows: Sequence[ComparisonRow]) -> Iterator[tuple[str, object]]:
    """Yield column and value of everything in a row's further columns, None where there is no value.

    Of several seeds, the counts are over the questions of all of them.
    """
    values = {f"{PASS_AT_K}_{k}": row.measured.pass_at_k.get(k) for k in _ks(rows)}
    for name, found in (values | {name: row.measured.answers.get(name) for name in ANSWERS}).items():
        (before, after), gain = found or BeforeAfter((None, None), None)
        yield from ((f"{name}_before", before), (f"{name}_after", after), *csv_interval(f"{name}_gain", gain))
    for by in (GREEDY, VOTE):
        counts = _turned(row, by)
        yield f"{by}_turned_n", counts["n"]
        yield f"{by}_learnt", counts["learnt"] if counts["n"] else None
        yield f"{by}_learnt_share", counts["learnt_share"]
        yield f"{by}_corrupted", counts["corrupted"] if counts["n"] else None
        yield f"{by}_corrupted_share", counts["corrupted_share"]


def csv_interval(name: str, interval: Interval | None) -> Iterator[tuple[str, float | None]]:
    """Yield column and value of an estimate and its bounds."""
    yield from zip((name, f"{name}_low", f"{name}_high"), interval or (None, None, None), strict=True)
