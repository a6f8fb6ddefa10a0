"""Saved responses graded and saved samples voted on: one row out for each row in, in the same order.

A row is a JSON object on a line of its own: `id`; `response` (to grade) or `responses` (to vote); `answer`, a gold
or a list of them; and, all optional, the fields of `AnswerSpec`: `kind`, `choices`, `precision`, `unit`,
`value_type`, `ordered`. Golds of kind choice are letters or option texts, never an index. A row that cannot be
graded costs itself: it scores 0, says why, is marked `error`, and stays out of every mean.
"""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from mm_spine.benchmarks import Benchmark, resolve
from mm_spine.files import write_json_lines
from mm_spine.processors.answers import checker, grade, grade_all, kind_of, parse, parse_all
from mm_spine.processors.answers.choice import check_count
from mm_spine.types import Answer, AnswerSpec, LabelledSet, Question, Verdict
from mm_spine.voting import representative, vote

SHOWN_PROBLEMS = 5

GRADED: dict[str, Any] = {"id": None, "parsed": None, "score": 0.0, "correct": False, "why": "", "error": False}
"""What `grade` writes of each row; these are the values of a row that holds nothing else."""

VOTED: dict[str, Any] = {
    "id": None,
    "answer": None,
    "share": 0.0,
    "margin": 0.0,
    "counts": {},
    "n": 0,
    "n_parsed": 0,
    "score": None,
    "correct": None,
    "pass_at_1": None,
    "pass_at_n": None,
    "why": "",
    "error": False,
}
"""What `vote` writes of each row; `score` to `pass_at_n` stay null without a gold."""


class BadRow(ValueError):
    """A row that cannot be graded. It costs that row alone."""


@dataclass(frozen=True)
class Case:
    """One row, understood. `golds` is () where there are none, for the reason `no_gold`; `tags` break results down."""

    id: str | int | float | None
    responses: tuple[str, ...]
    spec: AnswerSpec
    golds: tuple[str, ...]
    no_gold: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Rules:
    """What decides how a row is graded: one kind, a benchmark, or, with neither, the `kind` of each row."""

    kind: str | None = None
    benchmark: Benchmark | None = None
    source: str | None = None
    split: str | None = None

    @cached_property
    def released(self) -> LabelledSet:
        """The benchmark's split. ValueError: it cannot be loaded."""
        assert self.benchmark is not None
        return self.benchmark.load(self.split or self.benchmark.adapt_split, self.source)

    @cached_property
    def questions(self) -> Mapping[str, Question]:
        """The questions of the benchmark's split by id."""
        return {question.id: question for question in self.released.questions}

    def looks_up(self, row: Mapping[str, Any]) -> bool:
        """Whether the release has a say: a row without a gold needs it; one at hand gives each row its spec too."""
        if self.benchmark is None:
            return False
        return self.source is not None or self.benchmark.source is None or row.get("answer") is None


def rules(
    kind: str | None = None, benchmark: str | None = None, source: str | None = None, split: str | None = None
) -> Rules:
    """The rules that these options of a command stand for.

    ValueError: kind and benchmark together, an unknown one (the nearest is named), a source or split of no benchmark.
    """
    if kind is not None and benchmark is not None:
        raise ValueError(f"--kind {kind} and --benchmark {benchmark} exclude each other; give one")
    if benchmark is None and (source or split):
        raise ValueError(f"--{'source' if source else 'split'} belongs to a benchmark; add --benchmark NAME")
    if kind is not None:
        kind_of(AnswerSpec(kind))
    return Rules(kind, resolve(benchmark) if benchmark is not None else None, source, split)


class Done(NamedTuple):
    """One row's outcome as it is written, its tags, and what was wrong with it."""

    row: dict[str, Any]
    tags: Mapping[str, str]
    problem: str = ""


@dataclass
class Tally:
    """Sums over the rows without an error, what was wrong with the others, and how often the checker gave up."""

    rows: int = 0
    errors: int = 0
    stopped: int = 0
    problems: list[str] = field(default_factory=list)
    sums: dict[str, Any] = field(default_factory=dict)
    by_tag: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    def add(self, done: Done, measures: Mapping[str, float]) -> None:
        """Count one row: each measure is summed, `score` once more for each of the row's tags; an error has none."""
        self.rows += 1
        self.problems += [done.problem] if done.problem and len(self.problems) < SHOWN_PROBLEMS else []
        self.errors += done.row["error"]
        _add(self.sums, measures)
        for tag, value in done.tags.items() if "score" in measures else ():
            _add(self.by_tag.setdefault(tag, {}).setdefault(value, {}), {"n": 1, "score": measures["score"]})

    def total(self, name: str) -> Any:
        """The sum of `name`."""
        return self.sums.get(name, 0)

    def mean(self, name: str, of: str = "n") -> float | None:
        """The sum of `name` over that of `of`; None where there is nothing to divide by."""
        return self.total(name) / self.total(of) if self.total(of) else None

    def closing(self) -> dict[str, Any]:
        """What every summary ends with."""
        parts = {
            tag: {name: {"n": sums["n"], "accuracy": sums["score"] / sums["n"]} for name, sums in sorted(of.items())}
            for tag, of in self.by_tag.items()
        }
        lost = {"errors": self.errors, "problems": self.problems, "checker_stopped": self.stopped}
        return {**lost, "breakdowns": parts}


