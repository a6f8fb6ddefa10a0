"""Read the rows of a file of saved responses, for `mm-spine grade` and `mm-spine vote`.

A row is a JSON object on a line of its own: `id`; `response` (to grade) or `responses` (to vote); `answer`, a gold
or a list of them; and, all optional, the fields of `AnswerSpec`: `kind`, `choices`, `precision`, `unit`,
`value_type`, `ordered`. `question` or `prompt` may hold the question's words, by which sentences around free text are
cut. Golds of kind choice are letters or option texts, never an index.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mm_spine.benchmarks import Benchmark, resolve
from mm_spine.processors.answers import kind_of
from mm_spine.processors.answers.choice import check_count
from mm_spine.processors.answers.sentences import about
from mm_spine.types import AnswerSpec, LabelledSet, Question

RowId = str | int | float | None


class BadRow(ValueError):
    """A row that cannot be used. The other rows of its file are not affected."""


@dataclass(frozen=True)
class SavedRow:
    """One row as read, from `line` of its file.

    `golds` is empty without a usable gold, then `no_gold` says why; `tags` break results down.
    """

    id: RowId
    responses: tuple[str, ...]
    spec: AnswerSpec
    golds: tuple[str, ...]
    no_gold: str
    tags: Mapping[str, str]
    line: int


@dataclass(frozen=True)
class GradingRules:
    """What decides how rows are graded: one kind, or a benchmark, or, with neither, the `kind` of each row."""

    kind: str | None = None
    benchmark: Benchmark | None = None
    source: str | None = None
    split: str | None = None

    @cached_property
    def released(self) -> LabelledSet:
        """The benchmark's split, loaded on first use. Raises ValueError if it cannot be loaded."""
        assert self.benchmark is not None
        return self.benchmark.load(self.split or self.benchmark.adapt_split, self.source, "verbatim")

    @cached_property
    def questions(self) -> Mapping[str, Question]:
        """The questions of the benchmark's split, by id."""
        return {question.id: question for question in self.released.questions}

    def needs_release(self, row: Mapping[str, Any]) -> bool:
        """Return whether the benchmark's own question of this id is looked up.

        A row without a gold needs it. If the benchmark is embedded or its --source is given, rows with a gold get
        their answer spec from it too; otherwise nothing is downloaded for such rows.
        """
        if self.benchmark is None:
            return False
        return self.source is not None or self.benchmark.source is None or row.get("answer") is None


def grading_rules(
    kind: str | None = None, benchmark: str | None = None, source: str | None = None, split: str | None = None
) -> GradingRules:
    """Return the rules for these options of a command.

    Raises:
        ValueError: kind and benchmark are both given, one of them is unknown (the message names the nearest), or a
            source or split is given without a benchmark.
    """
    if kind is not None and benchmark is not None:
        raise ValueError(f"--kind {kind} and --benchmark {benchmark} exclude each other; give one")
    if benchmark is None and (source or split):
        raise ValueError(f"--{'source' if source else 'split'} belongs to a benchmark; add --benchmark NAME")
    if kind is not None:
        kind_of(AnswerSpec(kind))
    return GradingRules(kind, resolve(benchmark) if benchmark is not None else None, source, split)


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank with their numbers, counted from 1."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line := line.removeprefix(b"\xef\xbb\xbf").strip():
                yield number, line


