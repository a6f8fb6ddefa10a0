"""Draw the figures of a report with matplotlib: as PNG, PDF and SVG, and as SVG whose colours follow the page's theme.

style.mplstyle says how they look.

Lines differ by colour, dash and marker, so that they can be told apart without colours. The colours are those of Okabe
and Ito (2008), darkened to a contrast of 3 : 1 on white.
"""

from __future__ import annotations

import io
import logging
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator, PercentFormatter
from matplotlib.transforms import Bbox

from mm_spine.intervals import Interval
from mm_spine.measures import MAJ_AT_N, shown_k
from mm_spine.reporting.curves import Chart, Series
from mm_spine.reporting.formats import percent
from mm_spine.reporting.result import SplitResult
from mm_spine.reporting.token_entropy import BIN, EntropyCounts

INK, MUTED, GRID, BAND = "#1b2028", "#59626e", "#dfe3e8", "#9fc8e2"
COLOURS = ("#0072b2", "#c2500a", "#117a55", "#8a4fa8", "#7d6608", "#4d5560")
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", BAND: "band"} | {c: f"s{i}" for i, c in enumerate(COLOURS, 1)}
"""Colour -> the CSS variable that stands for it on the page."""

DASHES = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (7, 2, 1.5, 2)), (0, (9, 3)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P")

WIDTH, HEIGHT = 3.7, 2.25
"""Inches of a panel in a figure of several charts."""

WIDE = 4.4
"""Inches of the width of a figure on a page."""

LEGEND_LINE = 0.19
"""Inches that each line of the legend adds to a figure's height."""

TITLE = 0.32
"""Inches above the figure, in a PNG, for its title."""

FONT_SIZE = 9.5
"""Points."""

STYLE = Path(__file__).with_name("style.mplstyle")
"""The style sheet of every figure; FONT_SIZE and the colours here are its own."""


@contextmanager
def style() -> Iterator[None]:
    """Set matplotlib's settings while figures are drawn and saved; restore the caller's afterwards."""
    with matplotlib.rc_context(fname=STYLE):
        yield


def draw_chart(chart: Chart) -> Figure:
    """Draw one chart, with its legend above the axes. Call it, and save the figure, within `style()`."""
    labels = [line.label for line in chart.series] + (["band"] if chart.band else [])
    labels += [chart.mark.label] if chart.mark else []
    lines = _legend_lines(labels)
    height = HEIGHT + 0.05 + LEGEND_LINE * len(lines)
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0.145, 0.4 / height, 0.835, (HEIGHT - 0.5) / height))
    plot(axes, chart)
    _legend(axes, max(map(len, lines)))
    return figure


def plot(axes: Axes, chart: Chart) -> None:
    """Draw the lines and the band of a chart on `axes`, over steps or over k."""
    if chart.band:
        low, high = chart.band
        axes.fill_between(low.x, low.y, high.y, color=BAND, alpha=0.45, linewidth=0, label="band")
        for bound in chart.band:
            axes.plot(bound.x, bound.y, color=COLOURS[0], linewidth=0.6, linestyle=(0, (2, 2)))
    for line in chart.series:
        _line(axes, line)
    _horizontal(axes, chart)
    _vertical(axes, chart)


def _horizontal(axes: Axes, chart: Chart) -> None:
    axes.set_xlabel(chart.over, labelpad=1)
    values = [value for line in chart.series for value in line.x]
    if chart.over == "k":
        most = int(max(values))
        axes.set_xscale("log", base=2)
        axes.set_xlim(0.93, 1.07 * most)
        # Labels of close numbers, such as 16 and 18, would touch.
        ticks = [k for k in shown_k(most) if k == most or 1.2 * k < most]
        axes.set_xticks(ticks, [str(k) for k in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        return
    if chart.mark:
        axes.axvline(chart.mark.step, color=INK, linewidth=1.2, linestyle=(0, (1, 1.2)), label=chart.mark.label)
        values.append(chart.mark.step)
    margin = max(0.02 * (max(values) - min(values)), 0.15)
    axes.set_xlim(min(values) - margin, max(values) + margin)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))


