"""The user's own data: a folder with a table of questions and their images.

The table is `questions.jsonl` (or .parquet, .csv, .tsv, .json). A second one, `held_out.*`, is evaluated and never
adapted to. An image folder of the `datasets` library is read too: `metadata.jsonl` (.csv, .parquet) beside the images,
or in one folder for each split.

The fields of a row are those of docs/data.md. `columns.yaml` beside the table gives the names of its columns where they
differ. `answer` goes to the answer key and nowhere else.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm_spine.benchmarks.benchmark import Benchmark, Row
from mm_spine.benchmarks.columns import COLUMNS, CONVERT, Columns, load_columns
from mm_spine.benchmarks.images import Folder, inside, root_of
from mm_spine.benchmarks.own_prompts import VERBATIM, without_request, write_prompt
from mm_spine.benchmarks.pictures import shown
from mm_spine.benchmarks.rows import Cell
from mm_spine.benchmarks.tables import SUFFIXES, Table, read_table
from mm_spine.processors import answers
from mm_spine.processors.answers.choice import check_count
from mm_spine.processors.answers.sentences import about
from mm_spine.processors.markers import PROMPT_LIMIT, mismatch
from mm_spine.types import AnswerSpec, ImageLike, LabelledSet, Question
from mm_spine.words import check_characters, visible, visible_line

log = logging.getLogger(__name__)

# Split -> the name of its table; the splits that an image folder may have; the tables of such a folder, and the
# columns of theirs that name images.
TABLES = {"adapt": "questions", "held_out": "held_out"}
FOLDERS = ("train", "test", "validation")
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_METADATA_IMAGE = ("file_names", "file_name")


@dataclass(frozen=True, kw_only=True)
class FolderBenchmark(Benchmark):
    """A folder of the user's. `tables` maps each split to its table; the first split is adapted to."""

    folder: Path
    tables: Mapping[str, Path]

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.tables)

    def load(self, split: str, source: str | None = None, prompt: str = "reason") -> LabelledSet:
        """Return the questions of `split`. A prompt without a request for the form of its answer gets that of `prompt`.

        Says in the log how many do.
        """
        if source is not None:
            raise ValueError(f"source={source!r}: {self.folder} is the source of its own questions; leave source out")
        if split not in self.tables:
            raise ValueError(f"{self.folder} has no split {split!r}; it has {', '.join(self.splits)}")
        labelled = load_table(self.folder, self.tables[split], prompt)
        if split == self.adapt_split:
            _say_what_was_added(self.tables[split].name, labelled.questions)
        for problem in labelled.problems:
            log.warning("%s", problem)
        return labelled


def folder_benchmark(folder: Path) -> FolderBenchmark:
    """Make a benchmark of a folder, under the folder's name. Raises ValueError where it holds no table of questions."""
    tables = find_tables(folder)
    first, *others = tables
    columns = _columns(folder, tables[first])
    return FolderBenchmark(
        name=folder.resolve().name,
        summary=f"Your own questions in {folder}.",
        kind=str(columns.defaults.get("kind", "text")),
        breakdowns=columns.tags,
        adapt_split=first,
        held_out_split=others[0] if others else None,
        folder=folder,
        tables=tables,
    )


def find_tables(folder: Path) -> dict[str, Path]:
    """Map each split to its table. Raises ValueError where there is none, or a split has two.

    The tables are `questions` and `held_out`, else metadata in the folder, else metadata in a folder for each split.
    """
    tables = {split: path for split, stem in TABLES.items() if (path := _only(folder, [stem + s for s in SUFFIXES]))}
    if "adapt" in tables:
        return tables
    if path := _only(folder, _METADATA):
        return {"adapt": path}
    if splits := {split: path for split in FOLDERS if (path := _only(folder / split, _METADATA))}:
        return splits
    raise ValueError(
        f"{folder}: no questions.jsonl in this folder (nor questions.parquet, .csv, .tsv, .json, nor "
        "metadata.jsonl, .csv, .parquet of an image folder); write one JSON object per line, such as "
        '{"image": "scan1.png", "prompt": "What is shown?"}'
    )


