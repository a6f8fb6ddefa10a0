"""Print digits in the fonts of Debian packages, distorted and scanned as the handwriting of `digits` was."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from source_recipe import Config
from torch import Tensor
from torch.nn import functional as F

log = logging.getLogger("train_source_checkpoint")

FONT_PACKAGES: Mapping[str, str] = {
    "fonts-averia-sans-gwf": "OFL-1.1",
    "fonts-breip": "OFL-1.0",
    "fonts-bwht": "OFL-1.1",
    "fonts-cabin": "OFL-1.1",
    "fonts-cantarell": "OFL-1.1",
    "fonts-comfortaa": "OFL-1.1",
    "fonts-comic-neue": "OFL-1.1",
    "fonts-courier-prime": "OFL-1.1",
    "fonts-dancingscript": "OFL-1.1",
    "fonts-dejavu-core": "Bitstream Vera",
    "fonts-dkg-handwriting": "OFL-1.1",
    "fonts-dosis": "OFL-1.1",
    "fonts-essays1743": "OFL-1.1 or LGPL-2.1",
    "fonts-eurofurence": "OFL-1.1",
    "fonts-fantasque-sans": "OFL-1.1",
    "fonts-femkeklaver": "CC-BY-SA-3.0",
    "fonts-georgewilliams": "OFL-1.1 or BSD-3-clause",
    "fonts-havana": "OFL-1.1",
    "fonts-humor-sans": "OFL-1.1",
    "fonts-inconsolata": "OFL-1.0",
    "fonts-junction": "OFL-1.1",
    "fonts-karla": "OFL-1.1",
    "fonts-kaushanscript": "OFL-1.1",
    "fonts-klaudia-berenika": "OFL-1.1",
    "fonts-kristi": "OFL-1.1",
    "fonts-lato": "OFL-1.1",
    "fonts-leckerli-one": "OFL-1.1",
    "fonts-lobstertwo": "OFL-1.1",
    "fonts-monofur": "OFL-1.1",
    "fonts-okolaks": "OFL-1.1",
    "fonts-open-sans": "Apache-2.0",
    "fonts-opendin": "OFL-1.1",
    "fonts-play": "OFL-1.1",
    "fonts-quicksand": "OFL-1.1",
    "fonts-radisnoir": "OFL-1.1",
    "fonts-routed-gothic": "OFL-1.1",
    "fonts-rufscript": "GPL-3+ with font exception",
    "fonts-sil-andika": "OFL-1.1",
    "fonts-smc-chilanka": "OFL-1.1",
    "fonts-urw-base35": "AGPL-3 with font exception",
    "fonts-vollkorn": "OFL-1.1",
    "fonts-yanone-kaffeesatz": "OFL-1.1",
}
"""Debian packages whose digits are printed, with the licence of the fonts in each (its copyright file)."""


class Printed(NamedTuple):
    """(N, 8, 8) ink 0-16 and (N,) classes."""

    ink: np.ndarray
    label: np.ndarray


def font_files(per_package: int) -> list[Path]:
    """List at most `per_package` font files of each package, evenly spread. Exits naming the packages to install."""
    if shutil.which("dpkg-query") is None:
        raise SystemExit("the fonts come from Debian packages, and dpkg-query is not here; run on Debian or Ubuntu")
    files: list[Path] = []
    missing = []
    for package in FONT_PACKAGES:
        found = sorted(
            Path(line) for line in dpkg("-L", package).splitlines() if line.lower().endswith((".ttf", ".otf"))
        )
        found = [path for path in found if path.is_file() and not path.is_symlink() and _has_digits(path)]
        missing += [] if found else [package]
        files += found[:: -(-len(found) // per_package)] if found else []
    if missing:
        raise SystemExit(f"fonts are missing; run: apt-get install -y --no-install-recommends {' '.join(missing)}")
    return files


def dpkg(*query: str) -> str:
    """Query Debian's package database; the answer is empty for a package that is not installed."""
    return subprocess.run(["dpkg-query", *query], capture_output=True, text=True, check=False).stdout


def _has_digits(path: Path) -> bool:
    """Return whether the font has ten different, non-empty glyphs for the digits."""
    glyphs = {_glyph(path, digit).tobytes() for digit in range(10)}
    return len(glyphs) == 10