def _add(sums: dict[str, Any], values: Mapping[str, float]) -> None:
    for name, value in values.items():
        sums[name] = sums.get(name, 0) + value


def grade_file(path: Path, by: Rules, output: Path | None = None) -> dict[str, Any]:
    """Grade each row's `response`, write the rows of `GRADED` to `output`, and return the summary.

    `accuracy` is the mean score over the `n` rows without an error, `correct` the share of right ones, `unparsed`
    that of responses without an answer; `checker_stopped` counts the pairs of formulas that the checker gave up on and
    took as different; `breakdowns` are by the benchmark's tags. ValueError: nothing can be done
    for the whole file: it is missing, empty, names no kind, or `output` cannot be written.
    """
    tally = _run(path, by, output, _GRADE)
    means = {"accuracy": tally.mean("score"), "correct": tally.mean("correct"), "unparsed": tally.mean("unparsed")}
    return {"rows": tally.rows, "n": tally.total("n"), **means, **tally.closing()}


def vote_file(path: Path, by: Rules, output: Path | None = None) -> dict[str, Any]:
    """Vote over each row's `responses`, write the rows of `VOTED` to `output`, and return the summary.

    `share` is a mean over the `n` rows without an error, `unparsed` is of all their responses; `maj_at_n`,
    `pass_at_1` and `pass_at_n` are means over the `n_labelled` rows with a gold, which is looked at after the vote.
    `responses` is their mean number a row, N where rows agree. Raises as `grade_file` does.
    """
    tally = _run(path, by, output, _VOTE)
    return {
        "rows": tally.rows,
        "n": tally.total("n"),
        "responses": tally.mean("drawn"),
        "share": tally.mean("share"),
        "unparsed": tally.mean("unparsed", of="drawn"),
        "ties": tally.total("ties"),
        "all_unparsed": tally.total("silent"),
        "n_labelled": tally.total("labelled"),
        "maj_at_n": tally.mean("score", of="labelled"),
        "pass_at_1": tally.mean("pass_at_1", of="labelled"),
        "pass_at_n": tally.mean("pass_at_n", of="labelled"),
        **tally.closing(),
    }


def _graded(case: Case) -> dict[str, Any]:
    if not case.golds:
        raise BadRow(case.no_gold)
    answer = parse(case.responses[0], case.spec)
    verdict = grade(answer, case.golds, case.spec)
    return {"parsed": None if answer is None else answer.text, **_verdict(verdict)}


def _grade_measures(row: Mapping[str, Any]) -> dict[str, float]:
    return {"n": 1, "score": row["score"], "correct": row["correct"], "unparsed": row["parsed"] is None}


def _voted(case: Case) -> dict[str, Any]:
    """Vote first, with no gold in sight; then grade what was voted and sampled. A bad gold does not cost the vote."""
    answers = parse_all(case.responses, case.spec)
    outcome, classes = vote(answers, case.spec)
    result = {
        "answer": outcome.answer,
        "share": outcome.share,
        "margin": outcome.margin,
        "counts": dict(outcome.counts),
        "n": len(answers),
        "n_parsed": outcome.n_parsed,
    }
    winner = representative(answers, classes, outcome.answer)
    try:
        return result | (_worth(winner, answers, case) if case.golds else {"why": case.no_gold})
    except ValueError as error:
        return result | {"why": str(error)}


def _worth(winner: Answer | None, answers: Sequence[Answer | None], case: Case) -> dict[str, Any]:
    """The vote's verdict and its samples' scores. Each distinct answer is graded once."""
    vote, *samples = grade_all([winner, *answers], case.golds, case.spec)
    scores = [float(verdict.score) for verdict in samples]
    return {**_verdict(vote), "pass_at_1": math.fsum(scores) / len(scores), "pass_at_n": max(scores)}


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {"score": float(verdict.score), "correct": bool(verdict.correct), "why": verdict.why}


