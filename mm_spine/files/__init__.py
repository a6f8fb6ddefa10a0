"""Write files so that a crash leaves either the old content or the new one, and read JSON.

Lines of a log are appended and synced to the disk. Every other file or folder is written beside its place, synced and
renamed.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a disk, a quota or a file size limit that is used up."""


class JsonLines:
    """A log in JSON Lines: a line survives a crash once `append` has returned."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: object) -> None:
        """Add a dataclass or mapping as one line and wait until it is on the disk.

        Raises ValueError for NaN and infinity, which JSON does not have.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        with _naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(_line(row, self.path))
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync_folder(self.path.parent)

    def steps(self) -> list[dict[str, Any]]:
        """Return the lines of steps 0, 1, 2, ... up to the first that is absent or damaged."""
        lines = self.path.read_bytes().split(b"\n") if self.path.exists() else []
        rows: list[dict[str, Any]] = []
        for number, line in enumerate(lines):
            try:
                row = _parse(line, self.path, number + 1)
            except ValueError:
                break
            if row.get("step") != number:
                break
            rows.append(row)
        return rows

    def truncate_after(self, step: int) -> None:
        """Remove the lines of later steps and damaged ones, so that a resumed run can append to the file."""
        if self.path.exists():
            write_json_lines(self.path, self.steps()[: step + 1])


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
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file; an existing one is replaced."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write at least one row as CSV under a line of column names; an existing file is replaced."""
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read a CSV file that has at least `columns`. Raises ValueError naming the file and what it lacks."""
    try:
        # Spreadsheets put a byte order mark first.
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            missing = [name for name in columns if name not in (table.fieldnames or ())]
            if missing:
                raise ValueError(f"no column {', '.join(missing)}; the first line must name {', '.join(columns)}")
            return [{name: row[name] or "" for name in columns} for row in table]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as CSV: {error}") from error


def write_bytes(path: Path, data: bytes) -> Path:
    """Write a file and return its path; an existing file or link is replaced. Raises OSError."""
    with atomic(path) as temporary:
        temporary.write_bytes(data)
    return path


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises ValueError naming the file when it is not valid JSON."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); restore the file or run again") from error


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; sync the file there and rename it to `path` if the block raises no error.

    It serves text, bytes and tables: whatever the block writes to the temporary path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _naming(path):
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, unfinished: Path) -> Iterator[Path]:
    """Yield the empty folder `unfinished`; sync its files and rename it to `path` if the block raises no error.

    A folder at `path` is replaced. After an error nothing of the unfinished folder is left.
    """
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        with _naming(path):
            yield unfinished
            for inner, _, names in os.walk(unfinished):
                for name in names:
                    with Path(inner, name).open("rb") as file:
                        os.fsync(file.fileno())
                sync_folder(Path(inner))
            sync_folder(unfinished.parent)
            shutil.rmtree(path, ignore_errors=True)
            unfinished.rename(path)
            sync_folder(path.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    # A rename survives a power failure only once the folder that holds the name has been synced.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Raise OSError with the path where writing fails, also for libraries in Rust, whose errors are of other types."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise
    except Exception as error:
        if found := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
        raise


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
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}, line {number}: not valid JSON ({error})") from error
