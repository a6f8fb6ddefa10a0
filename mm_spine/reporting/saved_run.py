"""Read what a run left in its folder.

Every file name is fixed here: a path that stands in a file of the run is never opened, and no link out of the folder is
followed. A file that is absent or damaged does not stop the report: its part is empty, and a sentence says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mm_spine.config.layers import read_config
from mm_spine.files import read_csv, read_json, read_json_lines
from mm_spine.words import visible_line

Json = Mapping[str, Any]
"""One object of a JSON file, a line of a JSON Lines file or the content of a YAML file, as it was read."""

T = TypeVar("T")

ITEM_KEYS = {"id", "split", "greedy", "greedy_text", "texts", "answers", "classes", "verdicts", "vote"}
"""Keys that a line of evaluation/{before,after}.jsonl must have for the report."""

ANSWER_COLUMNS = (
    "id", "split", "question", "answer_before", "answer_after", "vote_before", "vote_after", "changed",
)  # fmt: skip
"""Columns of answers.csv that the report reads."""

DAMAGE = (ValueError, OSError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)
"""Errors that a damaged file, or one written by another version, may cause."""

FILES = ("summary.json", "config.yaml", "steps.jsonl", "evaluation/before.jsonl")
"""A folder with none of these files holds no run."""

ABSENT = {
    "summary.json": "the run is unfinished, or was stopped",
    "steps.jsonl": "no step was made",
    "timings.jsonl": "no step was made",
    "evaluation/steps.jsonl": "votes and rewards could not be graded (no labels, no saved rollouts, or no step)",
    "evaluation/after.jsonl": "there was no evaluation after adapting",
}
"""What the absence of a file means, where that is known."""


@dataclass(frozen=True)
class SavedRun:
    """The files of one run.

    Attributes:
        path: the run's folder.
        summary, config, environment, stopped: the content of the file of that name.
        steps, timings: lines of steps.jsonl and timings.jsonl.
        accuracy: lines of evaluation/steps.jsonl.
        before, after: lines of evaluation/{before,after}.jsonl.
        questions: (split, question id) -> prompt, of the questions whose answer changed.
        answers: (split, question id) -> row of answers.csv.
        rollouts: files of rollouts, one per step, in the order of the steps.
        missing: one sentence per file that is absent, damaged or outside of the folder; its field is then empty.
    """

    path: Path
    summary: Json
    config: Json
    environment: Json
    steps: Sequence[Json]
    timings: Sequence[Json]
    accuracy: Sequence[Json]
    before: Sequence[Json]
    after: Sequence[Json]
    questions: Mapping[tuple[str, str], str]
    answers: Mapping[tuple[str, str], Mapping[str, str]]
    rollouts: Sequence[Path]
    stopped: Json
    missing: Sequence[str]

    @property
    def name(self) -> str:
        """The method's name, or the folder's where no file gives a method."""
        method = self.summary.get("method") or section(self.config, "method").get("name")
        return visible_line(str(method) if method else self.path.resolve().name)

    @property
    def benchmark(self) -> str:
        """The benchmark's name, of a folder its last part, "" where no file gives one."""
        return last_part(str(self.summary.get("benchmark") or self.config.get("benchmark") or ""))


def read_run(path: Path) -> SavedRun:
    """Read the run in the folder `path`, finished or not.

    Raises ValueError when there is no such folder or when it holds no run.
    """
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder; give the output folder of a run")
    if not any((path / name).is_file() for name in FILES):
        raise ValueError(f"{path}: holds no run (none of {', '.join(FILES)}); give the output folder of a run")
    reader = _Reader(path)
    config = reader.read_mapping("config.yaml", read_config)
    summary = reader.read_mapping("summary.json", read_json)
    rollouts = tuple(sorted(file for file in (path / "rollouts").glob("step_*.parquet") if is_inside(file, path)))
    # A finished run of 0 steps writes no file of steps: their absence is not worth a sentence.
    no_steps = summary.get("steps") == 0
    if not rollouts and not no_steps:
        reader.missing.append(_no_rollouts(config))
    prompts = reader.read_lines("evaluation/questions.jsonl", {"id", "split", "prompt"}, optional=True)
    return SavedRun(
        path=path,
        summary=summary,
        config=config,
        environment=reader.read_mapping("environment.json", read_json),
        steps=reader.read_lines("steps.jsonl", {"step"}, no_steps),
        timings=reader.read_lines("timings.jsonl", {"step"}, no_steps),
        accuracy=reader.read_lines("evaluation/steps.jsonl", {"step"}, no_steps or _trained_unlabelled(summary)),
        before=reader.read_lines("evaluation/before.jsonl", ITEM_KEYS),
        after=reader.read_lines("evaluation/after.jsonl", ITEM_KEYS),
        questions={(str(line["split"]), str(line["id"])): str(line["prompt"]) for line in prompts},
        answers=reader.read_answers(),
        rollouts=rollouts,
        stopped={} if summary else reader.read_mapping("stopped.json", read_json, optional=True),
        missing=reader.missing,
    )


