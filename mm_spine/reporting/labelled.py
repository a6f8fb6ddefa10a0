"""What labels say of a model before it is adapted: its greedy answers beside its vote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mm_spine.files import read_json
from mm_spine.measures import GREEDY, MAJ_AT_N
from mm_spine.reporting.finished_run import FinishedRun, load_run, paired_difference
from mm_spine.reporting.formats import points


def start_sentences(path: Path) -> Iterator[str]:
    """Say how often the greedy answer and the vote of the starting model are right, from a finished, labelled run."""
    figures, run = read_json(path / "summary.json")["before"], load_run(path)
    assert isinstance(run, FinishedRun)
    for name, key in (("one greedy answer", GREEDY), ("the vote", MAJ_AT_N)):
        low, high = figures[f"{key}_ci95"]
        share = f"{figures[key]:.0%} [{low:.0%}, {high:.0%}]"
        yield f"On {figures['n_labelled']} labelled questions {name} is right on {share}."
    scores = run.before["adapted"]
    gain = paired_difference(scores[GREEDY], scores[MAJ_AT_N])
    if gain is not None:
        yield f"The vote over the greedy answer: {points(gain)}."
