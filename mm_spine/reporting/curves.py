"""The curves of runs over their steps, as data for the figures, the page and the comparison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from mm_spine.reporting.saved_run import Json, SavedRun, number, section, values_by_step

MAX_POINTS = 2000
"""Points of one curve; of a longer one, every k-th point is drawn, and a note says so."""

Scale = Literal["linear", "share", "log"]


@dataclass(frozen=True)
class Series:
    """One line of a chart: `y` in the chart's unit over the steps `x`. `place` selects colour, dash and marker."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    place: int = 0


class Mark(NamedTuple):
    """A step that a chart marks, with the words for it."""

    step: float
    label: str


@dataclass(frozen=True)
class Chart:
    """One figure over steps, or over another number.

    Attributes:
        over: what the x axis counts; "k" is logarithmic.
        scale: "share" is shown in percent; "log" has a logarithmic axis.
        band: two series; the area between them is shaded.
        note: text below the figure.
        mark: a step that a line is drawn at.
    """

    name: str
    title: str
    unit: str
    series: tuple[Series, ...]
    scale: Scale = "linear"
    band: tuple[Series, Series] | None = None
    note: str = ""
    mark: Mark | None = None
    over: Literal["step", "k"] = "step"

    @property
    def heading(self) -> str:
        """The title with its unit."""
        # The axis of a share has percent signs already.
        return self.title if self.scale == "share" or not self.unit else f"{self.title}, {self.unit}"


@dataclass(frozen=True)
class Quantity:
    """What a chart is made of.

    Attributes:
        fields: (key in the file, label) of each line.
        source: the file, by its field in `SavedRun`.
        factor: the file's values times `factor` are in `unit`.
        band: keys of the lower and the upper bound of the shaded area.
        parts: the lines after the first add up to it. One that is 0 at every step is not drawn.
    """

    name: str
    title: str
    unit: str
    fields: tuple[tuple[str, str], ...]
    source: Literal["steps", "accuracy", "timings"] = "steps"
    scale: Scale = "linear"
    factor: float = 1.0
    band: tuple[str, str] | None = None
    note: str = ""
    parts: bool = False


QUANTITIES: tuple[Quantity, ...] = (
    Quantity(
        "accuracy",
        "Accuracy of votes and rewards",
        "share",
        (("label_accuracy", "vote right"), ("reward_accuracy", "reward right"), ("ground_truth_ratio", "pass@1")),
        source="accuracy",
        scale="share",
        note="Graded after the run from its saved rollouts; training did not see these values. reward right: share of "
        "the rollouts that agree with the vote and are right, or do not agree and are wrong. pass@1: share that is "
        "right.",
    ),
    Quantity(
        "majority_share",
        "Majority share",
        "share",
        (("majority_share", "winner"), ("margin", "margin"), ("unanimous", "unanimous")),
        scale="share",
        note="winner: share of the votes for the winning answer. margin: its lead over the second. unanimous: share of "
        "the questions with one answer only.",
    ),
    Quantity(
        "entropy",
        "Token entropy and band",
        "nats",
        (("entropy_forks", "selected"), ("entropy_mean", "all tokens")),
        band=("band_low", "band_high"),
        note="Means. selected: the tokens that the policy term trains. The method "
        "decides which these are: forking tokens, all tokens, or others.",
    ),
    Quantity("length", "Response length", "tokens", (("length_mean", "mean length"),)),
    Quantity("unparsed", "Responses without an answer", "share", (("unparsed", "unparsed"),), scale="share"),
    Quantity(
        "selected_share",
        "Selected tokens",
        "share",
        (("selected_share", "selected"), ("share_below", "below the band"), ("share_above", "above the band")),
        scale="share",
        note="selected: share of the response tokens that the method's rule selects. below, above: share of the "
        "forking tokens whose entropy is outside of the band.",
    ),
    Quantity(
        "parity",
        "Sampler against trainer",
        "nats",
        (("parity_mean", "mean gap"), ("parity_max", "largest gap")),
        scale="log",
        note="Gap between the log-probs that the sampler and the trainer give to the sampled tokens. A gap of 0 is "
        "not drawn.",
    ),
    Quantity(
        "loss",
        "Loss",
        "",
        (("loss", "total"), ("loss_policy", "policy"), ("loss_band", "band"), ("loss_kl", "KL")),
        parts=True,
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
        note="The highest value up to each step.",
    ),
)