def _only(folder: Path, names: list[str] | tuple[str, ...]) -> Path | None:
    found = [folder / name for name in names if (folder / name).is_file()]
    if len(found) > 1:
        raise ValueError(f"{folder} holds {' and '.join(path.name for path in found)}; keep one of them")
    return found[0] if found else None


def _say_what_was_added(table: str, questions: Sequence[Question]) -> None:
    ends = [question for question in questions if without_request(question.prompt, question.spec) != question.prompt]
    if ends:
        log.info(
            '%s: %d of %d prompts end with a request for the form of the answer, added where a prompt has none: "%s"; '
            "with prompt=verbatim none is added",
            table, len(ends), len(questions), ends[0].prompt.splitlines()[-1],
        )  # fmt: skip


def load_table(folder: Path, path: Path | None = None, style: str = VERBATIM) -> LabelledSet:
    """Read the questions of a table in `folder`, the first that is found if `path` is None.

    `style` is that of the request which a prompt gets that has none; `verbatim`: no prompt gets any.
    A line that cannot be read is skipped; a gold that cannot be graded against is dropped, and its question kept. Both
    are in `problems` of the result. Raises ValueError for a wrong `columns.yaml`, or where no line can be read.
    """
    path = path or next(iter(find_tables(folder).values()))
    table, columns = read_table(path), _columns(folder, path)
    problems: list[tuple[int, str]] = [(number, f"skipped: {why}") for number, why in table.problems]
    present = {column for row in table.rows for column in row}
    if table.rows and (missing := columns.check(path.name, present)):
        problems.append((0, missing))
    problems += [(0, f"{path.relative_to(folder)}: {why}") for why in columns.misspelt(present)]
    labelled = _labelled(table, columns, path, style, problems)
    unit = "row" if path.suffix.lower() in (".json", ".parquet") else "line"
    sentences = tuple(
        visible_line(f"{path.relative_to(folder)}, {unit} {number} {why}" if number else why)
        for number, why in sorted(problems)
    )
    if not labelled.questions:
        raise ValueError(f"{path}: no usable question. {' '.join(sentences[:3]) or 'The file is empty.'}")
    return LabelledSet(labelled.questions, labelled.key, labelled.tags, sentences)


def _labelled(table: Table, columns: Columns, path: Path, style: str, problems: list[tuple[int, str]]) -> LabelledSet:
    """Make questions, answer key and tags of the rows of `path`; add what is wrong with a row to `problems`."""
    questions: dict[str, Question] = {}
    key: dict[str, tuple[str, ...]] = {}
    tags: dict[str, Mapping[str, str]] = {}
    images = Folder(path.parent, root_of(path.parent))
    for number, row in _rows(table, path):
        try:
            question = _question(row, columns, images, f"{path.stem}-{number}", style)
            if question.id in questions:
                raise ValueError(f"the id {question.id!r} was used before; give each line its own")
        except (ValueError, OSError, RecursionError) as error:
            problems.append((number, f"skipped: {error}"))
            continue
        questions[question.id] = question
        tags[question.id] = {tag: visible(str(row[tag])) for tag in columns.tags if row.get(tag) is not None}
        if why := mismatch(question.prompt, len(question.images)):
            problems.append((number, f"kept: {why}"))
        # The question stays even if its gold cannot be read: which questions are asked must not depend on labels.
        try:
            if golds := _golds(columns.values(row, "answer"), question.spec):
                key[question.id] = golds
        except ValueError as error:
            problems.append((number, f"kept without its answer: {error}"))
    return LabelledSet(tuple(questions.values()), key, tags)


def _columns(folder: Path, path: Path) -> Columns:
    return load_columns(folder, _METADATA_IMAGE if path.name in _METADATA else COLUMNS["image"])


def _rows(table: Table, path: Path) -> Iterator[tuple[int, Row]]:
    """Yield each row and its number, without the cells that hold no value."""
    # CSV and Parquet fill every column of a row, so an empty cell there means that the row has no such field.
    filled = path.suffix.lower() in (".csv", ".tsv", ".parquet")
    for number, row in zip(table.numbers, table.rows, strict=True):
        cells = {name: value.strip() if isinstance(value, str) and filled else value for name, value in row.items()}
        yield number, {name: value for name, value in cells.items() if not filled or value not in ("", None)}


