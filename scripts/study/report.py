"""The page of the study: figures computed from finished cells, sentences that follow from the intervals."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from cells import BASE, COMMON, Cell, cells, groups, missing
from scipy import stats

from mm_spine.files import read_json, read_json_lines
from mm_spine.intervals import Interval, bootstrap_ci, over_seeds
from mm_spine.measures import GREEDY, LABELS, MAJ_AT_N, PASS_AT_1
from mm_spine.reporting.finished_run import SPLITS, FinishedRun, Scores, load_run

# --- What a finished cell says ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """A finished cell: its scores per question, its steps with what the labels say of them, and its surroundings."""

    cell: Cell
    run: FinishedRun
    steps: Sequence[Mapping[str, Any]]
    environment: Mapping[str, Any]
    repeated: Mapping[str, Any] | None = None

    def trace(self, key: str) -> np.ndarray:
        """One figure per step, nan where a step has none."""
        return np.array([np.nan if step.get(key) is None else step[key] for step in self.steps], dtype=np.float64)

    def scores(self, when: str, split: str, measure: str) -> Mapping[str, float | None]:
        """Question id -> score in [0, 1]; empty where that split was not evaluated."""
        side: Mapping[str, Scores] = {"before": self.run.before, "after": self.run.after}[when]
        return side.get(split, {}).get(measure, {})

    def score(self, when: str, split: str, measure: str) -> float | None:
        """Mean over the labelled questions, in [0, 1]."""
        values = [v for v in self.scores(when, split, measure).values() if v is not None]
        return float(np.mean(values)) if values else None

    def switch(self) -> int | None:
        """The first step at which the direct share is below half of that of step 0."""
        direct = self.trace("direct")
        below = np.flatnonzero(direct < direct[0] / 2) if len(direct) else np.array([])
        return int(below[0]) if len(below) else None


def load(cell: Cell, output: Path) -> Result | str:
    """A cell's result, or why it has none."""
    if (reason := missing(cell, output)) is not None:
        return reason
    folder = output / cell.name
    loaded = load_run(folder)
    if not isinstance(loaded, FinishedRun):
        return loaded.note
    again = folder / "repeated.json"
    repeated = read_json(again) if again.is_file() else None
    return Result(cell, loaded, _steps(folder), read_json(folder / "environment.json"), repeated)


def _steps(folder: Path) -> list[dict[str, Any]]:
    """The lines of steps.jsonl, each with what was graded afterwards and the share of each habit."""
    graded = {row["step"]: row for row in _lines(folder / "evaluation" / "steps.jsonl")}
    rows = []
    for row in _lines(folder / "steps.jsonl"):
        after = graded.get(row["step"], {})
        habits = {name: after["habits"].get(name, 0.0) for name in ("direct", "reasoned")} if "habits" in after else {}
        rows.append({**after, **row, **habits, "entropy_top": _entropy_at_forks(folder, row["step"])})
    return rows


def _lines(path: Path) -> list[dict[str, Any]]:
    return read_json_lines(path) if path.is_file() else []


def _entropy_at_forks(folder: Path, step: int, share: float = 0.2) -> float | None:
    """Mean entropy (nats) of the `share` of tokens with the highest, per response: the same tokens for every method."""
    path = folder / "rollouts" / f"step_{step:06d}.parquet"
    if not path.is_file():
        return None
    column = pq.read_table(path, columns=["entropy"])["entropy"].combine_chunks()
    responses = np.split(np.asarray(column.flatten(), dtype=np.float64), np.cumsum(column.value_lengths())[:-1])
    tops = [h[h >= np.quantile(h, 1 - share)] for h in responses if len(h)]
    return float(np.concatenate(tops).mean()) if tops else None


# --- Figures with intervals ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """A mean difference as a share, with its 95 % interval over seeds and the one over questions."""

    seeds: Interval
    questions: Interval

    @property
    def claimed(self) -> Interval:
        """The wider of the two; without bounds where one seed leaves the first source of chance unseen."""
        if self.seeds.low is None or self.seeds.high is None:
            return self.seeds
        return max(self.seeds, self.questions, key=lambda i: (i.high or 0.0) - (i.low or 0.0))


