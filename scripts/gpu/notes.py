"""What a phase knows and writes down: its device and sizes, its time left, and every figure as soon as it is known."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gpu.plan import write_atomically


class Skipped(Exception):
    """One sentence that says why a phase cannot run here."""


class Failed(Exception):
    """One sentence: a phase has run, and what it found is wrong."""


@dataclass(eq=False)
class Notes:
    """The tables and sentences of a phase. They are in the file after each call, so that no end of time loses them."""

    path: Path
    seconds: float
    begun: float = field(default_factory=time.monotonic)
    content: dict[str, Any] = field(default_factory=lambda: {"tables": {}, "says": []})
    problems: list[str] = field(default_factory=list)

    def left(self) -> float:
        """Return the seconds that the phase still has."""
        return self.seconds - (time.monotonic() - self.begun)

    def row(self, table: str, **columns: Any) -> None:
        """Add a row to a table; a column that a row lacks stays empty."""
        self.content["tables"].setdefault(table, []).append(columns)
        self._write()

    def say(self, sentence: str) -> None:
        """Add a sentence below the tables."""
        self.content["says"].append(sentence)
        self._write()

    def put(self, name: str, value: Any) -> None:
        """Set a field of the phase's record that no table shows."""
        self.content[name] = value
        self._write()

    def problem(self, sentence: str) -> None:
        """Note what is wrong; the phase goes on, and fails at its end."""
        self.problems.append(sentence)
        self.say(f"Wrong: {sentence}")

    def finish(self) -> None:
        """Raise Failed if there was a problem."""
        if self.problems:
            raise Failed("; ".join(self.problems))

    def _write(self) -> None:
        write_atomically(self.path, json.dumps(self.content))


@dataclass(frozen=True, eq=False)
class Setting:
    """Where a phase runs: `rehearsal` means tiny shapes and as few repeats as show that the code runs."""

    device: torch.device
    rehearsal: bool
    notes: Notes


def one_line(error: BaseException) -> str:
    """Return the kind and the first sentence of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
