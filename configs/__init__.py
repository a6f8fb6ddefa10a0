"""Configurations as package data: one YAML per benchmark."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def shipped_names() -> tuple[str, ...]:
    """Return the names of the benchmarks that have a YAML file here, in alphabetical order."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def shipped(benchmark: str) -> Path | None:
    """Return the path of the YAML file that is shipped for a benchmark; None where there is none."""
    path = FOLDER / f"{benchmark}.yaml"
    return path if path.is_file() else None
