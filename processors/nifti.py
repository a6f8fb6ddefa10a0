"""Show slices of a NIfTI volume upright, as radiologists look at them: front or head above, right on the left."""

from __future__ import annotations

import gzip
import io
import logging
import zlib
from typing import Any

import numpy as np
from PIL import Image

from mm_spine.processors.greys import check_size, named_window, square_pixels, stretched, tiled, windowed
from mm_spine.processors.parts import Part, Unreadable

NEEDS = 'it is a NIfTI volume; pip install "mm-spine[medical]" to read it, or save slices of it as PNG'
_DAMAGED = "damaged or truncated; fetch it again"

VOLUME_LIMIT = 2**30
"""Bytes that a compressed volume may unpack to."""


def is_nifti(data: bytes) -> bool:
    """Return whether the bytes, unpacked if they are gzip, begin with the header of a single-file NIfTI-1 or -2."""
    try:
        head = gzip.GzipFile(fileobj=io.BytesIO(data)).read(352) if data[:2] == b"\x1f\x8b" else data[:352]
    except (OSError, EOFError, ValueError, zlib.error):
        return False
    return head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0"


def open_nifti(data: bytes, part: Part, pixel_limit: int) -> Image.Image:
    """Show the chosen slice of the volume in RAS+ orientation, by default the middle axial one, or a grid of slices.

    `part.axis` is 0 sagittal, 1 coronal, 2 axial; of a 4D volume `part.frame` is the time point, by default the first.
    Raises Unreadable without the extra `medical`, for a damaged file, and for a slice that is not there.
    """
    try:
        import nibabel
    except ImportError as error:
        raise Unreadable(NEEDS) from error
    logger = logging.getLogger("nibabel")
    level = logger.level
    # Its warnings quote the header, whose text fields may name the patient.
    logger.setLevel(logging.CRITICAL + 1)
    try:
        raw = _unpacked(data)
        volume = (nibabel.Nifti1Image if raw[344:348] == b"n+1\0" else nibabel.Nifti2Image).from_bytes(raw)
        return _shown(volume, part, pixel_limit)
    except Unreadable:
        raise
    # Not chained, for the same reason.
    except Exception as error:
        raise Unreadable(f"{_DAMAGED} ({type(error).__name__})") from None
    finally:
        logger.setLevel(level)


def _unpacked(data: bytes) -> bytes:
    if data[:2] != b"\x1f\x8b":
        return data
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
        raw = packed.read(VOLUME_LIMIT + 1)
    if len(raw) > VOLUME_LIMIT:
        raise Unreadable(f"it unpacks to more than {VOLUME_LIMIT:,} bytes; save fewer slices or time points")
    return raw


def _shown(volume: Any, part: Part, pixel_limit: int) -> Image.Image:
    from nibabel.orientations import io_orientation

    shape = volume.shape
    if len(shape) < 2 or min(shape) < 1:
        raise Unreadable(f"its shape is {shape}; only volumes of 2 or more dimensions can be shown")
    # [source axis] -> (axis of RAS+, 1 or -1).
    turned = io_orientation(volume.affine)
    if np.isnan(turned).any():
        raise Unreadable("its affine has no orientation; correct its header")
    source = [int(np.flatnonzero(turned[:, 0] == axis)[0]) for axis in range(3)]
    flipped = [turned[axis, 1] < 0 for axis in source]
    whole = [*shape, 1][:3]
    across, up = (axis for axis in range(3) if axis != part.axis)
    indices = part.slices(whole[source[part.axis]])
    check_size(whole[source[across]], whole[source[up]], pixel_limit, len(indices))
    time = _time(part, [*shape, 1, 1][3])
    planes = []
    for index in indices:
        at = [slice(None)] * len(shape)
        where = source[part.axis]
        if where < len(shape):
            at[where] = slice(k := whole[where] - 1 - index if flipped[part.axis] else index, k + 1)
        for axis in range(3, len(shape)):
            k = time if axis == 3 else 0
            at[axis] = slice(k, k + 1)
        block = np.asanyarray(volume.dataobj[tuple(at)]).reshape([n if a != where else 1 for a, n in enumerate(whole)])
        block = np.flip(block.transpose(source), [axis for axis in range(3) if flipped[axis]])
        # (across, up) -> rows from the top, the patient's right (or front, on sagittal slices) at the left.
        planes.append(np.take(block, 0, part.axis)[::-1, ::-1].T)
    zooms = [*map(float, volume.header.get_zooms()), 1.0][:3]
    sizes = zooms[source[up]], zooms[source[across]]
    greys = _colours(np.stack(planes), part)
    return tiled([square_pixels(Image.fromarray(np.ascontiguousarray(plane)), *sizes) for plane in greys], part.grid)


def _time(part: Part, count: int) -> int:
    """Return the time point, from 0: the chosen frame, else the first."""
    if part.frame is None or part.of or part.grid:
        return 0
    if not 1 <= part.frame <= count:
        raise Unreadable(f"it has no frame {part.frame}; give one from 1 to {count}")
    return part.frame - 1


def _colours(values: np.ndarray, part: Part) -> np.ndarray:
    """Return (K, H, W) values as uint8 by the window, else by their percentiles; colours as (K, H, W, 3)."""
    if values.dtype.names:
        return np.stack([values[name].astype(np.uint8) for name in values.dtype.names[:3]], -1)
    if np.iscomplexobj(values):
        values = np.abs(values)
    if part.window is None:
        return stretched(values)
    window = named_window(part.window) if isinstance(part.window, str) else part.window
    return windowed(values, *window)