def _glyph(path: Path, digit: int, side: int = 64) -> np.ndarray:
    """Draw one digit, 5/8 of `side` high and centred; (side, side) uint8."""
    font = ImageFont.truetype(str(path), side)
    left, top, right, bottom = font.getbbox(str(digit))
    wide = Image.new("L", (max(1, int(right - left)), max(1, int(bottom - top))))
    ImageDraw.Draw(wide).text((-left, -top), str(digit), fill=255, font=font)
    scale = 0.625 * side / max(wide.size)
    small = wide.resize((max(1, round(wide.width * scale)), max(1, round(wide.height * scale))))
    canvas = Image.new("L", (side, side))
    canvas.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
    return np.asarray(canvas)


def print_digits(config: Config) -> Printed:
    """Print `config.printed` distorted digits in random fonts, scanned as the handwriting was: counts of 4 x 4 bits."""
    glyphs = torch.tensor(np.stack([[_glyph(f, d) for d in range(10)] for f in font_files(config.files_per_package)]))
    rng = torch.Generator().manual_seed(config.seed)
    ink, label = [], []
    for start in range(0, config.printed, 2000):
        n = min(2000, config.printed - start)
        font = torch.randint(len(glyphs), (n,), generator=rng)
        digit = torch.randint(10, (n,), generator=rng)
        ink.append(scan(distort(glyphs[font, digit].float() / 255, rng)))
        label.append(digit)
    log.info("printed %d digits in %d fonts", config.printed, len(glyphs))
    return Printed(torch.cat(ink).numpy(), torch.cat(label).numpy())


def distort(glyphs_NSS: Tensor, rng: torch.Generator) -> Tensor:
    """Distort at random: rotation, shear, width, smooth elastic displacement, stroke width; (N, S, S) in [0, 1]."""
    n, side, _ = glyphs_NSS.shape
    angle, shear = 0.18 * torch.randn(2, n, generator=rng)
    width = torch.empty(n).uniform_(0.8, 1.5, generator=rng)
    cos, sin = angle.cos(), angle.sin()
    zero = torch.zeros(n)
    rows = [torch.stack([cos * width, sin + 1.5 * shear, zero], -1), torch.stack([-sin * width, cos, zero], -1)]
    grid = F.affine_grid(torch.stack(rows, 1), [n, 1, side, side], align_corners=False)
    bend = F.interpolate(0.06 * torch.randn(n, 2, 5, 5, generator=rng), size=(side, side), mode="bicubic")
    warped = F.grid_sample(glyphs_NSS[:, None], grid + bend.permute(0, 2, 3, 1), align_corners=False)
    return _restroke(warped[:, 0], rng)


def _restroke(ink_NSS: Tensor, rng: torch.Generator) -> Tensor:
    """Thin or thicken each digit until it covers about as much as a pen would: 12 +- 2.5 % of the canvas."""
    target = 0.12 + 0.025 * torch.randn(len(ink_NSS), generator=rng)
    choices = torch.stack(
        [-F.max_pool2d(-ink_NSS, 3, 1, 1), ink_NSS] + [F.max_pool2d(ink_NSS, k, 1, k // 2) for k in (3, 5, 7, 9)]
    )
    nearest = (choices.mean((-1, -2)) - target).abs().argmin(0)
    return choices[nearest, torch.arange(len(ink_NSS))]


def scan(ink_NSS: Tensor) -> Tensor:
    """Crop to the ink, scale to 32 pixels high and at most as wide, count 4 x 4 blocks: (N, 8, 8) in 0-16."""
    n, side, _ = ink_NSS.shape
    theta = torch.zeros(n, 2, 3)
    for axis, reduce_over in ((0, 1), (1, 2)):  # x: columns with ink, y: rows with ink
        inked = ink_NSS.amax(dim=reduce_over) > 0.5
        first = inked.int().argmax(-1)
        last = side - 1 - inked.flip(-1).int().argmax(-1)
        theta[:, axis, 2] = (first + last + 1) / side - 1
        theta[:, axis, axis] = (last - first + 1) / side
    theta[:, 0, 0] = torch.maximum(theta[:, 0, 0], theta[:, 1, 1])
    grid = F.affine_grid(theta, [n, 1, 32, 32], align_corners=False)
    bits = F.grid_sample(ink_NSS[:, None], grid, align_corners=False) > 0.5
    return (F.avg_pool2d(bits.float(), 4) * 16).round()[:, 0].to(torch.uint8)
