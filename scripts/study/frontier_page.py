"""Write the page of the stability frontier: at which learning rates runs end below their start, row by row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from cells import COMMON, FRONTIER_SEEDS, RATES, STEPS, Cell, digits_config, frontier_group, rows
from ended import Ended, excluded, load_all, status
from tables import NONE, arrow, grid, mean, number

COMMAND = "scripts/study_digits.sh --study frontier"
BROKEN = (("length", "length_mean", ".1f"), ("entropy", "entropy_mean", ".3f"), ("vote share", "majority_share", ".2f"))
"""Column, key of a step, format: what is shown of runs that ended below their start."""

CLAIM = ("ttrl", "spine", "spine-v2", "forks-only", "band-only", "random-mask", "low-entropy-mask")
"""The rows that the claim is about: with and without token selection, with and without the band."""


class Point(NamedTuple):
    """The finished seeds of one row at one rate for one number of steps."""

    ended: tuple[Ended, ...]

    @property
    def gains(self) -> list[float]:
        """What adapted pass@1 gained in each run, in [-1, 1]."""
        return [gain for ended in self.ended if (gain := ended.gain()) is not None]

    @property
    def broken(self) -> list[Ended]:
        """The runs that ended below their start."""
        return [ended for ended, gain in zip(self.ended, self.gains, strict=True) if gain < 0]

    @property
    def below(self) -> int:
        return len(self.broken)

    @property
    def all_gain(self) -> bool:
        """Whether all seeds of the study are there, and each gained."""
        return len(self.gains) == FRONTIER_SEEDS and all(gain > 0 for gain in self.gains)


Points = Mapping[tuple[str, int, int], Point]
"""(label, steps, rate as a multiple of the default) -> its runs."""


def write_page(output: Path, results_folder: Path, table: Sequence[Cell], extra: Sequence[str] = ()) -> Path:
    """Write frontier.md and its figure from the finished cells; return the path of the page."""
    finished, absent = load_all(table, output)
    points = points_of(finished)
    results_folder.mkdir(parents=True, exist_ok=True)
    drawn = draw(points, results_folder / "frontier.png")
    path = results_folder / "frontier.md"
    path.write_text(page(finished, absent, points, drawn, extra))
    return path


def points_of(finished: Sequence[Ended]) -> Points:
    places = {frontier_group(steps, rate): (steps, rate) for steps in STEPS for rate in RATES}
    found: dict[tuple[str, int, int], list[Ended]] = {}
    for ended in finished:
        if ended.cell.group in places and ended.gain() is not None:
            found.setdefault((ended.cell.label, *places[ended.cell.group]), []).append(ended)
    return {key: Point(tuple(cells)) for key, cells in found.items()}


def labels_of(points: Points, steps: int | None = None) -> list[str]:
    return list(dict.fromkeys(label for label, own, _ in points if steps in (None, own)))


def largest_gaining(points: Points, label: str, steps: int) -> int | None:
    """Return the largest rate at which, as at every smaller one, all seeds gain; None where not even the first does."""
    largest = None
    for rate in RATES:
        point = points.get((label, steps, rate))
        if point is None or not point.all_gain:
            break
        largest = rate
    return largest


def breaking(points: Points, label: str, steps: int) -> tuple[int, list[Ended]] | None:
    """Return the smallest rate at which a run ended below its start, and the runs that did."""
    for rate in RATES:
        point = points.get((label, steps, rate))
        if point is not None and point.below:
            return rate, point.broken
    return None


def page(
    finished: Sequence[Ended],
    absent: Mapping[str, str],
    points: Points,
    drawn: bool,
    extra: Sequence[str],
) -> str:
    """Write the text. Every figure in it is computed."""
    parts = ["# The stability frontier on `digits`", status(COMMAND, finished, absent), excluded(rows(), extra)]
    if points:
        default = digits_config().optim.lr
        parts += [
            f"The rate is a multiple of {default:g}, the default; the guard is off. A run ended below its start if its "
            "adapted pass@1 (mean over the samples, with the labels) is lower than before. Options of every cell: "
            f"{' '.join([*COMMON, *extra])}.",
            "## Selection, band, and all tokens\n\n" + "\n".join(claim(points)),
        ]
        for steps in STEPS:
            if labels_of(points, steps):
                parts += [f"## {steps} steps", table_of(points, steps), EXPLAINED]
        parts += [FIGURE] if drawn else []
    return "\n\n".join(part for part in parts if part) + "\n"


EXPLAINED = (
    "`xK`: runs that ended below their start / finished runs, and the mean change in points. `gains up to`: the "
    "largest rate at which, as at every smaller one, every seed gained. `broke at`: the smallest rate at which a run "
    "ended below its start; of those runs length in tokens, entropy in nats and share of the winning answer, first "
    "step → last."
)

FIGURE = (
    "![Share of runs that ended below their start by row and learning rate](frontier.png)\n\n"
    "Share of runs that ended below their start, in percent; empty: no run is finished."
)


def claim(points: Points) -> Iterator[str]:
    """Count, for the rows that the claim is about, the runs of all rates that ended below their start."""
    for steps in STEPS:
        named = []
        for label in CLAIM:
            own = [p for (name, taken, _), p in points.items() if name == label and taken == steps]
            if own:
                total = sum(len(p.gains) for p in own)
                named.append(f"`{label}` {sum(p.below for p in own)} of {total}")
        if named:
            yield f"- {steps} steps, all rates, runs that ended below their start: {', '.join(named)}."


def table_of(points: Points, steps: int) -> str:
    lines = []
    for label in labels_of(points, steps):
        shares = [share(points.get((label, steps, rate))) for rate in RATES]
        largest, broke = largest_gaining(points, label, steps), breaking(points, label, steps)
        shown = [NONE] * (1 + len(BROKEN))
        if broke is not None:
            ends = [[ended.ends(key) for ended in broke[1]] for _, key, _ in BROKEN]
            figures = [
                arrow([mean(first for first, _ in each), mean(last for _, last in each)], form)
                for each, (_, _, form) in zip(ends, BROKEN, strict=True)
            ]
            shown = [f"x{broke[0]}", *figures]
        lines.append([f"`{label}`", *shares, NONE if largest is None else f"x{largest}", *shown])
    header = ["method", *(f"x{rate}" for rate in RATES), "gains up to", "broke at", *(name for name, *_ in BROKEN)]
    return grid(header, lines)


def share(point: Point | None) -> str:
    if point is None:
        return NONE
    return f"{point.below}/{len(point.gains)}, {number(mean(point.gains), '+z.1f', 100)}"


def draw(points: Points, path: Path) -> bool:
    """Draw a map of rows and rates for each number of steps. Return whether there was anything to draw."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    labels = sorted(labels_of(points), key=lambda label: (_all_below(points, label), label))
    if not labels:
        return False
    figure, axes = plt.subplots(
        1, len(STEPS), figsize=(8, 1.4 + 0.26 * len(labels)), dpi=100, sharey=True, layout="constrained"
    )
    for axis, steps in zip(axes, STEPS, strict=True):
        draw_map(axis, points, labels, steps)
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)
    return True


def _all_below(points: Points, label: str) -> float:
    own = [p for (name, _, _), p in points.items() if name == label]
    return sum(p.below for p in own) / max(1, sum(len(p.gains) for p in own))


def draw_map(axis: Any, points: Points, labels: Sequence[str], steps: int) -> None:
    table = np.full((len(labels), len(RATES)), np.nan)
    for y, label in enumerate(labels):
        for x, rate in enumerate(RATES):
            if (point := points.get((label, steps, rate))) is not None:
                table[y, x] = point.below / len(point.gains)
                dark = table[y, x] > 0.6
                colour = "white" if dark else "black"
                axis.text(x, y, f"{100 * table[y, x]:.0f}", ha="center", va="center", fontsize=7, color=colour)
    axis.imshow(table, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    axis.set_title(f"{steps} steps", fontsize=9)
    axis.set_xticks(range(len(RATES)), [f"x{rate}" for rate in RATES], fontsize=8)
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.set_xlabel("learning rate", fontsize=8)
