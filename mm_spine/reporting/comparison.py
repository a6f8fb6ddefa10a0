"""Write the comparison of several runs to a file: a page, a figure, or a table for a paper or a spreadsheet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from mm_spine.files import write_bytes, write_csv
from mm_spine.reporting import contrasts, curves, figures, forest
from mm_spine.reporting.column_sets import COLUMN_SETS, csv_cells, csv_interval, further_table, pass_at_k_charts
from mm_spine.reporting.compare import (
    Comparison,
    compare_runs,
    comparison_notes,
    majority_header,
    with_reference,
)
from mm_spine.reporting.contrasts import Contrast
from mm_spine.reporting.finished_run import SPLITS
from mm_spine.reporting.latex import latex_columns, latex_table
from mm_spine.reporting.page import frame, load_template, write_page
from mm_spine.reporting.page_figures import PageFigure, draw_chart, draw_pass_at_k, page_figure
from mm_spine.reporting.saved_run import SavedRun, read_run
from mm_spine.words import visible_line

TABLES = (".html", ".csv", ".tex")
PICTURES: Mapping[str, Callable[[Figure], bytes]] = {
    ".pdf": figures.pdf,
    ".svg": lambda figure: figures.draw_svg(figure, "comparison").encode(),
    ".png": figures.png,
}
"""Suffix of a picture -> how the figure is saved."""


def write_comparison(
    runs: Sequence[Path],
    output: Path,
    against: Path | None = None,
    draw_curves: bool = False,
    columns: Sequence[str] = (),
) -> Path:
    """Write the comparison of `runs` to `output`, in the form that its suffix names. Return `output`.

    Pictures show the forest plot or, with `draw_curves`, the curves over steps. With one of `COLUMN_SETS` as `columns`
    LaTeX has these columns, and a picture shows pass@k over k; a page and CSV have all of them anyway. `against`: see
    `compare_runs`. Raises ValueError for another suffix, for runs that cannot be compared, and for a picture that has
    nothing to show.
    """
    if output.suffix not in (*TABLES, *PICTURES):
        raise ValueError(
            f"--output {output}: give a name that ends in .html (a page), .pdf, .svg or .png (a figure), .tex or .csv "
            "(the table)"
        )
    if draw_curves and output.suffix not in PICTURES:
        raise ValueError(f"--curves with --output {output}: give a name that ends in .pdf, .svg or .png")
    comparison = compare_runs(runs, against)
    if columns and output.suffix not in (".html", ".csv"):
        return _write_columns(comparison, output, columns, draw_curves)
    if output.suffix == ".csv":
        rows = list(_csv_rows(comparison))
        if not rows:
            raise ValueError(f"--output {output}: none of these runs is finished, so there is no table to write")
        write_csv(output, rows)
        return output
    if output.suffix == ".tex":
        return write_page(output, latex_table(comparison, _paper_notes(comparison)))
    if output.suffix == ".html":
        charts = list(curves.overlaid(list(named_runs(with_reference(runs, against)))))
        return write_page(output, _render(comparison, charts, len(with_reference(runs, against))))
    with figures.style():
        figure = _curves(runs, against, output) if draw_curves else _forest(comparison, output)
        return write_bytes(output, PICTURES[output.suffix](figure))


def _write_columns(comparison: Comparison, output: Path, columns: Sequence[str], draw_curves: bool) -> Path:
    """Write one set of columns as LaTeX, or pass@k as a picture."""
    if len(columns) > 1 or draw_curves:
        raise ValueError(
            f"--columns with --output {output}: one file shows one thing; give one --columns and no --curves"
        )
    chosen = further_table(comparison, columns[0], for_paper=True)
    if output.suffix == ".tex":
        return write_page(output, latex_columns(comparison, chosen, _paper_notes(comparison)))
    if columns[0] != "pass@k":
        raise ValueError(
            f"--columns {columns[0]} with --output {output}: only pass@k is drawn; give .tex, .csv or .html"
        )
    charts = pass_at_k_charts(comparison)
    if not charts:
        raise ValueError(
            f"--output {output}: none of these runs has pass@k to draw; it takes gold answers, and 2 samples or more"
        )
    with figures.style():
        return write_bytes(output, PICTURES[output.suffix](figures.draw_panels(charts)))


def _forest(comparison: Comparison, output: Path) -> Figure:
    if not comparison.contrasts:
        raise ValueError(
            f"--output {output}: none of these runs has something to compare it with (no gold answers, or no partner "
            "of its seed), so there is no difference to draw; --curves draws the curves"
        )
    return forest.draw_forest(comparison.contrasts)


def _curves(runs: Sequence[Path], against: Path | None, output: Path) -> Figure:
    charts = list(curves.overlaid(list(named_runs(with_reference(runs, against)))))
    if not charts:
        raise ValueError(f"--output {output}: none of these runs has a steps.jsonl, so there is no curve to draw")
    return figures.draw_panels(charts)


def _csv_rows(comparison: Comparison) -> Iterator[dict[str, object]]:
    """Yield a row for each run and each mean over seeds: shares in [0, 1], cells without a value empty."""
    for row in comparison.compared:
        contrast = comparison.contrast_of(row)
        yield {
            "split": row.split, "method": row.method, "run": row.run, "seed": row.seed, "seeds": row.seeds,
            "questions": row.questions, "samples": row.samples, "label_free": row.label_free,
            "greedy_before": row.greedy[0], "greedy_after": row.greedy[1],
            **dict(csv_interval("greedy_gain", row.greedy_gain)),
            "pass_at_1_before": row.pass_at_1[0], "pass_at_1_after": row.pass_at_1[1],
            **dict(csv_interval("pass_at_1_gain", row.pass_at_1_gain)),
            "vote_before": row.maj_at_n[0], "vote_after": row.maj_at_n[1],
            "against": contrast.against if contrast else "",
            **dict(csv_interval("difference", contrast.difference if contrast else None)),
            "p": contrast.p if contrast else None, "p_holm": contrast.p_holm if contrast else None,
            "test": contrast.test if contrast else "", "note": row.note,
            **dict(csv_cells(row, comparison.compared)),
        }  # fmt: skip


def _paper_notes(comparison: Comparison) -> list[str]:
    """Return the notes that a table in a paper needs: what single rows lack, and other code."""
    general = comparison_notes([])
    return [note for note in comparison_notes(comparison.rows) if note not in general]


def named_runs(paths: Sequence[Path]) -> Iterator[tuple[str, SavedRun]]:
    """Yield the runs that can be read with their names: the method, the seed if seeds differ, the folder if needed."""
    runs = []
    for path in paths:
        try:
            runs.append(read_run(path))
        except ValueError:  # the table has a row that says why
            continue
    seeds = [run.summary.get("seed", run.config.get("seed")) for run in runs]
    names = [run.name for run in runs]
    if len(set(map(str, seeds))) > 1:
        names = [f"{name}, seed {seed}" for name, seed in zip(names, seeds, strict=True)]
    for name, run in zip(names, runs, strict=True):
        yield (f"{name} ({visible_line(run.path.name)})" if names.count(name) > 1 else name), run


def _render(comparison: Comparison, charts: Sequence[curves.Chart], runs: int) -> str:
    compared = comparison.compared
    sections = [
        (title, [row for row in compared if row.split == split], _of(comparison, split))
        for split, title in SPLITS.items()
    ]
    with figures.style():
        drawn = [draw_chart(chart, False) for chart in charts]
        over_k = [draw_pass_at_k(chart, False) for chart in pass_at_k_charts(comparison)]
        plot = _forest_figure(comparison.contrasts)
    against = comparison.contrasts[0].against if comparison.contrasts else ""
    return load_template("compare.html.j2").render(
        frame(f"{runs} runs compared"),
        about=f"{compared[0].benchmark}, {compared[0].model}" if compared else "no finished run",
        sections=[section for section in sections if section[1]],
        notes=comparison_notes(comparison.rows),
        majority=majority_header(compared),
        first=comparison.reference,
        against=against,
        over_vote=against == contrasts.BASE_VOTE,
        measure=contrasts.measure_of(against),
        forest=plot,
        further=[further_table(comparison, name) for name in COLUMN_SETS] if compared else [],
        over_k=over_k,
        drawn=drawn,
    )


def _of(comparison: Comparison, split: str) -> list[Contrast]:
    return [contrast for contrast in comparison.contrasts if contrast.split == split]


def _forest_figure(found: Sequence[Contrast]) -> PageFigure | None:
    if not found:
        return None
    figure, words = forest.draw_forest(found), forest.describe_forest(found)
    return page_figure("forest", "Differences", figure, words, False)
