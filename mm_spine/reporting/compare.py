"""Finished runs side by side, from their output folders alone.

Every figure is recomputed from the saved verdicts of each item, so that no label and no grader is needed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from mm_spine.files import read_json, read_json_lines
from mm_spine.intervals import Interval, bootstrap_ci, over_seeds

SPLITS = ("adapted", "held_out")
GREEDY, PASS_AT_1, MAJ_AT_N = "greedy", "pass@1", "maj@N"
NEEDED = ("benchmark", "method", "model", "seed", "label_free")

Pair = tuple[float | None, float | None]
"""A share before and after, None without gold answers."""

Scores = Mapping[str, Mapping[str, float | None]]
"""Measure -> question id -> score in [0, 1], None without a gold answer; one split of one evaluation file."""


def _greedy(item: Mapping[str, Any]) -> float | None:
    return None if item["greedy"] is None else item["greedy"]["score"]


def _pass_at_1(item: Mapping[str, Any]) -> float | None:
    return None if item["verdicts"] is None else float(np.mean([verdict["score"] for verdict in item["verdicts"]]))


def _maj_at_n(item: Mapping[str, Any]) -> float | None:
    return item["vote_score"]


MEASURES: Mapping[str, Callable[[Mapping[str, Any]], float | None]] = {
    GREEDY: _greedy,
    PASS_AT_1: _pass_at_1,
    MAJ_AT_N: _maj_at_n,
}


@dataclass(frozen=True)
class Run:
    """What `compare` reads of one finished output folder."""

    path: Path
    summary: Mapping[str, Any]
    samples: int
    before: Mapping[str, Scores]
    after: Mapping[str, Scores]

    @property
    def cell(self) -> tuple[str, int]:
        return str(self.summary["method"]), int(self.summary["seed"])


@dataclass(frozen=True)
class Row:
    """One line of the comparison: one run on one split, the mean over seeds, or an unfinished run and its reason.

    Pairs are in [0, 1]. Of one run, intervals resample questions; of a mean (`seed` None), they are Student's t over
    the seeds' differences. `against_first` is the paired difference of the adapted pass@1 to that of the run with
    the same seed of the method named first.
    """

    run: str
    method: str
    seed: int | None
    split: str | None
    benchmark: str = ""
    model: str = ""
    label_free: bool = True
    questions: int = 0
    samples: int = 0
    seeds: int = 0
    greedy: Pair = (None, None)
    pass_at_1: Pair = (None, None)
    maj_at_n: Pair = (None, None)
    greedy_gain: Interval | None = None
    pass_at_1_gain: Interval | None = None
    against_first: Interval | None = None
    note: str = ""


def rows(runs: Sequence[Path]) -> list[Row]:
    """The comparison as data: by split, runs in the order given, then the means over seeds, then unfinished runs.

    Raises ValueError when no run is given, or when finished runs are of different benchmarks, models or questions.
    """
    if not runs:
        raise ValueError("no run to compare; give the output folders of one or more runs")
    loaded = [load(path) for path in runs]
    finished = [run for run in loaded if isinstance(run, Run)]
    _refuse_mixed(finished, lambda run: run.summary["benchmark"], "benchmark")
    _refuse_mixed(finished, lambda run: run.summary["model"], "model")
    splits = [split for split in SPLITS if any(split in run.after for run in finished)]
    compared = [row for split in splits for row in _split_rows(finished, split)]
    return [*compared, *(row for row in loaded if isinstance(row, Row))]


def load(path: Path) -> Run | Row:
    """A finished run, or a row that says why it is not one."""
    if not path.is_dir():
        return _unfinished(path, "no such folder")
    if not (path / "summary.json").exists():
        return _unfinished(path, "unfinished: no summary.json")
    try:
        summary = read_json(path / "summary.json")
        if missing := [name for name in NEEDED if name not in dict(summary)]:
            return _unfinished(path, f"summary.json has no {', '.join(missing)}")
        before, after = (read_json_lines(path / "evaluation" / f"{when}.jsonl") for when in ("before", "after"))
        return _run(path, summary, before, after)
    except FileNotFoundError as error:
        return _unfinished(path, f"unfinished: no {Path(error.filename).relative_to(path)}")
    except (ValueError, OSError) as error:
        return _unfinished(path, str(error))
    except (KeyError, TypeError) as error:
        return _unfinished(path, f"written by another version ({error!r})")


def compare(runs: Sequence[Path]) -> Table:
    """`rows(runs)` as a text table, in percent; raises what `rows` raises."""
    lines = rows(runs)
    compared = [row for row in lines if row.split]
    table = Table(title=_title(compared), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.caption, table.caption_justify = escape("\n".join(notes(lines))), "left"
    table.add_column(
        "method", overflow="fold", min_width=max((len(row.split) for row in compared if row.split), default=0)
    )
    for name in ("seed", "greedy", "pass@1", maj_header(compared)):
        table.add_column(name, justify="right", no_wrap=True)
    if len({row.method for row in compared}) > 1:
        table.add_column(f"pass@1 against\n{escape(compared[0].method)}", justify="right", no_wrap=True)
    for split in dict.fromkeys(row.split for row in compared):
        section = [row for row in compared if row.split == split]
        table.add_row(f"[bold]{split}[/bold]", f"n={section[0].questions}")
        for row in section:
            table.add_row(*map(escape, _cells(row)[: len(table.columns)]))
        table.add_section()
    return table


def _run(
    path: Path, summary: Mapping[str, Any], before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> Run:
    asked, answered = ({(row["split"], row["id"]) for row in items} for items in (before, after))
    if not answered or asked != answered:
        raise ValueError(f"before.jsonl has {len(asked)} questions and after.jsonl {len(answered)}, not the same ones")
    old, new = (
        {split: _scores(items, split) for split in {split for split, _ in answered}} for items in (before, after)
    )
    return Run(path, summary, len(after[0]["texts"]), old, new)


def _scores(items: Sequence[Mapping[str, Any]], split: str) -> Scores:
    chosen = [row for row in items if row["split"] == split]
    found = {name: {row["id"]: measure(row) for row in chosen} for name, measure in MEASURES.items()}
    for name, scores in found.items():
        if odd := [key for key, score in scores.items() if score is not None and not np.isfinite(score)]:
            raise ValueError(f"question {odd[0]!r}: its {name} is no number; evaluate again")
    return found


def _unfinished(path: Path, why: str) -> Row:
    return Row(run=path.name, method=path.name, seed=None, split=None, note=why)


def _refuse_mixed(runs: Sequence[Run], value: Callable[[Run], object], what: str) -> None:
    found: dict[object, str] = {}
    for run in runs:
        found.setdefault(value(run), run.path.name)
    if len(found) > 1:
        named = ", ".join(f"{name} has {each!r}" for each, name in found.items())
        raise ValueError(f"these runs cannot be compared, their {what} differs: {named}; compare them apart")


def _refuse_other_questions(runs: Sequence[Run], split: str) -> None:
    first = runs[0].after[split][GREEDY].keys()
    for run in runs[1:]:
        if odd := first ^ run.after[split][GREEDY].keys():
            raise ValueError(
                f"{runs[0].path.name} and {run.path.name} cannot be compared: {len(odd)} {split} questions are in one "
                f"of them only, first {min(odd)!r}; compare runs of the same questions"
            )


def _split_rows(runs: Sequence[Run], split: str) -> list[Row]:
    """The runs of one split against the first one's method, then the mean over seeds of each method."""
    present = [run for run in runs if split in run.after]
    _refuse_other_questions(present, split)
    first = present[0].cell[0]
    references = {run.cell[1]: run for run in reversed(present) if run.cell[0] == first}
    single = [_row(run, references.get(run.cell[1]), first, split) for run in present]
    return [*_told_apart(single), *_means(single)]


