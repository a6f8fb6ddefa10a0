"""Define the table of the study: the runs that it consists of, and which of them are finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mm_spine.config import ConfigError, RunConfig
from mm_spine.config.layers import read_config
from mm_spine.methods.table import METHODS, configure, find

BASE = "none"
MAIN = (
    BASE, "ttrl", "spine", "random-mask", "spine-v2", "forks-only", "band-only", "low-entropy-mask",
    "ttrl-ear", "ttrl-ear-clip", "rent", "oracle",
)  # fmt: skip
VARIANTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "ttrl-ear": ("ttrl-ear", ("method.ear=adv_res",)),
    "ttrl-ear-clip": ("ttrl-ear", ("method.ear=adv_clip",)),
}
"""A cell's method where it is not the method's plain name: (name, overrides)."""

COMMON = ("threads=1", "engine.measure_update=true", "reporting.images=false")
HEAVY, CLEAN = "direct_heavy_model", "clean_model"
RECIPES: Mapping[str, str] = {HEAVY: "direct-heavy", CLEAN: "clean"}
"""Checkpoint to build -> its recipe (`source_recipe.py`)."""

FACTOR = 10
CATALOGUE_SEEDS, COMMON_FACTOR = 8, 4
"""Seeds of the catalogue, and its common learning rate as a multiple of the default."""
FRONTIER_SEEDS = 4
RATES, STEPS = (1, 2, 4, 8, 16), (12, 96)
"""The stability frontier: multiples of the default learning rate, and numbers of steps."""


@dataclass(frozen=True)
class Group:
    """Cells that differ from the default configuration in the same way; `model` names a checkpoint to build first."""

    labels: tuple[str, ...]
    seeds: int
    says: str
    overrides: tuple[str, ...] = ()
    model: str | None = None


def digits_config(overrides: Sequence[str] = (), method: str | None = None, seed: int | None = None) -> RunConfig:
    """Resolve the configuration of `digits` with overrides, a method and a seed."""
    # Imported here: it loads torch, which a process that only receives cells does not need.
    from mm_spine.runs.plan import load_config

    return load_config("digits", overrides, method, seed)


def groups() -> Mapping[str, Group]:
    """Return the groups in the order in which they are run."""
    default = digits_config().optim
    pair = ("ttrl", "spine")
    steps, lr = FACTOR * default.steps, FACTOR * default.lr
    return {
        "main": Group(MAIN, 8, "the default configuration"),
        "high-lr": Group(
            pair, 2, f"a learning rate of {lr:g}, {FACTOR} times the default", (f"optim.lr={lr:g}",)
        ),
        "direct-heavy": Group(
            (BASE, *pair), 2, "the second source checkpoint, in which answering directly is the stronger habit",
            model=HEAVY,
        ),
        "long": Group(pair, 2, f"{steps} steps, {FACTOR} times the default", (f"optim.steps={steps}",)),
    }  # fmt: skip


class AnyCell(Protocol):
    """A run of a study: its folder, its method, the checkpoint to build first, what it needs, and its settings."""

    @property
    def name(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def model(self) -> str | None: ...
    @property
    def needs(self) -> tuple[str, ...]: ...
    def config(self, output: Path) -> RunConfig: ...


@dataclass(frozen=True)
class Cell:
    """One run of the study. `before` names the cell whose evaluation of the same start it takes over.

    A `lean` cell keeps nothing but its figures: neither weights, rollouts nor pages.
    """

    group: str
    label: str
    seed: int
    overrides: tuple[str, ...] = ()
    before: str | None = None
    model: str | None = None
    lean: bool = False

    @property
    def name(self) -> str:
        return f"{self.group}/{self.label}/seed_{self.seed}"

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(name for name in (self.before, self.model) if name is not None)

    def config(self, output: Path) -> RunConfig:
        """Resolve the configuration; it takes "before" over only from a cell that is finished."""
        method, variant = VARIANTS.get(self.label, (self.label, ()))
        model = [] if self.model is None else [f"model.path={output / self.model}"]
        shared = self.before is not None and (output / self.before / "summary.json").is_file()
        before = [f"evaluation.before={output / str(self.before)}"] if shared else []
        return digits_config([*COMMON, *variant, *model, *self.overrides, *before], method, self.seed)


def cells(extra: Sequence[str] = ()) -> list[Cell]:
    """List the cells group by group and seed by seed, `none` first: at any time all methods have the same seeds."""
    return [
        _cell(name, group, label, seed, extra)
        for name, group in groups().items()
        for seed in range(group.seeds)
        for label in group.labels
    ]


def _cell(name: str, group: Group, label: str, seed: int, extra: Sequence[str]) -> Cell:
    # Another number of steps or another rate changes nothing of the start: its "before" is that of `main`.
    start = Cell(name if BASE in group.labels else "main", BASE, seed).name
    before = None if label == BASE else start
    return Cell(name, label, seed, (*group.overrides, *extra), before, group.model)


def rows(readers: bool = False) -> tuple[str, ...]:
    """Return the labels of all rows that train and of their variants; with `readers` also of those that read labels."""
    names = [name for name, row in METHODS.items() if row.trains and (row.label_free or readers)]
    return (*names, *(label for label in VARIANTS if label not in METHODS))


def left_out(label: str, extra: Sequence[str] = ()) -> str | None:
    """Say why the row cannot run on `digits` with these options; None where it can."""
    method, variant = VARIANTS.get(label, (label, ()))
    check = find(method).check
    try:
        if check is not None:
            check(digits_config([*variant, *extra], method).method)
    except ConfigError as error:
        return str(error)
    return None


def catalogue(extra: Sequence[str] = (), labels: Sequence[str] | None = None) -> list[Cell]:
    """List the cells of all rows, seed by seed, at the default learning rate and at the common one.

    The default cells of rows of the study's main table are its own: they are not run twice.
    """
    chosen = _runnable(labels or rows(readers=True), extra)
    rate = f"optim.lr={COMMON_FACTOR * digits_config().optim.lr:g}"
    rates: Mapping[str, tuple[str, ...]] = {"main": (), "common-lr": (rate,)}
    return [
        cell
        for seed in range(CATALOGUE_SEEDS)
        for cell in (
            Cell("main", BASE, seed, tuple(extra)),
            *(_trained(name, label, seed, (*given, *extra)) for name, given in rates.items() for label in chosen),
        )
    ]


def frontier(extra: Sequence[str] = (), labels: Sequence[str] | None = None) -> list[Cell]:
    """List the cells of the stability frontier: steps by steps, seed by seed, without the guard.

    Only the adapted questions are evaluated: evaluation takes most of a cell's time, and this halves it.
    """
    chosen, default = _runnable(labels or rows(), extra), digits_config().optim.lr
    common = ("guard.act=off", "evaluation.held_out=false", *extra)
    starts = [Cell("frontier", BASE, seed, common) for seed in range(FRONTIER_SEEDS)]
    trained = (
        Cell(
            frontier_group(steps, rate), label, start.seed,
            (f"optim.lr={rate * default:g}", f"optim.steps={steps}", *common), start.name, lean=True,
        )
        for steps in STEPS for start in starts for rate in RATES for label in chosen
    )  # fmt: skip
    return [*starts, *trained]


def frontier_group(steps: int, rate: int) -> str:
    return f"frontier-{steps}-x{rate}"


def _runnable(labels: Sequence[str], extra: Sequence[str]) -> list[str]:
    return [label for label in labels if left_out(label, extra) is None]


def _trained(group: str, label: str, seed: int, overrides: tuple[str, ...]) -> Cell:
    lean = not (group == "main" and label in MAIN)
    return Cell(group, label, seed, overrides, Cell("main", BASE, seed).name, lean=lean)


def missing(cell: Cell, output: Path) -> str | None:
    """Say why the cell is not finished; None when it is. A cell made with other settings counts as not finished."""
    folder = output / cell.name
    if not (folder / "summary.json").is_file():
        failed = folder / "failed.txt"
        # The whole message may name paths of this machine, which have no place in a report.
        kind = failed.read_text().partition(":")[0] if failed.is_file() else ""
        return f"failed with {kind}, see failed.txt in its folder" if kind else "not run to its end"
    try:
        # Build it again, so that an option that was added later counts as its default.
        saved = configure(read_config(folder / "config.yaml")).model_dump(mode="json")
    except ConfigError as error:
        return f"made by another version ({' '.join(str(error).split())}): remove its folder to redo it"
    wanted = cell.config(output).model_dump(mode="json")
    odd = sorted(key for key in wanted if _part(saved, key) != _part(wanted, key))
    return f"made with other settings of {', '.join(odd)}: remove its folder to redo it" if odd else None


def _part(config: Mapping[str, Any], key: str) -> Any:
    """Return a section of a configuration without the paths of its inputs and what changes no figure."""
    section = config.get(key)
    places = {("evaluation", "before"), ("model", "path"), ("checkpoint", "every")}
    return section if not isinstance(section, Mapping) else {k: v for k, v in section.items() if (key, k) not in places}
