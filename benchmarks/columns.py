"""Read `columns.yaml` of a user's folder: the column of each field of a question, and defaults for all rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mm_spine.benchmarks.benchmark import Row
from mm_spine.words import closest, nearest

FILE = "columns.yaml"
_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")

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
    "video": ("video",),
    "frame": ("frame", "page"),
    "frames": ("frames",),
    "fps": ("fps",),
    "slice": ("slice",),
    "axis": ("axis",),
    "window": ("window",),
    "iou": ("iou",),
}
"""Field -> the columns that it is read from unless `columns.yaml` names others."""

_ALIASES = {"question": "prompt", "images": "image"}
# Fields that may be read from several columns, and fields that may have a default.
_SEVERAL = ("image", "video", "choices", "answer")
_DEFAULTS = tuple(name for name in COLUMNS if name not in ("id", "image", "video", "answer"))


@dataclass(frozen=True)
class Columns:
    """How a row of a user's table is read.

    `names` maps a field to its columns, `defaults` to its value where a row has none. `tags` are the columns that
    results are broken down by. `named` are the fields whose columns `columns.yaml` names; these must be in the table.
    """

    names: Mapping[str, tuple[str, ...]]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    named: frozenset[str] = frozenset()

    def values(self, row: Row, name: str) -> list[Any]:
        """Return the values that `row` has in the columns of a field, in order, or else the default of the field."""
        found = [row[column] for column in self.names[name] if column in row]
        return found or ([self.defaults[name]] if name in self.defaults else [])

    def value(self, row: Row, name: str) -> Any:
        """Return the first of `values`, or None."""
        return next(iter(self.values(row, name)), None)

    def choices(self, row: Row) -> tuple[str, ...]:
        """Return the options: a list, one text split at "|" or parsed as JSON, or one text in each of several columns.

        Numbers become texts. Raises ValueError where an option is neither, or where one before the last is empty.
        """
        columns = self.names["choices"]
        values = [row.get(column) for column in columns] if len(columns) > 1 else self.values(row, "choices")
        if len(columns) < 2 and values:
            values = _listed(values[0])
        while values and values[-1] is None:
            values.pop()
        # An empty option before the last would shift the letters of those after it, so it is refused below.
        values = [
            value if isinstance(value, bool) or not isinstance(value, int | float) else str(value) for value in values
        ]
        if not all(isinstance(value, str) and value.strip() for value in values):
            raise ValueError(f"choices must be a text or a list of texts, none of them empty, found {values!r}")
        return tuple(values)

    def check(self, file: str, present: Iterable[str]) -> str | None:
        """Check that the columns that `columns.yaml` names are among those `present` in the table `file`.

        Returns a sentence where only columns of answers or tags are missing, and None where nothing is. Raises
        ValueError where another column is missing.
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

    def misspelt(self, present: Iterable[str]) -> list[str]:
        """Return a sentence for each column that is not read and is named almost like one that is missing."""
        present = set(present)
        read = {column for columns in self.names.values() for column in columns} | set(self.tags)
        # A field that the table has under another of its names is not missing.
        absent = [column for columns in self.names.values() if not present & {*columns} for column in columns]
        guesses = {column: closest(column, absent, cutoff=0.7) for column in sorted(map(str, present - read))}
        return [
            f"column {column!r} is not read; did you mean {guess!r}? Rename it, or name it in {FILE}"
            for column, guess in guesses.items()
            if guess
        ]


def load_columns(folder: Path, image: tuple[str, ...] = COLUMNS["image"]) -> Columns:
    """Read `columns.yaml` in `folder`; without it, each field is in the column of its name, images in `image`.

    Raises ValueError where it is not YAML, or holds an unknown key or a value of the wrong type.
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
        name = _ALIASES.get(str(key), str(key))
        if name not in COLUMNS:
            raise ValueError(
                f"{path}: unknown key {key!r}; {nearest(str(key), [*COLUMNS, *_ALIASES, 'defaults', 'tags'])}"
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
    # A date that does not exist is a ValueError, and so is a number too long to read.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not YAML ({error})") from error
    if not isinstance(value, dict | None):
        raise ValueError(f"{path}: expected lines such as 'prompt: Question', found {value!r}")
    return value or {}


def _names(path: Path, key: str, value: Any) -> tuple[str, ...]:
    """Return the column names in `value`: one, a list of them, or null for none."""
    names = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(name, str) and name for name in names):
        raise ValueError(
            f"{path}: {key!r} names a column or a list of them, found {value!r} (quote yes, no and numbers)"
        )
    return tuple(names)


def _defaults(path: Path, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict | None):
        raise ValueError(f"{path}: 'defaults' holds lines such as 'kind: yes_no', found {value!r}")
    defaults = {_ALIASES.get(str(key), str(key)): given for key, given in (value or {}).items()}
    for key in defaults:
        if key not in _DEFAULTS:
            raise ValueError(f"{path}: defaults: unknown key {key!r}; {nearest(key, _DEFAULTS)}")
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
    """Return `value` as an integer, also from "2" and 2.0; None stays None. Raises ValueError for anything else."""
    try:
        number = float(value) if not isinstance(value, bool) and value is not None else value
        if number is None or (isinstance(number, float) and number.is_integer()):
            return None if number is None else int(number)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"{name} must be a whole number, found {value!r:.80}")


def truth(name: str, value: Any) -> bool:
    """Return `value` as a boolean, also from words such as "yes"; None is True. Raises ValueError for anything else."""
    if value is None or isinstance(value, bool):
        return value is not False
    word = str(value).strip().lower()
    if word in (*_TRUE, *_FALSE):
        return word in _TRUE
    raise ValueError(f"{name} must be true or false, found {value!r}")


def share(name: str, value: Any) -> float | None:
    """Return `value` as a number in (0, 1], also from "0.5"; None stays None. Raises ValueError for anything else."""
    if value is None:
        return None
    try:
        number = 0.0 if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = 0.0
    if 0 < number <= 1:
        return number
    raise ValueError(f"{name} must be a number above 0 and at most 1, found {value!r:.80}")


def text(name: str, value: Any) -> str | None:
    """Return `value`, a text or None. Raises ValueError for anything else."""
    if value is None or isinstance(value, str):
        return value
    raise ValueError(f"{name} must be a text, found {value!r}")


CONVERT: Mapping[str, Callable[[str, Any], Any]] = {
    "precision": whole_number,
    "unit": text,
    "value_type": text,
    "ordered": truth,
    "iou": share,
}
"""Field of an AnswerSpec, other than kind and choices -> what converts the value of a row: (field, value) -> value."""
