"""`columns.yaml` of a user's folder: which column is which field of a question, and what holds for every row."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mm_spine.benchmarks.release import Row
from mm_spine.words import nearest

FILE = "columns.yaml"
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "id": ("id",),
    "prompt": ("prompt", "question"),
    "image": ("images", "image"),
    "answer": ("answer",),
    "kind": ("kind",),
    "choices": ("choices",),
    "precision": ("precision",),
    "unit": ("unit",),
    "value_type": ("value_type",),
    "ordered": ("ordered",),
}
"""Field -> the columns it is read from where `columns.yaml` names no other."""

_SAME = {"question": "prompt", "images": "image"}
_SEVERAL = ("image", "choices", "answer")
_CONSTANT = ("prompt", "kind", "choices", "precision", "unit", "value_type", "ordered")


@dataclass(frozen=True)
class Columns:
    """Field -> its columns; what holds where a row has no value; the columns that results are broken down by.

    `named` are the fields that `columns.yaml` gives columns for: those must be in the file.
    """

    names: Mapping[str, tuple[str, ...]]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    named: frozenset[str] = frozenset()

    def values(self, row: Row, name: str) -> list[Any]:
        """The values of the field's columns that `row` has, in order; else its default."""
        found = [row[column] for column in self.names[name] if column in row]
        return found or ([self.defaults[name]] if name in self.defaults else [])

    def value(self, row: Row, name: str) -> Any:
        """The first of `values`, None without any."""
        return next(iter(self.values(row, name)), None)

    def choices(self, row: Row) -> tuple[str, ...]:
        """The options: a list, one text parted by "|" or JSON, or a text in each of several columns; numbers too.

        ValueError: an option is no text, or is empty while a later one is not, which would shift the letters.
        """
        columns = self.names["choices"]
        values = [row.get(column) for column in columns] if len(columns) > 1 else self.values(row, "choices")
        if len(columns) < 2 and values:
            values = _listed(values[0])
        while values and values[-1] is None:
            values.pop()
        values = [
            value if isinstance(value, bool) or not isinstance(value, int | float) else str(value) for value in values
        ]
        if not all(isinstance(value, str) and value.strip() for value in values):
            raise ValueError(f"choices must be a text or a list of texts, none empty before the last, found {values!r}")
        return tuple(values)

    def check(self, file: str, present: Iterable[str]) -> str | None:
        """What is missing in a file with the columns `present`: a sentence where it is the answers or a tag alone.

        ValueError: another column that `columns.yaml` names is not there.
        """
        present, problems = set(present), []
        wanted = [(name, column) for name in sorted(self.named) for column in self.names[name]]
        for name, column in [*wanted, *(("tags", column) for column in self.tags)]:
            if column not in present:
                missing = f"{FILE}, {name}: {file} has no column {column!r}; {nearest(column, present)}"
                if name not in ("answer", "tags"):
                    raise ValueError(missing)
                problems.append(missing)
        return "; ".join(problems) or None


def load_columns(folder: Path, image: tuple[str, ...] = COLUMNS["image"]) -> Columns:
    """The folder's `columns.yaml`; without one the fields under their own names, images under `image`.

    ValueError: not YAML, an unknown key (the nearest is named), or a value of the wrong type.
    """
    path = folder / FILE
    names = {**COLUMNS, "image": image}
    if not path.is_file():
        return Columns(names)
    given = _mapping(path)
    tags = _names(path, "tags", given.pop("tags", None))
    defaults = _defaults(path, given.pop("defaults", None))
    named: dict[str, tuple[str, ...]] = {}
    for key, value in given.items():
        name = _SAME.get(str(key), str(key))
        if name not in COLUMNS:
            raise ValueError(
                f"{path}: unknown key {key!r}; {nearest(str(key), [*COLUMNS, *_SAME, 'defaults', 'tags'])}"
            )
        if name in named:
            raise ValueError(f"{path}: {key!r} and {name!r} mean the same; keep one")
        named[name] = _names(path, key, value)
        if name not in _SEVERAL and len(named[name]) > 1:
            raise ValueError(f"{path}: {key!r} is one column, found {value!r}")
    return Columns({**names, **named}, defaults, tags, frozenset(named))


def _mapping(path: Path) -> dict[str, Any]:
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML ({error})") from error
    if not isinstance(value, dict | None):
        raise ValueError(f"{path}: expected lines such as 'prompt: Question', found {value!r}")
    return value or {}


def _names(path: Path, key: str, value: Any) -> tuple[str, ...]:
    """A column, a list of columns, or null for none."""
    names = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(name, str) and name for name in names):
        raise ValueError(
            f"{path}: {key!r} names a column or a list of them, found {value!r} (quote yes, no and numbers)"
        )
    return tuple(names)


def _defaults(path: Path, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict | None):
        raise ValueError(f"{path}: 'defaults' holds lines such as 'kind: yes_no', found {value!r}")
    defaults = {_SAME.get(str(key), str(key)): given for key, given in (value or {}).items()}
    for key in defaults:
        if key not in _CONSTANT:
            raise ValueError(f"{path}: defaults: unknown key {key!r}; {nearest(key, _CONSTANT)}")
    choices = defaults.get("choices", [])
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise ValueError(f"{path}: defaults: choices is a list of texts, found {choices!r} (quote yes and no)")
    return defaults


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, str):
        return [*value] if isinstance(value, list) else [] if value is None else [value]
    if value.lstrip().startswith("["):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            parsed = None
        if isinstance(parsed, list):
            return parsed
    return [part.strip() for part in value.split("|")] if "|" in value else [value]


def whole_number(name: str, value: Any) -> int | None:
    """`value` as an integer, also from "2" and 2.0. ValueError: it is none."""
    try:
        number = float(value) if not isinstance(value, bool) and value is not None else value
        if number is None or (isinstance(number, float) and number.is_integer()):
            return None if number is None else int(number)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{name} must be a whole number, found {value!r}")


def truth(name: str, value: Any) -> bool:
    """`value` as true or false, also from the words of a table; None is True. ValueError: neither."""
    if value is None or isinstance(value, bool):
        return value is not False
    word = str(value).strip().lower()
    if word in (*_TRUE, *_FALSE):
        return word in _TRUE
    raise ValueError(f"{name} must be true or false, found {value!r}")


_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")


def text(name: str, value: Any) -> str | None:
    """`value`, a text or nothing. ValueError: neither."""
    if value is None or isinstance(value, str):
        return value
    raise ValueError(f"{name} must be a text, found {value!r}")


CONVERT: Mapping[str, Callable[[str, Any], Any]] = {
    "precision": whole_number,
    "unit": text,
    "value_type": text,
    "ordered": truth,
}
"""The further fields of an AnswerSpec: (field, value of a row) -> value."""
