"""Draw the figures of a page, and write each of them as PNG, PDF and SVG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup
from matplotlib.figure import Figure

from mm_spine.files import write_bytes
from mm_spine.reporting import curves, figures
from mm_spine.reporting.result import SplitResult
from mm_spine.reporting.saved_run import SavedRun, attempt
from mm_spine.reporting.token_entropy import EntropyCounts


class PageFigure(NamedTuple):
    """A figure as a page holds it.

    Attributes:
        data: what the page reads out under the pointer; None for a figure that is not over steps.
        files: the figure by suffix, empty where no file is written.
    """

    name: str
    title: str
    note: str
    svg: Markup
    data: Mapping[str, Any] | None = None
    files: Mapping[str, bytes] = {}


def draw_all(
    saved: SavedRun,
    splits: Sequence[SplitResult],
    entropy: EntropyCounts | None,
    folder: Path | None,
    missing: list[str],
) -> Iterator[PageFigure]:
    """Draw the figures of a run and write them to `folder`; call it within `figures.style()`.

    A figure whose values cannot be drawn is left out, and `missing` says so.
    """
    as_files = folder is not None
    drawings = [partial(draw_scores, split, as_files) for split in splits if split.known]
    over_k = [split.pass_at_k_chart for split in splits if split.pass_at_k_chart]
    drawings += [partial(draw_pass_at_k, chart, as_files) for chart in over_k]
    charts = attempt(lambda: list(curves.charts(saved)), missing) or []
    drawings += [partial(draw_chart, chart, as_files) for chart in charts]
    if entropy is not None:
        drawings.append(partial(draw_entropy, entropy, as_files))
    for drawing in drawings:
        drawn = attempt(drawing, missing)
        if drawn is None:
            continue
        if folder is not None:
            for suffix, content in drawn.files.items():
                write_bytes(folder / f"{drawn.name}.{suffix}", content)
        yield drawn


def draw_scores(split: SplitResult, as_files: bool) -> PageFigure:
    """Draw the scores of a split before and after."""
    description = f"{split.title}, before and after, with 95 % intervals; the table has the values"
    return page_figure(f"scores_{split.name}", split.title, figures.draw_scores(split), description, as_files)


def draw_pass_at_k(chart: curves.Chart, as_files: bool) -> PageFigure:
    """Draw a chart of pass@k over k; a table has its values."""
    return page_figure(chart.name, chart.title, figures.draw_chart(chart), figures.describe_chart(chart), as_files)


def draw_entropy(entropy: EntropyCounts, as_files: bool) -> PageFigure:
    """Draw the histogram of token entropies."""
    figure, description = figures.draw_entropy(entropy), figures.describe_entropy(entropy)
    return page_figure("entropy_histogram", "Entropy of all tokens", figure, description, as_files)


def draw_chart(chart: curves.Chart, as_files: bool) -> PageFigure:
    """Draw a chart over steps, with the values that the page reads out."""
    figure = figures.draw_chart(chart)
    drawn = page_figure(chart.name, chart.heading, figure, figures.describe_chart(chart), as_files)
    lines = [
        {"label": line.label, "x": line.x, "y": [float(f"{value:.4g}") for value in line.y]}
        for line in (*chart.series, *(chart.band or ()))
    ]
    unit = "%" if chart.scale == "share" else chart.unit
    mark = chart.mark._asdict() if chart.mark else None
    data = {**figures.axes_frame(figure), "unit": unit, "lines": lines, "mark": mark}
    return drawn._replace(note=chart.note, data=data)


def page_figure(name: str, title: str, figure: Figure, description: str, as_files: bool) -> PageFigure:
    """Return a drawn figure as an element of a page and, with `as_files`, as files."""
    # The files first: PNG, PDF and SVG are drawn from the same figure.
    files = figures.as_files(figure, name, title) if as_files else {"svg": figures.draw_svg(figure, name).encode()}
    svg = Markup(figures.inline_svg(files["svg"].decode(), name, description))
    return PageFigure(name, title, "", svg, files=files if as_files else {})