def detectable(values: Sequence[float], power: float = 0.8) -> float | None:
    """The true difference that a 95 % interval over as many seeds, of this spread, would tell from 0 with `power`."""
    n = len(values)
    if n < 2:
        return None
    return float((stats.t.ppf(0.975, n - 1) + stats.t.ppf(power, n - 1)) * np.std(values, ddof=1) / np.sqrt(n))


Scored = tuple[str, str]
""" "before" or "after", and a measure."""


def difference(pairs: Sequence[tuple[Result, Result]], split: str, old: Scored, new: Scored) -> Difference | None:
    """Paired by seed and question: `new` of each pair's second minus `old` of its first, in [-1, 1]."""
    rows = [(a.scores(old[0], split, old[1]), b.scores(new[0], split, new[1])) for a, b in pairs]
    shared = [q for q in (rows[0][0] if rows else ()) if all(r.get(q) is not None for row in rows for r in row)]
    if not shared:
        return None
    sides_2SQ = np.array([[[row[side][q] for q in shared] for row in rows] for side in (0, 1)], dtype=np.float64)
    table_SQ = sides_2SQ[1] - sides_2SQ[0]
    mean_Q = table_SQ.mean(0)
    questions = Interval(float(mean_Q.mean()), *bootstrap_ci(mean_Q))
    return Difference(over_seeds(table_SQ.mean(1).tolist()), questions)


def gain(results: Sequence[Result], split: str, measure: str) -> Difference | None:
    return difference([(r, r) for r in results], split, ("before", measure), ("after", measure))


def verdict(interval: Interval) -> str:
    """What a 95 % interval says of 0."""
    if interval.low is None or interval.high is None:
        return "one seed, no interval"
    return "excludes 0, higher" if interval.low > 0 else "excludes 0, lower" if interval.high < 0 else "includes 0"


# --- Text ---------------------------------------------------------------------------------------------------------

Results = Mapping[str, Mapping[str, Sequence[Result]]]
"""Group -> label -> finished cells in the order of their seeds; labels without one are left out."""

NONE = "–"


def number(value: float | None, form: str = ".1f", scale: float = 1.0) -> str:
    return NONE if value is None or not np.isfinite(value) else format(scale * value, form)


def percent(value: float | None) -> str:
    return number(value, scale=100)


def arrow(values: Iterable[float | None], form: str = ".1f", scale: float = 1.0) -> str:
    return " → ".join(number(value, form, scale) for value in values)


def points(interval: Interval | None) -> str:
    """A difference in percentage points with its interval."""
    if interval is None:
        return NONE
    value = number(interval.value, "+z.1f", 100)
    bounds = interval.low is not None and interval.high is not None
    return f"{value} {limits(interval)}" if bounds else value


def limits(interval: Interval) -> str:
    return (
        NONE if interval.low is None else f"[{number(interval.low, '+.1f', 100)}, {number(interval.high, '+.1f', 100)}]"
    )


