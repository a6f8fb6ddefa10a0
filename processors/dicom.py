"""Show a DICOM file as a radiologist's viewer does: rescaled, windowed by its tags, MONOCHROME1 inverted.

Only the tags that describe pixels are read. What names the patient, the doctor or the hospital is never parsed, and
no message repeats what pydicom says: its errors may quote a tag.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mm_spine.processors.greys import check_size, named_window, square_pixels, stretched, tiled, windowed
from mm_spine.processors.parts import CT_WINDOWS, Part, Unreadable

if TYPE_CHECKING:
    from pydicom import Dataset

NEEDS = 'it is a DICOM file; pip install "mm-spine[medical]" to read it, or convert it to PNG'
_DAMAGED = "damaged or truncated; fetch it again or export it anew"

# With the preamble of part 10, or from the first element on: group 0002 or 0008 and its group length or character set.
_MAGIC = re.compile(rb".{128}DICM|[\x02\x08]\0[\0\x01\x05\x08\x10\x16\x18]\0(?:[A-Z]{2}|.\0\0\0)", re.S)

_SHAPE = [
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData", "FloatPixelData"),
    *("DoubleFloatPixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelPaddingValue"),
    *("PixelAspectRatio", "Modality"),
]
_COLOURS = [
    name
    for colour in ("Red", "Green", "Blue")
    for name in (
        *(f"{colour}PaletteColorLookupTable{part}" for part in ("Descriptor", "Data")),
        f"Segmented{colour}PaletteColorLookupTableData",
    )
]
_GREYS = [
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "WindowCenter", "WindowWidth", "PixelSpacing"),
    *("WindowCenterWidthExplanation", "VOILUTFunction", "VOILUTSequence"),
]
_GROUPS = ["PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"]
# The parts of a functional group that hold tags of `_GREYS`.
_INNER = ("PixelValueTransformationSequence", "FrameVOILUTSequence", "PixelMeasuresSequence")


def is_dicom(data: bytes) -> bool:
    """Return whether the bytes begin like a DICOM file, with or without its preamble."""
    return _MAGIC.match(data[:256]) is not None


def open_dicom(data: bytes, part: Part, pixel_limit: int) -> Image.Image:
    """Decode the chosen frame, by default the middle one, or a grid of frames. Decodes no other frame.

    Raises Unreadable without the extra `medical`, for a damaged file, one without a picture, a frame that is not there,
    and for more than `pixel_limit` pixels in what is to be decoded.
    """
    try:
        import pydicom
    except ImportError as error:
        raise Unreadable(NEEDS) from error
    with _silence():
        try:
            tags = pydicom.dcmread(io.BytesIO(data), force=True, specific_tags=_SHAPE + _COLOURS + _GREYS + _GROUPS)
            count = _shape(tags, data)
            indices = part.frames(count)
            check_size(int(tags.Columns), int(tags.Rows), pixel_limit, len(indices))
            frames = [_frame(tags, index, part) for index in indices]
        except Unreadable:
            raise
        # Not chained: the error of pydicom may hold the value of a tag, and a traceback would print it.
        except Exception as error:
            raise Unreadable(_reason(error)) from None
    return tiled(frames, part.grid)


@contextmanager
def _silence() -> Iterator[None]:
    """Keep pydicom's logger quiet: its warnings quote values of tags."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _reason(error: Exception) -> str:
    if isinstance(error, NotImplementedError) or "does not support" in str(error):
        # GDCM decodes all but JPEG of 12 bits, HTJ2K and MPEG; the package that does the first is under the GPL.
        return "its compression cannot be decoded by GDCM or Pillow; export it uncompressed (or install pylibjpeg[all])"
    return f"{_DAMAGED} ({type(error).__name__})"


