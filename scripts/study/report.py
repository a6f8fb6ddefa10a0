"""Write the page of the study: its tables and curves, and sentences that follow from the intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from cells import BASE, COMMON, cells, groups
from curves import draw
from results import (
    Result,
    Results,
    gain,
    load,
    paired,
    seed_differences,
    verdict,
)
from tables import (
    COLUMNS,
    against,
    cells_table,
    collapse_table,
    gains_table,
    grid,
    levels_table,
    mean,
    number,
    per_seed_table,
    points,
    updates_table,
    votes_of,
    votes_table,
    what_happened,
)

from mm_spine.intervals import over_seeds
from mm_spine.measures import GREEDY, LABELS, PASS_AT_1
from mm_spine.reporting.finished_run import SPLITS


def gather(output: Path, extra: Sequence[str] = ()) -> tuple[dict[str, dict[str, list[Result]]], dict[str, str]]:
    """Return the finished cells by group and label, and for every other cell the reason."""
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
    """Write `digits.md` and its curves from the finished cells; return the path of the page."""
    finished, absent = gather(output, extra)
    results_folder.mkdir(parents=True, exist_ok=True)
    for old in results_folder.glob("digits_*.png"):
        old.unlink()
    drawn = [name for name in finished if draw(finished[name], results_folder / f"digits_{name}.png")]
    path = results_folder / "digits.md"
    path.write_text(report(finished, absent, drawn, extra))
    return path


def report(results: Results, absent: Mapping[str, str], drawn: Sequence[str], extra: Sequence[str] = ()) -> str:
    """Write the text. Every figure in it is computed, and its sentences follow from the intervals."""
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
        "KL": "none: `configs/digits.yaml` sets `method.kl: none` for every method, whatever its row says",
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
    """Say how many questions each split has, in the order of `SPLITS`."""
    after = result.run.after
    return ", ".join(f"{len(after[split][GREEDY])} {split.replace('_', '-')}" for split in SPLITS if split in after)


def _commits(everything: Sequence[Result]) -> str:
    """Name the commits that the cells were made at, and warn if there are several."""
    found = Counter(str(r.environment["commit"]) for r in everything)
    if len(found) == 1:
        return next(iter(found))
    listed = ", ".join(f"{commit} (cells: {count})" for commit, count in found.items())
    return f"{len(found)} different ones, comparable only if what changed between them changes no figure: {listed}"


def _repeats(everything: Sequence[Result]) -> str:
    """Say what `--repeat` found for the cells that were run a second time."""
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
