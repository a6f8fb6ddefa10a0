"""Find table files, and read their rows with the line that each is on. Only a bad line is lost, not the file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm_spine.benchmarks.benchmark import Row

Numbered = tuple[int, Row | str]
"""(number of the line from 1, its row or one sentence that says what is wrong with it)."""

SUFFIXES = (".jsonl", ".parquet", ".csv", ".tsv", ".json")
# Characters in a cell of CSV, which may be an image as base64 text.
_CELL_LIMIT = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Table:
    """The readable rows of a file.

    `numbers` holds the line of each row, counted from 1; in JSON and Parquet, where rows have no line, the number of
    the row. `problems` holds the number of each line that is not a row, and why.
    """

    rows: Sequence[Row]
    numbers: Sequence[int]
    problems: tuple[tuple[int, str], ...] = ()


def read_table(path: Path) -> Table:
    """Read a JSONL, JSON, CSV, TSV or Parquet file. Raises ValueError for another format, or a damaged file."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        from mm_spine.benchmarks.arrow import parquet_rows

        rows = parquet_rows(path)
        return Table(rows, range(1, len(rows) + 1))
    if suffix in (".csv", ".tsv"):
        return _collect(_csv_rows(path, "\t" if suffix == ".tsv" else None))
    if suffix == ".json":
        return _collect(_json_rows(path))
    if suffix == ".jsonl":
        return _collect(_jsonl_rows(path))
    raise ValueError(f"{path}: a table is one of {', '.join(SUFFIXES)}")


def matching_files(folder: Path, pattern: str) -> list[Path]:
    """Return the files below `folder` that match a glob pattern, sorted."""
    return sorted(file for file in folder.glob(pattern) if file.is_file())


def describe_folder(folder: Path) -> str:
    """List what a folder holds, at most twelve names, for an error message."""
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir() if not path.name.startswith("."))
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return ", ".join(names[:12]) + more or "nothing"


def _collect(lines: Iterable[Numbered]) -> Table:
    rows, numbers, problems = [], [], []
    for number, row in lines:
        if isinstance(row, str):
            problems.append((number, row))
        else:
            rows.append(row)
            numbers.append(number)
    return Table(rows, numbers, tuple(problems))


def _jsonl_rows(path: Path) -> Iterator[Numbered]:
    # Lines are decoded one by one, so that a badly encoded line does not spoil the others.
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line := line.removeprefix(b"\xef\xbb\xbf").strip():
                yield number, _json_row(line)


def _json_row(line: bytes) -> Row | str:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return "not UTF-8 text; save the file as UTF-8"
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})"
    return row if isinstance(row, dict) else f"expected a JSON object, found {type(row).__name__}"


def _json_rows(path: Path) -> Iterator[Numbered]:
    """Read an array of objects, an object with such an array in it, or {id: object}."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error})") from error
    except (ValueError, RecursionError) as error:
        # Some releases call a file of JSON lines ".json".
        with path.open("rb") as file:
            first = file.readline().removeprefix(b"\xef\xbb\xbf").strip()
        if isinstance(_json_row(first), str):
            raise ValueError(f"{path}: not JSON ({error})") from error
        yield from _jsonl_rows(path)
        return
    for number, row in enumerate(_objects(value, path), 1):
        yield number, row if isinstance(row, dict) else f"expected a JSON object, found {type(row).__name__}"


def _objects(value: Any, path: Path) -> Iterable[Any]:
    """Return the rows in `value`. In {id: object} the key becomes the `id` of a row that has no `id`."""
    if isinstance(value, list):
        return value
    if isinstance(value, dict) and value and all(isinstance(row, dict) for row in value.values()):
        return ({"id": name, **row} for name, row in value.items())
    lists = [rows for rows in value.values() if isinstance(rows, list)] if isinstance(value, dict) else []
    if len(lists) != 1:
        raise ValueError(f"{path}: expected an array of objects, or an object with one array in it")
    return lists[0]


def _csv_rows(path: Path, delimiter: str | None) -> Iterator[Numbered]:
    csv.field_size_limit(_CELL_LIMIT)
    # Undecodable bytes become lone surrogates; `_csv_row` finds them, so that only their line is lost.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        header = file.readline()
        file.seek(0)
        reader = csv.DictReader(file, delimiter=delimiter or _delimiter(header), strict=True)
        reader.fieldnames = _header(path, reader.fieldnames or [])
        while True:
            start = reader.reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield reader.reader.line_num, f"not CSV since line {start} ({error})"
            else:
                yield reader.line_num, _csv_row(row)


def _header(path: Path, names: Sequence[str]) -> list[str]:
    names = [name.strip() for name in names]
    if any(map(_undecoded, names)):
        raise ValueError(f"{path}: not UTF-8 text; save the file as UTF-8")
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise ValueError(f"{path}: two columns are called {twice[0]!r}; rename one")
    return names


def _undecoded(text: str) -> bool:
    return any("\udc80" <= character <= "\udcff" for character in text)


def _delimiter(header: str) -> str:
    # Spreadsheets write semicolons in locales where the comma is the decimal point.
    return max(",;\t", key=header.count)


def _csv_row(row: dict[str | Any, str | Any]) -> Row | str:
    if None in row or None in row.values():
        return f"expected {len(row) - (None in row)} cells as in the header, found {'more' if None in row else 'fewer'}"
    if any(map(_undecoded, row.values())):
        return "not UTF-8 text; save the file as UTF-8"
    return row
