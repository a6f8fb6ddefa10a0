"""Which part of an image file is shown: the text after "#", as in "scan.dcm#3" or "head.nii.gz#axis=0,slice=40".

Frames and pages count from 1, as in DICOM; slices count from 0, as in nibabel.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MOST_TILES = 64
"""Frames that one grid may show."""

CT_WINDOWS = {
    "abdomen": (50.0, 400.0),
    "bone": (400.0, 1800.0),
    "brain": (40.0, 80.0),
    "liver": (30.0, 150.0),
    "lung": (-600.0, 1500.0),
    "mediastinum": (50.0, 350.0),
    "stroke": (40.0, 40.0),
    "subdural": (75.0, 215.0),
}
"""Name -> (centre, width) in Hounsfield units, as in Radiopaedia's article "Windowing (CT)"."""

_NUMBER = r"[-+]?\d+(?:\.\d+)?"
_WINDOW = re.compile(rf"({_NUMBER})[:/;]({_NUMBER})")
_FORMS = {
    "frame": r"\d+(/\d+)?",
    "slice": r"\d+",
    "axis": r"[012]",
    "grid": r"\d+x\d+",
    "window": rf"{_WINDOW.pattern}|[A-Za-z][\w -]*",
}
_WORDS = "frame=3, slice=40, axis=0, grid=3x3, window=40:400 or window=lung"


class Unreadable(Exception):
    """The reason why an image cannot be read, and what to do. `open_image` adds the question and the file."""


@dataclass(frozen=True)
class Part:
    """What is shown of a file. `number` is a frame, a page or a slice, whichever the file has.

    With `of`, `frame` is one of so many evenly spaced frames. `grid` is (rows, columns) of evenly spaced frames.
    `window` is (centre, width) in the units of the file, or its name.
    """

    number: int | None = None
    frame: int | None = None
    of: int | None = None
    slice: int | None = None
    axis: int = 2
    grid: tuple[int, int] | None = None
    window: tuple[float, float] | str | None = None

    def frames(self, count: int, usual: int | None = None) -> list[int]:
        """Return which of `count` frames are shown, from 0; without a choice `usual`, by default the middle one.

        Raises Unreadable for a frame that is not there.
        """
        if self.slice is not None:
            raise Unreadable(f"slice={self.slice}: it has frames and no slices; give frame=1 and so on")
        if self.grid:
            return spread(count, self.grid[0] * self.grid[1])
        if self.of and self.frame:
            return [_share(count, self.frame, self.of)]
        chosen = self.number if self.frame is None else self.frame
        if chosen is None:
            return [count // 2 if usual is None else usual]
        if not 1 <= chosen <= count:
            raise Unreadable(f"it has no frame {chosen}; give one from 1 to {count}")
        return [chosen - 1]

    def slices(self, count: int) -> list[int]:
        """Return which of `count` slices are shown, from 0; without a choice the middle one. Raises Unreadable."""
        if self.grid:
            return spread(count, self.grid[0] * self.grid[1])
        if self.of and self.frame:
            return [_share(count, self.frame, self.of)]
        chosen = self.number if self.slice is None else self.slice
        if chosen is not None and chosen >= count:
            raise Unreadable(f"it has no slice {chosen} on axis {self.axis}; give one from 0 to {count - 1}")
        return [count // 2 if chosen is None else chosen]


def spread(count: int, wanted: int) -> list[int]:
    """Return at most `wanted` of `count` indices, evenly spaced: the middle of each of as many equal stretches."""
    wanted = min(count, wanted)
    return [_share(count, k + 1, wanted) for k in range(wanted)]


def _share(count: int, k: int, n: int) -> int:
    return (2 * k - 1) * count // (2 * n)


def read_part(how: str) -> Part:
    """Read the text after "#": a number, "grid", or words such as "frame=3,window=lung". Raises Unreadable."""
    given: dict[str, str] = {}
    for word in filter(None, (word.strip() for word in how.split(","))):
        key, _, value = word.partition("=") if "=" in word else (_bare(word), "", word)
        key, value = key.strip().replace("page", "frame"), value.strip()
        if key == "grid" and value == "grid":
            value = "3x3"
        form = _FORMS.get(key, r"\d+" if key == "number" else None)
        if form is None or key in given or not re.fullmatch(form, value) or len(value) > 40:
            raise Unreadable(f"{word[:80]!r} after '#' says no part of it; write {_WORDS}")
        given[key] = value
    frame, _, of = given.get("frame", "").partition("/")
    if of and not 1 <= int(frame) <= int(of):
        raise Unreadable(f"frame={frame}/{of}: the first number is from 1 to {of}")
    return Part(
        number=int(given["number"]) if "number" in given else None,
        frame=int(frame) if frame else None,
        of=int(of) if of else None,
        slice=int(given["slice"]) if "slice" in given else None,
        axis=int(given.get("axis", 2)),
        grid=_grid(given["grid"]) if "grid" in given else None,
        window=_window(given["window"]) if "window" in given else None,
    )


def _bare(word: str) -> str:
    return "number" if word.isdigit() else word


def _grid(value: str) -> tuple[int, int]:
    rows, columns = map(int, value.split("x"))
    if not 1 <= rows * columns <= MOST_TILES:
        raise Unreadable(f"grid={value} has {rows * columns} frames; allowed are 1 to {MOST_TILES}")
    return rows, columns


def _window(value: str) -> tuple[float, float] | str:
    numbers = _WINDOW.fullmatch(value)
    if numbers is None:
        return value.lower()
    centre, width = map(float, numbers.groups())
    if width <= 0:
        raise Unreadable(f"window={value}: the width, its second number, must be more than 0")
    return centre, width
