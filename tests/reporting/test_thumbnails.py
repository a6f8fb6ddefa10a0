"""Thumbnails of a question's images, shown and saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from saved_runs import SPEC, size_of
from tiny import tiny_image

from mm_spine.reporting import thumbnails
from mm_spine.types import Question


def test_files_that_are_no_images_are_not_embedded(copy: Path) -> None:
    (copy / "images" / f"{thumbnails.file_stem('a')}.png").write_text("<svg onload=alert(1)>")
    assert list(thumbnails.read_thumbnails(copy, "a")) == []


def test_thumbnails_are_small_and_named_by_hash(tmp_path: Path) -> None:
    name = "../../etc/<b>"
    noise = np.random.default_rng(0).integers(0, 255, (700, 1000, 3), dtype=np.uint8)
    images = (Image.fromarray(noise), Image.new("RGB", (64, 32), "white"), b"no image")
    thumbnails.save_thumbnails(tmp_path / "images", Question(name, images, "?", SPEC))
    files = sorted((tmp_path / "images").iterdir())
    assert [path.name for path in files] == [
        f"{thumbnails.file_stem(name, 1)}.png",
        f"{thumbnails.file_stem(name)}.jpg",
    ]
    assert size_of(files[0]) == (64, 32) and max(size_of(files[1])) == 256
    assert files[1].stat().st_size < 100_000
    assert [media for media, _ in thumbnails.read_thumbnails(tmp_path, name)] == ["image/jpeg", "image/png"]


def test_an_unreadable_image_is_left_out(tmp_path: Path) -> None:
    asked = Question("q", (tmp_path / "none.png", tiny_image(0, 600)), "?", SPEC)
    assert thumbnails.image_sizes(asked) == ["?", "1200x1200"]
    assert [image.size for image in thumbnails.thumbnails(asked)] == [(256, 256)]
