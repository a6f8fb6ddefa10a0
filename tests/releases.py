"""Small releases on disk: rows, images of one colour, archives and tables with images."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from mm_spine.benchmarks.benchmark import Source
from mm_spine.benchmarks.release import Release
from mm_spine.processors.vision import open_image

SOURCE = Source(
    hub="owner/name",
    files={"test": ("data/test-*.parquet", "test.jsonl"), "train": ("train.csv",)},
    images=(".", "imgs", "imgs.zip"),
)
ROWS = [{"id": "1", "image": "a.png"}, {"id": "2", "image": "b/source.png"}]


def picture(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def shade(image: Any) -> int:
    """The red of an image, opened as a question's is."""
    return open_image(image, "q").getpixel((0, 0))[0]


def shades(release: Release) -> list[int]:
    return [shade(release.images(row["image"])) for row in release.rows]


def jsonl(path: Path, rows: list[dict[str, str]] = ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def put(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def pack(path: Path, files: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def image_rows(count: int = 40) -> datasets.Dataset:
    """Rows with a cell image each, None in every fourth, and lists of images."""
    datasets.disable_progress_bars()
    rows = [
        {
            "id": str(number),
            "image": None if number % 4 == 3 else {"bytes": picture(number), "path": f"{number}.png"},
            "more": [{"bytes": picture(100 + number), "path": None}] * (number % 3),
            "raw": picture(200),
        }
        for number in range(count)
    ]
    several = datasets.List(datasets.Image())
    return datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).cast_column("more", several)


def check_image_rows(release: Release, count: int = 40) -> None:
    assert [row["id"] for row in release.rows] == [str(number) for number in range(count)]
    for number in (0, 2, 17, count - 2):
        row = release.rows[number]
        assert shade(release.images(row["image"])) == number and shade(release.images(row["raw"])) == 200
        assert [shade(release.images(image)) for image in row["more"]] == [100 + number] * (number % 3)
    assert release.rows[3]["image"] is None and release.rows[-1]["image"] is None
    assert [row["id"] for row in release.rows[1:3]] == ["1", "2"]
