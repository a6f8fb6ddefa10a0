"""The files of a run, each written so that a crash leaves either the old file or the new one.

JSON lines are appended with flush and fsync; everything else is written aside and renamed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any


class JsonLines:
    """An append-only JSON Lines file: a line that was reported written survives a crash."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: object) -> None:
        """Add one dataclass or mapping as a line and wait until it is on the disk.

        Raises ValueError for NaN or infinity, which JSON cannot hold.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(row, self.path))
            file.flush()
            os.fsync(file.fileno())

    def truncate_after(self, step: int) -> None:
        """Drop the lines whose `step` is above `step`, and a torn last line, so that a resumed run can go on."""
        if self.path.exists():
            write_json_lines(self.path, [row for row in read_json_lines(self.path) if row["step"] <= step])


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """All rows of a JSON Lines file. A torn last line (a crash while writing) is left out.

    Raises ValueError naming file and line when any other line is not a JSON object.
    """
    *lines, last = path.read_bytes().split(b"\n")
    rows = [_parse(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]
    try:
        return [*rows, _parse(last, path, len(lines) + 1)]
    except ValueError:
        return rows


def write_json_lines(path: Path, rows: Iterable[object]) -> None:
    """Replace a JSON Lines file as a whole."""
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(_line(row, path) for row in rows)


def write_json(path: Path, obj: object) -> None:
    """Replace a JSON file as a whole. Raises ValueError for NaN or infinity."""
    text = _dumps(obj, path, indent=2)
    with atomic(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def write_bytes(path: Path, data: bytes) -> Path:
    """Replace a file as a whole and return its path. A link is replaced, not followed. Raises OSError."""
    with atomic(path) as temporary:
        temporary.write_bytes(data)
    return path


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises ValueError naming the file when it is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); restore the file or run again") from error


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary neighbour of `path`, synced and renamed onto it when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _dumps(obj: object, path: Path, indent: int | None = None) -> str:
    plain = asdict(obj) if is_dataclass(obj) and not isinstance(obj, type) else obj
    try:
        return json.dumps(plain, ensure_ascii=False, allow_nan=False, indent=indent)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}; only finite numbers, text, lists and mappings can be saved") from error


def _line(row: object, path: Path) -> str:
    return _dumps(row, path) + "\n"


def _parse(line: bytes, path: Path, number: int) -> dict[str, Any]:
    if not line.startswith(b"{"):
        raise ValueError(f"{path}, line {number}: found {line[:20]!r}, expected a JSON object")
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: not valid JSON ({error})") from error
