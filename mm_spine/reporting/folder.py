"""What a run left in its folder, read for the report. A file that is absent or damaged costs its part, with a sentence.

Every name is fixed here: no path that stands in a file is ever opened.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mm_spine.config_layers import read_yaml
from mm_spine.files import read_json, read_json_lines

Row = Mapping[str, Any]
T = TypeVar("T")

ITEM_KEYS = {"id", "split", "greedy", "greedy_text", "texts", "answers", "classes", "verdicts", "vote"}
"""What the report needs of a line of evaluation/{before,after}.jsonl."""

DAMAGE = (ValueError, OSError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)
"""What reading a file that is damaged, or was written by another version, may raise."""

FILES = ("summary.json", "config.yaml", "steps.jsonl", "evaluation/before.jsonl")
"""A folder with none of these holds no run."""


@dataclass(frozen=True)
class Saved:
    """The files of one run. What is not there is empty, and `missing` says so, a sentence each."""

    path: Path
    summary: Row
    config: Row
    environment: Row
    steps: Sequence[Row]
    timings: Sequence[Row]
    accuracy: Sequence[Row]
    before: Sequence[Row]
    after: Sequence[Row]
    questions: Mapping[tuple[str, str], str]
    rollouts: Sequence[Path]
    stopped: Row
    missing: Sequence[str]

    @property
    def name(self) -> str:
        """The method, as far as the files say; else the folder's name."""
        method = self.summary.get("method") or section(self.config, "method").get("name")
        return str(method) if method else self.path.resolve().name


def read_run(path: Path) -> Saved:
    """The run in `path`, complete or not. Raises ValueError when the folder is absent or holds no run at all."""
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder; give the output folder of a run")
    if not any((path / name).is_file() for name in FILES):
        raise ValueError(f"{path}: holds no run (none of {', '.join(FILES)}); give the output folder of a run")
    reader = _Reader(path)
    config = reader.mapping("config.yaml", read_yaml)
    summary = reader.mapping("summary.json", read_json)
    rollouts = tuple(sorted(file for file in (path / "rollouts").glob("step_*.parquet") if inside(file, path)))
    still = summary.get("steps") == 0  # a run of no step has no file of steps
    if not rollouts and not still:
        reader.missing.append(_no_rollouts(config))
    return Saved(
        path=path,
        summary=summary,
        config=config,
        environment=reader.mapping("environment.json", read_json),
        steps=reader.rows("steps.jsonl", {"step"}, still),
        timings=reader.rows("timings.jsonl", {"step"}, still),
        accuracy=reader.rows("evaluation/steps.jsonl", {"step"}, still),
        before=reader.rows("evaluation/before.jsonl", ITEM_KEYS),
        after=reader.rows("evaluation/after.jsonl", ITEM_KEYS),
        questions=_prompts(reader),
        rollouts=rollouts,
        stopped={} if summary else reader.mapping("stopped.json", read_json, optional=True),
        missing=reader.missing,
    )


def attempt(read: Callable[[], T], missing: list[str]) -> T | None:
    """What `read()` returns; None, and a sentence in `missing`, where what was saved is damaged."""
    try:
        return read()
    except DAMAGE as error:
        missing.append(f"A part was left out, its files are damaged or of another version: {str(error)[:300]}")
        return None


def section(tree: Row, name: str) -> Row:
    """A nested mapping, empty where there is none."""
    found = tree.get(name)
    return found if isinstance(found, Mapping) else {}


def number(value: object) -> float | None:
    """A finite number, else None: a report shows no nan."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number of hundreds of digits
        return None


def inside(path: Path, folder: Path) -> bool:
    """Whether a file lies in `folder` itself, its links followed."""
    return path.resolve().is_relative_to(folder.resolve())


def replace_file(path: Path, data: bytes) -> Path:
    """Write `path` as a whole or not at all; a link there is replaced, not followed. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        aside.write_bytes(data)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return path


class _Reader:
    """Reads files of one folder and keeps a sentence on each that could not be had."""

    def __init__(self, path: Path) -> None:
        self.path, self.missing = path, list[str]()

    def mapping(self, name: str, read: Callable[[Path], Any], optional: bool = False) -> Row:
        found = self._read(name, read, optional)
        if found is not None and not isinstance(found, Mapping):
            self.missing.append(f"{name} does not hold keys and values; it was left out.")
        return found if isinstance(found, Mapping) else {}

    def rows(self, name: str, needed: set[str], optional: bool = False) -> tuple[Row, ...]:
        """The lines that have all `needed` keys."""
        found = self._read(name, read_json_lines, optional) or []
        whole = tuple(row for row in found if needed <= row.keys())
        if len(whole) < len(found):
            keys = ", ".join(sorted(needed))
            self.missing.append(f"{len(found) - len(whole)} lines of {name} lack one of {keys}; they were left out.")
        return whole

    def _read(self, name: str, read: Callable[[Path], Any], optional: bool = False) -> Any:
        path = self.path / name
        if not path.is_file():
            if not optional:
                self.missing.append(f"{name} is not in the folder{_WITHOUT.get(name, '')}.")
            return None
        if not inside(path, self.path):
            self.missing.append(f"{name} points out of the folder; it was not read.")
            return None
        try:
            return read(path)
        except (OSError, ValueError, RecursionError) as error:
            self.missing.append(f"{name} could not be read: {str(error)[:300]}")
            return None


_WITHOUT = {
    "summary.json": ": the run is unfinished, or was stopped",
    "steps.jsonl": ": no step was made",
    "timings.jsonl": ": no step was made",
    "evaluation/steps.jsonl": ": votes and rewards could not be graded (no labels, no saved rollouts, or no step)",
    "evaluation/after.jsonl": ": there was no evaluation after adapting",
}


def _prompts(reader: _Reader) -> dict[tuple[str, str], str]:
    """(split, question id) -> prompt, of the questions that the run noted for its report."""
    rows = reader.rows("evaluation/questions.jsonl", {"id", "split", "prompt"}, optional=True)
    return {(str(row["split"]), str(row["id"])): str(row["prompt"]) for row in rows}


def _no_rollouts(config: Row) -> str:
    kept = section(config, "reporting").get("rollouts", True)
    why = "reporting.rollouts was false" if not kept else "the run made no step, or they were deleted"
    return f"rollouts/ holds no step ({why}): no entropies of tokens, no forking tokens, no responses from training."


def finite(rows: Iterable[Row], key: str) -> list[tuple[float, float]]:
    """(step, value) of the rows where `key` is a finite number, by step."""
    pairs = [(number(row["step"]), number(row.get(key))) for row in rows]
    return sorted((step, value) for step, value in pairs if step is not None and value is not None)
