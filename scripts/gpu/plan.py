"""The phases of the check, most valuable first, and how they are run: one process each, each under its own limit.

Standard library only: this process must not fail for what a phase imports.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

TOTAL = 540
"""Seconds of the whole check."""

INSTALL = 30
"""Seconds for the installation of wheels, before the first phase."""

LEAST = 10
"""A phase is not started with fewer seconds left."""

Status = Literal["ok", "failed", "out of time", "skipped", "not run"]
BAD: tuple[Status, ...] = ("failed", "out of time", "not run")


class Phase(NamedTuple):
    """`run` is module:function of this package. A phase that `fills` takes whatever time is left, if there is any."""

    name: str
    title: str
    seconds: int
    run: str
    fills: bool = False


PHASES = (
    Phase("machine", "Machine", 60, "machine:measure"),
    Phase("exactness", "Exactness on the device", 110, "exact:measure"),
    Phase("update", "Update at the shape of Qwen2.5-VL-3B", 140, "update:measure"),
    Phase("trl", "TRL's GRPOTrainer at the same sizes", 50, "trl_peer:measure"),
    Phase("sampler", "Sampler at the shape of Qwen2.5-VL-3B", 70, "sampler:measure"),
    Phase("digits", "`digits` end to end", 50, "digits:measure"),
    Phase("seeds", "`digits`, more seeds", 30, "digits:more_seeds", fills=True),
)


class Outcome(NamedTuple):
    """How a phase ended. `result` is what it had measured by then, `error` says why it did not end well."""

    status: Status
    result: dict[str, Any]
    error: str | None = None


Launch = Callable[[Phase, float], Outcome]
"""(phase, seconds that it may take) -> how it ended."""


def run_phases(
    phases: Sequence[Phase],
    launch: Launch,
    save: Callable[[dict[str, Any]], None],
    deadline: float,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Run the phases in order until `deadline` (by `clock`); return name -> record, which `save` gets after each.

    Whatever happens to a phase is in its record; the next one runs all the same. Without a GPU in a check that wants
    one, nothing follows the first phase: its record says so.
    """
    records: dict[str, Any] = {}
    for phase in phases:
        begun = clock()
        left = deadline - begun
        seconds = left if phase.fills else min(left, phase.seconds)
        outcome = _attempt(phase, seconds, launch)
        records[phase.name] = {
            "title": phase.title,
            "status": outcome.status,
            "error": outcome.error,
            "seconds": round(clock() - begun, 2),
            "limit_seconds": round(seconds, 1),
            "result": outcome.result,
        }
        save(records)
        if outcome.result.get("no_device"):
            break
    return records


def _attempt(phase: Phase, seconds: float, launch: Launch) -> Outcome:
    if seconds < LEAST:
        why = f"{max(seconds, 0):.0f} s were left"
        return Outcome("skipped" if phase.fills else "not run", {}, why)
    try:
        return launch(phase, seconds)
    except Exception as error:
        return Outcome("failed", {}, f"{type(error).__name__}: {error}")


def failed(records: dict[str, Any]) -> bool:
    """Whether a phase failed, ran out of time or was not run for lack of it."""
    return any(record["status"] in BAD for record in records.values())


def launcher(output: Path, options: Sequence[str]) -> Launch:
    """Return what runs a phase as `python -m gpu.worker`, with its notes and its log in `output`/phases."""
    folder = output / "phases"
    folder.mkdir(parents=True, exist_ok=True)

    def launch(phase: Phase, seconds: float) -> Outcome:
        notes, log = folder / f"{phase.name}.json", folder / f"{phase.name}.log"
        notes.unlink(missing_ok=True)
        command = [sys.executable, "-m", "gpu.worker", phase.run, str(notes), f"{seconds:.1f}", *options]
        with log.open("wb") as stream:
            code = run_limited(command, seconds, stream)
        found = read_notes(notes)
        if code is None:
            return Outcome("out of time", found, f"ended after {seconds:.0f} s; what it had measured is kept")
        if code == 0:
            skipped = found.pop("skipped", None)
            return Outcome("skipped" if skipped else "ok", found, skipped)
        return Outcome("failed", found, found.pop("failed", None) or _last_line(log, code))

    return launch


def run_limited(command: Sequence[str], seconds: float, log: Any) -> int | None:
    """Run a command with its output in `log`; return its exit code, None if it was ended for running out of time.

    Its children end with it: it leads a process group of its own.
    """
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def read_notes(path: Path) -> dict[str, Any]:
    """Return what a phase has written so far, {} if nothing."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found


def _last_line(log: Path, code: int) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"exit code {code}; the last line of its log: {lines[-1].strip() if lines else '(empty)'}"


def write_atomically(path: Path, text: str) -> None:
    """Replace the file as a whole: whoever reads it sees the old or the new content."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.replace(path)