def read_answers(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    """Return the rows of an answers.csv by (split, question id). Raises ValueError naming the file if it is damaged."""
    return {(row["split"], row["id"]): row for row in read_csv(path, ANSWER_COLUMNS)}


class _Reader:
    """Read files of one folder; add a sentence to `missing` for each file that cannot be read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.missing: list[str] = []

    def read_mapping(self, name: str, read: Callable[[Path], Any], optional: bool = False) -> Json:
        """Return the content of a file that holds keys and values, or {}."""
        content = self._read(name, read, optional)
        if content is not None and not isinstance(content, Mapping):
            self.missing.append(f"{name} does not hold keys and values; it was left out.")
        return content if isinstance(content, Mapping) else {}

    def read_lines(self, name: str, needed: set[str], optional: bool = False) -> tuple[Json, ...]:
        """Return the lines of a JSON Lines file that have all `needed` keys."""
        lines = self._read(name, read_json_lines, optional) or []
        complete = tuple(line for line in lines if needed <= line.keys())
        if len(complete) < len(lines):
            keys = ", ".join(sorted(needed))
            self.missing.append(f"{len(lines) - len(complete)} lines of {name} lack one of {keys}; they were left out.")
        return complete

    def read_answers(self) -> Mapping[tuple[str, str], Mapping[str, str]]:
        """Return the rows of answers.csv, {} where an older version wrote none."""
        found: Mapping[tuple[str, str], Mapping[str, str]] = self._read("answers.csv", read_answers, True) or {}
        return found

    def _read(self, name: str, read: Callable[[Path], Any], optional: bool) -> Any:
        path = self.folder / name
        if not path.is_file():
            if not optional:
                meaning = f": {ABSENT[name]}" if name in ABSENT else ""
                self.missing.append(f"{name} is not in the folder{meaning}.")
            return None
        if not is_inside(path, self.folder):
            self.missing.append(f"{name} points out of the folder; it was not read.")
            return None
        try:
            return read(path)
        except (OSError, ValueError, RecursionError) as error:
            self.missing.append(f"{name} could not be read: {str(error)[:300]}")
            return None


def _trained_unlabelled(summary: Json) -> bool:
    """Whether the run had no gold answer, or none before it was labelled: its votes could not be graded."""
    block = section(summary, "after") or section(summary, "before")
    return bool(summary.get("labels")) or number(block.get("n_labelled")) == 0


def _no_rollouts(config: Json) -> str:
    kept = section(config, "reporting").get("rollouts", True)
    why = "reporting.rollouts was false" if not kept else "the run made no step, or they were deleted"
    return f"rollouts/ holds no step ({why}): no token entropies, no forking tokens, no responses from training."


def attempt(read: Callable[[], T], missing: list[str]) -> T | None:
    """Return what `read()` returns; on an error of `DAMAGE` add a sentence to `missing` and return None."""
    try:
        return read()
    except DAMAGE as error:
        missing.append(
            f"One part was left out: its files are damaged or were written by another version ({str(error)[:300]})."
        )
        return None


def section(tree: Json, name: str) -> Json:
    """Return the mapping under the key `name`, or {} when there is no mapping."""
    found = tree.get(name)
    return found if isinstance(found, Mapping) else {}


def number(value: object) -> float | None:
    """Return `value` as a float when it is a finite number, else None. Booleans are no numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer of hundreds of digits
        return None


def last_part(name: str) -> str:
    """Return the last part of a path, and a name as it is: pages that are passed on need not tell where things lay."""
    return name.rstrip("/").rpartition("/")[2] if name.startswith(("/", ".", "~")) else name


def shown_step(step: float) -> float:
    """Return the number of a step as pages, tables and figures count it: the first update is 1, the start is 0.

    The files of a run count from 0.
    """
    return step + 1


def values_by_step(lines: Iterable[Json], key: str) -> list[tuple[float, float]]:
    """Return (step as shown, value) of the lines where `key` is a finite number, in the order of the steps."""
    pairs = [(number(line["step"]), number(line.get(key))) for line in lines]
    return sorted((shown_step(step), value) for step, value in pairs if step is not None and value is not None)


def is_inside(path: Path, folder: Path) -> bool:
    """Whether `path` lies in `folder` after all links are followed."""
    return path.resolve().is_relative_to(folder.resolve())
