"""Configurations as package data: one YAML per benchmark."""

from __future__ import annotations

from pathlib import Path


def shipped(benchmark: str) -> Path | None:
    """Return the path of the YAML file that is shipped for a benchmark; None where there is none."""
    path = Path(__file__).resolve().parent / f"{benchmark}.yaml"
    return path if path.is_file() else None
