"""The text after "#": which frame, page, slice or window of a file is shown; HEIC and pages of a TIFF."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from pictures import BLUE, GREEN, RED, SPEC, file_of, frames_of, halves
from PIL import Image

from mm_spine.files.fingerprint import of_questions
from mm_spine.processors.parts import Part, Unreadable, read_part, spread
from mm_spine.processors.vision import BadQuestion, open_image
from mm_spine.types import ImagePart, Question


@pytest.mark.parametrize(
    ("how", "want"),
    [
        ("3", Part(number=3)),
        ("page=2", Part(frame=2)),
        ("frame=2/8, window=-600:1500", Part(frame=2, of=8, window=(-600.0, 1500.0))),
        ("axis=0,slice=40", Part(axis=0, slice=40)),
        ("grid", Part(grid=(3, 3))),
        ("grid=2x4,window=Lung", Part(grid=(2, 4), window="lung")),
    ],
)
def test_what_may_be_written(how: str, want: Part) -> None:
    assert read_part(how) == want


@pytest.mark.parametrize(
    "how",
    ["x", "slice=-1", "axis=3", "grid=9x9", "grid=0x1", "frame=0/2", "frame=3/2", "window=40:0", "3,3", "depth=1"],
)
def test_what_may_not(how: str) -> None:
    with pytest.raises(Unreadable):
        read_part(how)


def test_frames_are_spread_evenly() -> None:
    assert spread(10, 5) == [1, 3, 5, 7, 9] and spread(3, 9) == [0, 1, 2] and spread(100, 1) == [50]


def test_a_path_is_split_unless_a_file_is_named_so(tmp_path: Path) -> None:
    (tmp_path / "a#1.png").write_bytes(file_of(halves(), "PNG"))
    (tmp_path / "b.tif").write_bytes(frames_of("TIFF"))
    assert Question("q", tmp_path / "a#1.png", "?", SPEC).images == (tmp_path / "a#1.png",)
    assert Question("q", [f"{tmp_path}/b.tif#2"], "?", SPEC).images == (ImagePart(tmp_path / "b.tif", "2"),)


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "WEBP"])
def test_a_page_is_chosen_by_its_number(kind: str) -> None:
    found = [open_image(ImagePart(frames_of(kind), how), "q").getpixel((14, 14)) for how in ("1", "2", "page=2")]
    assert found[0] == RED and all(np.abs(np.subtract(each, GREEN)).max() <= 130 for each in found[1:])
    assert open_image(ImagePart(frames_of(kind), "grid=1x2"), "q").size == (56, 28)
    with pytest.raises(BadQuestion, match="no frame 3; give one from 1 to 2"):
        open_image(ImagePart(frames_of(kind), "3"), "q")


def test_greys_of_16_bits_can_be_windowed() -> None:
    values = np.array([[0, 1000, 2000, 65535]], np.uint16)
    file = file_of(Image.fromarray(values), "TIFF")
    assert np.asarray(open_image(ImagePart(file, "window=1000:2000"), "q"))[0, :, 0].tolist() == [0, 128, 255, 255]
    assert np.asarray(open_image(file, "q"))[0, :, 0].tolist() == [0, 4, 8, 255]


def test_heic_is_read_upright_and_without_its_exif() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "Zebedee Quixotic"
    file = io.BytesIO()
    pillow_heif.from_pillow(halves(RED, BLUE)).save(file, exif=exif.tobytes())
    found = open_image(file.getvalue(), "q")
    assert not found.info and sorted(found.size) == [28, 56]
    plain = io.BytesIO()
    pillow_heif.from_pillow(halves(RED, BLUE)).save(plain)
    assert np.abs(np.subtract(open_image(plain.getvalue(), "q").getpixel((2, 14)), RED)).max() < 30


def test_another_part_is_another_fingerprint() -> None:
    file = frames_of("TIFF")
    digests = {
        of_questions([Question("q", (image,), "?", SPEC)])["q"]["images"]
        for image in (file, ImagePart(file, "1"), ImagePart(file, "2"))
    }
    assert len(digests) == 3
