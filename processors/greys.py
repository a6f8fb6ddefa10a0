"""Values of a scanner or detector to greys of 8 bits, square pixels, and several frames as one picture."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageOps

from mm_spine.processors.parts import CT_WINDOWS, Unreadable

MOST_OBLONG = 20
"""A pixel or voxel whose sides differ more is shown as stored."""

MOST_PIXELS = 64_000_000
"""An image is not enlarged beyond this."""


def windowed(values: np.ndarray, centre: float, width: float, function: str = "LINEAR_EXACT") -> np.ndarray:
    """Scale `values` to uint8 so that `width` around `centre` covers 0 to 255. DICOM PS3.3, C.11.2.1.2 and .3.

    `function` is LINEAR (of integers, as scanners write it), LINEAR_EXACT or SIGMOID. Not finite values become black.
    """
    exact = values.astype(np.float64)
    if function == "SIGMOID":
        shown = 1 / (1 + np.exp(np.clip(-4 * (exact - centre) / width, -700, 700)))
    elif function == "LINEAR" and width > 1:
        shown = (exact - (centre - 0.5)) / (width - 1) + 0.5
    elif function == "LINEAR":
        shown = (exact > centre - 0.5).astype(np.float64)
    else:
        shown = (exact - centre) / width + 0.5
    return np.rint(255 * np.clip(np.nan_to_num(shown, nan=0.0), 0, 1)).astype(np.uint8)


def stretched(values: np.ndarray, seen: np.ndarray | None = None) -> np.ndarray:
    """Scale `values` to uint8 between the 1st and 99th percentile of the finite ones where `seen` is true."""
    finite = np.isfinite(values) if seen is None else np.isfinite(values) & seen
    if not finite.any():
        return np.zeros(values.shape, np.uint8)
    low, high = np.percentile(values[finite], (1, 99))
    # Where nearly all is background, the percentiles may be equal although something is there.
    if low == high:
        low, high = float(values[finite].min()), float(values[finite].max())
    if low == high:
        return np.zeros(values.shape, np.uint8)
    return windowed(np.where(np.isfinite(values), values, low), (low + high) / 2, high - low)


def named_window(name: str) -> tuple[float, float]:
    """Return (centre, width) of a CT window. Raises Unreadable for another name."""
    if name not in CT_WINDOWS:
        known = ", ".join(CT_WINDOWS)
        raise Unreadable(f"there is no window {name!r}; give centre and width such as window=40:400, or {known}")
    return CT_WINDOWS[name]


def square_pixels(image: Image.Image, height_mm: float, width_mm: float) -> Image.Image:
    """Enlarge the side along which pixels are larger, so that shapes are not squashed. Sizes are of one pixel."""
    if not (0 < height_mm < math.inf and 0 < width_mm < math.inf):
        return image
    ratio = max(height_mm / width_mm, width_mm / height_mm)
    width, height = image.size
    # Beyond it the header is wrong rather than the pixels oblong.
    if ratio < 1.01 or ratio > MOST_OBLONG or width * height * ratio > MOST_PIXELS:
        return image
    if height_mm > width_mm:
        height = round(height * height_mm / width_mm)
    else:
        width = round(width * width_mm / height_mm)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def check_size(width: int, height: int, pixel_limit: int, frames: int = 1) -> None:
    """Raise Unreadable where so many frames of that size have no pixels or more than `pixel_limit`."""
    if min(width, height) < 1 or width * height * frames > pixel_limit:
        several = f"{frames} frames of " if frames > 1 else ""
        raise Unreadable(f"it is {several}{width}x{height}; allowed are 1 to {pixel_limit:,} pixels; save it smaller")


def tiled(frames: list[Image.Image], grid: tuple[int, int] | None) -> Image.Image:
    """Return the one frame, or the frames row by row in a grid of (rows, columns) on black; rows left empty are cut."""
    if grid is None or len(frames) == 1:
        return frames[0]
    columns = min(grid[1], len(frames))
    width, height = frames[0].size
    rows = -(-len(frames) // columns)
    page = Image.new("RGB", (columns * width, rows * height))
    for number, frame in enumerate(frames):
        tile = frame.convert("RGB")
        # The pages of a TIFF may differ in size.
        tile = tile if tile.size == (width, height) else ImageOps.pad(tile, (width, height))
        page.paste(tile, (number % columns * width, number // columns * height))
    return page
