"""Images of every common kind are decoded to the same RGB picture."""

from __future__ import annotations

import io
import logging
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import BLUE, GREEN, PNG, RED, ask, file_of, frames_of, halves, png, tiff16
from PIL import Image
from tiny import tiny_processor

from mm_spine.processors.chat import encode
from mm_spine.processors.vision import FORMATS, BadQuestion, open_image, scale_greys


def pixel(image: Image.Image, x: int, y: int) -> tuple[int, ...]:
    return tuple(image.getpixel((x, y)))


UPRIGHT = {1: "", 3: "ROTATE_180", 6: "ROTATE_90", 8: "ROTATE_270", 2: "FLIP_LEFT_RIGHT", 4: "FLIP_TOP_BOTTOM"}


@pytest.mark.parametrize(("orientation", "undo"), UPRIGHT.items())
def test_exif_orientation_is_applied(orientation: int, undo: str) -> None:
    """A camera stores the sensor's picture and how to turn it: 6 means that the stored top is the right side."""
    upright = halves()
    stored = upright.transpose(Image.Transpose[undo]) if undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = open_image(file_of(stored, "PNG", exif=exif), "q")
    assert found.size == upright.size
    assert pixel(found, 0, 0) == RED and pixel(found, 55, 27) == GREEN


def test_palette_image() -> None:
    image = halves().quantize(4)
    assert image.mode == "P"
    found = open_image(file_of(image, "PNG"), "q")
    assert found.mode == "RGB" and pixel(found, 0, 0) == RED and pixel(found, 55, 0) == GREEN


def test_cmyk_image() -> None:
    found = open_image(file_of(halves((0, 255, 255, 0), (255, 0, 255, 0), "CMYK"), "TIFF"), "q")
    assert found.mode == "RGB" and pixel(found, 0, 0) == RED and pixel(found, 55, 0) == GREEN


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_greys(kind: str) -> None:
    """Scans and X-rays: 16-bit values must be scaled to 8 bits, not cut off at 255 (all white)."""
    values = np.linspace(0, 65535, 28 * 56).reshape(28, 56).astype(np.uint16)
    found = np.asarray(open_image(file_of(Image.fromarray(values), kind), "q"))
    assert found.shape == (28, 56, 3)
    assert np.abs(found[..., 0].astype(int) - values / 257).max() <= 1
    assert (found[..., 0] == found[..., 1]).all() and (found[..., 0] == found[..., 2]).all()


GREYS: dict[str, tuple[Any, list[int]]] = {
    "8 bits in 16": (np.uint16([0, 128, 255]), [0, 128, 255]),
    "10 bits": (np.uint16([0, 256, 512, 1023]), [0, 64, 128, 255]),
    "12 bits": (np.uint16([0, 1024, 2048, 4095]), [0, 64, 128, 255]),
    "14 bits": (np.uint16([0, 4096, 8192, 16383]), [0, 64, 128, 255]),
    "just above 14 bits": (np.uint16([0, 16384]), [0, 64]),
    "16 bits": (np.uint16([0, 16448, 65535]), [0, 64, 255]),
    "32 bits": (np.int32([0, 2**30, 2**31 - 1]), [0, 128, 255]),
    "signed (Hounsfield units)": (np.int32([-1024, 0, 3071]), [0, 64, 255]),
    "float": (np.float32([0, 0.5, 1]), [0, 128, 255]),
    "float below zero": (np.float32([-2, 0, 2]), [0, 128, 255]),
    "not finite": (np.float32([np.nan, 1, np.inf, 3, -np.inf]), [0, 0, 0, 255, 0]),
    "nothing finite": (np.float32([np.nan, np.inf]), [0, 0]),
    "one value": (np.float32([7, 7]), [0, 0]),
    "all black": (np.uint16([0, 0]), [0, 0]),
}


@pytest.mark.parametrize(("values", "expected"), GREYS.values(), ids=GREYS.keys())
def test_deep_greys_become_eight_bits(values: Any, expected: list[int]) -> None:
    assert scale_greys(values).tolist() == expected
    (row,) = np.asarray(open_image(Image.fromarray(values[None]), "q"))
    assert row.tolist() == [[grey] * 3 for grey in expected]