def _row(run: Run, reference: Run | None, first: str, split: str) -> Row:
    before, after = run.before[split], run.after[split]
    method, seed = run.cell
    other = reference is not run
    return Row(
        run=run.path.name,
        method=method,
        seed=seed,
        split=split,
        benchmark=str(run.summary["benchmark"]),
        model=str(run.summary["model"]),
        label_free=bool(run.summary["label_free"]),
        questions=len(after[GREEDY]),
        samples=run.samples,
        seeds=1,
        greedy=(_mean(before[GREEDY]), _mean(after[GREEDY])),
        pass_at_1=(_mean(before[PASS_AT_1]), _mean(after[PASS_AT_1])),
        maj_at_n=(_mean(before[MAJ_AT_N]), _mean(after[MAJ_AT_N])),
        greedy_gain=paired(before[GREEDY], after[GREEDY]),
        pass_at_1_gain=paired(before[PASS_AT_1], after[PASS_AT_1]),
        against_first=paired(reference.after[split][PASS_AT_1], after[PASS_AT_1]) if reference and other else None,
        note=f"no {first} run with seed {seed}" if reference is None else "",
    )


def _mean(scores: Mapping[str, float | None]) -> float | None:
    values = [score for score in scores.values() if score is not None]
    return float(np.mean(values)) if values else None


def paired(before: Mapping[str, float | None], after: Mapping[str, float | None]) -> Interval | None:
    """Mean of after - before over the labelled questions, with the percentile bootstrap of `evaluation`; None without
    any."""
    pairs = [(old, after[name]) for name, old in before.items()]
    values = np.array([new - old for old, new in pairs if old is not None and new is not None])
    if values.size == 0:
        return None
    bounds = (None, None) if values.size == 1 else bootstrap_ci(values)
    return Interval(float(values.mean()), *bounds)


