"""One figure of a run's curves, for a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mm_spine.reporting.curves import QUANTITIES, charts
from mm_spine.reporting.figures import FONT_SIZE, HEIGHT, WIDTH, plot, style
from mm_spine.reporting.saved_run import Json, SavedRun
from mm_spine.words import nearest

CURVES = ("majority_share", "entropy", "length", "unparsed", "loss", "grad_norm")
"""The charts that are drawn where none are named."""


def draw_run(steps: Sequence[Json], timings: Sequence[Json], names: Sequence[str] = CURVES) -> Figure:
    """Draw the charts of these names side by side, a legend in each, from lines of steps.jsonl and timings.jsonl.

    A chart without values is left out. Raises ValueError for a name that is not one of `QUANTITIES`, and where no chart
    has a value.
    """
    known = [quantity.name for quantity in QUANTITIES]
    for name in names:
        if name not in known:
            raise ValueError(f"{name!r} is no curve; {nearest(name, known)}")
    found = {chart.name: chart for chart in charts(_in_memory(steps, timings))}
    chosen = [found[name] for name in names if name in found]
    if not chosen:
        raise ValueError(f"no values of {', '.join(names)}: no step was made, or the method does not measure them")
    columns = min(3, len(chosen))
    rows = -(-len(chosen) // columns)
    with style():
        figure = Figure(figsize=(WIDTH * columns, (HEIGHT + 0.55) * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, chart in zip(grid.flat, chosen, strict=False):
            plot(axes, chart)
            axes.set_title(chart.heading, fontsize=FONT_SIZE + 1, loc="left")
            # Below the axes it covers no line.
            axes.legend(
                loc="upper left", bbox_to_anchor=(-0.02, -0.2), ncols=4, frameon=False, fontsize=FONT_SIZE - 1.5,
                handlelength=2.2, columnspacing=1.0,
            )  # fmt: skip
        for axes in grid.flat[len(chosen) :]:
            axes.axis("off")
    return figure


def _in_memory(steps: Sequence[Json], timings: Sequence[Json]) -> SavedRun:
    """Return a run that is in no folder."""
    empty: dict[str, Any] = {"summary": {}, "config": {}, "environment": {}, "stopped": {}}
    empty |= {"questions": {}, "answers": {}}
    nothing: dict[str, Any] = dict.fromkeys(("accuracy", "before", "after", "rollouts", "missing"), ())
    return SavedRun(path=Path(), steps=steps, timings=timings, **empty, **nothing)