def read_fields(line: bytes) -> Mapping[str, Any]:
    """Parse a line as a JSON object. Raises BadRow."""
    try:
        text = line.decode("utf-8")
        row = json.loads(text)
        # An escape such as \ud83d may be half a character, which no UTF-8 file can hold: replace it by "?".
        if "\\ud" in text.lower():
            row = json.loads(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace"))
    except UnicodeDecodeError as error:
        raise BadRow("not UTF-8 text; save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise BadRow(f"not JSON ({error})") from error
    if not isinstance(row, dict):
        raise BadRow(f"expected a JSON object, found {type(row).__name__}; write one object per line")
    return row


def read_row(fields: Mapping[str, Any], number: int, rules: GradingRules, wanted: str) -> SavedRow:
    """Read the fields of line `number`; `wanted` is the field of the responses, `response` or `responses`.

    Raises:
        BadRow: this row cannot be used.
        ValueError: no row can be used, because no kind is named or the benchmark does not load.
    """
    if rules.kind is None and rules.benchmark is None and fields.get("kind") is None:
        raise ValueError(f"line {number} names no kind: give --kind KIND or --benchmark NAME, or each row its `kind`")
    name = fields.get("id")
    if name is not None and not is_scalar(name):
        raise BadRow(f"`id` must be a text or a number, found {_short(name)}")
    responses = _responses(fields, wanted)
    question = _released_question(fields, rules)
    default = rules.kind or (rules.benchmark.kind if rules.benchmark else str(fields.get("kind")))
    spec = _spec(fields, question.spec if question else AnswerSpec(default))
    try:
        golds, no_gold = _golds(fields, spec, rules), ""
    except BadRow as error:
        golds, no_gold = (), str(error)
    return SavedRow(name, responses, spec, golds, no_gold, _tags(fields, rules), number)


def is_scalar(value: Any) -> bool:
    """Return whether a value is a text or a finite number, as an `id`, a response and a gold must be."""
    if isinstance(value, float):
        return math.isfinite(value)
    # In Python a bool is an int.
    return isinstance(value, str | int) and not isinstance(value, bool)


def _responses(fields: Mapping[str, Any], wanted: str) -> tuple[str, ...]:
    """Return the texts of `response` or `responses`; a number becomes its text."""
    given = fields.get(wanted)
    if given is None:
        other, command = ("responses", "vote") if wanted == "response" else ("response", "grade")
        hint = f"; its `{other}` is for `mm-spine {command}`" if other in fields else ""
        if wanted in fields:
            raise BadRow(f'`{wanted}` is null: the model gave none; write "" to count it as unparsed')
        raise BadRow(f"no `{wanted}` (found {', '.join(map(repr, fields)) or 'no field'}){hint}")
    if wanted == "response":
        if isinstance(given, list):
            raise BadRow("`response` is a list: put several samples in `responses` and use `mm-spine vote`")
        given = [given]
    if not isinstance(given, list) or not given:
        raise BadRow(f"`responses` must be a list of at least one text, found {_short(given)}")
    if odd := [value for value in given if not is_scalar(value)]:
        raise BadRow(f"`{wanted}` must be text, found {_short(odd[0])}")
    return tuple(map(str, given))


def _spec(fields: Mapping[str, Any], base: AnswerSpec) -> AnswerSpec:
    """Replace in `base` the fields that the row gives; null counts as not given."""
    names = AnswerSpec.__dataclass_fields__.keys() - {"question"}
    given = {name: fields[name] for name in names if fields.get(name) is not None}
    for name in {"kind", "unit", "value_type"} & given.keys():
        if not isinstance(given[name], str):
            raise BadRow(f"`{name}` must be a text, found {_short(given[name])}")
    if "ordered" in given and not isinstance(given["ordered"], bool):
        raise BadRow(f"`ordered` must be true or false, found {_short(given['ordered'])}")
    if "iou" in given and not (is_scalar(given["iou"]) and 0 < float(given["iou"]) <= 1):
        raise BadRow(f"`iou` must be a number above 0 and at most 1, found {_short(given['iou'])}")
    if "precision" in given:
        given["precision"] = _whole(given["precision"])
    if "choices" in given:
        given["choices"] = _choices(given["choices"])
    spec = replace(base, **given)
    try:
        kind_of(spec)
        if spec.kind == "choice":
            check_count(spec.choices)
    except ValueError as error:
        raise BadRow(str(error)) from error
    asked = next((words for name in ("question", "prompt") if isinstance(words := fields.get(name), str)), "")
    return about(spec, asked)


def _whole(value: Any) -> int:
    """Return a precision as int: releases write it as 1 and as 1.0."""
    if not is_scalar(value) or isinstance(value, str) or value != int(value) or value < 0:
        raise BadRow(f"`precision` must be a number of decimals, found {_short(value)}")
    return int(value)


def _choices(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(is_scalar(choice) for choice in value):
        raise BadRow(f"`choices` must be a list of texts, found {_short(value)}")
    return tuple(map(str, value))


def _released_question(fields: Mapping[str, Any], rules: GradingRules) -> Question | None:
    """Return the benchmark's question of the row's id. Raises BadRow if there is none and the row has no gold."""
    if not rules.needs_release(fields):
        return None
    assert rules.benchmark is not None
    question = rules.questions.get(str(fields.get("id")))
    if question is None and fields.get("answer") is None:
        split = rules.split or rules.benchmark.adapt_split
        known = f"{rules.benchmark.name}/{split}, such as {next(iter(rules.questions))!r}"
        raise BadRow(f"no `answer`, and {fields.get('id')!r} is no id of {known}; for other rows use --kind")
    return question


def _golds(fields: Mapping[str, Any], spec: AnswerSpec, rules: GradingRules) -> tuple[str, ...]:
    """Return the row's own golds, else the benchmark's. Raises BadRow if there is none or one cannot be a gold."""
    given = fields.get("answer")
    if given is None and rules.benchmark is not None:
        given = list(rules.released.key.get(str(fields.get("id")), ()))
    values = given if isinstance(given, list) else [] if given is None else [given]
    if not values:
        raise BadRow("no gold to grade against; give `answer`, a text, a number or a list of them")
    for value in values:
        if not is_scalar(value):
            raise BadRow(f"`answer` must be a text, a number or a list of them, found {_short(value)}")
        if spec.kind == "choice" and not isinstance(value, str):
            raise BadRow(f"`answer` is the number {value}, which may be an index or a text; write the option's letter")
    return tuple(map(str, values))


def _tags(fields: Mapping[str, Any], rules: GradingRules) -> dict[str, str]:
    """Return the benchmark's breakdown fields: from the row, else from the benchmark if it was looked up."""
    if rules.benchmark is None:
        return {}
    known = rules.released.tags.get(str(fields.get("id")), {}) if rules.needs_release(fields) else {}
    values = {tag: fields.get(tag, known.get(tag)) for tag in rules.benchmark.breakdowns}
    return {tag: str(value) for tag, value in values.items() if is_scalar(value)}


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
