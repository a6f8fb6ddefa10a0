"""Read of a finished cell what its tables need: the scores of its summary and its steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cells import Cell, left_out, missing

from mm_spine.files import read_json, read_json_lines
from mm_spine.measures import PASS_AT_1


@dataclass(frozen=True)
class Ended:
    """A finished cell: its summary, the lines of its steps.jsonl, and the commit that made it."""

    cell: Cell
    summary: Mapping[str, Any]
    steps: Sequence[Mapping[str, Any]]
    commit: str

    def score(self, when: str, split: str) -> float | None:
        """Return pass@1 "before" or "after", in [0, 1]; None where that split was not evaluated."""
        block = self.summary if split == "adapted" else self.summary.get("held_out") or {}
        value = (block.get(when) or {}).get(PASS_AT_1)
        return None if value is None else float(value)

    def gain(self, split: str = "adapted") -> float | None:
        """Return what pass@1 gained, in [-1, 1]."""
        before, after = (self.score(when, split) for when in ("before", "after"))
        return None if before is None or after is None else after - before

    def ends(self, key: str) -> tuple[float | None, float | None]:
        """Return a figure of the first step and of the last one that have it."""
        values = [float(step[key]) for step in self.steps if step.get(key) is not None]
        return (values[0], values[-1]) if values else (None, None)

    @property
    def questions(self) -> int:
        """How many labelled questions the adapted split has."""
        return int(self.summary["before"].get("n_labelled", 0))

    @property
    def stopped(self) -> bool:
        """Whether something ended the run before its last step."""
        return self.summary.get("stopped_by", "steps") != "steps"


def load_ended(cell: Cell, output: Path) -> Ended | str:
    """Load a finished cell, or return why there is none."""
    if (reason := missing(cell, output)) is not None:
        return reason
    folder = output / cell.name
    steps = folder / "steps.jsonl"
    return Ended(
        cell,
        read_json(folder / "summary.json"),
        read_json_lines(steps) if steps.is_file() else [],
        str(read_json(folder / "environment.json")["commit"]),
    )


def load_all(table: Iterable[Cell], output: Path) -> tuple[list[Ended], dict[str, str]]:
    """Return the finished cells, and for every other cell the reason."""
    finished, absent = [], {}
    for cell in table:
        found = load_ended(cell, output)
        if isinstance(found, str):
            absent[cell.name] = found
        else:
            finished.append(found)
    return finished, absent


def status(command: str, finished: Sequence[Ended], absent: Mapping[str, str]) -> str:
    """Say how many cells are finished, at which commits, and what is missing, counted by reason and group."""
    commits = Counter(ended.commit for ended in finished)
    made = ", ".join(f"{commit} (cells: {count})" for commit, count in commits.most_common())
    seeds = sorted({ended.cell.seed for ended in finished})
    lines = [
        f"Written by `{command}` from {len(finished)} finished cells; {len(absent) or 'none'} missing. "
        f"Seeds: {', '.join(map(str, seeds)) or 'none'}. Commits: {made or 'none'}."
    ]
    by_reason = Counter((name.partition("/")[0], reason) for name, reason in absent.items())
    lines += [f"- {group}: {count} cells {reason}" for (group, reason), count in by_reason.items()]
    return lines[0] + ("\n\n" + "\n".join(lines[1:]) if lines[1:] else "")


def excluded(labels: Iterable[str], extra: Sequence[str]) -> str:
    """Say which of the rows cannot run with the options `extra`, and why; empty where all can."""
    reasons = {label: left_out(label, extra) for label in labels}
    return "\n".join(f"- Left out: `{label}`: {reason}." for label, reason in reasons.items() if reason is not None)
