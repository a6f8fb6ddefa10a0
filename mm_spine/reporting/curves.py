"""The curves of a run over its steps, as data: what the figures draw, the page reads out and `compare` overlays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from mm_spine.reporting.saved_run import Json, SavedRun, number, values_by_step

MAX_POINTS = 2000
"""Of a curve in a figure: a longer one is thinned evenly, and says so."""

Scale = Literal["linear", "share", "log"]


@dataclass(frozen=True)
class Series:
    """One line of a figure; `y` in the unit of its chart. Lines of one `place` look alike in every figure."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    place: int = 0


@dataclass(frozen=True)
class Chart:
    """One figure over steps. `band` is drawn as a shaded area between its two series; `note` goes below."""

    name: str
    title: str
    unit: str
    series: tuple[Series, ...]
    scale: Scale = "linear"
    band: tuple[Series, Series] | None = None
    note: str = ""

    @property
    def heading(self) -> str:
        """The title with its unit; a share's axis says percent itself."""
        return self.title if self.scale == "share" or not self.unit else f"{self.title}, {self.unit}"


@dataclass(frozen=True)
class Quantity:
    """Which fields of which file make a chart. `factor` brings them to `unit`."""

    name: str
    title: str
    unit: str
    fields: tuple[tuple[str, str], ...]
    source: Literal["steps", "accuracy", "timings"] = "steps"
    scale: Scale = "linear"
    factor: float = 1.0
    band: tuple[str, str] | None = None
    note: str = ""


QUANTITIES: tuple[Quantity, ...] = (
    Quantity(
        "accuracy",
        "Accuracy of votes and rewards",
        "share",
        (("label_accuracy", "vote right"), ("reward_accuracy", "reward right"), ("ground_truth_ratio", "pass@1")),
        source="accuracy",
        scale="share",
        note="Graded after the run from its saved rollouts; the training saw none of it. reward right: the share of "
        "rollouts that agree with the vote and are right, or do neither. pass@1: the share that is right.",
    ),
    Quantity(
        "majority_share",
        "Majority share",
        "share",
        (("majority_share", "winner"), ("margin", "margin"), ("unanimous", "unanimous")),
        scale="share",
        note="Share of the votes that the winner has, its lead over the second, and questions with one answer only.",
    ),
    Quantity(
        "entropy",
        "Token entropy and band",
        "nats",
        (("entropy_forks", "selected"), ("entropy_mean", "all tokens")),
        band=("band_low", "band_high"),
        note="Means. selected: the tokens that the policy term trains, which are the forks, all or others, by method.",
    ),
    Quantity("length", "Response length", "tokens", (("length_mean", "mean length"),)),
    Quantity("unparsed", "Responses without an answer", "share", (("unparsed", "unparsed"),), scale="share"),
    Quantity(
        "selected_share",
        "Selected tokens",
        "share",
        (("selected_share", "selected"), ("share_below", "below the band"), ("share_above", "above the band")),
        scale="share",
        note="selected: of the response tokens, those that the method's rule chooses. below, above: of the forks, "
        "those outside of the band.",
    ),
    Quantity(
        "parity",
        "Sampler against trainer",
        "nats",
        (("parity_mean", "mean gap"), ("parity_max", "largest gap")),
        scale="log",
        note="Gap between the log-probs that the sampler and the trainer give to the tokens drawn; 0 is not drawn.",
    ),
    Quantity(
        "loss",
        "Loss",
        "",
        (("loss", "total"), ("loss_policy", "policy"), ("loss_band", "band"), ("loss_kl", "KL")),
    ),
    Quantity("grad_norm", "Gradient norm", "", (("grad_norm", "gradient norm"),)),
    Quantity(
        "seconds",
        "Time per step",
        "seconds",
        (("sample", "sampling"), ("update", "update")),
        source="timings",
    ),
    Quantity(
        "memory",
        "Peak memory",
        "GB",
        (("peak_memory_bytes", "peak memory"),),
        source="timings",
        factor=1e-9,
        note="The highest so far.",
    ),
)

TIMING = {"seconds", "memory"}

