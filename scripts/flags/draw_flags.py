"""Rasterise the flags of the countries of `benchmarks/countries.tsv` into `benchmarks/flags.zip`.

    npm pack flag-icons@7.5.0 && tar xzf flag-icons-7.5.0.tgz
    pip install resvg-py==0.5.0
    python scripts/flags/draw_flags.py package [--output benchmarks/flags.zip]

Source: flag-icons 7.5.0 (MIT), https://github.com/lipis/flag-icons, its flags of 4 by 3. Each becomes a PNG of SIZE
pixels with at most COLOURS colours; the archive holds the package's licence too. resvg-py is used here and nowhere
else. The same package gives the same bytes.
"""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from pathlib import Path

from PIL import Image

from mm_spine.benchmarks.countries import countries

OUTPUT = Path(__file__).resolve().parents[2] / "benchmarks" / "flags.zip"
VERSION = "7.5.0"
SIZE = (128, 96)
COLOURS = 64
TWICE = 2
"""How many times larger than SIZE a flag is drawn, and then made smaller with Lanczos' filter."""


def draw(svg: Path) -> Image.Image:
    """Return the flag of an SVG file, SIZE pixels, on white."""
    import resvg_py

    drawn = resvg_py.svg_to_bytes(svg_path=str(svg), width=SIZE[0] * TWICE, height=SIZE[1] * TWICE)
    flag = Image.open(io.BytesIO(bytes(drawn))).convert("RGBA")
    white = Image.new("RGBA", flag.size, "white")
    small = Image.alpha_composite(white, flag).convert("RGB").resize(SIZE, Image.Resampling.LANCZOS)
    return small.quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)


def write(package: Path, output: Path) -> int:
    """Write the archive; return its size in bytes. Raises ValueError for another version of the package."""
    found = json.loads((package / "package.json").read_text())["version"]
    if found != VERSION:
        raise ValueError(f"{package}: flag-icons {found}; the archive is made from {VERSION}")
    members = {"LICENSE": (package / "LICENSE").read_bytes()}
    for country in countries():
        png = io.BytesIO()
        draw(package / "flags" / "4x3" / f"{country.code.lower()}.svg").save(png, "PNG", optimize=True)
        members[f"{country.code}.png"] = png.getvalue()
    with zipfile.ZipFile(output, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)
    return output.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    print(f"{options.output}: {write(options.package, options.output):,} bytes")


if __name__ == "__main__":
    main()
