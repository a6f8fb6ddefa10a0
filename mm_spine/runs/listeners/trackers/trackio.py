"""trackio: a local project in RUN/trackio."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mm_spine.compat import environment
from mm_spine.config import RunConfig
from mm_spine.runs.listeners.trackers.tracker import HEADINGS, PROJECT, TrackedResponse


class Trackio:
    """A local project in RUN/trackio; look at it with TRACKIO_DIR=RUN/trackio trackio show."""

    sends = False

    def __init__(self, output: Path, config: RunConfig, first: int | None) -> None:
        folder = output.resolve()
        self._trackio = _trackio_in(folder / "trackio")

        # trackio.init would look for a Space or a server in the environment, and its Run would ask the hub for a name.
        class LocalRun(self._trackio.Run):  # type: ignore[name-defined]
            """A run without a user name."""

            def _get_username(self) -> None:
                """Ask nobody."""

        name = folder.name
        self._run = LocalRun(None, PROJECT, None, name=name, run_id=name, config=config.model_dump(mode="json"))

    def scalars(self, figures: Mapping[str, float], step: int) -> None:
        """Add a point at `step` to each named curve."""
        self._run.log(dict(figures), step=step)

    def responses(self, rows: Sequence[TrackedResponse], step: int) -> None:
        """Add a table whose last column holds the images; trackio shows its cells as plain text."""
        pictured = any(row.images for row in rows)
        data = []
        for row in rows:
            images = [self._trackio.Image(image) for image in row.images]
            data.append([*row.cells(), *([images] if pictured else [])])
        columns = [*HEADINGS, *(["images"] if pictured else [])]
        self._run.log({"completions": self._trackio.Table(columns=columns, data=data)}, step=step)

    def close(self) -> None:
        """Finish the run, without the advice that trackio prints."""
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.finish()


def _trackio_in(folder: Path) -> Any:
    """Import trackio anew with `folder` as its own.

    It reads the name of its folder once, at its import, and one process may have several runs.
    """
    for name in [name for name in sys.modules if name == "trackio" or name.startswith("trackio.")]:
        del sys.modules[name]
    with environment({"TRACKIO_DIR": str(folder)}):
        return importlib.import_module("trackio")
