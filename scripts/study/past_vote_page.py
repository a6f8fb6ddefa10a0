"""Write the page about ways past the starting vote on `digits`, from finished cells and graded pseudo-labels alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from cells import BASE, digits_config
from joint_votes import Joint
from past_vote import (
    ARMS,
    CHOSEN,
    COMMAND,
    REFERENCES,
    SEEDS,
    TRIALS,
    graded_labels,
    labels_name,
    table_cell,
    tune_cell,
    votes_name,
)
from past_vote_labels import COMPLETIONS
from results import Result, difference, load, paired, seed_differences, verdict
from tables import COLUMNS, NONE, grid, mean, percent, points

from mm_spine.files import read_json
from mm_spine.intervals import Interval, over_seeds
from mm_spine.measures import GREEDY, LABELS, MAJ_AT_N, PASS_AT_1
from mm_spine.reporting.finished_run import SPLITS

INTRODUCTION = (
    "Adaptation by the vote of the model's own samples ends near that vote ([the study](digits.md)): it cannot teach "
    "what most samples get wrong. This page tries ways past it that read no label. All of them were tried, tuned and "
    "chosen on `tune` (questions 0 to 255, built like those of `adapt` from other images), the only split whose labels "
    "may be used for that. What was chosen ran once on `adapt` and `held_out`, after the choice was committed."
)

IDEA = (
    "On `digits` most wrong votes are digits misread in nearly every sample: on `tune`, most 9s of one shape are read "
    "as 3. More votes, or weights of votes, repeat the error. The labels of `joint-16` join what the samples say:\n\n"
    "1. 16 rollouts a question. A response that reasons names what it reads in its first sentence: one digit for each "
    "image token. Readings are pooled over the questions about one image.\n"
    f"2. Cells of images that look alike to the frozen tower (cosine, {Joint().k} neighbours) share their readings: "
    f"p <- {1 - Joint().weight:.1f} p_0 + {Joint().weight:.1f} S p.\n"
    f"3. Shares to the power of {Joint().power:g} are scaled until all ten digits are read equally often (Sinkhorn).\n"
    f'4. The model goes on from "I see 9 1.", the likeliest reading z*, and the vote of {COMPLETIONS} such '
    "completions is the answer y*.\n\n"
    "`joint` then trains with r_i = 1[answer_i = y*] in place of the vote, `joint-reading` with "
    "r_i = 1[answer_i = y*] + 1[reading_i = z*]. The labels are made once, by the starting model; they cost 32 "
    "rollouts a question.\n\n"
    "What this knows of the task, and a vote does not: that a response begins with one digit for each image token, "
    "that several questions share an image, and that **all digits are about equally frequent**. The last holds "
    "exactly for `tune` and `adapt`, which are built so, and is an assumption elsewhere. No answer, no arithmetic and "
    "no label is used. Neighbours, their weight and the power were chosen among 3 x 4 x 2 "
    "by the labels of `tune`. Smoothing over neighbours: Zhou et al. 2004; equal frequency: arXiv 1911.05371, and a "
    "term of arXiv 2002.08546. The whole is ours, and no method of the package: it reads the responses of this model."
)

VOTES = (
    "How often the answer of a rule is right, in percent. *weighed*: votes count by the joint share of their reading, "
    "squared; *answered*: step 4 above. The last column leaves out every image that shows a 0 or a 1, so that the "
    "digits left are not all equally frequent, and the balance still asks for ten."
)

TRAINED = (
    "Adapted questions of `tune`, in percent, at the default learning rate. `votes-64`: `ttrl` with a vote of 64 in "
    "place of 16 at each step, 16 of them trained. `share`: rewards are vote shares (`ttrv`). `fixed-64`: the start's "
    "vote of 64 as a fixed label. `revote`: a second round from the start's weights, labels voted by 64 rollouts of "
    "the start and 64 of the model that `ttrl` adapted."
)

CHOICE = (
    "By greedy and pass@1 on `tune`, two ways go on. `joint-reading-36`, the best: `joint-reading` for 36 steps. "
    "`votes-64`, the best that assumes nothing beyond the vote: any run has it as `sampling.votes=64`, with four times "
    "the rollouts. When this was committed, these two were finished on two seeds, and `ttrl`, `fixed-64`, `joint` and "
    "`joint-reading` (12 steps; `joint` also 36) on seed 0. What else stands in the two tables above was run "
    "afterwards and decided nothing; the options of the joint reading had been chosen on other draws for the same "
    "questions."
)

Finished = Mapping[str, Sequence[Result]]
"""Label -> finished cells in the order of their seeds."""


def write_page(output: Path, results_folder: Path) -> Path:
    """Write past_vote.md; return its path."""
    results_folder.mkdir(parents=True, exist_ok=True)
    path = results_folder / "past_vote.md"
    path.write_text(page(output))
    return path


def page(output: Path) -> str:
    """Write the text. Every figure in it is computed."""
    main, absent = finished(output)
    parts = [
        "# Past the starting vote on `digits`",
        INTRODUCTION,
        *in_short(main, output),
        "## The idea that was chosen\n\n" + IDEA,
        "## Pseudo-labels on `tune`\n\n" + VOTES,
        votes_table(output),
        "## Training on `tune`\n\n" + TRAINED,
        trials_table(output),
        "## The choice\n\n" + CHOICE,
        "## The one table",
        *one_table(main, output),
        set_up(main, absent),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def finished(output: Path) -> tuple[dict[str, list[Result]], list[str]]:
    """Return the finished cells of the one table by label, and those that are missing with the reason."""
    found, absent = dict[str, list[Result]](), list[str]()
    for label in (BASE, *REFERENCES, *CHOSEN):
        for seed in range(SEEDS):
            cell = table_cell(label, seed)
            loaded = load(cell, output)
            if isinstance(loaded, str):
                absent.append(f"{cell.name}: {loaded}")
            else:
                found.setdefault(label, []).append(loaded)
    return found, absent


def in_short(main: Finished, output: Path) -> Iterator[str]:
    lines = []
    for label in (*CHOSEN, *REFERENCES):
        for split in SPLITS if label in main else ():
            for measure in (GREEDY, PASS_AT_1):
                found = past_vote(main[label], split, measure)
                if found is not None:
                    where = f"`{label}`, {split.replace('_', '-')} {LABELS[measure]} after − vote of 16 before"
                    lines.append(f"- {where}: {points(found)} points: {verdict(found)}.")
    if lines:
        yield "## In short\n\nMeans over seeds, the wider of two 95 % intervals (over seeds, over questions)."
        yield "\n".join(lines)


def past_vote(results: Sequence[Result], split: str, measure: str) -> Interval | None:
    """Return what `measure` after adaptation is above the vote before, paired by seed and question."""
    found = difference([(r, r) for r in results], split, ("before", MAJ_AT_N), ("after", measure))
    return None if found is None else found.claimed


def one_table(main: Finished, output: Path) -> Iterator[str]:
    """Write levels, distances to the votes before, and paired differences to the references."""
    for split in SPLITS:
        rows = [
            [
                f"`{label}`", str(len(results)),
                *(percent(mean(r.score("after", split, m) for r in results)) for m in (GREEDY, PASS_AT_1, MAJ_AT_N)),
                *(points(past_vote(results, split, m)) for m in (GREEDY, PASS_AT_1)),
                *(points(above_large_vote(results, split, output)),),
            ]
            for label, results in main.items()
        ]  # fmt: skip
        base = main.get(BASE, ())
        before = percent(mean(r.score("before", split, MAJ_AT_N) for r in base))
        votes = [vote for seed in range(SEEDS) if (vote := large_vote(split, seed, output)) is not None]
        yield f"### {split.replace('_', '-').capitalize()} questions"
        yield (
            f"The start's vote of 16: {before} %; of 64 other rollouts: {percent(mean(votes))} % "
            f"({len(votes)} seeds). `{BASE}` is the start itself.\n\n"
            + grid(
                ["method", "seeds", "greedy", "pass@1", "maj@16", "greedy − vote of 16", "pass@1 − vote of 16",
                 "greedy − vote of 64"], rows,
            )
        )  # fmt: skip
    yield "### Against the references\n\nAfter adaptation, in points, paired by seed; intervals over seeds."
    rows = []
    for label in CHOSEN:
        for reference in REFERENCES:
            pairs = paired(main, label, reference)
            values = [seed_differences(pairs, split, measure) for split, measure in COLUMNS]
            if pairs:
                rows.append([f"`{label}`", f"`{reference}`", str(len(pairs)), *(points(over_seeds(v)) for v in values)])
    names = [f"{split.replace('_', '-')} {LABELS[measure]}" for split, measure in COLUMNS]
    yield grid(["method", "against", "seeds", *names], rows, words=2)
    yield labels_line(main, output)


def large_vote(split: str, seed: int, output: Path) -> float | None:
    """Return how often the start's vote of 64 is right, in [0, 1]; None where it was not drawn."""
    found = graded_labels(output / labels_name(SPLIT_OF[split], "vote-64", seed), SPLIT_OF[split])
    return None if found is None else float(np.mean(list(found.values())))