TIMING = {"seconds", "memory"}
"""Charts that stand in the section on timings."""

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
"""Charts of a comparison, with a line per run: (quantity, key in the file, title)."""


def charts(saved: SavedRun) -> Iterator[Chart]:
    """Yield a chart for each quantity that the run has values of."""
    mark = mark_of(saved)
    for quantity in QUANTITIES:
        lines = _source(saved, quantity)
        series = [_series(lines, key, label, quantity, i) for i, (key, label) in enumerate(quantity.fields)]
        series = _without_empty_parts(series) if quantity.parts else series
        if drawn := tuple(one for one in series if one.x):
            yield Chart(
                name=quantity.name,
                title=quantity.title,
                unit=quantity.unit,
                series=drawn,
                scale=quantity.scale,
                band=_band(lines, quantity),
                note=" ".join(filter(None, (quantity.note, _thinned_note([lines])))),
                mark=mark,
            )


def _without_empty_parts(series: Sequence[Series]) -> list[Series]:
    """Leave out parts that are 0 at every step, and a part that is left alone: it is the whole."""
    whole, *parts = series
    kept = [part for part in parts if any(part.y)]
    return [whole, *kept] if len(kept) > 1 or not whole.x else [whole]


def mark_of(saved: SavedRun) -> Mark | None:
    """Return the step at which the run's guard fired or its votes had settled, None where neither happened."""
    guard, settled = section(saved.summary, "guard"), section(saved.summary, "settled")
    fired, done = number(guard.get("step")), number(settled.get("step"))
    if guard.get("fired") is True and fired is not None:
        return Mark(fired, "guard fired")
    return None if done is None else Mark(done, "votes settled")


def overlaid(runs: Sequence[tuple[str, SavedRun]]) -> Iterator[Chart]:
    """Yield a chart for each row of `OVERLAID` that any of the named runs has values of."""
    by_name = {quantity.name: quantity for quantity in QUANTITIES}
    for name, key, title in OVERLAID:
        quantity = by_name[name]
        sources = [_source(saved, quantity) for _, saved in runs]
        series = [
            _series(lines, key, label, quantity, i)
            for i, ((label, _), lines) in enumerate(zip(runs, sources, strict=True))
        ]
        if drawn := tuple(one for one in series if one.x):
            yield Chart(key, title, quantity.unit, drawn, quantity.scale, note=_thinned_note(sources))


def _source(saved: SavedRun, quantity: Quantity) -> Sequence[Json]:
    return {"steps": saved.steps, "accuracy": saved.accuracy, "timings": saved.timings}[quantity.source]


def _thinned_note(sources: Sequence[Sequence[Json]]) -> str:
    return f"Thinned to {MAX_POINTS:,} steps." if any(len(lines) > MAX_POINTS for lines in sources) else ""


def _series(lines: Sequence[Json], key: str, label: str, quantity: Quantity, place: int = 0) -> Series:
    """Return the values of `key` over the steps, at most `MAX_POINTS` of them, in the quantity's unit."""
    pairs = values_by_step(lines, key)
    # A logarithmic axis has no place for 0.
    if quantity.scale == "log":
        pairs = [(step, value) for step, value in pairs if value > 0]
    every = -(-len(pairs) // MAX_POINTS) or 1
    thinned = pairs[::every]
    return Series(
        label=label,
        x=tuple(step for step, _ in thinned),
        y=tuple(quantity.factor * value for _, value in thinned),
        place=place,
    )


def _band(lines: Sequence[Json], quantity: Quantity) -> tuple[Series, Series] | None:
    """Return the lower and the upper bound, at the steps that have both."""
    if quantity.band is None:
        return None
    low, high = quantity.band
    with_both = [line for line in lines if number(line.get(low)) is not None and number(line.get(high)) is not None]
    lower = _series(with_both, low, "band, low", quantity)
    upper = _series(with_both, high, "band, high", quantity)
    return (lower, upper) if lower.x else None
