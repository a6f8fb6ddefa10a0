"""Images as people have them: each works or costs its question, with a reason; each distinct one is encoded once."""

from __future__ import annotations

import io
import logging
import os
import random
import struct
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL import ImageFile as Decoders
from tiny import tiny_image, tiny_policy, tiny_processor, tiny_questions

from mm_spine.processors.chat import encode
from mm_spine.processors.vision import ASPECT_LIMIT, BYTE_LIMIT, FORMATS, BadQuestion, open_image, scale_greys
from mm_spine.types import AnswerSpec, ImageLike, Question

SPEC = AnswerSpec(kind="integer")
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def file_of(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def halves(left: Any = RED, right: Any = GREEN, mode: str = "RGB", size: tuple[int, int] = (56, 28)) -> Image.Image:
    """An image whose left and right halves differ, so that a rotation shows."""
    image = Image.new(mode, size, right)
    image.paste(left, (0, 0, size[0] // 2, size[1]))
    return image


def pixel(image: Image.Image, x: int, y: int) -> tuple[int, ...]:
    return tuple(image.getpixel((x, y)))


def ask(*images: ImageLike, name: str = "q-7") -> Question:
    return Question(name, images, "What is it?", SPEC)


# --- what works -------------------------------------------------------------------------------------------------------

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


def tiff16(values: np.ndarray, order: str, photometric: int = 1) -> bytes:
    """A TIFF of one strip of 16-bit greys."""
    height, width = values.shape
    pixels = values.astype(f"{order}u2").tobytes()
    tags = {256: width, 257: height, 258: 16, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(pixels)}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    start = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8 + len(pixels))
    return start + pixels + directory


def png(width: int, height: int, rows: bytes, depth: int = 8) -> bytes:
    """A colour PNG with this header and these rows, which need not agree."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


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


def frames_of(kind: str, n: int = 2) -> bytes:
    """n frames or pages: red, then green ones."""
    frames = [Image.new("RGB", (28, 28), colour) for colour in (RED, GREEN, BLUE)[:n]]
    return file_of(
        frames[0], kind, save_all=True, append_images=frames[1:], **{"lossless": True} if kind == "WEBP" else {}
    )


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
    for member, why in (("torn.png", "truncated"), ("none.png", "is there"), ("a/", "its bytes cannot be had")):
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


# --- what does not ----------------------------------------------------------------------------------------------------


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be enormous."""
    return png(width, height, bytes(64))


JPEG = file_of(tiny_image(3).resize((280, 280)), "JPEG")
PNG = file_of(tiny_image(3).resize((280, 280)), "PNG")

BAD: dict[str, tuple[Any, str]] = {
    "truncated jpeg": (JPEG[: len(JPEG) // 2], "truncated; fetch it again"),
    "truncated png": (PNG[: len(PNG) // 2], "truncated; fetch it again"),
    "truncated gif": (file_of(tiny_image(3), "GIF")[:-300], "truncated; fetch it again"),
    "truncated webp": (file_of(tiny_image(3), "WEBP")[:-300], "truncated"),
    "truncated tiff": (file_of(tiny_image(3), "TIFF")[:-300], "truncated"),
    "truncated bmp": (file_of(tiny_image(3), "BMP")[:-300], "truncated"),
    "png header only": (PNG[:30], "truncated"),
    "png name only": (PNG[:8], "truncated: its header"),
    "corrupt png": (PNG[:200] + b"\0" * 50 + PNG[250:], "damaged"),
    "empty": (b"", "the file is empty"),
    "text": (b"The scan is missing.", "none of PNG, JPEG, .*convert it to PNG or JPEG"),
    "web page": (b"\n<!DOCTYPE html><html>404 not found</html>", "a web page; convert"),
    "svg": (b'<?xml version="1.0"?>\n<!-- x -->\n<svg xmlns="x"/>', "an SVG drawing; convert it to PNG or JPEG"),
    "pdf": (b"%PDF-1.7\n", "a PDF; convert it to PNG or JPEG"),
    "dicom": (bytes(128) + b"DICM" + bytes(200), "a DICOM file; convert it to PNG or JPEG"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n", "a PostScript file; convert"),
    "eps opened elsewhere": (Image.open(io.BytesIO(file_of(halves(), "EPS"))), "format EPS; convert"),
    "heif": (b"\0\0\0\x18ftypheic" + bytes(20), "a HEIF or AVIF image; convert"),
    "photoshop": (b"8BPS\0\x01" + bytes(40), "a Photoshop file; convert"),
    "gzip": (b"\x1f\x8b\x08" + bytes(40), "a compressed archive"),
    "missing": (Path("no/such/file.png"), "no/such/file.png: there is no regular file"),
    "missing string": ("no/such/file.png", "no/such/file.png: there is no regular file"),
    "web address": ("https://example.org/a.png", "a web address; download"),
    "null in name": ("a\0b.png", "there is no regular file"),
    "folder": (Path("."), "it is a folder"),
    "device": (Path("/dev/null"), "there is no regular file"),
    "bomb": (bomb(60_000, 60_000), "3,600,000,000 pixels; allowed are 1 to 64,000,000"),
    "bomb that PIL warns of": (bomb(10_000, 10_000), "10000x10000; allowed are 1 to 64,000,000"),
    "over the limit": (bomb(10_000, 8_000), "10000x8000.*64,000,000"),
    "zero size": (Image.new("RGB", (0, 5)), "0x5"),
    "zero width png": (bomb(0, 10), "0x10|truncated"),
    "wide": (Image.new("RGB", (200, 1)), "200x1; the sides may differ 200-fold"),
    "tall": (Image.new("L", (3, 1000)), "3x1000"),
    "not an image at all": (17, "int: it is no image"),
    "nothing": (None, "NoneType: it is no image"),
}


@pytest.mark.parametrize(("image", "words"), BAD.values(), ids=BAD.keys())
def test_a_bad_image_names_its_question_and_why(image: ImageLike, words: str) -> None:
    with pytest.raises(BadQuestion, match=rf"(?s)^q-7: cannot read image .*({words})"):
        encode(ask(image), tiny_processor())


@pytest.mark.parametrize("prompt", ["", " \n\t"])
def test_an_empty_question_is_bad(prompt: str) -> None:
    with pytest.raises(BadQuestion, match="^q-7: .*empty"):
        encode(Question("q-7", (), prompt, SPEC), tiny_processor())


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|vision_start|>", "<|im_end|>", "<|im_start|>"])
def test_special_tokens_in_a_question_are_bad(token: str) -> None:
    """Text that reads as a special token would insert an image that is not there, or end the user's turn."""
    with pytest.raises(BadQuestion, match="^q-7: .*special token"):
        encode(Question("q-7", (tiny_image(0),), f"What does {token} mean?", SPEC), tiny_processor())


@pytest.mark.parametrize("sides", [(199, 1), (1, 199)])
def test_the_widest_allowed_image_can_be_asked(sides: tuple[int, int]) -> None:
    assert max(sides) / min(sides) < ASPECT_LIMIT
    assert len(encode(ask(Image.new("RGB", sides)), tiny_processor()).images) == 1


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(BadQuestion, match="10000x8000"):
        open_image(bomb(10_000, 8_000), "q-7")


@pytest.mark.parametrize("action", ["error", "default", "ignore"])
@pytest.mark.parametrize("own_limit", [1000, 6 * 10**7, None])
def test_a_bomb_is_refused_whatever_warnings_and_pil_are_set_to(
    action: Any, own_limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", own_limit)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter(action)
        with pytest.raises(BadQuestion, match=r"10000x10000|100,000,000 pixels"):
            open_image(bomb(10_000, 10_000), "q-7")
    assert said == []


@pytest.mark.parametrize("file", [JPEG[: len(JPEG) // 2], PNG[: len(PNG) // 2]], ids=["jpeg", "png"])
def test_half_a_picture_is_none_even_where_pil_is_told_to_take_it(file: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decoders, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(BadQuestion, match="truncated"):
        open_image(file, "q-7")
    assert Decoders.LOAD_TRUNCATED_IMAGES is True


def test_an_empty_file_on_disk(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(BadQuestion, match=r"^q-7: cannot read image .*a\.png: the file is empty"):
        open_image(tmp_path / "a.png", "q-7")


def test_a_pipe_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("read"))
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(BadQuestion, match="no regular file"):
        open_image(tmp_path / "a.png", "q-7")


def test_a_huge_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(BYTE_LIMIT + 1)  # a hole: it takes no room
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("read"))
    with pytest.raises(BadQuestion, match="more than 268,435,456 bytes; save it smaller"):
        open_image(tmp_path / "a.png", "q-7")


def test_a_cell_that_cannot_be_fetched() -> None:
    class Cell:
        def read_bytes(self) -> bytes:
            raise KeyError("row 3")

    with pytest.raises(BadQuestion, match="^q-7: cannot read image Cell: its bytes cannot be had.*row 3"):
        open_image(Cell(), "q-7")


def seeds() -> dict[str, bytes]:
    """Small valid files of every format, plain, animated and deep."""
    plain = {kind: file_of(tiny_image(3), kind) for kind in FORMATS}
    palette = {
        "PALETTE": file_of(halves().quantize(4), "PNG"),
        "LZW": file_of(halves(), "TIFF", compression="tiff_lzw"),
    }
    moving = {f"{kind} frames": frames_of(kind) for kind in ("GIF", "PNG", "WEBP", "TIFF")}
    return {**plain, **palette, **moving, "deep": tiff16(np.array([[0, 1, 65535]] * 3), ">")}


def damaged(file: bytes, draw: random.Random) -> bytes:
    """Cut, overwritten, doubled or shortened inside."""
    data = bytearray(file)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(min(len(data), draw.choice((64, len(data)))) or 1)
        change = draw.randrange(4)
        if change == 0:
            del data[at:]
        elif change == 1:
            data[at : at + 4] = draw.choice((b"\xff" * 4, bytes(4), draw.randbytes(4)))
        elif change == 2:
            data[at : at + draw.randint(1, 8)] = b""
        else:
            data[at:at] = data[at : at + 16]
    return bytes(data)


@pytest.mark.parametrize("kind", sorted(seeds()))
def test_damaged_files_are_read_or_cost_their_question(kind: str) -> None:
    file, draw, slowest = seeds()[kind], random.Random(kind), 0.0
    for _ in range(60):
        start = time.perf_counter()
        try:
            assert open_image(damaged(file, draw), "q-7").mode == "RGB"
        except BadQuestion as error:
            assert str(error).startswith("q-7: cannot read image bytes: ")
        slowest = max(slowest, time.perf_counter() - start)
    assert slowest < 5


def test_a_bad_image_among_good_ones_is_recorded_once(caplog: pytest.LogCaptureFixture) -> None:
    policy = tiny_policy()
    bad = ask(tiny_image(0), b"", tiny_image(1))
    with caplog.at_level("WARNING"):
        assert [policy.can_ask(bad) for _ in range(3)] == [False] * 3
    assert list(policy.skipped) == ["q-7"] and policy.skipped["q-7"].startswith("q-7: cannot read image")
    assert len([r for r in caplog.records if "q-7" in r.getMessage()]) == 1
    assert policy.can_ask(ask(tiny_image(0), name="other"))


def test_a_bad_question_is_opened_once() -> None:
    policy, calls = tiny_policy(), []
    bad = ask(b"")
    encode_once = policy._encode
    policy._encode = lambda q: calls.append(q.id) or encode_once(q)  # type: ignore[method-assign]
    for _ in range(2):
        assert not policy.can_ask(bad)
        with pytest.raises(BadQuestion, match="^q-7: cannot read image bytes: the file is empty"):
            policy.prompt(bad)
    assert calls == ["q-7"]


def test_a_good_question_is_asked_beside_a_bad_one_of_its_id(caplog: pytest.LogCaptureFixture) -> None:
    """Two files, one to adapt to and one held out, may number their rows alike."""
    policy = tiny_policy()
    assert [policy.can_ask(q) for q in (ask(b""), ask(tiny_image(0)), ask(b""))] == [False, True, False]
    assert list(policy.skipped) == ["q-7"] and len(caplog.messages) == 1


# --- encoding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [0, 1, 3])
def test_encoding_is_what_the_processor_makes_of_the_chat(images: int) -> None:
    (question,) = tiny_questions(1, images)
    content = [{"type": "image", "image": image} for image in question.images]
    chat = [{"role": "user", "content": [*content, {"type": "text", "text": question.prompt}]}]
    made = tiny_processor().apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    found = encode(question, tiny_processor())
    assert torch.equal(found.ids_L, made["input_ids"][0])
    assert torch.equal(found.types_L, made["mm_token_type_ids"][0])
    assert len(found.images) == images
    if images:
        assert torch.equal(torch.cat([i.pixel_values for i in found.images]), made["pixel_values"])
        assert torch.equal(torch.stack([i.grid_thw for i in found.images]), made["image_grid_thw"])


def test_pixel_limits_bound_the_image_tokens() -> None:
    image = Image.effect_noise((280, 140), 60)
    for least, most in ((None, 28 * 28 * 8), (28 * 28 * 60, None), (28 * 28 * 60, 28 * 28 * 80)):
        (found,) = encode(ask(image), tiny_processor(), least, most).images
        pixels = len(found.pixel_values) * 14 * 14
        assert (least or 0) <= pixels <= (most or pixels)


# --- cache ------------------------------------------------------------------------------------------------------------


def test_each_distinct_image_goes_through_the_tower_once() -> None:
    policy, calls = tiny_policy(), []
    policy.tower.register_forward_hook(lambda *_: calls.append(1))
    a, b = tiny_image(0), tiny_image(7)
    again = Image.open(io.BytesIO(file_of(a, "PNG")))
    prompts = [policy.prompt(ask(*images)) for images in ((a,), (a, b), (again, again), (b,))]
    assert len(calls) == 2
    assert (policy.images.misses, policy.images.hits) == (2, 6 - 2)
    first, second = prompts[0].features_ID, prompts[3].features_ID
    assert torch.equal(prompts[1].features_ID, torch.cat([first, second]))
    assert torch.equal(prompts[2].features_ID, torch.cat([first, first]))


def test_a_question_is_encoded_once() -> None:
    policy, calls = tiny_policy(), []
    question = tiny_questions(1)[0]
    encode_once = policy._encode
    policy._encode = lambda q: calls.append(q.id) or encode_once(q)  # type: ignore[method-assign]
    assert policy.can_ask(question) and policy.prompt(question) is policy.prompt(question)
    assert calls == ["q0"]


def test_features_are_bit_equal_however_they_are_asked_for() -> None:
    """From the cache, from a fresh cache, alone or beside other images: one image is one unit."""
    images = [tiny_image(i) for i in range(4)]
    alone = [tiny_policy().prompt(ask(image)).features_ID for image in images]
    together = tiny_policy().prompt(ask(*images)).features_ID
    assert torch.equal(together, torch.cat(alone))
    assert not together.requires_grad


def test_features_are_those_of_the_plain_tower() -> None:
    policy = tiny_policy()
    encoded = encode(ask(*[tiny_image(i) for i in range(3)]), tiny_processor())
    pixels = torch.cat([i.pixel_values for i in encoded.images])
    grids = torch.stack([i.grid_thw for i in encoded.images])
    with torch.no_grad():
        plain = torch.cat(list(policy.model.get_image_features(pixels, grids).pooler_output))
    found = torch.cat([policy.images.features(image) for image in encoded.images])
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [lambda p, g: (p + torch.eye(1, p.numel()).view_as(p) * 1e-6, g), lambda p, g: (p, g[[0, 2, 1]])],
    ids=["one patch value", "the grid"],
)
def test_a_different_image_never_has_the_key_of_another(change: Callable[..., Any]) -> None:
    from mm_spine.processors.chat import _key

    (image,) = encode(ask(Image.effect_noise((84, 28), 50)), tiny_processor()).images
    pixels, grid = change(image.pixel_values, image.grid_thw)
    assert _key(pixels, grid) != image.key == _key(image.pixel_values, image.grid_thw)
