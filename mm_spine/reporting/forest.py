"""Draw the differences between methods as a forest plot: a point with its interval for each, numbers beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mm_spine.reporting.contrasts import Contrast, measure_of, method_words, p_words
from mm_spine.reporting.figures import COLOURS, FONT_SIZE, GRID, INK, MARKERS, MUTED
from mm_spine.reporting.finished_run import SPLITS
from mm_spine.reporting.formats import points_only

WIDTH = 6.4
"""Inches: a figure over the whole width of a page."""

ROW, HEAD, FOOT = 0.27, 0.42, 0.52
"""Inches of a row, of a split's title, and of the axis below."""

RIGHT = 2.35
"""Inches of the numbers beside the axes."""

LETTER = 0.078
"""Inches of a letter of a name, at most."""


def draw_forest(found: Sequence[Contrast]) -> Figure:
    """Draw one panel for each split, above a common axis in points. Call it within `figures.style()`."""
    splits = [split for split in SPLITS if any(one.split == split for one in found)]
    counts = [sum(one.split == split for one in found) for split in splits]
    height = FOOT + sum(HEAD + ROW * count for count in counts)
    figure = Figure(figsize=(WIDTH, height))
    low, high = _limits(found)
    left = max(1.5, 0.15 + LETTER * max(len(_name(one)) for one in found))
    across = WIDTH - left - RIGHT
    top = height
    for split, count in zip(splits, counts, strict=True):
        top -= HEAD
        bottom = top - ROW * count
        place = (left / WIDTH, bottom / height, across / WIDTH, ROW * count / height)
        axes = figure.add_axes(place)
        _panel(axes, [one for one in found if one.split == split], SPLITS[split], left)
        axes.set_xlim(low, high)
        top = bottom
        if split != splits[-1]:
            axes.tick_params(axis="x", labelbottom=False, length=0)
    axes.set_xlabel(_axis_words(found[0].against), labelpad=3)
    axes.xaxis.set_label_coords((WIDTH / 2 - left) / across, -0.3 / (ROW * counts[-1]))
    return figure


def _axis_words(against: str) -> str:
    return f"{measure_of(against)}, minus {against} (points)"


def _limits(found: Sequence[Contrast]) -> tuple[float, float]:
    """Return the limits of the axis in points: every interval, and 0, with room beside them."""
    ends = [0.0]
    for one in found:
        ends += [100 * end for end in one.difference if end is not None]
    room = max(0.06 * (max(ends) - min(ends)), 0.5)
    return min(ends) - room, max(ends) + room


def _panel(axes: Axes, found: Sequence[Contrast], title: str, left: float) -> None:
    axes.axvline(0.0, color=MUTED, linewidth=1.0)
    for row, one in enumerate(found):
        value, low, high = one.difference
        colour = COLOURS[row % len(COLOURS)]
        if low is not None and high is not None:
            axes.plot((100 * low, 100 * high), (row, row), color=colour, linewidth=1.6, solid_capstyle="butt")
        marker = MARKERS[row % len(MARKERS)]
        axes.plot((100 * value,), (row,), color=colour, marker=marker, markersize=5.5, linestyle="none")
        _beside(axes, row, -0.03, "right", _name(one))
        _beside(axes, row, 1.03, "left", points_only(one.difference).replace("-", "\u2212"))
        axes.annotate(
            p_words(one.p_holm), xy=(1.0, row), xycoords=("axes fraction", "data"), fontsize=FONT_SIZE - 1, color=INK,
            xytext=(72 * (RIGHT - 0.1), 0), textcoords="offset points", ha="right", va="center", annotation_clip=False,
        )  # fmt: skip
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=GRID)
    above: dict[str, Any] = {
        "xycoords": "axes fraction",
        "textcoords": "offset points",
        "va": "bottom",
        "annotation_clip": False,
    }
    axes.annotate(title, xy=(0, 1), xytext=(-72 * (left - 0.08), 5), fontsize=FONT_SIZE, weight="bold", **above)
    axes.annotate("points [95 %]", xy=(1.03, 1), xytext=(0, 5), fontsize=FONT_SIZE - 1.5, color=MUTED, **above)
    right = (72 * (RIGHT - 0.1), 5)
    axes.annotate("p (Holm)", xy=(1, 1), xytext=right, fontsize=FONT_SIZE - 1.5, color=MUTED, ha="right", **above)


def _beside(axes: Axes, row: int, x: float, side: str, words: str) -> None:
    axes.annotate(
        words, xy=(x, row), xycoords=("axes fraction", "data"), ha=side, va="center", color=INK,
        fontsize=FONT_SIZE - 1, annotation_clip=False,
    )  # fmt: skip


def _name(one: Contrast, most: int = 20) -> str:
    """Return the method, shortened, and its seeds."""
    name = method_words(one)
    seeds = f"{len(one.seeds)} seeds" if len(one.seeds) > 1 else f"seed {one.seeds[0]}"
    return f"{name if len(name) <= most else f'{name[: most - 1]}…'}, {seeds}"


def describe_forest(found: Sequence[Contrast]) -> str:
    """Describe the figure in words."""
    lines = (f"{one.split}, {method_words(one)}: {points_only(one.difference)}" for one in found)
    return f"{_axis_words(found[0].against)}. " + "; ".join(lines)