def test_twelve_bit_scan_is_not_dark() -> None:
    """A 12-bit detector's values in a 16-bit file: scaled as 16 bits its white would be 16 of 255."""
    values = np.linspace(0, 4095, 28 * 56).reshape(28, 56).astype(np.uint16)
    for kind in ("PNG", "TIFF"):
        found = np.asarray(open_image(file_of(Image.fromarray(values), kind), "q"))[..., 0]
        assert np.abs(found.astype(int) - values * (255 / 4095)).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("order", "<>")
def test_sixteen_bit_tiff_of_either_byte_order(order: str) -> None:
    found = open_image(tiff16(np.array([[0, 16448, 65535]]), order), "q")
    assert np.asarray(found)[0, :, 0].tolist() == [0, 64, 255]


def test_a_deep_scan_whose_zero_is_white() -> None:
    """TIFF's PhotometricInterpretation 0, as X-ray films are digitised: PIL does not invert it above 8 bits."""
    found = open_image(tiff16(np.array([[0, 16448, 65535]]), "<", photometric=0), "q")
    assert np.asarray(found)[0, :, 0].tolist() == [255, 191, 0]


def test_float_tiff() -> None:
    file = file_of(Image.fromarray(np.float32([[-1, 0, 3]])), "TIFF")
    assert np.asarray(open_image(file, "q"))[0, :, 0].tolist() == [0, 64, 255]


def test_sixteen_bit_colour_png() -> None:
    row = struct.pack(">6H", 65535, 32896, 0, 0, 257, 65535)
    found = open_image(png(2, 1, b"\0" + row, depth=16), "q")
    assert [pixel(found, x, 0) for x in (0, 1)] == [(255, 128, 0), (0, 1, 255)]


def test_thirty_two_bit_integers_hold_sixteen_bits_or_eight() -> None:
    """A 16-bit PGM arrives in mode I, and so do arrays of plain 8-bit values."""
    wide, narrow = np.array([[0, 257, 65535]], np.int32), np.array([[0, 128, 255]], np.int32)
    for values, expected in ((wide, [0, 1, 255]), (narrow, [0, 128, 255])):
        found = np.asarray(open_image(Image.fromarray(values), "q"))
        assert found[0, :, 0].tolist() == expected
    pgm = b"P5 2 1 65535\n" + struct.pack(">HH", 0, 32896)
    assert np.asarray(open_image(pgm, "q"))[0, :, 0].tolist() == [0, 128]


def test_alpha_is_laid_on_white() -> None:
    """What is transparent shows the page behind it, as on screen, not the colour hidden there."""
    image = halves((0, 0, 0, 0), (*BLUE, 255), "RGBA")
    found = open_image(file_of(image, "PNG"), "q")
    assert found.mode == "RGB" and pixel(found, 0, 0) == (255, 255, 255) and pixel(found, 55, 0) == BLUE
    half = open_image(file_of(halves((0, 0, 0, 128), (*BLUE, 255), "RGBA"), "PNG"), "q")
    assert all(abs(value - 127) <= 1 for value in pixel(half, 0, 0))


@pytest.mark.parametrize("mode", ["LA", "P"])
def test_transparency_of_other_kinds_is_laid_on_white(mode: str) -> None:
    if mode == "LA":
        file = file_of(halves((0, 0), (90, 255), "LA"), "PNG")
    else:
        palette = halves(1, 0, "P")
        palette.putpalette([*GREEN, *RED])
        file = file_of(palette, "PNG", transparency=1)
    assert pixel(open_image(file, "q"), 0, 0) == (255, 255, 255)


def with_alpha(mode: str) -> Image.Image:
    """One transparent pixel with black behind it, one opaque blue or grey one."""
    return Image.frombytes("RGBA", (2, 1), bytes([0, 0, 0, 0, 0, 0, 255, 255])).convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_every_alpha_is_laid_on_white(mode: str) -> None:
    image = with_alpha("LA").convert("La") if mode == "La" else with_alpha(mode)
    found = open_image(image, "q")
    assert pixel(found, 0, 0) == (255, 255, 255) and pixel(found, 1, 0) != (255, 255, 255)