def _question(row: Row, columns: Columns, images: Folder, default_id: str, style: str) -> Question:
    name = columns.value(row, "id") if columns.values(row, "id") else default_id
    if isinstance(name, bool) or not isinstance(name, str | int) or not str(name).strip():
        raise ValueError(f"id must be a text or an integer, found {name!r}")
    spec = _spec(row, columns)
    check_characters("id", str(name))
    text = _text(row, columns)
    # The words of the question, and not those of the request, help to read an answer.
    spec = about(spec, write_prompt(text, spec, VERBATIM))
    return Question(str(name), tuple(_images(row, columns, images)), write_prompt(text, spec, style), spec)


def _text(row: Row, columns: Columns) -> str:
    """Return the prompt as written."""
    prompt = columns.value(row, "prompt")
    if prompt is None:
        wanted = " or ".join(map(repr, columns.names["prompt"])) or "a default"
        raise ValueError(f"no prompt; give {wanted} (found {', '.join(map(repr, row)) or 'no field'})")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"empty question {prompt!r}")
    if len(prompt) > PROMPT_LIMIT:
        raise ValueError(f"its prompt of {len(prompt):,} characters is longer than {PROMPT_LIMIT:,}; shorten it")
    check_characters("the prompt", prompt)
    return prompt


def _spec(row: Row, columns: Columns) -> AnswerSpec:
    choices = columns.choices(row)
    check_characters("an option", *choices)
    kind = columns.value(row, "kind") if columns.values(row, "kind") else "choice" if choices else "text"
    if not isinstance(kind, str):
        raise ValueError(f"kind must be a text, found {kind!r}")
    further = {name: convert(name, columns.value(row, name)) for name, convert in CONVERT.items()}
    spec = AnswerSpec(kind, choices, **further)
    # Parsing any response raises ValueError for an unknown kind or value_type.
    answers.parse("", spec)
    if kind == "choice":
        check_count(choices)
    return spec


def _golds(given: list[Any], spec: AnswerSpec) -> tuple[str, ...]:
    """Return the golds of a row, () if it has none. Raises ValueError where one is not of the kind of `spec`."""
    if spec.kind == "box":
        # A list of four numbers is one box, of four lists each is one.
        given = [box for value in given for box in (value if _boxes(value) else [value])]
        given = [str(box) if isinstance(box, list) else box for box in given]
    values = [item for value in given for item in _as_list(value)]
    if any(isinstance(value, bool) or not isinstance(value, str | int | float) for value in values):
        raise ValueError(f"answer must be a text, a number or a list of them, found {given!r}")
    golds = tuple(map(str, values))
    check_characters("its answer", *golds)
    if golds:
        # Grading no answer still reads the golds, and raises where one is not of the kind.
        answers.grade(None, golds, spec)
    return golds


def _boxes(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, list | str) for item in value)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _images(row: Row, columns: Columns, images: Folder) -> Iterator[ImageLike]:
    """Yield the images of a row, then the frames of its videos. Raises ValueError for what is no file in the folder."""
    for field in ("image", "video"):
        for column in columns.names[field]:
            for value in _as_list(row.get(column)):
                image, part = _image(column, value, images)
                yield from shown(image, part, row, columns, field == "video")


def _image(column: str, value: Any, images: Folder) -> tuple[ImageLike, str]:
    """Return an image and the text after "#" in its name, "" where there is none or the file itself is named so."""
    name = value.get("path") if isinstance(value, Mapping) and not value.get("bytes") else value
    if isinstance(name, str) and name.strip():
        if path := images.find(str(inside(name))):
            return path, ""
        file, _, part = name.rpartition("#")
        if file and (path := images.find(str(inside(file)))):
            return path, part
        raise ValueError(f"image {name!r} is not a file in the folder")
    if isinstance(value, bytes | Cell):
        return value, ""
    raise ValueError(f"{column} must be a text or a list of texts, or bytes in Parquet, found {value!r}")
