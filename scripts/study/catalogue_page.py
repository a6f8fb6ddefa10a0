"""Write the page of the catalogue: every row against `ttrl` and `random-mask`, in one table and one forest plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cells import BASE, COMMON, COMMON_FACTOR, Cell, digits_config, rows
from ended import Ended, excluded, load_all, status
from tables import NONE, arrow, grid, mean, points

from mm_spine.intervals import Interval, over_seeds
from mm_spine.reporting.contrasts import Contrast, holm, p_words, t_test

REFERENCES = ("ttrl", "random-mask")
SPLITS = ("adapted", "held_out")
RATES = {"main": "default", "common-lr": f"{COMMON_FACTOR}x"}
"""Group of cells -> what the page calls its learning rate."""

COMMAND = "scripts/study_digits.sh --study catalogue"


class Family(NamedTuple):
    """What is corrected together: all rows at one rate against one reference on one split."""

    group: str
    reference: str
    split: str


Families = Mapping[Family, Mapping[str, Contrast]]
Labelled = Mapping[tuple[str, str], Sequence[Ended]]
"""(group, label) -> finished cells in the order of their seeds."""


def write_page(output: Path, results_folder: Path, table: Sequence[Cell], extra: Sequence[str] = ()) -> Path:
    """Write catalogue.md and its forest plot from the finished cells; return the path of the page."""
    finished, absent = load_all(table, output)
    cells = by_label(finished)
    families = comparisons(cells)
    results_folder.mkdir(parents=True, exist_ok=True)
    drawn = forest(families, results_folder / "catalogue.png")
    path = results_folder / "catalogue.md"
    path.write_text(page(finished, absent, cells, families, drawn, extra))
    return path


def by_label(finished: Sequence[Ended]) -> Labelled:
    found: dict[tuple[str, str], list[Ended]] = {}
    for ended in finished:
        found.setdefault((ended.cell.group, ended.cell.label), []).append(ended)
    return found


def comparisons(cells: Labelled) -> Families:
    """Compare every row with each reference by pass@1 after adaptation, paired by seed; each family corrected alone."""
    found = {}
    for group in RATES:
        labels = [label for name, label in cells if name == group and label != BASE]
        for reference in REFERENCES:
            for split in SPLITS:
                others = [contrast(cells, group, label, reference, split) for label in labels if label != reference]
                tested = holm([one for one in others if one is not None])
                found[Family(group, reference, split)] = {one.method: one for one in tested}
    return found


def contrast(cells: Labelled, group: str, label: str, reference: str, split: str) -> Contrast | None:
    """Compare a row with the reference over the seeds that both have finished; None without one."""
    first = {ended.cell.seed: ended.score("after", split) for ended in cells.get((group, reference), ())}
    ended = [e for e in cells.get((group, label), ()) if first.get(e.cell.seed) is not None]
    both = [(e.cell.seed, first[e.cell.seed], e.score("after", split)) for e in ended]
    values = {seed: new - old for seed, old, new in both if old is not None and new is not None}
    if not values:
        return None
    p, interval = t_test([*values.values()]), over_seeds([*values.values()])
    # As in `compare`: seeds that differ alike tell nothing of how far others would.
    interval = interval if p is not None else Interval(interval.value, None, None)
    return Contrast(
        label, reference, split, tuple(values), ended[0].questions, interval, p, label_free=label != "oracle"
    )


def verdict(found: Contrast) -> str:
    """Say "better" or "worse" where the corrected p-value is below 5 %, else ""."""
    if found.p_holm is None or found.p_holm >= 0.05:
        return ""
    return "better" if found.difference.value > 0 else "worse"


def page(
    finished: Sequence[Ended],
    absent: Mapping[str, str],
    cells: Labelled,
    families: Families,
    drawn: bool,
    extra: Sequence[str],
) -> str:
    """Write the text. Every figure in it is computed, and its sentences follow from the corrected p-values."""
    parts = ["# The catalogue on `digits`", status(COMMAND, finished, absent), excluded(rows(readers=True), extra)]
    if any(families.values()):
        rate = COMMON_FACTOR * digits_config().optim.lr
        parts += ["## In short", "\n".join(in_short(families))]
        parts += [
            "## Every row\n\nPass@1 in percent, mean over seeds, start → end; differences in points of pass@1 after "
            "adaptation, paired by seed, with 95 % intervals of Student's t that are not corrected. `p` is two-sided "
            f"and corrected by Holm for how many rows are compared at one rate with one reference on one split: "
            f"{len(families)} such families, each by itself. **Bold**: below 5 % after the correction. Rate: the "
            f"default of `configs/digits.yaml`, which every row has, and {COMMON_FACTOR} times that, {rate:g}. "
            "`stopped`: runs that the guard ended, at its defaults. `configs/digits.yaml` sets `method.kl: none` for "
            "every row. `oracle` reads the labels: a control, not a method.\n\n"
            f"Options of every cell: {' '.join([*COMMON, *extra])}.",
            table_of(cells, families),
        ]
        parts += [figure_text()] if drawn else []
    return "\n\n".join(part for part in parts if part) + "\n"


def in_short(families: Families) -> Iterator[str]:
    """Say for each family which rows differ from the reference after the correction."""
    for family, found in families.items():
        tested = [c for c in found.values() if c.p_holm is not None]
        if not tested:
            continue
        named = {word: [f"`{c.method}`" for c in tested if verdict(c) == word] for word in ("better", "worse")}
        said = "; ".join(f"{word}: {', '.join(labels)}" for word, labels in named.items() if labels)
        yield (
            f"- {RATES[family.group]} rate, {family.split.replace('_', '-')}, against `{family.reference}`, "
            f"{len(tested)} rows: {said or 'none differs after the correction'}."
        )


def table_of(cells: Labelled, families: Families) -> str:
    lines = []
    for (group, label), ended in cells.items():
        if label == BASE or group not in RATES:
            continue
        starts = [
            arrow([mean(e.score(when, split) for e in ended) for when in ("before", "after")], scale=100)
            for split in SPLITS
        ]
        pairs = [Family(group, reference, split) for split in SPLITS for reference in REFERENCES]
        against = [cell_of(families[family].get(label)) for family in pairs]
        stopped = sum(e.stopped for e in ended)
        lines.append([f"`{label}`", RATES[group], str(len(ended)), *starts, *against, str(stopped)])
    names = [split.replace("_", "-") for split in SPLITS]
    header = ["method", "rate", "seeds", *names]
    header += [f"{name} − {reference}" for name in names for reference in REFERENCES]
    return grid([*header, "stopped"], lines)


def cell_of(found: Contrast | None) -> str:
    """Write a difference, its interval and its corrected p-value."""
    if found is None:
        return NONE
    text = points(found.difference) + ("" if found.p_holm is None else f", p {p_words(found.p_holm)}")
    return f"**{text}**" if verdict(found) else text


def figure_text() -> str:
    return (
        "![Differences from ttrl and from random-mask with their 95 % intervals, a line per row](catalogue.png)\n\n"
        "Differences in points of pass@1 with 95 % intervals, not corrected; one seed has none. Circles: default rate; "
        "squares: "
        f"{COMMON_FACTOR} times that. Filled: below 5 % after Holm's correction. Sorted by the first column."
    )


def forest(families: Families, path: Path) -> bool:
    """Draw one panel per reference and split, a line per row. Return whether there was anything to draw."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    labels = ordered(families)
    if not labels:
        return False
    panels = [(reference, split) for reference in REFERENCES for split in SPLITS]
    height = 1.6 + 0.27 * len(labels)
    figure, axes = plt.subplots(1, len(panels), figsize=(11, height), dpi=100, sharey=True, layout="constrained")
    for axis, (reference, split) in zip(axes, panels, strict=True):
        for place, group in enumerate(RATES):
            draw_rows(axis, families.get(Family(group, reference, split), {}), labels, place)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(f"{split.replace('_', '-')}, against {reference}", fontsize=9)
        axis.set_xlabel("points of pass@1", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(labels)), labels, fontsize=8)
    axes[0].set_ylim(len(labels) - 0.4, -0.6)
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)
    return True


def ordered(families: Families) -> list[str]:
    """Return the rows, the largest difference from the first reference on the first split at the default rate first."""
    named = dict.fromkeys(label for found in families.values() for label in found)
    first = families.get(Family("main", REFERENCES[0], SPLITS[0]), {})
    return sorted(named, key=lambda label: -first[label].difference.value if label in first else 0.0)


def draw_rows(axis: Any, found: Mapping[str, Contrast], labels: Sequence[str], place: int) -> None:
    """Draw the rows of one rate; `place` is 0 for the default one, which stands above the other."""
    colour, marker = (("#0072B2", "o"), ("#D55E00", "s"))[place]
    for y, label in enumerate(labels):
        if label not in found:
            continue
        value, low, high = found[label].difference
        at = y + (0.17 if place else -0.17)
        if low is not None and high is not None:
            axis.plot([100 * low, 100 * high], [at, at], color=colour, linewidth=1.2)
        face = colour if verdict(found[label]) else "white"
        axis.plot(100 * value, at, marker=marker, color=colour, markerfacecolor=face, markersize=4.5)
