"""A public release: find its rows and images, read each row, and make questions and an answer key of them."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from mm_spine.benchmarks import hub
from mm_spine.benchmarks.benchmark import Benchmark, Entry, Images, Read, Row, Source
from mm_spine.benchmarks.images import ImageFinder
from mm_spine.benchmarks.prompts import render
from mm_spine.benchmarks.rows import JoinedRows
from mm_spine.benchmarks.tables import describe_folder, matching_files, read_table
from mm_spine.processors import answers
from mm_spine.processors.answers.sentences import about
from mm_spine.types import LabelledSet, Question
from mm_spine.words import check_characters, visible_line

log = logging.getLogger(__name__)

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_SAVED_DATASET = ("state.json", "dataset_dict.json")


@dataclass(frozen=True, kw_only=True)
class ReleasedBenchmark(Benchmark):
    """A benchmark with a public release: `source` says where its rows are, `read` turns one into an entry."""

    source: Source
    read: Read

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.source.files)

    def reader(self, split: str) -> Read:
        """Return what reads the rows of `split`: `read`, unless a benchmark tells its splits apart by row."""
        return self.read

    def load(self, split: str, source: str | None = None, prompt: str = "reason") -> LabelledSet:
        if split not in self.splits:
            raise ValueError(f"{self.name} has no split {split!r}; take one of {', '.join(self.splits)}")
        release = open_release(self.source, split, source)
        entries = chain(release.problems, read_rows(self.reader(split), release.rows, release.images))
        labelled = labelled_set(self.name, entries, prompt)
        if not labelled.questions:
            raise ValueError(f"{self.name}, {release.place}: no usable row. {' '.join(labelled.problems[:3])}")
        return labelled


def read_rows(read: Read, rows: Iterable[Row], images: Images) -> Iterable[Entry | str | None]:
    """Yield the entry of each row, None for one that is not asked, or a sentence for one that cannot be read."""
    for index, row in enumerate(rows):
        try:
            yield read(row, images, index)
        except KeyError as error:
            yield f"row {index} skipped: no field {error} (it has {', '.join(map(repr, row))})"
        except (TypeError, ValueError) as error:
            yield f"row {index} skipped: {error}"


def labelled_set(name: str, entries: Iterable[Entry | str | None], prompt: str) -> LabelledSet:
    """Collect questions, answer key and tags from entries, and one sentence for each problem.

    Of entries with the same id the first is kept.
    """
    questions: dict[str, Question] = {}
    key: dict[str, tuple[str, ...]] = {}
    tags: dict[str, Mapping[str, str]] = {}
    problems: list[str] = []
    for entry in entries:
        if entry is None:
            continue
        if isinstance(entry, str):
            problems.append(entry)
            continue
        try:
            check_characters("its id", entry.id)
            check_characters("its question", entry.body, *entry.spec.choices)
        except ValueError as error:
            problems.append(f"{visible_line(entry.id)} skipped: {error}")
            continue
        if entry.id in questions:
            problems.append(f"{entry.id}: this id appears twice; the first row is kept")
            continue
        spec = about(entry.spec, entry.body)
        questions[entry.id] = Question(entry.id, entry.images, render(entry, prompt), spec, name)
        tags[entry.id] = entry.tags
        # The question stays even if its gold cannot be read: which questions are asked must not depend on labels.
        if entry.golds and (why := _why_unusable(entry)):
            problems.append(f"{entry.id} kept without its answer: {why}")
        elif entry.golds:
            key[entry.id] = entry.golds
    problems = list(map(visible_line, problems))
    for problem in problems:
        log.warning("%s, %s", name, problem)
    return LabelledSet(tuple(questions.values()), key, tags, tuple(problems))


def _why_unusable(entry: Entry) -> str:
    """Say why the golds of `entry` cannot be graded against; "" where they can."""
    try:
        # Grading no answer still reads the golds, and raises where one is not of the kind.
        answers.grade(None, entry.golds, entry.spec)
    except ValueError as error:
        return str(error)
    return ""


@dataclass(frozen=True, eq=False)
class Release:
    """One split of a release: its readable rows in order, how to find their images, and where it was found.

    `problems` holds one sentence for each line that is not a row.
    """

    rows: Sequence[Row]
    images: Images
    place: str
    problems: tuple[str, ...] = ()


def open_release(source: Source, split: str, place: str | None = None) -> Release:
    """Open `split` at `place`: a folder, or a hub id ("owner/name", "owner/name@revision"); None is `source.hub`.

    A folder is one in the layout of the release, a copy of the hub's, or one that `Dataset.save_to_disk` wrote. Raises
    ValueError where nothing is found; the message says what was tried and how to give another place.
    """
    if place is None:
        return _from_hub(source, split, source.hub, source.revision)
    folder = Path(place).expanduser()
    if folder.is_dir():
        return _from_folder(source, split, folder)
    if folder.exists():
        raise ValueError(f"source={place!r} is a file; give the folder that holds it")
    if not _HUB_ID.fullmatch(place):
        raise ValueError(f"source={place!r} is no folder; give one, or a hub id as owner/name or owner/name@revision")
    hub_id, _, revision = place.partition("@")
    return _from_hub(source, split, hub_id, revision or "main")


def _from_folder(source: Source, split: str, folder: Path) -> Release:
    if any((folder / name).is_file() for name in _SAVED_DATASET):
        return _from_saved_dataset(source, split, folder)
    for pattern in source.patterns(split):
        if files := matching_files(folder, pattern):
            return _from_files(source, files, folder)
    patterns = ", ".join(source.patterns(split))
    raise ValueError(
        f"{folder}: no file of split {split!r} (looked for {patterns}); it holds {describe_folder(folder)}"
    )


def _from_files(
    source: Source, files: Iterable[Path], folder: Path, fetch: Callable[[], Path | None] = lambda: None
) -> Release:
    tables = [(file, read_table(file)) for file in files]
    problems = tuple(
        f"{file.relative_to(folder)}, line {number} skipped: {why}"
        for file, table in tables
        for number, why in table.problems
    )
    images = ImageFinder(folder, source.images, fetch)
    return Release(JoinedRows(table.rows for _, table in tables), images, str(folder), problems)


def _from_saved_dataset(source: Source, split: str, folder: Path) -> Release:
    """Open what `Dataset.save_to_disk` wrote, or the split of what `DatasetDict.save_to_disk` wrote."""
    import datasets

    saved: Any = datasets.load_from_disk(folder)
    if isinstance(saved, datasets.DatasetDict):
        name = split if split in saved else source.hub_split(split)
        if name not in saved:
            raise ValueError(f"{folder}: no split {split!r} in this saved data set; it holds {', '.join(saved)}")
        saved = saved[name]
    return Release(hub.dataset_rows(saved), ImageFinder(folder, source.images), str(folder))


def _from_hub(source: Source, split: str, hub_id: str, revision: str) -> Release:
    """Open the files of the hub, fetched or cached; if that fails, what the `datasets` library finds."""
    place = f"{hub_id}@{revision}"
    fetch = partial(hub.fetch_images, source, hub_id, revision)
    try:
        folder, files = hub.fetch_files(source, split, hub_id, revision)
    except Exception as error:
        # Whatever failed (HTTP, the cache, the disk), the files are not here. `datasets` may have cached them.
        try:
            dataset = hub.load_dataset(source, split, hub_id, revision, offline=hub.is_unreachable(error))
        except Exception as second:
            raise ValueError(_not_found(source, split, place, error, second)) from error
        home = Path(dataset.cache_files[0]["filename"]).parent if dataset.cache_files else Path(hub_id)
        images = partial(hub.cached_image, ImageFinder(home, source.images, fetch))
        return Release(hub.dataset_rows(dataset), images, f"{place} in the cache of datasets")
    return _from_files(source, files, folder, fetch)


def _not_found(source: Source, split: str, place: str, error: Exception, second: Exception) -> str:
    config = f", configuration {source.config!r}" if source.config else ""
    no_folder = "" if place.startswith(f"{source.hub}@") else " (and there is no folder of that name)"
    return (
        f"{place}{config}, split {split!r}{no_folder}: {hub.explain(error)}; "
        f"and datasets.load_dataset: {hub.first_line(second)}. "
        "Give another place: source=FOLDER with a copy of the release, or source=owner/name for another hub id."
    )
