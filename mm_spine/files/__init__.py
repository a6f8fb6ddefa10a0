"""Write files so that a crash leaves either the old content or the new one, and read JSON.

Lines of a log are appended and synced to the disk. Every other file is written beside its place and renamed.
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
    """A log in JSON Lines: a line survives a crash once `append` has returned."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: object) -> None:
        """Add a dataclass or mapping as one line and wait until it is on the disk.

        Raises ValueError for NaN and infinity, which JSON does not have.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(row, self.path))
            file.flush()
            os.fsync(file.fileno())

    def truncate_after(self, step: int) -> None:
        """Remove the lines of later steps and an incomplete last line, so that a resumed run can append to the file."""
        if self.path.exists():
            write_json_lines(self.path, [row for row in read_json_lines(self.path) if row["step"] <= step])


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read all lines of a JSON Lines file.

    An incomplete last line, which a crash while appending leaves, is left out. Raises ValueError naming the file and
    the line when any other line is not a JSON object.
    """
    *lines, last = path.read_bytes().split(b"\n")
    rows = [_parse(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]
    try:
        return [*rows, _parse(last, path, len(lines) + 1)]
    except ValueError:
        return rows


def write_json_lines(path: Path, rows: Iterable[object]) -> None:
    """Write a JSON Lines file; an existing one is replaced."""
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(_line(row, path) for row in rows)


def write_json(path: Path, obj: object) -> None:
    """Write a JSON file; an existing one is replaced. Raises ValueError for NaN and infinity."""
    text = _dumps(obj, path, indent=2)
    with atomic(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def write_bytes(path: Path, data: bytes) -> Path:
    """Write a file and return its path; an existing file or link is replaced. Raises OSError."""
    with atomic(path) as temporary:
        temporary.write_bytes(data)
    return path


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises ValueError naming the file when it is not valid JSON."""
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); restore the file or run again") from error


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; sync the file there and rename it to `path` if the block raises no error.

    It serves text, bytes and tables: whatever the block writes to the temporary path.
    """
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