def _vote_measures(row: Mapping[str, Any]) -> dict[str, float]:
    sums = {"n": 1, "share": row["share"], "drawn": row["n"], "unparsed": row["n"] - row["n_parsed"]}
    sums |= {"ties": row["answer"] is not None and row["margin"] == 0, "silent": row["answer"] is None}
    if row["score"] is not None:
        sums |= {"labelled": 1, **{name: row[name] for name in ("score", "pass_at_1", "pass_at_n")}}
    return sums


@dataclass(frozen=True)
class _Job:
    """What a command does with a file: the field it reads, its work on a row, a blank row, and what is summed."""

    wanted: str
    work: Callable[[Case], dict[str, Any]]
    blank: Mapping[str, Any]
    measures: Callable[[Mapping[str, Any]], dict[str, float]]


_GRADE = _Job("response", _graded, GRADED, _grade_measures)
_VOTE = _Job("responses", _voted, VOTED, _vote_measures)


def _run(path: Path, by: Rules, output: Path | None, job: _Job) -> Tally:
    """Stream the rows of `path` through `job` into `output`."""
    tally = Tally()

    def rows() -> Iterator[dict[str, Any]]:
        for number, line in _lines(path):
            done = _done(line, number, by, job)
            tally.add(done, {} if done.row["error"] else job.measures(done.row))
            yield done.row
        if tally.rows == 0:
            raise ValueError(f"{path}: the file is empty; write one JSON object per line")

    _check_files(path, output)
    before = len(checker.failures())
    if output is None:
        deque(rows(), maxlen=0)
    else:
        write_json_lines(output, rows())
    tally.stopped = len(checker.failures()) - before
    return tally


def _check_files(path: Path, output: Path | None) -> None:
    if not path.is_file():
        raise ValueError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}; give a file of JSON lines")
    if output is None:
        return
    if output.is_dir():
        raise ValueError(f"{output}: a folder; give --output a file")
    if output.resolve() == path.resolve():
        raise ValueError(f"{output}: --output is the input; give it another name")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{output}: cannot be written: {error.filename} is no folder ({error.strerror})") from error
    if not os.access(output.parent, os.W_OK):
        raise ValueError(f"{output}: cannot be written: no permission to write into {output.parent}")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines from 1, blank ones left out."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line := line.removeprefix(b"\xef\xbb\xbf").strip():
                yield number, line


def _done(line: bytes, number: int, by: Rules, job: _Job) -> Done:
    """The outcome of one line; what is wrong with the line alone becomes its `why`."""
    row: Mapping[str, Any] = {}
    try:
        row = _row(line)
        case = _case(row, number, by, job.wanted)
        done = {**job.blank, "id": case.id, **_guarded(job.work, case)}
        lost = done["score"] is None and row.get("answer") is not None
        return Done(done, case.tags, f"line {number}, voted but not graded: {done['why']}" if lost else "")
    except BadRow as error:
        name = row.get("id") if _is_scalar(row.get("id")) else None
        why = f"line {number}: {error}"
        return Done({**job.blank, "id": name, "why": why, "error": True}, {}, why)


def _guarded(work: Callable[[Case], dict[str, Any]], case: Case) -> dict[str, Any]:
    """`work`, whose faults cost one row of a file that may have taken days to sample."""
    try:
        return work(case)
    except BadRow:
        raise
    except ValueError as error:
        raise BadRow(str(error)) from error
    except Exception as error:
        raise BadRow(f"{type(error).__name__} while grading: {error}") from error