COLOURS: dict[str, tuple[Any, tuple[int, int, int]]] = {
    "1": (1, (255, 255, 255)),
    "L": (90, (90, 90, 90)),
    "RGBX": ((10, 20, 30, 0), (10, 20, 30)),
    "CMYK": ((0, 255, 255, 0), RED),
    "YCbCr": ((255, 128, 128), (255, 255, 255)),
    "HSV": ((0, 255, 255), RED),
    "LAB": ((255, 128, 128), (255, 255, 255)),
}


@pytest.mark.parametrize(("mode", "colour", "expected"), [(m, *row) for m, row in COLOURS.items()], ids=COLOURS.keys())
def test_colour_spaces(mode: str, colour: Any, expected: tuple[int, int, int]) -> None:
    image = Image.new(mode, (28, 28), colour)
    in_file = [open_image(file_of(image, "TIFF"), "q")] if mode in ("1", "L", "RGBX", "CMYK", "LAB") else []
    for found in (open_image(image, "q"), *in_file):
        assert all(abs(a - b) <= 1 for a, b in zip(pixel(found, 14, 14), expected, strict=True))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "L"])
def test_jpeg_of_every_colour_space(mode: str) -> None:
    """Photoshop stores CMYK inverted and marks the file with "Adobe"; PIL writes and reads it so."""
    file = file_of(Image.new("RGB", (28, 28), (200, 200, 200)).convert(mode), "JPEG", quality=95)
    assert (b"Adobe" in file) == (mode == "CMYK")
    assert all(abs(value - 200) <= 2 for value in pixel(open_image(file, "q"), 14, 14))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_several_is_used_and_said(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "moving.img"
    path.write_bytes(frames_of(kind))
    with caplog.at_level(logging.INFO, "mm_spine"):
        found = open_image(path, "q-7")
    assert found.size == (28, 28) and pixel(found, 14, 14) == RED
    (line,) = caplog.messages
    assert line.startswith("q-7: image ") and "moving.img has several frames; the first is used" in line


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_one_frame_is_nothing_to_say(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mm_spine"):
        open_image(frames_of(kind, 1), "q-7")
    assert caplog.messages == []


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read(kind: str) -> None:
    found = open_image(file_of(halves(), kind), "q")
    assert found.size == (56, 28) and pixel(found, 2, 14)[0] > 240 > 15 > pixel(found, 53, 14)[0]


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_damaged_exif_block_costs_nothing(kind: str) -> None:
    file = file_of(halves(), kind, exif=b"Exif\0\0not a directory")
    with pytest.raises(SyntaxError):
        Image.open(io.BytesIO(file)).getexif()
    assert open_image(file, "q").size == (56, 28)


def test_member_of_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "imgs.zip", "w") as archive:
        archive.writestr("a/b.png", PNG)
        archive.writestr("torn.png", PNG[:100])
    root = zipfile.Path(tmp_path / "imgs.zip")
    assert open_image(root / "a" / "b.png", "q").size == (280, 280)
    for member, why in (("torn.png", "truncated"), ("none.png", "it exists"), ("a/", "its bytes cannot be read")):
        with pytest.raises(BadQuestion, match=f"^q-7: cannot read image .*imgs.zip/{member}: .*{why}"):
            open_image(root / member, "q-7")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGBA", "YCbCr", "HSV", "LAB", "F", "I", "I;16", "PA", "RGBX"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    found = open_image(Image.new(mode, (28, 28)), "q")
    assert found.mode == "RGB" and found.size == (28, 28)


def test_path_string_bytes_and_image_are_the_same_picture(tmp_path: Path) -> None:
    image, path = halves(), tmp_path / "a.png"
    image.save(path)
    found = [open_image(source, "q") for source in (path, str(path), path.read_bytes(), image)]
    assert all(each.tobytes() == image.tobytes() for each in found)


def test_the_callers_image_is_not_changed() -> None:
    image = halves(mode="RGB")
    exif = image.getexif()
    exif[0x0112] = 6
    assert open_image(image, "q").size == (28, 56)
    assert image.size == (56, 28) and image.getexif()[0x0112] == 6


@pytest.mark.parametrize("most", [None, 28 * 28 * 8])
def test_a_one_pixel_image_can_be_asked(most: int | None) -> None:
    encoded = encode(ask(Image.new("RGB", (1, 1))), tiny_processor(), max_pixels=most)
    assert encoded.images[0].grid_thw.tolist() == [1, 2, 2]
