"""Draw the curves of the study: means over seeds for each step, with the range of the seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from results import (
    Result,
    known,
)

PANELS = (
    ("length_mean", "response length (tokens)", 1.0),
    ("majority_share", "vote share (%)", 100.0),
    ("entropy_mean", "entropy, all tokens (nats)", 1.0),
    ("entropy_top", "entropy, top 20 % (nats)", 1.0),
    ("unparsed", "unparsed (%)", 100.0),
    ("direct", "answering directly (%)", 100.0),
)
STYLES = {
    "ttrl": ("#0072B2", "-"),
    "spine": ("#D55E00", "--"),
    "random-mask": ("#009E73", "-."),
    "oracle": ("#000000", ":"),
}
"""Colours of Okabe and Ito, which colour-blind readers can tell apart; the line styles do without colour."""


def draw(group: Mapping[str, Sequence[Result]], path: Path) -> bool:
    """Draw the mean over seeds per step and the seeds' range, 800 pixels wide. Return whether anything was drawn."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    drawn = {label: results for label, results in group.items() if label in STYLES and any(r.steps for r in results)}
    if not drawn:
        return False
    figure, axes = plt.subplots(3, 2, figsize=(8, 8.5), dpi=100, sharex=True, layout="constrained")
    for axis, (key, name, scale) in zip(axes.flat, PANELS, strict=True):
        for label, results in drawn.items():
            _curve(axis, label, [scale * r.trace(key) for r in results if known(r, key)])
        axis.set_ylabel(name)
        axis.grid(alpha=0.3)
        top = axis.dataLim.ymax
        axis.set_ylim(0, 1.05 * top if 0 < top < np.inf else 1)
        axis.xaxis.get_major_locator().set_params(integer=True)
    for axis in axes[-1]:
        axis.set_xlabel("step")
    handles, names = axes.flat[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, names, loc="outside upper center", ncols=len(names), handlelength=3.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)
    return True


def _curve(axis: Any, label: str, traces: Sequence[np.ndarray]) -> None:
    if not traces:
        return
    length = min(map(len, traces))
    table_ST = np.stack([trace[:length] for trace in traces])
    colour, style = STYLES[label]
    axis.fill_between(range(length), table_ST.min(0), table_ST.max(0), color=colour, alpha=0.13, linewidth=0)
    axis.plot(range(length), table_ST.mean(0), color=colour, linestyle=style, linewidth=2, label=label)
