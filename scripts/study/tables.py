"""Write the study's figures as text: numbers, differences with their intervals, and the tables of the page."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from cells import BASE
from results import (
    Difference,
    Result,
    Results,
    detectable,
    difference,
    gain,
    known,
    paired,
    seed_differences,
    verdict,
)

from mm_spine.intervals import Interval, over_seeds
from mm_spine.measures import GREEDY, LABELS, MAJ_AT_N, PASS_AT_1
from mm_spine.reporting.finished_run import SPLITS

NONE = "–"


def number(value: float | None, form: str = ".1f", scale: float = 1.0) -> str:
    return NONE if value is None or not np.isfinite(value) else format(scale * value, form)


def percent(value: float | None) -> str:
    return number(value, scale=100)


def arrow(values: Iterable[float | None], form: str = ".1f", scale: float = 1.0) -> str:
    return " → ".join(number(value, form, scale) for value in values)


def points(interval: Interval | None) -> str:
    """Write a difference in percentage points with its interval."""
    if interval is None:
        return NONE
    value = number(interval.value, "+z.1f", 100)
    bounds = interval.low is not None and interval.high is not None
    return f"{value} {limits(interval)}" if bounds else value


def limits(interval: Interval) -> str:
    return (
        NONE if interval.low is None else f"[{number(interval.low, '+.1f', 100)}, {number(interval.high, '+.1f', 100)}]"
    )


def grid(header: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """Write a Markdown table: the first `words` columns are words, the others figures, aligned to the right."""
    lines = [header, ["---"] * words + ["---:"] * (len(header) - words), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def mean(values: Iterable[float | None]) -> float | None:
    """Average the known, finite values; None without one."""
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known else None


def ends(results: Sequence[Result], key: str) -> tuple[float | None, float | None]:
    """Average a trace's first and last step over seeds."""
    traces = [trace for r in results if len(trace := r.trace(key))]
    return mean(trace[0] for trace in traces), mean(trace[-1] for trace in traces)


def votes_of(results: Results) -> str:
    """Write maj@N with the N of the finished cells."""
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


def against(main: Mapping[str, Sequence[Result]], reference: str) -> str:
    """Compare every method with `reference` after adaptation, and say what this number of seeds can detect."""
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
    """Write the median and range of the step of the switch, and how many seeds switch."""
    found = [step for r in results if (step := r.switch()) is not None]
    if not found:
        return f"never (0 of {len(results)})"
    return f"{np.median(found):g} ({_span(found)}; {len(found)} of {len(results)})"


def updates_table(main: Mapping[str, Sequence[Result]]) -> str:
    rows = [
        [
            label,
            number(mean(np.nanmean(r.trace("update_norm")) for r in results if known(r, "update_norm")), ".3g"),
            number(mean(np.nanmean(r.trace("grad_norm")) for r in results if known(r, "grad_norm")), ".3g"),
            percent(mean(np.nanmean(r.trace("selected_share")) for r in results if known(r, "selected_share"))),
            arrow(ends(results, "direct"), scale=100),
            arrow(ends(results, "reasoned"), scale=100),
            switches(results),
        ]
        for label, results in main.items()
        if label != BASE
    ]
    header = ["method", "update norm", "gradient norm", "tokens trained", "direct", "reasoned", "switch at step"]
    return grid(header, rows)


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
    """Write one line per cell of a small group, beside the cell of `main` with the same method and seed."""
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
    """Write how each cell of a small group changed from the first step to the last."""
    rows = []
    for result in [r for label, results in group.items() if label != BASE for r in results]:
        step = result.switch()
        unparsed = result.trace("unparsed")
        rows.append(
            [
                result.cell.label,
                str(result.cell.seed),
                *(arrow(ends([result], key), form, scale) for _, key, form, scale in TRACES[:-1]),
                percent(float(np.nanmax(unparsed))) if known(result, "unparsed") else NONE,
                _best(result),
                arrow(ends([result], "direct"), scale=100),
                "never" if step is None else str(step),
            ]
        )
    traced = [name for name, *_ in TRACES[:-1]]
    return grid(["method", "seed", *traced, "most unparsed", "best label accuracy", "direct", "switch at step"], rows)


def _best(result: Result) -> str:
    if not known(result, "label_accuracy"):
        return NONE
    trace = result.trace("label_accuracy")
    return f"{percent(float(np.nanmax(trace)))} at step {int(np.nanargmax(trace))}"


def what_happened(group: Mapping[str, Sequence[Result]]) -> str:
    """Count the cells of a small group that rose, fell and switched."""
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
