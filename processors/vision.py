"""Decode images of any common kind to RGB within limits. A bad image costs its question, with a reason."""

from __future__ import annotations

import io
import logging
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL import ImageFile as Decoders

from mm_spine.processors.dicom import is_dicom, open_dicom
from mm_spine.processors.greys import named_window, tiled, windowed
from mm_spine.processors.nifti import is_nifti, open_nifti
from mm_spine.processors.parts import Part, Unreadable, read_part
from mm_spine.processors.video import is_video, open_video
from mm_spine.types import ImageFile, ImageLike, ImagePart, image_part
from mm_spine.words import visible_line

log = logging.getLogger(__name__)

PIXEL_LIMIT = 64_000_000
BYTE_LIMIT = 256 * 2**20
ASPECT_LIMIT = 200.0
"""Qwen's own limit (`smart_resize` of qwen-vl-utils and of transformers)."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM")
"""The formats that PIL reads here; DICOM, NIfTI, HEIC and videos are read by packages of their own.

PIL can open more, among them EPS, for which it runs an external program.
"""

# The first bytes of `FORMATS`, and of other files that people take for images.
_OURS = re.compile(
    rb"\x89PNG|\xff\xd8|RIFF....WEBP|GIF8|BM|II[*+]\0|MM\0[*+]|\0\0\0\x0cjP|\xff\x4f\xff\x51|P[1-7fF]\s", re.S
)
_FOREIGN: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"%PDF"), "a PDF"),
    (re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"), "a PostScript file"),
    (re.compile(rb"\s*(<\?xml.*)?<svg", re.S | re.I), "an SVG drawing"),
    (re.compile(rb"\s*<(!doctype html|html)", re.I), "a web page"),
    (re.compile(rb".{4}ftypavi", re.S), "an AVIF image"),
    (re.compile(rb"8BPS"), "a Photoshop file"),
    (re.compile(rb"PK\x03\x04|\x1f\x8b"), "a compressed archive"),
)

# ISO/IEC 23008-12: the brands of HEIF images and sequences coded by HEVC.
_HEIF = re.compile(rb".{4}ftyp(hei|hev|mif1|msf1)", re.S)

# EXIF 2.3, tag 0x0112: the operation that turns the stored picture upright.
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# TIFF 6.0, tag 262, value 0: the smallest grey value is white. PIL inverts such pictures at 8 bits, but not above.
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0


class BadQuestion(ValueError):
    """A question that cannot be asked. The message starts with its id; the run continues without it.

    Ids and file names come from data, so control characters in the message are escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__(visible_line(message))


def open_image(image: ImageLike, question_id: str, pixel_limit: int = PIXEL_LIMIT) -> Image.Image:
    """Decode `image` to RGB, upright by its EXIF tag, on white, greys above 8 bits scaled. Nothing but pixels remains.

    Of several frames the first is used, of a medical image the middle one, unless the image is an `ImagePart`, or a
    path with "#" and what to show. Raises BadQuestion if the file is missing, no regular file, empty, larger than
    `BYTE_LIMIT`, truncated, of none of the formats that are read, or without the part that is asked for, or if the
    image has no pixels, more than `pixel_limit`, or one side `ASPECT_LIMIT` times the other.
    """
    image = image_part(image)
    named = not isinstance(image, bytes | Image.Image) and type(image).__str__ is not object.__str__
    name = str(image) if named else type(image).__name__
    try:
        with _strict_decoders():
            return _decode(image, f"{question_id}: image {name}", pixel_limit)
    except Unreadable as error:
        raise BadQuestion(f"{question_id}: cannot read image {name}: {error}") from error
    # On damaged bytes decoders raise exceptions of any type.
    except Exception as error:
        why = "damaged or truncated; fetch it again or open it and save it as PNG"
        raise BadQuestion(f"{question_id}: cannot read image {name}: {why} ({error})") from error


def _decode(image: ImageLike, where: str, pixel_limit: int) -> Image.Image:
    """Open, check and load the image, or the part of it; `where` names it in the log."""
    part, file = (read_part(image.how), image.file) if isinstance(image, ImagePart) else (Part(), image)
    if isinstance(file, Image.Image):
        return _pages(file, part, pixel_limit)
    data = _bytes(file)
    for fits, show in ((is_dicom, open_dicom), (is_nifti, open_nifti), (is_video, open_video)):
        if fits(data):
            shown = show(data, part, pixel_limit).convert("RGB")
            _check_size(shown, pixel_limit)
            return shown
    opened = _open(data, pixel_limit)
    if not (part.number or part.frame or part.grid) and getattr(opened, "is_animated", False):
        log.info("%s has several frames; the first is used", where)
    return _pages(opened, part, pixel_limit)


def _pages(opened: Image.Image, part: Part, pixel_limit: int) -> Image.Image:
    """Check and load the chosen frames or pages, by default the current one."""
    if opened.format not in (None, "MPO", "HEIF", *FORMATS):
        raise Unreadable(f"it is of format {opened.format}; convert it to PNG or JPEG")
    _check_size(opened, pixel_limit)
    if part == Part():
        opened.load()
        return _to_rgb(_upright(opened), None)
    pages = []
    indices = part.frames(getattr(opened, "n_frames", 1), usual=0)
    for index in indices:
        opened.seek(index)
        _check_size(opened, pixel_limit // len(indices))
        opened.load()
        pages.append(_to_rgb(_upright(opened), part))
    return tiled(pages, part.grid)


@contextmanager
def _strict_decoders() -> Iterator[None]:
    """Make truncated images an error and silence decoders' warnings, whatever the process has set."""
    lenient = Decoders.LOAD_TRUNCATED_IMAGES
    Decoders.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Decoders.LOAD_TRUNCATED_IMAGES = lenient


def _bytes(image: Path | str | bytes | ImageFile) -> bytes:
    try:
        data = _read(image)
    except Unreadable:
        raise
    # A member of an archive or a cell of a table can fail in any way.
    except Exception as error:
        raise Unreadable(f"its bytes cannot be read; check that it exists and may be read ({error})") from error
    if not data:
        raise Unreadable("the file is empty; fetch it again")
    _check_bytes(len(data))
    return data


def _read(image: Path | str | bytes | ImageFile) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, Path | str):
        return _read_file(image)
    # The size of an unpacked member is known only by reading it.
    if isinstance(image, zipfile.Path):
        with image.open("rb") as member:
            return member.read(BYTE_LIMIT + 1)
    if hasattr(image, "read_bytes"):
        return image.read_bytes()
    raise Unreadable("it is not an image; give a PIL image, a path or the bytes of a file")


