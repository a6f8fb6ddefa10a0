"""Rows that are looked up one by one, several sequences of them as one, and images in their cells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from mm_spine.benchmarks.benchmark import Row


@dataclass(frozen=True, eq=False)
class Cell:
    """An image in a cell of a table, read when it is opened. `name` is the path that the table gives for it."""

    read: Callable[[], Any] = field(repr=False)
    name: str | None

    def __str__(self) -> str:
        return self.name or "in the table"

    def read_bytes(self) -> bytes:
        """Read the bytes. Raises FileNotFoundError where the cell names a file and holds none."""
        value = self.read()
        data = value.get("bytes") if isinstance(value, Mapping) else value
        if not isinstance(data, bytes):
            raise FileNotFoundError(f"the table holds no bytes of image {self.name!r}")
        return data


class Rows(Sequence[Row]):
    """A sequence of rows that its subclasses look up by index."""

    def _row(self, index: int) -> Row:
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        # A range resolves negative indices, slices and IndexError as a list does.
        indices = range(len(self))[index]
        return self._row(indices) if isinstance(indices, int) else [self._row(each) for each in indices]


class JoinedRows(Rows):
    """Several sequences of rows, one after the other."""

    def __init__(self, parts: Iterable[Sequence[Row]]) -> None:
        self._parts = tuple(parts)

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __iter__(self) -> Iterator[Row]:
        for part in self._parts:
            yield from part

    def _row(self, index: int) -> Row:
        for part in self._parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)