def _told_apart(single: Sequence[Row]) -> Iterator[Row]:
    """Two runs of one method and seed (other settings) are named by their folders."""
    cells = [(row.method, row.seed) for row in single]
    for row, cell in zip(single, cells, strict=True):
        yield replace(row, method=f"{row.method} ({row.run})") if cells.count(cell) > 1 else row


def _means(single: Sequence[Row]) -> Iterator[Row]:
    """The mean over seeds, for each method given with several seeds and each seed once."""
    for method in dict.fromkeys(row.method for row in single):
        group = [row for row in single if row.method == method]
        if len(group) > 1 and len({row.seed for row in group}) == len(group):
            yield _mean_row(group)


def _mean_row(group: Sequence[Row]) -> Row:
    unmatched = sum(bool(row.note) for row in group)
    return replace(
        group[0],
        run="",
        seed=None,
        seeds=len(group),
        label_free=all(row.label_free for row in group),
        greedy=_mean_pair([row.greedy for row in group]),
        pass_at_1=_mean_pair([row.pass_at_1 for row in group]),
        maj_at_n=_mean_pair([row.maj_at_n for row in group]),
        greedy_gain=_over_seeds([row.greedy_gain for row in group]),
        pass_at_1_gain=_over_seeds([row.pass_at_1_gain for row in group]),
        against_first=_over_seeds([row.against_first for row in group]),
        note=f"{unmatched} of {len(group)} seeds have no partner" if unmatched else "",
    )


def _over_seeds(intervals: Sequence[Interval | None]) -> Interval | None:
    """Two levels: each seed's paired difference over questions, then mean and Student's t over the seeds (n - 1).

    It says what another seed would do on the same questions; a run's own interval says what other questions would.
    """
    values = [interval.value for interval in intervals if interval is not None]
    return over_seeds(values) if values else None


def _mean_pair(pairs: Sequence[Pair]) -> Pair:
    columns = [[value for value in column if value is not None] for column in zip(*pairs, strict=True)]
    before, after = (float(np.mean(column)) if column else None for column in columns)
    return before, after


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.method if row.label_free else f"{row.method} (uses labels)",
        shown_seed(row),
        f"{shown_pair(row.greedy)}\n{shown_gain(row.greedy_gain)}",
        f"{shown_pair(row.pass_at_1)}\n{shown_gain(row.pass_at_1_gain)}",
        shown_pair(row.maj_at_n),
        shown_gain(row.against_first),
    )


def shown_seed(row: Row) -> str:
    """The seed, or how many the row is the mean of."""
    return f"{row.seeds} seeds" if row.seed is None else str(row.seed)


def _named_seed(row: Row) -> str:
    return shown_seed(row) if row.seed is None else f"seed {row.seed}"


def shown_pair(values: Pair) -> str:
    """Before and after in percent."""
    return " → ".join("–" if value is None else f"{100 * value:.1f}" for value in values)


def shown_gain(gain: Interval | None) -> str:
    """A difference in percentage points, its interval on a line of its own."""
    if gain is None:
        return "–"
    return "\n".join(filter(None, (signed(gain.value), bounds(gain))))


def signed(share: float) -> str:
    """A difference in percentage points, one decimal; what rounds to nothing has no minus."""
    return f"{round(100 * share, 1) + 0.0:+.1f}"


def bounds(gain: Interval) -> str:
    """The interval of a difference in percentage points; empty where there is none."""
    return "" if gain.low is None or gain.high is None else f"[{signed(gain.low)}, {signed(gain.high)}]"


def maj_header(compared: Sequence[Row]) -> str:
    """The vote's name, with its size where all rows share one."""
    samples = {row.samples for row in compared}
    return f"maj@{samples.pop()}" if len(samples) == 1 else "maj@N"


def _title(compared: Sequence[Row]) -> str | None:
    if not compared:
        return None
    return escape(f"{compared[0].benchmark}, {compared[0].model}: before → after, paired difference, in percent")


def notes(lines: Sequence[Row]) -> list[str]:
    """What the intervals are, and what each row lacks."""
    said = ["[low, high]: 95 % interval, over questions for one run, over seeds for several"]
    if any(row.split and row.seed is None for row in lines):
        said += ["over seeds: what another seed would do on these questions, not what other questions would"]
    said += [f"{row.method}, {_named_seed(row)}, {row.split}: {row.note}" for row in lines if row.split and row.note]
    said += [f"not compared: {row.run}: {row.note}" for row in lines if row.split is None]
    return said
