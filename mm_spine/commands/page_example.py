"""The example that the page of `mm-spine serve` offers: a picture and a question that suit the model."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw

from mm_spine.commands.ask_session import AskSettings
from mm_spine.types import Question

SIZE = (448, 336)
"""Width and height of the drawn picture in pixels."""


SUM = "What is the sum of the digits?"


class Example(NamedTuple):
    """A picture as a PNG file, its name, and a question about it."""

    name: str
    png: bytes
    words: str

    def saved(self, folder: Path) -> Path:
        """Return the path of the picture in a folder of its own under `folder`; it is written if it is not there."""
        path = folder / "example" / self.name
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.png)
        return path


def example_for(settings: AskSettings) -> Example:
    """Return held-out handwriting for a model that is asked as `digits`, else a drawing that every model can be asked
    about."""
    if settings.benchmark is None or settings.benchmark.name != "digits":
        return Example("shapes.png", _png(shapes()), "Is the circle to the left of the square?")
    question = next(q for q in settings.benchmark.load("held_out").questions if q.prompt == SUM)
    return Example("digits.png", _png(_picture(question)), question.prompt)


def shapes() -> Image.Image:
    """Draw a circle, a square and a triangle in a row, on white."""
    picture = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((40, 118, 140, 218), fill=(200, 40, 40))
    draw.rectangle((174, 118, 274, 218), fill=(40, 80, 190))
    draw.polygon(((358, 112), (414, 218), (302, 218)), fill=(30, 140, 70))
    return picture


def _picture(question: Question) -> Image.Image:
    (picture,) = question.images
    assert isinstance(picture, Image.Image)
    return picture


def _png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()