def _line(axes: Axes, line: Series) -> None:
    i = line.place
    axes.plot(
        line.x,
        line.y,
        label=line.label.lstrip("_") or line.label,  # matplotlib hides labels that start with _
        color=COLOURS[i % len(COLOURS)],
        linestyle=DASHES[(i + i // len(COLOURS)) % len(DASHES)],
        marker=MARKERS[i % len(MARKERS)],
        markevery=max(1, len(line.x) // 8),
        markersize=4,
        linewidth=1.4,
    )


def _vertical(axes: Axes, chart: Chart) -> None:
    if chart.scale == "log":
        _logarithmic(axes)
        values = [value for line in chart.series for value in line.y]
        axes.set_ylim(10.0 ** math.floor(math.log10(min(values))), 10.0 ** math.ceil(math.log10(1.01 * max(values))))
        return
    top = max(value for line in (*chart.series, *(chart.band or ())) for value in line.y)
    low = min(value for line in (*chart.series, *(chart.band or ())) for value in line.y)
    if chart.scale == "share":
        # A share that stays small is shown from 0 to a round number above it, not lost at the bottom of 100 %.
        ceiling = next((limit for limit in (0.05, 0.1, 0.25, 0.5, 1.0) if top <= limit), top)
        axes.set_ylim(min(0.0, low), 1.03 * ceiling)
        axes.set_yticks(np.linspace(0.0, ceiling, 6))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    elif low >= 0:
        axes.set_ylim(0, 1.08 * top or 1.0)


def _logarithmic(axes: Axes) -> None:
    """Make the y axis logarithmic; label it with plain numbers from 1 on, with powers of ten below."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:.0e}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(axes: Axes, columns: int) -> None:
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.17, 1.02), ncols=columns, frameon=False, borderaxespad=0.1,
        fontsize=FONT_SIZE - 1, handlelength=2.6, columnspacing=1.1, handletextpad=0.5, borderpad=0.2,
    )  # fmt: skip


def _legend_lines(labels: Sequence[str]) -> list[list[str]]:
    """Split the labels into lines of as many columns as the longest label allows."""
    columns = max(1, min(len(labels), int(42 / (6 + max(map(len, labels))))))
    return [list(labels[i : i + columns]) for i in range(0, len(labels), columns)]


def draw_scores(split: SplitResult) -> Figure:
    """Draw scores before and after with 95 % intervals, and the starting model's own vote as a line across all rows."""
    figure = Figure(figsize=(WIDE, 2.1))
    axes = figure.add_axes((0.155, 0.13, 0.80, 0.73))
    measures = list(split.measures.values())
    vote = split.measures[MAJ_AT_N].before
    if vote is not None:
        axes.axvline(vote.value, color=COLOURS[2], linewidth=1.2, linestyle=(0, (4, 2)), label="starting model's vote")
    for row, measure in enumerate(measures):
        _interval(axes, measure.before, row - 0.16, COLOURS[1], "o", "before" if row == 0 else None, "none")
        _interval(axes, measure.after, row + 0.16, COLOURS[0], "s", "after" if row == 0 else None, COLOURS[0])
    axes.set_ylim(len(measures) - 0.5, -0.5)
    axes.set_yticks(range(len(measures)), [measure.name for measure in measures])
    axes.tick_params(axis="y", length=0, colors=INK)
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    _legend(axes, 3)
    return figure


def _interval(
    axes: Axes, value: Interval | None, y: float, colour: str, marker: str, label: str | None, fill: str
) -> None:
    if value is None:
        return
    if value.low is not None and value.high is not None:
        axes.plot((value.low, value.high), (y, y), color=colour, linewidth=1.6, solid_capstyle="butt")
    look: dict[str, Any] = {
        "color": colour,
        "marker": marker,
        "markersize": 6,
        "markerfacecolor": fill,
        "linestyle": "none",
    }
    axes.plot((value.value,), (y,), markeredgewidth=1.6, label=label, clip_on=False, **look)
    # The line of the interval must not cross a hollow marker.
    if fill == "none":
        axes.plot((value.value,), (y,), marker=marker, markersize=3.5, color=GRID, linestyle="none", clip_on=False)


def draw_entropy(entropy: EntropyCounts) -> Figure:
    """Draw the number of tokens by entropy on a logarithmic scale: selected, others, and the threshold between them."""
    figure = Figure(figsize=(WIDE, 2.9))
    axes = figure.add_axes((0.135, 0.14, 0.84, 0.7))
    edges, selected, others = _rebinned(entropy)
    axes.stairs(others, edges, fill=True, color=MUTED, alpha=0.35, label="other tokens")
    # The area without an outline is too pale to be seen.
    axes.stairs(others, edges, color=MUTED, linewidth=0.8)
    if selected.any():
        axes.stairs(selected, edges, color=COLOURS[0], linewidth=1.5, hatch="////", label="selected to train")
    if entropy.threshold:
        low, middle, high = entropy.threshold
        axes.axvspan(low, high, color=COLOURS[1], alpha=0.15, linewidth=0)
        axes.axvline(middle, color=COLOURS[1], linewidth=1.5, linestyle=(0, (5, 2)), label=f"threshold {middle:.2f}")
    _logarithmic(axes)
    axes.set_ylim(0.7, 2 * max(selected.max(), others.max(), 1))
    axes.set_xlim(0, edges[-1])
    axes.set_xlabel("entropy in nats", labelpad=1)
    axes.set_ylabel("tokens", labelpad=2)
    _legend(axes, 2)
    return figure


def _rebinned(entropy: EntropyCounts, bins: int = 50) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return edges (nats) and counts of about `bins` bins; the 1 in 10,000 tokens of highest entropy join the last."""
    both = np.cumsum(entropy.selected_B + entropy.others_B)
    reach = int(np.searchsorted(both, 0.9999 * both[-1])) + 1
    width = max(1, -(-reach // bins))
    n = -(-reach // width)
    place = np.minimum(np.arange(len(both)) // width, n - 1)
    counts = [np.bincount(place, part, minlength=n) for part in (entropy.selected_B, entropy.others_B)]
    return np.arange(n + 1) * width * BIN, counts[0], counts[1]


def draw_panels(charts: Sequence[Chart]) -> Figure:
    """Draw all charts in one figure with one legend, for `compare --output x.png`."""
    columns = min(3, len(charts))
    rows = -(-len(charts) // columns)
    figure = Figure(figsize=(WIDTH * columns, (HEIGHT + 0.35) * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, chart in zip(grid.flat, charts, strict=False):
        plot(axes, chart)
        axes.set_title(chart.heading, fontsize=FONT_SIZE + 1, loc="left")
    for axes in grid.flat[len(charts) :]:
        axes.axis("off")
    handles = {
        label: handle for axes in grid.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=min(4, len(handles)), frameon=False)
    return figure


def axes_frame(figure: Figure) -> dict[str, float]:
    """Return what page.js needs to find a step: edges of the axes as shares of the figure, limits of the x axis."""
    axes = figure.axes[0]
    box, (low, high) = axes.get_position(), axes.get_xlim()
    edges = {"left": box.x0, "right": box.x1, "top": 1 - box.y1, "bottom": 1 - box.y0, "from": low, "to": high}
    return {name: round(float(value), 4) for name, value in edges.items()}


def as_files(figure: Figure, name: str, title: str = "") -> dict[str, bytes]:
    """Return the figure by suffix: PDF and SVG without a title, which a paper's caption has, PNG below its title."""
    return {"pdf": pdf(figure), "svg": draw_svg(figure, name).encode(), "png": png(figure, title)}


def pdf(figure: Figure) -> bytes:
    """Return the figure as PDF, the same bytes for the same figure."""
    # It logs each table of each font that is embedded.
    logging.getLogger("fontTools").setLevel(logging.WARNING)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="pdf", metadata={"CreationDate": None})
    return drawn.getvalue()


def png(figure: Figure, title: str = "") -> bytes:
    """Return the figure, below its title, as PNG on white with 150 dots per inch."""
    width, height = figure.get_size_inches()
    added = None
    if title:
        added = figure.text(0.02, 1.0 + 0.07 / height, title, ha="left", va="bottom", fontsize=FONT_SIZE + 1)
    # The box is given because bbox_inches="tight" would draw the figure once more to find it.
    box = Bbox.from_bounds(0, 0, width, height + (TITLE if title else 0))
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=150, facecolor="white", bbox_inches=box, metadata={"Software": None})
    if added is not None:
        added.remove()
    return drawn.getvalue()


def draw_svg(figure: Figure, name: str) -> str:
    """Return the figure as an SVG file without background; its ids follow from `name`."""
    drawn = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    return drawn.getvalue()


def inline_svg(text: str, name: str, label: str) -> str:
    """Return the drawing of `draw_svg` as an <svg> element with colours by CSS variable and without a fixed size.

    All ids begin with `name`, so that figures of one page do not share ids. A screen reader says `label`.
    """
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' id="', f' id="{name}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub("|".join(VARIABLES), lambda colour: f"var(--{VARIABLES[colour[0]]})", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    safe = label.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return text.replace("<svg", f'<svg role="img" aria-label="{safe}"', 1)


def describe_chart(chart: Chart) -> str:
    """Describe a chart in words: the first and the last value of each line."""
    show = percent if chart.scale == "share" else lambda value: f"{value:.3g} {chart.unit}"
    lines = (f"{line.label} from {show(line.y[0])} to {show(line.y[-1])}" for line in chart.series)
    return f"{chart.title}: " + "; ".join(lines)


def describe_entropy(entropy: EntropyCounts) -> str:
    """Describe the histogram in words."""
    parts = []
    for name, counts_B in (("selected", entropy.selected_B), ("other", entropy.others_B)):
        if total := int(counts_B.sum()):
            median = (int(np.searchsorted(np.cumsum(counts_B), total / 2)) + 0.5) * BIN
            parts.append(f"{total:,} {name} tokens, half of them below {median:.2f} nats")
    threshold = f"; threshold {entropy.threshold[1]:.2f} nats" if entropy.threshold else ""
    return f"Tokens by entropy: {'; '.join(parts)}{threshold}"
