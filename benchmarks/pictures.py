"""What a row shows of its images: by `frame`, `frames`, `fps`, `slice`, `axis` and `window`, or "#" in a name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mm_spine.benchmarks.benchmark import Row
from mm_spine.benchmarks.columns import Columns, whole_number
from mm_spine.processors import video
from mm_spine.processors.parts import MOST_TILES, Unreadable, read_part
from mm_spine.types import ImageLike, ImagePart

VIDEO_FRAMES = 8
"""Frames of a video unless its row says how many."""

# Of these, one says which frame or slice is shown.
_WHICH = ("frame", "slice", "grid")


def shown(image: ImageLike, own: str, row: Row, columns: Columns, is_video: bool = False) -> Iterator[ImageLike]:
    """Yield the image itself, or the parts of it that `own`, the text after "#" in its name, and its row ask for.

    What the name says goes before the columns. `frames: 8` yields eight parts, evenly spaced. Raises ValueError where
    it cannot be understood, and where the length of a video is needed and cannot be read.
    """
    words = [word.strip() for word in own.split(",") if word.strip()]
    keys = {word.partition("=")[0] if "=" in word else "frame" for word in words}
    which = [] if keys & {*_WHICH} else _which(row, columns)
    for name in ("axis", "window"):
        if name not in keys and (value := columns.value(row, name)) is not None:
            words.append(f"{name}={_text(value)}")
    count = 0 if keys & {*_WHICH} or which else _count(image, row, columns, is_video)
    for how in [[*words, *which, f"frame={k + 1}/{count}"] for k in range(count)] or [[*words, *which]]:
        yield _part(image, ",".join(how)) if how else image


def _part(image: ImageLike, how: str) -> ImageLike:
    try:
        read_part(how)
    except Unreadable as error:
        raise ValueError(f"image: {error}") from error
    # An image in memory has no parts; tables hold paths, bytes and cells only.
    return ImagePart(image, how)  # type: ignore[arg-type]


def _which(row: Row, columns: Columns) -> list[str]:
    """Return the words for the columns `frame` and `slice`: a number, "grid" or "grid=2x3"."""
    given = {name: value for name in ("frame", "slice") if (value := columns.value(row, name)) is not None}
    if len(given) > 1 or (given and columns.value(row, "frames") is not None):
        raise ValueError("give one of frame, frames and slice: each says what is shown of the image")
    return [
        value if isinstance(value, str) and value.startswith("grid") else f"{name}={whole_number(name, value)}"
        for name, value in given.items()
    ]


def _count(image: ImageLike, row: Row, columns: Columns, is_video: bool) -> int:
    """Return into how many frames an image is split, 0 for none."""
    frames, fps = whole_number("frames", columns.value(row, "frames")), columns.value(row, "fps")
    if fps is not None and is_video and isinstance(image, Path):
        try:
            rate = _positive(fps)
            frames = max(1, round(video.seconds(image) * rate))
        except Unreadable as error:
            raise ValueError(f"video {image.name}: {error}") from error
    count = (VIDEO_FRAMES if is_video else 0) if frames is None else frames
    if not 0 <= count <= MOST_TILES or frames == 0:
        raise ValueError(f"{count} frames of one file; a question may have 1 to {MOST_TILES}; lower frames or fps")
    return count


def _positive(fps: Any) -> float:
    try:
        rate = float(fps)
    except (TypeError, ValueError):
        rate = 0.0
    if not 0 < rate <= 1000:
        raise ValueError(f"fps must be a number of frames per second, found {fps!r:.80}")
    return rate


def _text(value: Any) -> str:
    """Return [40, 400] as "40:400", other values as text."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ":".join(map(str, value))
    return str(value)