SPLIT_OF = {"adapted": "adapt", "held_out": "held_out"}


def above_large_vote(results: Sequence[Result], split: str, output: Path) -> Interval | None:
    """Return what greedy answers after adaptation are above the start's vote of 64, paired by seed."""
    values = []
    for r in results:
        after, vote = r.score("after", split, GREEDY), large_vote(split, r.cell.seed, output)
        if after is not None and vote is not None:
            values.append(after - vote)
    return over_seeds(values) if values else None


def labels_line(main: Finished, output: Path) -> str:
    """Say how often the labels that were trained on are right, and what greedy answers are above them."""
    said = []
    for label, (arm, _) in CHOSEN.items():
        rule = ARMS[arm].rule
        graded = {s: graded_labels(output / labels_name("adapt", str(rule), s), "adapt") for s in range(SEEDS)}
        right = {seed: float(np.mean(list(found.values()))) for seed, found in graded.items() if found is not None}
        after = {r.cell.seed: r.score("after", "adapted", GREEDY) for r in main.get(label, ())}
        above = [value - right[seed] for seed, value in after.items() if value is not None and seed in right]
        if right:
            said.append(
                f"Of the pseudo-labels of `{label}`, {levels(over_seeds(list(right.values())))} % are right (adapted "
                f"questions, {len(right)} seeds, graded afterwards)."
            )
        if above:
            said.append(
                f"Its greedy answers after adaptation are {points(over_seeds(above))} points from there "
                f"({verdict(over_seeds(above))}): most of what lies past the vote is in the labels."
            )
    return " ".join(said)


