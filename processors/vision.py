"""Images as people have them -> RGB within limits. One bad image costs its question, with a reason."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from mm_spine.types import ImageLike

PIXEL_LIMIT = 64_000_000
ASPECT_LIMIT = 200.0


class BadQuestion(ValueError):
    """A question that cannot be asked. The message starts with its id; the run goes on without it."""


def open_image(image: ImageLike, question_id: str, pixel_limit: int = PIXEL_LIMIT) -> Image.Image:
    """Decode `image` to RGB, upright by its EXIF tag, first frame of an animation.

    Raises BadQuestion if the file is missing, empty, truncated, no image, or larger than `pixel_limit` pixels.
    """
    try:
        opened = image if isinstance(image, Image.Image) else Image.open(_source(image))
        _check_size(opened, question_id, pixel_limit)
        opened.load()
        return ImageOps.exif_transpose(opened).convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        name = image if isinstance(image, str | Path) else type(image).__name__
        raise BadQuestion(f"{question_id}: cannot read image {name}: {error}") from error


def _source(image: Path | str | bytes) -> Path | str | io.BytesIO:
    return io.BytesIO(image) if isinstance(image, bytes) else image


def _check_size(image: Image.Image, question_id: str, pixel_limit: int) -> None:
    width, height = image.size
    if width * height > pixel_limit or min(width, height) == 0:
        raise BadQuestion(f"{question_id}: image is {width}x{height}; allowed are 1 to {pixel_limit:,} pixels")
    if max(width, height) / min(width, height) >= ASPECT_LIMIT:
        raise BadQuestion(f"{question_id}: image is {width}x{height}; the sides may differ {ASPECT_LIMIT:.0f}-fold")