def _read_file(image: Path | str) -> bytes:
    if re.match(r"https?:/", str(image)):
        raise Unreadable("it is a web address; download the image and give its path")
    path = Path(image)
    if path.is_dir():
        raise Unreadable("it is a folder; give the path of an image file")
    # Reading a pipe or a device could block for ever.
    if not path.is_file():
        raise Unreadable("there is no regular file of that name; check the path")
    _check_bytes(path.stat().st_size)
    return path.read_bytes()


def _check_bytes(size: int) -> None:
    if size > BYTE_LIMIT:
        raise Unreadable(f"it has more than {BYTE_LIMIT:,} bytes; save it smaller or compressed")


def _open(data: bytes, pixel_limit: int) -> Image.Image:
    """Open the image: this reads only its header."""
    formats: tuple[str, ...] = FORMATS
    if _HEIF.match(data[:16]):
        try:
            import pillow_heif
        except ImportError as error:
            raise Unreadable('it is HEIC; pip install "mm-spine[heic]" to read it, or convert it to JPEG') from error
        pillow_heif.register_heif_opener()
        formats = ("HEIF",)
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    # PIL refuses images of twice its own limit; it gives their size only in the message.
    except Image.DecompressionBombError as error:
        found = re.search(r"\d+", str(error))
        pixels = f"{int(found[0]):,}" if found else "too many"
        raise Unreadable(f"it has {pixels} pixels; allowed are 1 to {pixel_limit:,}; save it smaller") from error
    except UnidentifiedImageError as error:
        raise Unreadable(_unidentified(data)) from error


def _unidentified(data: bytes) -> str:
    """Say what a file is that PIL does not recognise, by its first bytes."""
    if _OURS.match(data) or _HEIF.match(data):
        return "damaged or truncated: its header cannot be read; fetch it again"
    for pattern, kind in _FOREIGN:
        if pattern.match(data[:4096]):
            return f"it is {kind}; convert it to PNG or JPEG"
    return f"it is none of {', '.join(FORMATS)}; convert it to PNG or JPEG"


def _check_size(image: Image.Image, pixel_limit: int) -> None:
    """Raise Unreadable for too many pixels, none, or too long a shape."""
    width, height = image.size
    if width * height > pixel_limit or min(width, height) == 0:
        raise Unreadable(f"it is {width}x{height}; allowed are 1 to {pixel_limit:,} pixels; save it smaller")
    if max(width, height) / min(width, height) >= ASPECT_LIMIT:
        raise Unreadable(f"it is {width}x{height}; the sides may differ {ASPECT_LIMIT:.0f}-fold; crop or pad it")


def _upright(image: Image.Image) -> Image.Image:
    """Turn the image upright by its EXIF tag; a damaged EXIF block is ignored."""
    # `ImageOps.exif_transpose` would raise on a damaged block, or rewrite it.
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_rgb(image: Image.Image, part: Part | None) -> Image.Image:
    """Convert to RGB as a viewer shows the image; the window of `part` applies to greys above 8 bits."""
    rgb = _as_rgb(image, part.window if part else None)
    # Comments, EXIF and XMP may name a patient, and PIL writes some of them into a copy that it saves.
    rgb.info = {}
    return rgb


def _as_rgb(image: Image.Image, window: tuple[float, float] | str | None) -> Image.Image:
    # `convert("RGB")` would cut greys off at 255 and show the colours behind transparency.
    if image.mode == "F" or image.mode.startswith("I"):
        white_is_zero = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO
        values = np.asarray(image)
        limits = named_window(window) if isinstance(window, str) else window
        greys = windowed(values, *limits) if limits else scale_greys(values)
        return Image.fromarray(255 - greys if white_is_zero else greys).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def scale_greys(values: np.ndarray) -> np.ndarray:
    """Scale grey values of any depth to uint8, same shape.

    Integers from 0 to 65535 are scaled by their depth: the smallest of 8, 10, 12, 14 and 16 bits that holds them.
    Other integers (signed, 32-bit) and floats have no known white: their finite range is stretched to 0 to 255, and
    values that are not finite become black.
    """
    if np.issubdtype(values.dtype, np.integer) and values.min() >= 0 and values.max() <= 65535:
        # A 16-bit file mostly holds the values of a 10- to 14-bit detector.
        top = next(2**bits - 1 for bits in (8, 10, 12, 14, 16) if values.max() < 2**bits)
        return ((values.astype(np.int64) * 255 + top // 2) // top).astype(np.uint8)
    finite = np.isfinite(values)
    exact = np.where(finite, values, 0).astype(np.float64)
    low, high = (exact[finite].min(), exact[finite].max()) if finite.any() else (0.0, 0.0)
    scaled = (exact - low) * (255 / (high - low)) if high > low else np.zeros(values.shape)
    return np.where(finite, np.rint(scaled), 0).astype(np.uint8)