def votes_table(output: Path) -> str:
    """Write how often each rule's pseudo-labels are right on `tune`."""
    found = [read_json(path) for s in range(SEEDS) if (path := output / votes_name(s)).is_file()]
    if not found:
        return "No seed is finished."
    sizes = list(found[0])
    rows = []
    for rule in found[0][sizes[0]]:
        shown = [over_seeds([seed[n][rule] for seed in found if rule in seed[n]]) for n in sizes]
        rows.append([rule, *(levels(interval) for interval in shown)])
    return f"{len(found)} seeds, 95 % intervals over them.\n\n" + grid(["rule", *(f"{n}, %" for n in sizes)], rows)


def levels(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return percent(interval.value)
    return f"{percent(interval.value)} [{percent(interval.low)}, {percent(interval.high)}]"


def trials_table(output: Path) -> str:
    """Write what the trained arms came to on `tune`."""
    rows = []
    for label, steps in TRIALS:
        loaded = [load(tune_cell(label, seed, steps), output) for seed in range(SEEDS)]
        done = [r for r in loaded if isinstance(r, Result)]
        if done:
            scores = [mean(r.score("after", "adapted", m) for r in done) for m in (GREEDY, PASS_AT_1, MAJ_AT_N)]
            seeds = ", ".join(percent(r.score("after", "adapted", GREEDY)) for r in done)
            count = str(digits_config().optim.steps if steps is None else steps)
            rows.append([f"`{label}`", count, str(len(done)), *map(percent, scores), seeds])
    base = [r for s in range(SEEDS) if isinstance(r := load(tune_cell(BASE, s), output), Result)]
    starts = [mean(r.score("before", "adapted", m) for r in base) for m in (GREEDY, PASS_AT_1, MAJ_AT_N)]
    rows.insert(0, ["the start", "0", str(len(base)), *map(percent, starts), NONE])
    return grid(["arm", "steps", "seeds", "greedy", "pass@1", "maj@16", "greedy by seed"], rows)


def set_up(main: Finished, absent: Sequence[str]) -> str:
    done = [r for results in main.values() for r in results]
    commits = sorted({str(r.environment["commit"]) for r in done})
    machines = sorted({f"{r.environment['machine']}, Python {r.environment['python']}" for r in done})
    again = [
        f"{r.cell.name} by {r.repeated['commit'][:12]}, {'the same' if r.repeated['identical'] else 'NOT the same'}"
        for r in done
        if r.repeated is not None
    ]
    missing = "none is missing" if not absent else "missing: " + "; ".join(absent)
    return (
        f"## Set-up\n\nCommand: `{COMMAND}`. {len(done)} cells of the one table are finished; {missing}.\n\n"
        f"- machine: {'; '.join(machines)}, no GPU, one thread a cell\n- commits of the cells: {', '.join(commits)}\n"
        f"- run again (steps and answers to the byte): {'; '.join(again) or 'no cell'}\n"
        f"- configuration: `configs/digits.yaml`, {SEEDS} seeds; arms and rules: `ARMS` and `RULES` of "
        "`scripts/study/past_vote.py`"
    )