OVERLAID: tuple[tuple[str, str, str], ...] = (
    ("accuracy", "label_accuracy", "The vote is right"),
    ("accuracy", "ground_truth_ratio", "pass@1 of the rollouts"),
    ("majority_share", "majority_share", "Majority share"),
    ("entropy", "entropy_mean", "Entropy, all tokens"),
    ("entropy", "entropy_forks", "Entropy, selected tokens"),
    ("length", "length_mean", "Response length"),
    ("unparsed", "unparsed", "Responses without an answer"),
    ("selected_share", "selected_share", "Selected tokens"),
    ("parity", "parity_mean", "Sampler against trainer"),
)
"""What `compare` overlays: quantity, field, title; a figure each, a line per run."""


def charts(saved: SavedRun) -> Iterator[Chart]:
    """A chart per quantity of which the run has a value; the shares of ways to answer, where a benchmark names them."""
    for quantity in QUANTITIES:
        rows = _rows(saved, quantity)
        drawn = [_series(rows, key, label, quantity, i) for i, (key, label) in enumerate(quantity.fields)]
        if series := tuple(line for line in drawn if line.x):
            yield _chart(quantity, quantity.name, quantity.title, series, _band(rows, quantity), _thinned(rows))
    if habits := _habits(saved):
        yield habits


def overlaid(runs: Sequence[tuple[str, SavedRun]]) -> Iterator[Chart]:
    """A chart per row of `OVERLAID`, with a line for each named run that has the field."""
    by_name = {quantity.name: quantity for quantity in QUANTITIES}
    for name, key, title in OVERLAID:
        quantity = by_name[name]
        drawn = [_series(_rows(saved, quantity), key, label, quantity, i) for i, (label, saved) in enumerate(runs)]
        if series := tuple(line for line in drawn if line.x):
            thinned = any(_thinned(_rows(saved, quantity)) for _, saved in runs)
            yield _chart(quantity, key, title, series, None, thinned, note="")


def _chart(
    quantity: Quantity,
    name: str,
    title: str,
    series: tuple[Series, ...],
    band: tuple[Series, Series] | None,
    thinned: bool,
    note: str | None = None,
) -> Chart:
    notes = [quantity.note if note is None else note, f"Thinned to {MAX_POINTS:,} steps." if thinned else ""]
    return Chart(name, title, quantity.unit, series, quantity.scale, band, " ".join(filter(None, notes)))


def _rows(saved: SavedRun, quantity: Quantity) -> Sequence[Json]:
    return {"steps": saved.steps, "accuracy": saved.accuracy, "timings": saved.timings}[quantity.source]


def _thinned(rows: Sequence[Json]) -> bool:
    return len(rows) > MAX_POINTS


def _series(rows: Sequence[Json], key: str, label: str, quantity: Quantity, place: int = 0) -> Series:
    pairs = values_by_step(rows, key)
    if quantity.scale == "log":
        pairs = [(step, value) for step, value in pairs if value > 0]
    pairs = pairs[:: -(-len(pairs) // MAX_POINTS) or 1]
    x, y = tuple(step for step, _ in pairs), tuple(quantity.factor * value for _, value in pairs)
    return Series(label, x, y, place)


def _band(rows: Sequence[Json], quantity: Quantity) -> tuple[Series, Series] | None:
    """Both bounds at the steps that have both."""
    if quantity.band is None:
        return None
    low, high = quantity.band
    whole = [row for row in rows if number(row.get(low)) is not None and number(row.get(high)) is not None]
    bounds = (_series(whole, low, "band, low", quantity), _series(whole, high, "band, high", quantity))
    return bounds if bounds[0].x else None


def _habits(saved: SavedRun) -> Chart | None:
    rows = [row for row in saved.accuracy if isinstance(row.get("habits"), dict)]
    names = sorted({str(name) for row in rows for name in row["habits"]})
    flat = [{"step": row["step"], **{name: row["habits"].get(name, 0.0) for name in names}} for row in rows]
    quantity = Quantity("habits", "Ways to answer", "share", tuple((name, name) for name in names), scale="share")
    series = tuple(_series(flat, name, name, quantity, i) for i, name in enumerate(names))
    return _chart(quantity, "habits", quantity.title, series, None, _thinned(rows)) if series else None