def grid(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; figures to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def mean(values: Iterable[float | None]) -> float | None:
    """Over what is there, None where nothing is."""
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known else None


def ends(results: Sequence[Result], key: str) -> tuple[float | None, float | None]:
    """Means over seeds of a trace's first and last step."""
    traces = [trace for r in results if len(trace := r.trace(key))]
    return mean(trace[0] for trace in traces), mean(trace[-1] for trace in traces)


def votes_of(results: Results) -> str:
    """maj@N with the N of the finished cells."""
    found = {r.run.samples for group in results.values() for label in group.values() for r in label}
    return f"maj@{found.pop()}" if len(found) == 1 else "maj@N"


def levels_table(main: Mapping[str, Sequence[Result]], split: str, maj: str) -> str:
    rows = [
        [
            label,
            str(len(results)),
            *(
                arrow([mean(r.score(when, split, m) for r in results) for when in ("before", "after")], scale=100)
                for m in (GREEDY, PASS_AT_1, MAJ_AT_N)
            ),
            points(_claimed(difference([(r, r) for r in results], split, ("before", MAJ_AT_N), ("after", PASS_AT_1)))),
        ]
        for label, results in main.items()
    ]
    return grid(["method", "seeds", "greedy", "pass@1", maj, f"pass@1 after − {maj} before"], rows)


def _claimed(difference: Difference | None) -> Interval | None:
    return None if difference is None else difference.claimed


def gains_table(main: Mapping[str, Sequence[Result]], split: str) -> str:
    rows = []
    for label, measure in itertools.product([label for label in main if label != BASE], (GREEDY, PASS_AT_1)):
        found = gain(main[label], split, measure)
        if found is not None:
            both = (found.seeds, found.questions)
            rows.append(
                [label, LABELS[measure], points(Interval(found.seeds.value, None, None)), *map(limits, both),
                 verdict(found.claimed)]
            )  # fmt: skip
    return grid(["method", "measure", "mean gain", "95 % over seeds", "95 % over questions", "the wider one"], rows)


COLUMNS = tuple(itertools.product(SPLITS, (GREEDY, PASS_AT_1)))


def paired(main: Mapping[str, Sequence[Result]], label: str, reference: str) -> list[tuple[Result, Result]]:
    """(reference, other) of the seeds that both have finished."""
    first = {r.cell.seed: r for r in main.get(reference, ())}
    return [(first[r.cell.seed], r) for r in main.get(label, ()) if r.cell.seed in first]


def seed_differences(pairs: Sequence[tuple[Result, Result]], split: str, measure: str) -> list[float]:
    scores = [(a.score("after", split, measure), b.score("after", split, measure)) for a, b in pairs]
    return [b - a for a, b in scores if a is not None and b is not None]


def against(main: Mapping[str, Sequence[Result]], reference: str) -> str:
    """Every method against `reference`, after adaptation, and what so many seeds could have seen."""
    rows, intervals, smallest = [], [], []
    for label in main:
        pairs = paired(main, label, reference)
        if label in (BASE, reference) or not pairs:
            continue
        found = [seed_differences(pairs, split, measure) for split, measure in COLUMNS]
        row = [over_seeds(values) if values else None for values in found]
        rows.append([label, str(len(pairs)), *map(points, row)])
        intervals += [i for i in row if i is not None and i.low is not None]
        smallest += [(len(values), x) for values in found if (x := detectable(values)) is not None]
    if not rows:
        return f"No seed of another method beside one of {reference} is finished.\n"
    header = ["method", "seeds", *(f"{split.replace('_', '-')} {LABELS[measure]}" for split, measure in COLUMNS)]
    return f"{grid(header, rows)}\n\n{_seen(intervals, smallest)}\n"


def _seen(intervals: Sequence[Interval], smallest: Sequence[tuple[int, float]]) -> str:
    if not intervals:
        return "One seed gives no interval over seeds."
    clear = sum("excludes" in verdict(interval) for interval in intervals)
    seeds, sizes = [n for n, _ in smallest], [x for _, x in smallest]
    return (
        f"{clear} of these {len(intervals)} intervals exclude 0; if no two methods differed, about "
        f"{0.05 * len(intervals):.1f} would. With {_span(seeds)} seeds and the spread seen here, only differences "
        f"larger than {percent(float(np.median(sizes)))} points (median of the table; {percent(min(sizes))} to "
        f"{percent(max(sizes))}) would be seen four times in five."
    )


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def switches(results: Sequence[Result]) -> str:
    """Median and range of the step of the switch, and how many seeds have one."""
    found = [step for r in results if (step := r.switch()) is not None]
    if not found:
        return f"never (0 of {len(results)})"
    return f"{np.median(found):g} ({_span(found)}; {len(found)} of {len(results)})"


def updates_table(main: Mapping[str, Sequence[Result]]) -> str:
    rows = [
        [
            label,
            number(mean(np.nanmean(r.trace("update_norm")) for r in results if _known(r, "update_norm")), ".3g"),
            number(mean(np.nanmean(r.trace("grad_norm")) for r in results if _known(r, "grad_norm")), ".3g"),
            percent(mean(np.nanmean(r.trace("selected_share")) for r in results if _known(r, "selected_share"))),
            arrow(ends(results, "direct"), scale=100),
            arrow(ends(results, "reasoned"), scale=100),
            switches(results),
        ]
        for label, results in main.items()
        if label != BASE
    ]
    header = ["method", "update norm", "gradient norm", "tokens trained", "direct", "reasoned", "switch at step"]
    return grid(header, rows)


def _known(result: Result, key: str) -> bool:
    return bool(np.isfinite(result.trace(key)).any())


TRACES = (
    ("vote share", "majority_share", ".1f", 100.0),
    ("label accuracy", "label_accuracy", ".1f", 100.0),
    ("reward accuracy", "reward_accuracy", ".1f", 100.0),
    ("length", "length_mean", ".1f", 1.0),
    ("entropy", "entropy_mean", ".3f", 1.0),
    ("unparsed", "unparsed", ".1f", 100.0),
)
"""Column, key of a step, format, scale."""


def votes_table(main: Mapping[str, Sequence[Result]]) -> str:
    rows = [
        [label, *(arrow(ends(results, key), form, scale) for _, key, form, scale in TRACES)]
        for label, results in main.items()
        if label != BASE
    ]
    return grid(["method", *(name for name, *_ in TRACES)], rows)


def per_seed_table(main: Mapping[str, Sequence[Result]], split: str) -> str:
    seeds = sorted({r.cell.seed for results in main.values() for r in results})
    rows = []
    for label, results in main.items():
        by_seed = {r.cell.seed: percent(r.score("after", split, PASS_AT_1)) for r in results}
        rows.append([label, *(by_seed.get(seed, NONE) for seed in seeds)])
    return grid(["method", *(f"seed {seed}" for seed in seeds)], rows)


def cells_table(group: Mapping[str, Sequence[Result]], main: Mapping[str, Sequence[Result]]) -> str:
    """One line per cell of a small group, the cell of `main` with the same method and seed beside it."""
    rows = []
    for result in [r for label, results in group.items() if label != BASE for r in results]:
        beside = [r for r in main.get(result.cell.label, ()) if r.cell.seed == result.cell.seed]
        found = gain([result], "adapted", PASS_AT_1)
        rows.append(
            [
                result.cell.label,
                str(result.cell.seed),
                *(_before_after(result, split, m) for split, m in COLUMNS),
                points(None if found is None else found.questions),
                percent(beside[0].score("after", "adapted", PASS_AT_1)) if beside else NONE,
            ]
        )
    names = [f"{split.replace('_', '-')} {LABELS[measure]}" for split, measure in COLUMNS]
    return grid(["method", "seed", *names, "adapted pass@1 gain", "in main"], rows)


def _before_after(result: Result, split: str, measure: str) -> str:
    return arrow([result.score(when, split, measure) for when in ("before", "after")], scale=100)


def collapse_table(group: Mapping[str, Sequence[Result]]) -> str:
    """What the steps of each cell of a small group did, from the first step to the last."""
    rows = []
    for result in [r for label, results in group.items() if label != BASE for r in results]:
        step = result.switch()
        unparsed = result.trace("unparsed")
        rows.append(
            [
                result.cell.label,
                str(result.cell.seed),
                *(arrow(ends([result], key), form, scale) for _, key, form, scale in TRACES[:-1]),
                percent(float(np.nanmax(unparsed))) if _known(result, "unparsed") else NONE,
                _best(result),
                arrow(ends([result], "direct"), scale=100),
                "never" if step is None else str(step),
            ]
        )
    traced = [name for name, *_ in TRACES[:-1]]
    return grid(["method", "seed", *traced, "most unparsed", "best label accuracy", "direct", "switch at step"], rows)


def _best(result: Result) -> str:
    if not _known(result, "label_accuracy"):
        return NONE
    trace = result.trace("label_accuracy")
    return f"{percent(float(np.nanmax(trace)))} at step {int(np.nanargmax(trace))}"


def what_happened(group: Mapping[str, Sequence[Result]]) -> str:
    """Counts over the cells of a small group."""
    trained = [r for label, results in group.items() if label != BASE for r in results]
    found = [gain([r], "adapted", PASS_AT_1) for r in trained]
    said = [verdict(f.questions) for f in found if f is not None]
    counts = {word: sum(word in text for text in said) for word in ("higher", "lower", "includes")}
    switched = sum(r.switch() is not None for r in trained)
    return (
        f"Of {len(said)} finished cells, adapted pass@1 rose in {counts['higher']}, fell in {counts['lower']} and "
        f"shows no change in {counts['includes']} (95 % interval over questions). The direct share fell "
        f"below half of its start in {switched}."
    )


# --- Curves -------------------------------------------------------------------------------------------------------

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
    """Mean over seeds per step, with the range of the seeds, 800 pixels wide. False where there is nothing to draw."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    drawn = {label: results for label, results in group.items() if label in STYLES and any(r.steps for r in results)}
    if not drawn:
        return False
    figure, axes = plt.subplots(3, 2, figsize=(8, 8.5), dpi=100, sharex=True, layout="constrained")
    for axis, (key, name, scale) in zip(axes.flat, PANELS, strict=True):
        for label, results in drawn.items():
            _curve(axis, label, [scale * r.trace(key) for r in results if _known(r, key)])
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


# --- The report ---------------------------------------------------------------------------------------------------


def gather(output: Path, extra: Sequence[str] = ()) -> tuple[dict[str, dict[str, list[Result]]], dict[str, str]]:
    """Finished cells by group and label, and the reason of every one that is not."""
    finished: dict[str, dict[str, list[Result]]] = {name: {} for name in groups()}
    absent: dict[str, str] = {}
    for cell in cells(extra):
        loaded = load(cell, output)
        if isinstance(loaded, str):
            absent[cell.name] = loaded
        else:
            finished[cell.group].setdefault(cell.label, []).append(loaded)
    return finished, absent


def write_report(output: Path, results_folder: Path, extra: Sequence[str] = ()) -> Path:
    """`digits.md` and its curves, from the finished cells alone."""
    finished, absent = gather(output, extra)
    results_folder.mkdir(parents=True, exist_ok=True)
    for old in results_folder.glob("digits_*.png"):
        old.unlink()
    drawn = [name for name in finished if draw(finished[name], results_folder / f"digits_{name}.png")]
    path = results_folder / "digits.md"
    path.write_text(report(finished, absent, drawn, extra))
    return path


def report(results: Results, absent: Mapping[str, str], drawn: Sequence[str], extra: Sequence[str] = ()) -> str:
    """The text. Every figure in it is computed; its sentences follow from the intervals."""
    count = sum(len(label) for group in results.values() for label in group.values())
    parts = ["# The study of `digits`", _status(count, absent)]
    if count:
        main = results["main"]
        parts += [*_in_short(main), _set_up(results, extra)]
        parts += [*_accuracies(main, votes_of(results)), *_comparisons(main), *_mechanics(main, drawn)] if main else []
        parts += [_small_group(name, results, drawn) for name in results if name != "main"]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _status(count: int, absent: Mapping[str, str]) -> str:
    if not absent:
        return f"Written by `scripts/study_digits.sh` from {count} finished cells; none is missing."
    named: dict[tuple[str, str], list[str]] = {}
    for name, reason in absent.items():
        cell, _, seed = name.rpartition("/seed_")
        named.setdefault((cell, reason), []).append(seed)
    lines = [f"- {cell}, seed {', '.join(seeds)}: {reason}" for (cell, reason), seeds in named.items()]
    return (
        f"**Study incomplete: {count} of {count + len(absent)} cells are finished.** Written by "
        f"`scripts/study_digits.sh` from those alone. Missing:\n\n" + "\n".join(lines)
    )


def _in_short(main: Mapping[str, Sequence[Result]]) -> Iterator[str]:
    lines = []
    for label in ("spine", "ttrl"):
        for split, measure in COLUMNS if label in main else ():
            found = gain(main[label], split, measure)
            if found is not None:
                where = f"{label}, {split.replace('_', '-')} {LABELS[measure]}"
                lines.append(f"- {where}: {points(found.claimed)} points: {verdict(found.claimed)}.")
    for reference in ("ttrl", "random-mask"):
        pairs = paired(main, "spine", reference)
        for split in SPLITS if pairs else ():
            if values := seed_differences(pairs, split, PASS_AT_1):
                where = f"spine against {reference}, {split.replace('_', '-')} pass@1"
                lines.append(f"- {where}: {points(over_seeds(values))} points: {verdict(over_seeds(values))}.")
    if lines:
        says = "Adaptation without labels, default configuration: means over seeds, 95 % intervals, and their verdicts."
        yield "\n".join([f"## In short\n\n{says}\n", *lines])


def _set_up(results: Results, extra: Sequence[str]) -> str:
    everything = [r for group in results.values() for label in group.values() for r in label]
    packages = {(name, version) for r in everything for name, version in r.environment["packages"].items() if version}
    versions = ", ".join(f"{name} {version}" for name, version in sorted(packages))
    facts = {
        "models": _listed(Path(str(r.run.summary["model"])).name for r in everything),
        "machine": _listed(
            f"{r.environment['machine']}, {', '.join(r.environment['gpus']) or 'no GPU'}, Python "
            f"{r.environment['python']}, {r.environment['threads']} thread(s) a cell"
            for r in everything
        ),
        "versions": versions,
        "commit": _commits(everything),
        "run again": _repeats(everything),
        "questions": _listed(_questions(r) for r in everything),
        "configuration": " ".join([f"`configs/digits.yaml`, {' '.join(COMMON)}", *extra]),
        "peak memory of a worker": f"{max(r.run.summary['peak_memory_bytes'] for r in everything) / 1e9:.1f} GB",
    }  # fmt: skip
    lines = "\n".join(f"- {name}: {fact}" for name, fact in facts.items())
    rows = []
    for name, labels in results.items():
        for label, finished in labels.items():
            seconds = [r.run.summary["seconds"]["total"] for r in finished]
            rows.append([f"{name}/{label}", str(len(finished)), number(mean(seconds), ".0f")])
    described = "\n".join(f"- `{name}`: {group.says}, {group.seeds} seeds" for name, group in groups().items())
    return (
        f"## Set-up\n\nCommand: `scripts/study_digits.sh`. Groups of cells:\n\n{described}\n\n"
        f"From the finished cells:\n\n{lines}\n\n"
        "A cell takes its seed's evaluation of the starting model over from `none`. Wall seconds per cell, mean, "
        "whatever else the machine was doing:\n\n"
        f"{grid(['cells', 'finished', 'seconds'], rows)}"
    )


def _questions(result: Result) -> str:
    """How many questions each split has, in the order of `SPLITS`."""
    after = result.run.after
    return ", ".join(f"{len(after[split][GREEDY])} {split.replace('_', '-')}" for split in SPLITS if split in after)


def _commits(everything: Sequence[Result]) -> str:
    """The commits that the cells were made at; several are worth a look at what changed between them."""
    found = Counter(str(r.environment["commit"]) for r in everything)
    if len(found) == 1:
        return next(iter(found))
    listed = ", ".join(f"{commit} (cells: {count})" for commit, count in found.items())
    return f"{len(found)} different ones, comparable only if what changed between them changes no figure: {listed}"


def _repeats(everything: Sequence[Result]) -> str:
    """What `--repeat` found: cells run once more, whatever commit they were first made at."""
    found = [(r.cell.name, r.repeated) for r in everything if r.repeated is not None]
    if not found:
        return "no cell"
    same = [name for name, repeated in found if repeated["identical"]]
    commits = _listed(str(repeated["commit"]) for _, repeated in found)
    return (
        f"{len(found)} cells at commit {commits}, steps.jsonl and every verdict the same to the byte in {len(same)}: "
        f"{', '.join(name for name, _ in found)}"
    )


def _listed(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(values))


def _accuracies(main: Mapping[str, Sequence[Result]], maj: str) -> Iterator[str]:
    yield (
        "## Before and after\n\n"
        f"In percent, means over seeds, before → after. greedy: one response at temperature 0; pass@1: mean over the "
        f"samples; {maj}: the vote over them, whose value before adaptation is what voting gives without training. "
        "The last column, in points, says whether a single sampled answer of the adapted model is past that vote."
    )
    for split in SPLITS:
        held = [label for label, results in main.items() if all(split in r.run.after for r in results)]
        chosen = {label: main[label] for label in held}
        if chosen:
            yield f"### {split.replace('_', '-').capitalize()} questions\n\n{levels_table(chosen, split, maj)}"
            yield gains_table(chosen, split)
    yield (
        "Gains in points, paired by question and seed. Over seeds: Student's t over the seeds' mean gains (another "
        "seed, the same questions). Over questions: bootstrap over questions of the gain averaged over seeds (other "
        "questions, the same seeds). Claims use the wider of the two. Held-out questions show each digit image once; "
        "adapted questions share images, so their interval over questions is too narrow for other images."
    )
    yield f"### Seed by seed, adapted pass@1 after\n\n{per_seed_table(main, 'adapted')}"


def _comparisons(main: Mapping[str, Sequence[Result]]) -> Iterator[str]:
    yield (
        "## Methods against each other\n\nDifferences after adaptation in points, paired by seed, with 95 % intervals "
        "of Student's t over the seeds; not corrected for their number. `oracle` reads the labels: a control, "
        "not a method."
    )
    for reference in ("ttrl", "random-mask"):
        yield f"### Against {reference}\n\n{against(main, reference)}"


def _mechanics(main: Mapping[str, Sequence[Result]], drawn: Sequence[str]) -> Iterator[str]:
    yield (
        "## What the updates did\n\nUpdate and gradient norms (of all trainable weights; the gradient before "
        "clipping), and the share of tokens in the policy term, in percent, are means over steps and seeds. Direct and "
        "reasoned: shares of the training rollouts that answer at once or read the digits first, in percent, first "
        "step → last. "
        "The switch is the first step whose direct share is below half of step 0's: median over the seeds that have "
        f"one (range; how many).\n\n{updates_table(main)}"
    )
    yield (
        "The training rollouts, first step → last: share of the winning answer, votes that are right (label accuracy), "
        "rewards equal to those the truth would give (reward accuracy), unparsed responses, all in percent; length in "
        f"tokens; entropy in nats per token.\n\n{votes_table(main)}"
    )
    if "main" in drawn:
        yield _figure("main")


def _figure(name: str) -> str:
    return (
        f"![Length, vote share, entropies, unparsed and direct shares per step, {name}](digits_{name}.png)\n\n"
        f"Training rollouts per step, {name}: mean over seeds, band from the lowest seed to the highest. The top 20 % "
        "are the tokens of highest entropy of each response, whichever tokens the method trains."
    )


def _small_group(name: str, results: Results, drawn: Sequence[str]) -> str:
    group, says = results[name], groups()[name].says
    title = f"## {name}: {says}"
    if not any(label != BASE for label in group):
        return f"{title}\n\nNo cell is finished."
    parts = [title, what_happened(group), cells_table(group, results["main"])]
    parts += [
        "Accuracies in percent, before → after; gains in points, 95 % interval over questions; the last column is "
        "adapted pass@1 after of the cell of `main` with that method and seed. Steps, first → last, as above:"
    ]
    return "\n\n".join([*parts, collapse_table(group), *([_figure(name)] if name in drawn else [])])
