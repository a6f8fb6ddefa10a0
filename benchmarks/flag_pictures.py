"""Draw the flags of `flags`: plainly, as its vision tower was trained on them, or as a camera might see them.

The flags lie in `flags.zip`: flag-icons 7.5.0 (MIT), https://github.com/lipis/flag-icons, rasterised by
scripts/flags/draw_flags.py. Every picture is drawn from a generator, with numpy and Pillow.
"""

from __future__ import annotations

import io
import math
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

ARCHIVE = Path(__file__).resolve().parent / "flags.zip"

WIDTH, HEIGHT = 120, 80
"""Pixels of a picture. With patch 20 and merge 2 it is 3 x 2 image tokens."""

GREY = 200
"""The background of a plain picture, from 0 to 255."""

Point = tuple[float, float]


@cache
def flag(code: str) -> Image.Image:
    """Return the flag of a country, by its ISO code: RGB, 128 x 96. Raises KeyError where there is none."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        return Image.open(io.BytesIO(archive.read(f"{code}.png"))).convert("RGB")


def plain(rng: np.random.Generator, code: str) -> Image.Image:
    """Draw a flag upright on grey, 64 to 76 pixels high, at most 3 pixels off the middle."""
    height = int(rng.integers(64, 77))
    width = height * 4 // 3
    across, down = (int(v) for v in rng.integers(-3, 4, size=2))
    picture = Image.new("RGB", (WIDTH, HEIGHT), (GREY,) * 3)
    drawn = flag(code).resize((width, height), Image.Resampling.BICUBIC)
    picture.paste(drawn, ((WIDTH - width) // 2 + across, (HEIGHT - height) // 2 + down))
    return picture


def photograph(rng: np.random.Generator, code: str, strength: float) -> Image.Image:
    """Draw a flag as a camera sees it: folded, faded, from one side, cropped, out of focus, and with noise.

    `strength` scales every change; at 0 nothing is changed but the size.
    """
    cloth = _faded(rng, _folded(rng, flag(code), strength), strength)
    placed = _placed(rng, cloth, strength)
    blurred = placed.filter(ImageFilter.GaussianBlur(strength * float(rng.uniform(0.3, 1.2))))
    grain = rng.normal(0.0, strength * rng.uniform(4.0, 14.0), size=(HEIGHT, WIDTH, 3))
    pixels = np.asarray(blurred, dtype=np.float64) + grain
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _folded(rng: np.random.Generator, cloth: Image.Image, strength: float) -> Image.Image:
    """Let folds run across the cloth: they move its pixels up and down, and light and shade them."""
    pixels = np.asarray(cloth, dtype=np.float64)
    height, width = pixels.shape[:2]
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    waves, slant = rng.uniform(1.0, 2.5), rng.uniform(-0.6, 0.6)
    phase = 2 * math.pi * (waves * (columns + slant * rows) / width + rng.uniform())
    moved = rows + strength * rng.uniform(1.0, 4.0) * np.sin(phase)
    at = np.clip(np.rint(moved), 0, height - 1).astype(np.intp)
    light = 1 + strength * rng.uniform(0.08, 0.25) * np.cos(phase)
    folded = pixels[at, columns] * light[..., None]
    return Image.fromarray(np.clip(np.rint(folded), 0, 255).astype(np.uint8))


def _faded(rng: np.random.Generator, cloth: Image.Image, strength: float) -> Image.Image:
    """Take colour and contrast away, and tint what is left."""
    cloth = ImageEnhance.Color(cloth).enhance(1 - strength * float(rng.uniform(0.1, 0.5)))
    cloth = ImageEnhance.Contrast(cloth).enhance(1 - strength * float(rng.uniform(0.1, 0.4)))
    tint = 1 + strength * rng.uniform(-0.12, 0.12, size=3)
    pixels = np.asarray(cloth, dtype=np.float64) * tint * (1 + strength * rng.uniform(-0.2, 0.15))
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _placed(rng: np.random.Generator, cloth: Image.Image, strength: float) -> Image.Image:
    """Show the cloth from one side before a sky of two colours; its corners may lie outside the picture."""
    height = 70 + strength * float(rng.uniform(-10, 8))
    width = height * 4 / 3
    middle = np.array([WIDTH, HEIGHT]) / 2 + strength * rng.uniform(-7, 7, size=2)
    square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * np.array([width, height]) / 2
    angle = strength * rng.uniform(-0.15, 0.15)
    turned = square @ np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    corners = middle + turned + strength * rng.uniform(-6, 6, size=(4, 2))
    source = [(0.0, 0.0), (cloth.width, 0.0), (cloth.width, cloth.height), (0.0, cloth.height)]
    terms = _perspective([(float(x), float(y)) for x, y in corners], source)
    size, how = (WIDTH, HEIGHT), Image.Transform.PERSPECTIVE
    shown = cloth.transform(size, how, terms, Image.Resampling.BICUBIC)
    mask = Image.new("L", cloth.size, 255).transform(size, how, terms, Image.Resampling.BICUBIC)
    sky = GREY + strength * rng.uniform(-70, 40, size=(2, 3))
    rows = np.linspace(0, 1, HEIGHT)[:, None, None]
    shade = np.clip(sky[0] * (1 - rows) + sky[1] * rows, 0, 255).astype(np.uint8)
    return Image.composite(shown, Image.fromarray(np.repeat(shade, WIDTH, axis=1)), mask)


def _perspective(seen: list[Point], source: list[Point]) -> tuple[float, ...]:
    """Return Pillow's eight terms of the perspective that shows the `source` corners at the `seen` ones."""
    rows, values = [], []
    for (x, y), (u, v) in zip(seen, source, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return tuple(float(term) for term in np.linalg.solve(np.array(rows), np.array(values)))
