"""Compare finished runs, from their output folders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich import box
from rich.markup import escape
from rich.table import Table

from mm_spine.files import fingerprint
from mm_spine.intervals import Interval
from mm_spine.measures import GREEDY, LABELS, MAJ_AT_N, PASS_AT_1, majority_label
from mm_spine.reporting import formats
from mm_spine.reporting.contrasts import Contrast, contrasts, partner_of
from mm_spine.reporting.finished_run import (
    SPLITS,
    FinishedRun,
    UnfinishedRun,
    load_run,
    mean_of,
    paired_difference,
)
from mm_spine.reporting.formats import Pair
from mm_spine.reporting.measured import Measured, mean_gain, mean_measured, mean_pair, measure
from mm_spine.words import visible_line


@dataclass(frozen=True)
class ComparisonRow:
    """One row of the comparison: one run on one split, or the mean of a method over seeds.

    A folder without a finished run has a row, too: its `split` is None, and `note` says why.

    Attributes:
        seed: None for a mean over seeds.
        questions, samples, seeds: how many questions, votes per question, and seeds the row is of.
        greedy, pass_at_1, maj_at_n: shares before and after, in [0, 1].
        greedy_gain, pass_at_1_gain: differences paired by question, or the mean difference over seeds. The interval
            is a bootstrap over questions for one run, and Student's t over the seeds for a mean.
        against_first: paired difference in adapted pass@1 to the run of the first method with the same seed.
        measured: pass@k, how the answers vary, and what was learnt and corrupted.
        code: version and commit of the code that ran it; "" where an older version wrote none, and for a mean.
        note: what the row lacks.
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
    measured: Measured = field(default_factory=Measured)
    code: str = ""
    note: str = ""

    @property
    def seed_text(self) -> str:
        """The seed, or the number of seeds that the row is the mean of."""
        return f"{self.seeds} seeds" if self.seed is None else str(self.seed)

    @property
    def method_text(self) -> str:
        """The method's name, marked where it reads labels."""
        return self.method if self.label_free else f"{self.method} (uses labels)"


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        rows: by split: the runs in the order given, then the means over seeds; unfinished runs last.
        contrasts: the methods against the starting model's vote, or against a chosen run, with tests.
        reference: the method that `against_first` of the rows compares with.
    """

    rows: Sequence[ComparisonRow]
    contrasts: Sequence[Contrast]
    reference: str

    @property
    def compared(self) -> list[ComparisonRow]:
        """The rows of finished runs."""
        return [row for row in self.rows if row.split]

    def contrast_of(self, row: ComparisonRow) -> Contrast | None:
        """Return the contrast that belongs to a row: of several seeds the mean's."""
        seeds = 1 if row.seed is not None else row.seeds
        for contrast in self.contrasts:
            if (contrast.split, contrast.method, len(contrast.seeds)) == (row.split, row.method, seeds):
                return contrast if row.seed is None or row.seed in contrast.seeds else None
        return None


def compare_runs(paths: Sequence[Path], against: Path | None = None) -> Comparison:
    """Compare the runs in the folders `paths`, and test the differences to the run in `against` where it is given.

    Raises ValueError when no run is given, when finished runs differ in their benchmark, model or questions, or when
    `against` holds no finished run.
    """
    if not paths:
        raise ValueError("no run to compare; give the output folders of one or more runs")
    paths = with_reference(paths, against)
    loaded = [load_run(path) for path in paths]
    reference = None if against is None else _finished_reference(against, paths, loaded)
    finished = [run for run in loaded if isinstance(run, FinishedRun)]
    unfinished = [run for run in loaded if isinstance(run, UnfinishedRun)]
    _refuse_mixed(finished, lambda run: run.summary["benchmark"], "benchmark")
    _refuse_mixed(finished, lambda run: run.summary["model"], "model")
    _refuse_other_data(finished)
    rows = []
    for split in SPLITS:
        with_split = [run for run in finished if split in run.after]
        if with_split:
            rows += _rows_of_split(with_split, split, reference)
    for run in unfinished:
        rows.append(ComparisonRow(run.name, run.name, seed=None, split=None, note=visible_line(run.reason)))
    several = len({run.method for run in finished}) > 1
    first = reference.method if reference else finished[0].method if several else ""
    return Comparison(rows, contrasts(finished, reference), first)


def of_paper(rows: Sequence[ComparisonRow]) -> list[ComparisonRow]:
    """Return of the rows of a split the mean of a method with several seeds, else its runs."""
    averaged = {row.method for row in rows if row.seed is None}
    return [row for row in rows if row.seed is None or row.method not in averaged]


