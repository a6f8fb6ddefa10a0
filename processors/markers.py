"""What a prompt may hold: its length, and the marks that say where images go, ours and those of other frameworks."""

from __future__ import annotations

import re
from typing import NamedTuple

PROMPT_LIMIT = 1_000_000
"""Characters of a prompt. Longer ones fit into no context, and reading them would take minutes."""

# `<image1>`, `<image 1>`, `<image_1>`, `<img1>` and `<|image_1|>` name an image; `<image>` and `<img>` stand for the
# next one.
_MARKER = re.compile(r"<\|?(?:image|img)[ _-]?([0-9]{1,3})?\|?>", re.IGNORECASE)


class Marker(NamedTuple):
    """A mark in a prompt: where it stands, and its number from 1, None for "the next image"."""

    start: int
    end: int
    number: int | None


class Place(NamedTuple):
    """Where an image goes: the mark from `start` to `end`, and the image's number from 1."""

    start: int
    end: int
    image: int


def markers(prompt: str) -> list[Marker]:
    """Return the marks of a prompt in order."""
    return [
        Marker(found.start(), found.end(), None if found[1] is None else int(found[1]))
        for found in _MARKER.finditer(prompt)
    ]


def as_words(text: str) -> str:
    """Write the marks with a number as the words "image K", so that no image goes there."""
    return _MARKER.sub(lambda found: found[0] if found[1] is None else f"image {found[1]}", text)


def places(prompt: str, n_images: int) -> list[Place]:
    """Return the marks at which an image goes: the first of each number, and each "next image" while there are images.

    A "next image" is the first image that no number names and no earlier mark has taken.
    """
    found = markers(prompt)
    named = {marker.number for marker in found}
    unnamed = iter([number for number in range(1, n_images + 1) if number not in named])
    placed: list[Place] = []
    taken: set[int] = set()
    for start, end, number in found:
        image = next(unnamed, None) if number is None else number
        if image is not None and 1 <= image <= n_images and image not in taken:
            taken.add(image)
            placed.append(Place(start, end, image))
    return placed


def mismatch(prompt: str, n_images: int) -> str | None:
    """Return a sentence if a prompt with marks has a mark without an image or an image without a mark, else None."""
    found = markers(prompt)
    if not found:
        return None
    placed = {place.image for place in places(prompt, n_images)}
    images = f"{n_images} image{'' if n_images == 1 else 's'}"
    for marker in found:
        # A number that stands twice means the same image again.
        if marker.number is not None and not 1 <= marker.number <= n_images:
            return (
                f"its prompt marks {prompt[marker.start : marker.end]}, and it has {images}; add the image or unmark it"
            )
    unnumbered = sum(marker.number is None for marker in found)
    free = n_images - len({marker.number for marker in found if marker.number is not None})
    if unnumbered > free:
        marks = f"{unnumbered} mark{'' if unnumbered == 1 else 's'} such as <image>"
        return f"its prompt has {marks}, and it has {images}; marks without an image stay as text"
    if len(placed) < n_images:
        return f"its prompt marks {len(placed)} of {images}; those without a mark come first"
    return None
