"""Questions whose answer changed between the two evaluations, and what the report keeps of them: prompt and thumbnails.

Images reach the run's folder here and, where asked for, in its trackers, and only where `reporting.images` is true.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from mm_spine.files import write_json_lines
from mm_spine.reporting.folder import Row, inside
from mm_spine.reporting.responses import IMAGES_EACH, pictures
from mm_spine.types import Question

SHOWN = 40
"""Questions of each direction that the report shows."""

PNG_BYTES = 30_000
"""A thumbnail that is larger as PNG, as photographs are, is written as JPEG."""

LARGEST = 1_000_000
"""Bytes of a file that can still be a thumbnail."""

SUFFIXES = (".png", ".jpg")


class Change(NamedTuple):
    """One question before and after, as lines of evaluation/{before,after}.jsonl."""

    before: Row
    after: Row

    @property
    def place(self) -> tuple[str, str]:
        return str(self.after["split"]), str(self.after["id"])


class Changes(NamedTuple):
    """By the greedy verdicts: wrong -> right and right -> wrong; without gold answers, another vote. In the order of
    the evaluation, all of them."""

    gained: tuple[Change, ...]
    lost: tuple[Change, ...]
    moved: tuple[Change, ...]

    def shown(self) -> Iterator[Change]:
        """The first `SHOWN` of each."""
        for part in self:
            yield from part[:SHOWN]


def changes(before: Sequence[Row], after: Sequence[Row]) -> Changes:
    """The questions of both evaluations that changed."""
    old = {(row["split"], row["id"]): row for row in before}
    pairs = [Change(old[place], row) for row in after if (place := (row["split"], row["id"])) in old]
    turned = [(pair, _correct(pair.before), _correct(pair.after)) for pair in pairs]
    return Changes(
        gained=tuple(pair for pair, was, now in turned if was is False and now is True),
        lost=tuple(pair for pair, was, now in turned if was is True and now is False),
        moved=tuple(pair for pair, was, now in turned if was is None and now is None and _moved(pair)),
    )


def _correct(row: Row) -> bool | None:
    greedy = row["greedy"]
    return bool(greedy["correct"]) if isinstance(greedy, Mapping) and "correct" in greedy else None


def _moved(pair: Change) -> bool:
    return _key_of(pair.before["vote"]) != _key_of(pair.after["vote"])


def _key_of(answer: object) -> object:
    """What makes equal answers equal, however written; their text for kinds that have no keys."""
    key = answer.get("key") if isinstance(answer, Mapping) else None
    return text_of(answer) if key is None else key


def text_of(answer: object) -> str | None:
    """The text of a saved answer; None where nothing parsed."""
    return str(answer.get("text")) if isinstance(answer, Mapping) else None


def keep(run: Path, shown: Iterable[Change], questions: Iterable[Question], images: bool) -> None:
    """Write the prompts of the `shown` questions to evaluation/questions.jsonl and, with `images`, their thumbnails.

    `questions` are of the adapted and of the held-out split, in the run's order.
    """
    places = {change.place[1]: change.place for change in shown}
    rows = []
    for question in questions:
        if question.id not in places:
            continue
        split, name = places[question.id]
        rows.append({"id": name, "split": split, "prompt": question.prompt})
        if images:
            write_thumbnails(run / "images", question)
    write_json_lines(run / "evaluation" / "questions.jsonl", rows)


def safe_name(question_id: str, number: int = 0) -> str:
    """The file name, without suffix, of a question's image: no character of the id is in it."""
    digest = hashlib.sha256(question_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return digest if number == 0 else f"{digest}-{number}"


def write_thumbnails(folder: Path, question: Question) -> None:
    """The `pictures` of the question, as files."""
    for number, picture in enumerate(pictures(question)):
        suffix, data = _encoded(picture)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{safe_name(question.id, number)}{suffix}").write_bytes(data)


def _encoded(image: Image.Image) -> tuple[str, bytes]:
    data = io.BytesIO()
    image.save(data, "PNG")
    if data.tell() <= PNG_BYTES:
        return ".png", data.getvalue()
    data = io.BytesIO()
    image.save(data, "JPEG", quality=85)
    return ".jpg", data.getvalue()


def thumbnails(run: Path, question_id: str) -> Iterator[tuple[str, bytes]]:
    """(media type, bytes) of a question's images in the run's folder; files that are neither PNG nor JPEG are not
    read as images, and links out of the folder are not followed."""
    kinds = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
    for number in range(IMAGES_EACH):
        for suffix in SUFFIXES:
            path = run / "images" / f"{safe_name(question_id, number)}{suffix}"
            if not path.is_file() or not inside(path, run) or path.stat().st_size > LARGEST:
                continue
            data = path.read_bytes()
            if media := next((kind for magic, kind in kinds.items() if data.startswith(magic)), None):
                yield media, data
