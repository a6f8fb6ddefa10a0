"""Make image files for the tests of images."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image
from tiny import tiny_image

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


def ask(*images: ImageLike, name: str = "q-7") -> Question:
    return Question(name, images, "What is it?", SPEC)


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


def frames_of(kind: str, n: int = 2) -> bytes:
    """n frames or pages: red, then green ones."""
    frames = [Image.new("RGB", (28, 28), colour) for colour in (RED, GREEN, BLUE)[:n]]
    return file_of(
        frames[0], kind, save_all=True, append_images=frames[1:], **{"lossless": True} if kind == "WEBP" else {}
    )


JPEG = file_of(tiny_image(3).resize((280, 280)), "JPEG")
PNG = file_of(tiny_image(3).resize((280, 280)), "PNG")