def _row(line: bytes) -> Mapping[str, Any]:
    try:
        text = line.decode("utf-8")
        row = json.loads(text)
        if "\\ud" in text.lower():  # perhaps half a character, which no UTF-8 file can hold
            row = json.loads(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace"))
    except UnicodeDecodeError as error:
        raise BadRow("not UTF-8 text; save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise BadRow(f"not JSON ({error})") from error
    if not isinstance(row, dict):
        raise BadRow(f"expected a JSON object, found {type(row).__name__}; write one object per line")
    return row


def _case(row: Mapping[str, Any], number: int, by: Rules, wanted: str) -> Case:
    """BadRow: this row cannot be graded. ValueError: no row can, for no kind is named or the release does not load."""
    if by.kind is None and by.benchmark is None and row.get("kind") is None:
        raise ValueError(f"line {number} names no kind: give --kind KIND or --benchmark NAME, or each row its `kind`")
    name = row.get("id")
    if name is not None and not _is_scalar(name):
        raise BadRow(f"`id` must be a text or a number, found {_short(name)}")
    responses = _responses(row, wanted)
    question = _released_question(row, by)
    default = by.kind or (by.benchmark.kind if by.benchmark else str(row.get("kind")))
    spec = _spec(row, question.spec if question else AnswerSpec(default))
    try:
        golds, no_gold = _golds(row, spec, by), ""
    except BadRow as error:
        golds, no_gold = (), str(error)
    return Case(name, responses, spec, golds, no_gold, _tags(row, by))


def _is_scalar(value: Any) -> bool:
    """A text or a finite number: what an `id`, a response or a gold may be. To Python, but not here, True is 1."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, str | int) and not isinstance(value, bool)


def _responses(row: Mapping[str, Any], wanted: str) -> tuple[str, ...]:
    """The texts of `response` or `responses`; a number is read as its text."""
    given = row.get(wanted)
    if given is None:
        other, command = ("responses", "vote") if wanted == "response" else ("response", "grade")
        hint = f"; its `{other}` is for `mm-spine {command}`" if other in row else ""
        if wanted in row:
            raise BadRow(f'`{wanted}` is null: the model gave none; write "" to count it as unparsed')
        raise BadRow(f"no `{wanted}` (found {', '.join(map(repr, row)) or 'no field'}){hint}")
    if wanted == "response":
        if isinstance(given, list):
            raise BadRow("`response` is a list: put several samples in `responses` and use `mm-spine vote`")
        given = [given]
    if not isinstance(given, list) or not given:
        raise BadRow(f"`responses` must be a list of at least one text, found {_short(given)}")
    if odd := [value for value in given if not _is_scalar(value)]:
        raise BadRow(f"`{wanted}` must be text, found {_short(odd[0])}")
    return tuple(map(str, given))


def _spec(row: Mapping[str, Any], base: AnswerSpec) -> AnswerSpec:
    """`base` with the fields that the row gives; null is as if left out."""
    given = {name: row[name] for name in AnswerSpec.__dataclass_fields__ if row.get(name) is not None}
    for name in {"kind", "unit", "value_type"} & given.keys():
        if not isinstance(given[name], str):
            raise BadRow(f"`{name}` must be a text, found {_short(given[name])}")
    if "ordered" in given and not isinstance(given["ordered"], bool):
        raise BadRow(f"`ordered` must be true or false, found {_short(given['ordered'])}")
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
    return spec


def _whole(value: Any) -> int:
    """Releases write a precision as 1 and as 1.0."""
    if not _is_scalar(value) or isinstance(value, str) or value != int(value) or value < 0:
        raise BadRow(f"`precision` must be a number of decimals, found {_short(value)}")
    return int(value)


def _choices(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(_is_scalar(choice) for choice in value):
        raise BadRow(f"`choices` must be a list of texts, found {_short(value)}")
    return tuple(map(str, value))


def _released_question(row: Mapping[str, Any], by: Rules) -> Question | None:
    """The benchmark's own question of that id; a row that has no gold of its own must be one of them."""
    if not by.looks_up(row):
        return None
    assert by.benchmark is not None
    question = by.questions.get(str(row.get("id")))
    if question is None and row.get("answer") is None:
        split = by.split or by.benchmark.adapt_split
        known = f"{by.benchmark.name}/{split}, such as {next(iter(by.questions))!r}"
        raise BadRow(f"no `answer`, and {row.get('id')!r} is no id of {known}; for other rows use --kind")
    return question


def _golds(row: Mapping[str, Any], spec: AnswerSpec, by: Rules) -> tuple[str, ...]:
    """The row's own golds, else the release's. BadRow: there is none, or what there is cannot be one."""
    given = row.get("answer")
    if given is None and by.benchmark is not None:
        given = list(by.released.key.get(str(row.get("id")), ()))
    values = given if isinstance(given, list) else [] if given is None else [given]
    if not values:
        raise BadRow("no gold to grade against; give `answer`, a text, a number or a list of them")
    for value in values:
        if not _is_scalar(value):
            raise BadRow(f"`answer` must be a text, a number or a list of them, found {_short(value)}")
        if spec.kind == "choice" and not isinstance(value, str):
            raise BadRow(f"`answer` is the number {value}, which may be an index or a text; write the option's letter")
    return tuple(map(str, values))


def _tags(row: Mapping[str, Any], by: Rules) -> dict[str, str]:
    """The benchmark's breakdown fields: as the row has them, else as the release does, where it was loaded."""
    if by.benchmark is None:
        return {}
    known = by.released.tags.get(str(row.get("id")), {}) if by.looks_up(row) else {}
    values = {tag: row.get(tag, known.get(tag)) for tag in by.benchmark.breakdowns}
    return {tag: str(value) for tag, value in values.items() if _is_scalar(value)}


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
