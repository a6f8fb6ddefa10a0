"""TensorBoard: event files in RUN/tensorboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mm_spine.config import RunConfig
from mm_spine.runs.listeners.trackers.tracker import HEADINGS, TrackedResponse


class TensorBoard:
    """Event files in RUN/tensorboard. A run that is resumed at step `first` purges the points from there on."""

    sends = False

    def __init__(self, output: Path, config: RunConfig, first: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(output / "tensorboard"), purge_step=first)

    def scalars(self, figures: Mapping[str, float], step: int) -> None:
        """Add a point at `step` to each named curve."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def responses(self, rows: Sequence[TrackedResponse], step: int) -> None:
        """Add a table in Markdown, and the images of its rows, named by the rows' numbers."""
        head = ("row", *HEADINGS)
        lines = [head, ("---",) * len(head)]
        for n, row in enumerate(rows, 1):
            lines.append((str(n), *(markdown(_text(cell)) for cell in row.cells())))
        self._writer.add_text("completions", "\n".join(f"| {' | '.join(line)} |" for line in lines), step)
        for n, row in enumerate(rows, 1):
            for i, image in enumerate(row.images):
                tag = f"completions/row_{n}" + (f"_{i + 1}" if i else "")
                self._writer.add_image(tag, np.asarray(image), step, dataformats="HWC")

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


def markdown(text: str) -> str:
    """Escape `text` for a cell of a Markdown table, so that it makes no markup, link or image."""
    return "<br>".join("".join(map(_escaped, line)) for line in text.splitlines())


def _escaped(character: str) -> str:
    return character if character.isalnum() or character == " " else f"&#{ord(character)};"


def _text(cell: object) -> str:
    if cell is None:
        return ""
    return f"{cell:.3g}" if isinstance(cell, float) else str(cell)
