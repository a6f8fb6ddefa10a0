"""Rows of Arrow tables, from Parquet files or mapped into memory. An image is read only when it is opened."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mm_spine.benchmarks.benchmark import Row
from mm_spine.benchmarks.rows import Cell, Rows

# Rows converted to Python at a time: rows without their images, and rows with them.
_BATCH = 1000
_IMAGE_BATCH = 16


def parquet_rows(path: Path) -> LazyRows:
    """Return the rows of a Parquet file. Raises ValueError for another format, or a damaged file."""
    try:
        return LazyRows(*_without_bytes(pq.ParquetFile(path, memory_map=True)), partial(_parquet_cell, path))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a Parquet file that can be read ({error})") from error


def _without_bytes(file: pq.ParquetFile) -> tuple[pa.Table, frozenset[str]]:
    """Read a file without the bytes of its images; return the table and the names of the columns with images.

    Of an image only its name, and whether it is null, is read.
    """
    names = file.schema_arrow.names
    leaves = [file.schema.column(index) for index in range(len(file.schema))]
    raw = [index for index, leaf in enumerate(leaves) if _is_raw(leaf)]
    table = file.read(columns=[leaf.path for index, leaf in enumerate(leaves) if index not in raw])
    for name in names:
        if name not in table.column_names:
            # The column holds only bytes. Read it once, batch by batch, to learn which of its rows are null.
            batches = file.iter_batches(batch_size=_IMAGE_BATCH, columns=[name])
            table = table.append_column(name, pa.chunked_array([_shape(batch.column(0)) for batch in batches]))
    held = {_top(leaves[index].path, names) for index in raw if not _all_null(file, index)}
    return table, frozenset(held)


def _is_raw(leaf: Any) -> bool:
    return leaf.physical_type == "BYTE_ARRAY" and leaf.logical_type.type == "NONE"


def _top(path: str, names: Iterable[str]) -> str:
    return next(name for name in names if path == name or path.startswith(f"{name}."))


def _all_null(file: pq.ParquetFile, leaf: int) -> bool:
    """Whether a leaf is known to hold no bytes at all; its images are then files, named in the column beside it."""
    groups = (file.metadata.row_group(group).column(leaf) for group in range(file.num_row_groups))
    return all(group.statistics is not None and group.statistics.null_count == group.num_values for group in groups)


def _parquet_cell(path: Path, column: str, row: int) -> Any:
    """Read one cell: decode its column in its row group, up to that row, a few rows at a time."""
    file = _parquet_file(path)
    group = 0
    while row >= (size := file.metadata.row_group(group).num_rows):
        row, group = row - size, group + 1
    batches = file.iter_batches(batch_size=_IMAGE_BATCH, row_groups=[group], columns=[column])
    return next(islice(batches, row // _IMAGE_BATCH, None)).column(0)[row % _IMAGE_BATCH].as_py()


@lru_cache(maxsize=16)
def _parquet_file(path: Path) -> pq.ParquetFile:
    return pq.ParquetFile(path, memory_map=True)


def arrow_rows(table: pa.Table) -> LazyRows:
    """Return the rows of a table that is mapped into memory, as the `datasets` library keeps it."""
    raw = [field.name for field in table.schema if _holds_bytes(field.type)]
    columns = {name: _shape(table[name]) if name in raw else table[name] for name in table.column_names}
    held = frozenset(name for name in raw if not _no_bytes(table[name]))
    return LazyRows(pa.table(columns), held, lambda column, row: table[column][row].as_py())


def _no_bytes(column: Any) -> bool:
    if not pa.types.is_struct(column.type):
        return False
    return bool(pc.struct_field(column, "bytes").null_count == len(column))


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _holds_bytes(kind.value_type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _shape(column: Any) -> Any:
    """Replace each image of `column` by its name, or by True where it has no name. Nulls stay null."""
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.array(_names(scalar.as_py()) for scalar in column)
    if pa.types.is_struct(kind) and kind.get_field_index("path") >= 0:
        return column.cast(pa.struct([kind.field("path")]))
    return pa.array([True if valid else None for valid in column.is_valid().to_pylist()], pa.bool_())


def _names(images: list[Any] | None) -> list[dict[str, str | None] | None] | None:
    if images is None:
        return None
    return [image and {"path": image["path"] if isinstance(image, dict) else None} for image in images]


class LazyRows(Rows):
    """Rows of an Arrow table. Cells of the columns `images` are read by `read(column, row)` when they are opened."""

    def __init__(self, table: pa.Table, images: frozenset[str], read: Callable[[str, int], Any]) -> None:
        self._table, self._images, self._read = table, images, read

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __iter__(self) -> Iterator[Row]:
        for start in range(0, len(self), _BATCH):
            rows = self._table.slice(start, _BATCH).to_pylist()
            yield from (self._with_cells(row, index) for index, row in enumerate(rows, start))

    def _row(self, index: int) -> Row:
        return self._with_cells(self._table.slice(index, 1).to_pylist()[0], index)

    def _with_cells(self, row: dict[str, Any], index: int) -> Row:
        return {
            name: _cells(value, partial(self._read, name, index)) if name in self._images else value
            for name, value in row.items()
        }


def _cells(value: Any, read: Callable[[], Any]) -> Any:
    if isinstance(value, list):
        return [_cells(item, partial(_item, read, index)) for index, item in enumerate(value)]
    return None if value is None else Cell(read, value["path"] if isinstance(value, dict) else None)


def _item(read: Callable[[], Any], index: int) -> Any:
    return read()[index]
