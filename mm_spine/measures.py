"""The measures of an evaluation: their keys in the files of a run, their order, and their names in tables."""

from __future__ import annotations

GREEDY, PASS_AT_1, MAJ_AT_N, PASS_AT_N = "greedy", "pass_at_1", "maj_at_n", "pass_at_n"

LABELS = {GREEDY: "greedy", PASS_AT_1: "pass@1", MAJ_AT_N: "maj@N", PASS_AT_N: "pass@N"}
"""Key in summary.json -> name in tables, in the order of the files."""

COMPARED = (GREEDY, PASS_AT_1, MAJ_AT_N)
"""The measures that reports and comparisons show, in the order of their columns."""


def majority_label(samples: int | None) -> str:
    """Return the vote's name with the number of votes, "maj@16"; "maj@N" where that is not known."""
    return LABELS[MAJ_AT_N] if samples is None else f"maj@{samples}"