def with_reference(paths: Sequence[Path], against: Path | None) -> list[Path]:
    """Return the runs to compare, with the reference first where it is not among them."""
    if against is None or against.resolve() in [path.resolve() for path in paths]:
        return list(paths)
    return [against, *paths]


def _finished_reference(
    against: Path, paths: Sequence[Path], loaded: Sequence[FinishedRun | UnfinishedRun]
) -> FinishedRun:
    place = [path.resolve() for path in paths].index(against.resolve())
    found = loaded[place]
    if isinstance(found, UnfinishedRun):
        raise ValueError(f"--against {against}: {found.reason}; give the folder of a finished run")
    return found


def comparison_table(comparison: Comparison) -> Table:
    """Return the comparison as a table for the terminal, in percent."""
    rows, compared = comparison.rows, comparison.compared
    table = Table(title=_title(compared), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.caption, table.caption_justify = escape("\n".join(comparison_notes(rows))), "left"
    widest_split = max((len(row.split) for row in compared if row.split), default=0)
    table.add_column("method", overflow="fold", min_width=widest_split)
    for name in ("seed", LABELS[GREEDY], LABELS[PASS_AT_1], majority_header(compared)):
        table.add_column(name, justify="right", no_wrap=True)
    if first := comparison.reference:
        table.add_column(f"pass@1 against\n{escape(first)}", justify="right", no_wrap=True)
    for split in dict.fromkeys(row.split for row in compared):
        of_split = [row for row in compared if row.split == split]
        table.add_row(f"[bold]{split}[/bold]", f"n={of_split[0].questions}")
        for row in of_split:
            table.add_row(*map(escape, _cells(row)[: len(table.columns)]))
        table.add_section()
    return table


def majority_header(compared: Sequence[ComparisonRow]) -> str:
    """Return the vote's name, with the number of votes when it is the same in all rows."""
    samples = {row.samples for row in compared}
    return majority_label(samples.pop() if len(samples) == 1 else None)


def comparison_notes(rows: Sequence[ComparisonRow]) -> list[str]:
    """Say what the intervals mean, what single rows lack, and whether other code made some of the runs."""
    notes = ["[low, high]: 95 % interval, over questions for one run, over seeds for several"]
    if any(row.split and row.seed is None for row in rows):
        notes.append("over seeds: what another seed would do on these questions, not what other questions would")
    for row in rows:
        if row.split and row.note:
            seed = row.seed_text if row.seed is None else f"seed {row.seed}"
            notes.append(f"{row.method}, {seed}, {row.split}: {row.note}")
    notes += _code_notes(rows)
    notes += [f"not compared: {row.run}: {row.note}" for row in rows if row.split is None]
    return notes


def _code_notes(rows: Sequence[ComparisonRow]) -> Iterator[str]:
    """Warn where the runs were not all made by the same code."""
    runs_of: dict[str, list[str]] = {}
    for run, code in {row.run: row.code for row in rows if row.code}.items():
        runs_of.setdefault(code, []).append(run)
    if len(runs_of) > 1:
        found = "; ".join(f"{', '.join(runs)} by {code}" for code, runs in runs_of.items())
        yield f"different code made these runs, so their results may differ for that reason: {found}"


def _refuse_mixed(runs: Sequence[FinishedRun], value: Callable[[FinishedRun], object], what: str) -> None:
    first_with: dict[object, str] = {}
    for run in runs:
        first_with.setdefault(value(run), run.name)
    if len(first_with) > 1:
        found = ", ".join(f"{name} has {each!r}" for each, name in first_with.items())
        raise ValueError(f"these runs cannot be compared, their {what} differs: {found}; compare them apart")


def _refuse_other_data(runs: Sequence[FinishedRun]) -> None:
    """Raise ValueError naming what differs between the runs' weights, questions or answers, by their fingerprints."""
    # An older version wrote no fingerprint: such a run is compared by its questions' ids only.
    known = [(run, found) for run in runs if (found := fingerprint.read(run.path)) is not None]
    for run, found in known[1:]:
        first, start = known[0]
        if problem := next(fingerprint.differences(start, found, shared_only=True), None):
            raise ValueError(
                f"{first.name} and {run.name} cannot be compared: {problem} between them; compare runs of "
                "the same data and model"
            )


def _refuse_other_questions(runs: Sequence[FinishedRun], split: str) -> None:
    first = runs[0].after[split][GREEDY].keys()
    for run in runs[1:]:
        if in_one_only := first ^ run.after[split][GREEDY].keys():
            raise ValueError(
                f"{runs[0].name} and {run.name} cannot be compared: {len(in_one_only)} {split} questions "
                f"are in one of them only, first {min(in_one_only)!r}; compare runs of the same questions"
            )


def _rows_of_split(runs: Sequence[FinishedRun], split: str, reference: FinishedRun | None) -> list[ComparisonRow]:
    _refuse_other_questions(runs, split)
    first = reference if reference is not None and reference in runs else runs[0]
    rows = [_row(run, partner_of(run, first, runs), first.method, split) for run in runs]
    # Two runs of one method and seed differ in other settings: their folders tell them apart.
    pairs = [(row.method, row.seed) for row in rows]
    named = [
        replace(row, method=f"{row.method} ({row.run})") if pairs.count(pair) > 1 else row
        for row, pair in zip(rows, pairs, strict=True)
    ]
    return [*named, *_means_over_seeds(rows)]


def _row(run: FinishedRun, reference: FinishedRun | None, first: str, split: str) -> ComparisonRow:
    before, after, start = run.before[split], run.after[split], fingerprint.read(run.path)
    against_first = None
    if reference is not None and reference is not run:
        against_first = paired_difference(reference.after[split][PASS_AT_1], after[PASS_AT_1])
    return ComparisonRow(
        run=run.name,
        method=run.method,
        seed=run.seed,
        split=split,
        benchmark=visible_line(str(run.summary["benchmark"])),
        model=visible_line(str(run.summary["model"])),
        code="" if start is None else fingerprint.code_words(start),
        label_free=bool(run.summary["label_free"]),
        # Where only some questions have a gold answer, the figures are of those.
        questions=sum(score is not None for score in after[GREEDY].values()) or len(after[GREEDY]),
        samples=run.samples,
        seeds=1,
        greedy=(mean_of(before[GREEDY]), mean_of(after[GREEDY])),
        pass_at_1=(mean_of(before[PASS_AT_1]), mean_of(after[PASS_AT_1])),
        maj_at_n=(mean_of(before[MAJ_AT_N]), mean_of(after[MAJ_AT_N])),
        greedy_gain=paired_difference(before[GREEDY], after[GREEDY]),
        pass_at_1_gain=paired_difference(before[PASS_AT_1], after[PASS_AT_1]),
        against_first=against_first,
        measured=measure(before, after, run.samples),
        note=f"no {first} run with seed {run.seed}" if reference is None else "",
    )


def _means_over_seeds(rows: Sequence[ComparisonRow]) -> Iterator[ComparisonRow]:
    """Yield a mean row for each method that is given with several seeds, each of them once."""
    for method in dict.fromkeys(row.method for row in rows):
        group = [row for row in rows if row.method == method]
        if len(group) > 1 and len({row.seed for row in group}) == len(group):
            yield _mean_row(group)


def _mean_row(group: Sequence[ComparisonRow]) -> ComparisonRow:
    unmatched = sum(bool(row.note) for row in group)
    return replace(
        group[0],
        run="",
        code="",
        seed=None,
        seeds=len(group),
        label_free=all(row.label_free for row in group),
        greedy=mean_pair([row.greedy for row in group]),
        pass_at_1=mean_pair([row.pass_at_1 for row in group]),
        maj_at_n=mean_pair([row.maj_at_n for row in group]),
        greedy_gain=mean_gain([row.greedy_gain for row in group]),
        pass_at_1_gain=mean_gain([row.pass_at_1_gain for row in group]),
        measured=mean_measured([row.measured for row in group]),
        against_first=mean_gain([row.against_first for row in group]),
        note=f"{unmatched} of {len(group)} seeds have no partner" if unmatched else "",
    )


def _cells(row: ComparisonRow) -> tuple[str, ...]:
    return (
        row.method_text,
        row.seed_text,
        f"{formats.pair(row.greedy)}\n{formats.gain(row.greedy_gain)}",
        f"{formats.pair(row.pass_at_1)}\n{formats.gain(row.pass_at_1_gain)}",
        formats.pair(row.maj_at_n),
        formats.gain(row.against_first),
    )


def _title(compared: Sequence[ComparisonRow]) -> str | None:
    if not compared:
        return None
    return escape(f"{compared[0].benchmark}, {compared[0].model}: before → after, paired difference, in percent")