def _shape(tags: Dataset, data: bytes) -> int:
    """Check that there is a picture, and return how many frames it has."""
    if not any(name in tags for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        whole = "Rows" not in tags and b"DICM" in data[:132]
        raise Unreadable("it is a DICOM file without a picture; leave it out" if whole else _DAMAGED)
    return max(int(tags.get("NumberOfFrames") or 1), 1)


def _frame(tags: Dataset, index: int, part: Part) -> Image.Image:
    """Decode one frame, counted from 0, to L or RGB with square pixels."""
    from pydicom.pixels.processing import apply_color_lut
    from pydicom.pixels.utils import pixel_array

    values = pixel_array(tags, index=index)
    own = _of_frame(tags, index)
    if tags.PhotometricInterpretation == "PALETTE COLOR":
        values = apply_color_lut(values, tags)
        shown = _to_8_bits(values, 16 if values.dtype.itemsize == 2 else 8)
    elif values.ndim == 3:
        shown = _to_8_bits(values, int(tags.BitsStored))
    else:
        shown = _greys(values, tags, own, part)
    return square_pixels(Image.fromarray(np.ascontiguousarray(shown)), *_pixel_size(own, tags))


def _to_8_bits(values: np.ndarray, bits: int) -> np.ndarray:
    return values.astype(np.uint8) if bits == 8 else (values.astype(np.float64) * 255 / (2**bits - 1)).astype(np.uint8)


def _of_frame(tags: Dataset, index: int) -> Dataset:
    """Return the tags of `_GREYS` of one frame: those of its own group, else of the shared one, else of the file."""
    from pydicom import Dataset

    own = Dataset()
    groups = []
    for name, at in zip(_GROUPS, (index, 0), strict=True):
        sequence = tags.get(name) or []
        if at < len(sequence):
            groups += [item[0] for inner in _INNER if (item := sequence[at].get(inner))]
    for place in (tags, *reversed(groups)):
        for name in _GREYS:
            if name in place:
                own[name] = place[name]
    # Needed to read the values of a look-up table: their byte order, and whether they are signed.
    own.set_original_encoding(*tags.original_encoding)
    own.PixelRepresentation = tags.get("PixelRepresentation", 0)
    return own


def _greys(values: np.ndarray, tags: Dataset, own: Dataset, part: Part) -> np.ndarray:
    """Apply modality and VOI transformation to (H, W) stored values; returns uint8, as they are to be seen."""
    from pydicom.pixels.processing import apply_modality_lut

    rescaled = apply_modality_lut(values, own)
    shown = _windowed(rescaled, str(tags.get("Modality", "")), own, part.window)
    if shown is None:
        padding = tags.get("PixelPaddingValue")
        plain = tags.get("BitsStored") == 8 and values.dtype == np.uint8 and rescaled is values
        shown = values if plain else stretched(rescaled, None if padding is None else values != padding)
    return 255 - shown if tags.PhotometricInterpretation == "MONOCHROME1" else shown


def _windowed(
    values: np.ndarray, modality: str, own: Dataset, window: tuple[float, float] | str | None
) -> np.ndarray | None:
    """Apply `window`, else the VOI look-up table of the tags, else their first window; None if there is none.

    A name is looked up among the explanations of the tags' windows, then, for CT, among `CT_WINDOWS`.
    """
    from pydicom.pixels.processing import apply_voi

    function = str(own.get("VOILUTFunction") or "LINEAR")
    centres, widths = _listed(own.get("WindowCenter")), _listed(own.get("WindowWidth"))
    if isinstance(window, str):
        names = [str(name).strip().lower() for name in _listed(own.get("WindowCenterWidthExplanation"))]
        if window in names[: len(centres)]:
            at = names.index(window)
            return windowed(values, float(centres[at]), float(widths[at]), function)
        if modality != "CT" and window in CT_WINDOWS:
            raise Unreadable(f"window {window!r} is one of CT and this is {modality or 'something else'}; give numbers")
        window = named_window(window)
    if window is not None:
        return windowed(values, *window)
    if table := own.get("VOILUTSequence"):
        return _to_8_bits(apply_voi(values, own), int(table[0].LUTDescriptor[2]))
    if centres and widths and float(widths[0]) > 0:
        return windowed(values, float(centres[0]), float(widths[0]), function)
    return None


def _pixel_size(own: Dataset, tags: Dataset) -> tuple[float, float]:
    """Return (height, width) of a pixel in any unit, 1 and 1 where it is not given."""
    sizes = _listed(own.get("PixelSpacing") or tags.get("PixelAspectRatio"))
    return (float(sizes[0]), float(sizes[1])) if len(sizes) == 2 else (1.0, 1.0)


def _listed(value: Any) -> list[Any]:
    """Return the values of a tag that may hold none, one or several."""
    if value is None or value == "":
        return []
    return list(value) if not isinstance(value, str) and hasattr(value, "__iter__") else [value]
