"""Small copies of a question's images: made for people to see, saved in a run's folder, and read from there.

Images are saved only where `reporting.images` is true.
"""

from __future__ import annotations

import base64
import hashlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from mm_spine.processors.vision import BadQuestion, open_image
from mm_spine.reporting.saved_run import is_inside
from mm_spine.types import Question

log = logging.getLogger(__name__)

MAX_IMAGES = 4
"""Images of one question that are shown."""

SIDE = 256
"""Longest side of a thumbnail in pixels."""

PNG_BYTES = 30_000
"""A thumbnail that is larger than this as PNG, as photographs are, is saved as JPEG."""

MAX_BYTES = 1_000_000
"""A larger file is not read as a thumbnail."""

MEDIA_TYPES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
"""First bytes of a file -> its media type."""


def thumbnails(question: Question) -> list[Image.Image]:
    """Return the first `MAX_IMAGES` images of a question, at most `SIDE` pixels a side, without unreadable ones."""
    found = []
    for image in question.images[:MAX_IMAGES]:
        try:
            opened = open_image(image, question.id).copy()
        except BadQuestion as error:
            log.debug("not shown: %s", error)
            continue
        opened.thumbnail((SIDE, SIDE))
        found.append(opened)
    return found


def image_sizes(question: Question) -> list[str]:
    """Return "640x480" for each image of a question, "?" for an unreadable one."""
    sizes = []
    for image in question.images:
        try:
            width, height = open_image(image, question.id).size
            sizes.append(f"{width}x{height}")
        except BadQuestion:
            sizes.append("?")
    return sizes


def file_stem(question_id: str, number: int = 0) -> str:
    """Return the file name, without suffix, of the image `number` of a question."""
    # A hash: an id may hold slashes, dots or markup, and none of its characters may reach a path.
    digest = hashlib.sha256(question_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return digest if number == 0 else f"{digest}-{number}"


def save_thumbnails(folder: Path, question: Question) -> None:
    """Write the thumbnails of a question to `folder`."""
    for number, image in enumerate(thumbnails(question)):
        suffix, data = _encode(image)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{file_stem(question.id, number)}{suffix}").write_bytes(data)


def read_thumbnails(run: Path, question_id: str) -> Iterator[tuple[str, bytes]]:
    """Yield (media type, bytes) of the saved thumbnails of a question.

    Skips links that leave the run's folder, files above `MAX_BYTES`, and files that are neither PNG nor JPEG.
    """
    for number in range(MAX_IMAGES):
        for suffix in (".png", ".jpg"):
            path = run / "images" / f"{file_stem(question_id, number)}{suffix}"
            if not path.is_file() or not is_inside(path, run) or path.stat().st_size > MAX_BYTES:
                continue
            data = path.read_bytes()
            for first_bytes, media_type in MEDIA_TYPES.items():
                if data.startswith(first_bytes):
                    yield media_type, data


def data_address(media_type: str, data: bytes) -> str:
    """Return the address under which a page holds the content itself, so that it requests nothing."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"


def _encode(image: Image.Image) -> tuple[str, bytes]:
    data = io.BytesIO()
    image.save(data, "PNG")
    if data.tell() <= PNG_BYTES:
        return ".png", data.getvalue()
    data = io.BytesIO()
    image.save(data, "JPEG", quality=85)
    return ".jpg", data.getvalue()
