"""A run's curves and responses for TensorBoard, Weights & Biases and trackio. Off unless `reporting.trackers` asks.

Everything is written below the run's folder. Only Weights & Biases can send it elsewhere, where the user is logged in
and `WANDB_MODE` is not offline; its images then stay here unless `reporting.send_images`.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies

import numpy as np
from PIL import Image

from mm_spine.compat import environment, install_command
from mm_spine.config import ConfigError, ReportingConfig, RunConfig
from mm_spine.reporting.responses import ShownResponse, first_responses
from mm_spine.reporting.thumbnails import thumbnails
from mm_spine.types import Group
from mm_spine.words import one_line

log = logging.getLogger(__name__)

PROJECT = "mm-spine"
HEADINGS = ("question", "rollout", "answer", "vote", "reward", "response")
INIT_SECONDS, ANSWER_SECONDS = 30, 5
"""How long a run waits for Weights & Biases before it goes on without, and for its server before it stays offline."""


class Shown(NamedTuple):
    """A response and its question's images, none where they may not be shown."""

    completion: ShownResponse
    images: Sequence[Image.Image]

    def cells(self) -> tuple[str, int, str | None, str | None, float | None, str]:
        """Its row below `HEADINGS`."""
        completion = self.completion
        name, text = one_line(completion.question.id), completion.text
        return name, completion.index, completion.answer, completion.vote, completion.reward, text


class Tracker(Protocol):
    """One open tracker. It may raise: it is closed then, and the run goes on."""

    @property
    def sends(self) -> bool:
        """Whether what it is told leaves this machine."""

    def scalars(self, figures: Mapping[str, float], step: int) -> None:
        """A point of each named curve."""

    def completions(self, shown: Sequence[Shown], step: int) -> None:
        """A table of responses."""

    def close(self) -> None:
        """Write what is not yet written."""


class TensorBoard:
    """Event files in RUN/tensorboard. Points from `first` on, of a run that is resumed there, are purged."""

    sends = False

    def __init__(self, output: Path, config: RunConfig, first: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(output / "tensorboard"), purge_step=first)

    def scalars(self, figures: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def completions(self, shown: Sequence[Shown], step: int) -> None:
        """A table in Markdown, and the images of its rows by their numbers."""
        head = ("row", *HEADINGS)
        lines = [head, ("---",) * len(head)]
        lines += [(str(n), *(markdown(_plain(cell)) for cell in row.cells())) for n, row in enumerate(shown, 1)]
        self._writer.add_text("completions", "\n".join(f"| {' | '.join(line)} |" for line in lines), step)
        for n, row in enumerate(shown, 1):
            for i, image in enumerate(row.images):
                tag = f"completions/row_{n}" + (f"_{i + 1}" if i else "")
                self._writer.add_image(tag, np.asarray(image), step, dataformats="HWC")

    def close(self) -> None:
        """See `Tracker`."""
        self._writer.close()


class WeightsAndBiases:
    """A run in RUN/wandb, offline without credentials. Curves have their own step, which may come late or again.

    Offline, each part of a resumed run has files of its own: wandb sync --append joins them.
    """

    def __init__(self, output: Path, config: RunConfig, first: int | None) -> None:
        folder = output.resolve()
        # Errors would be reported to its makers, and files of tables staged and cached in the home folder.
        own = {"DATA_DIR": folder / "wandb", "CACHE_DIR": folder / "wandb" / "cache", "ERROR_REPORTING": "false"}
        self._own = {f"WANDB_{name}": str(value) for name, value in own.items()}
        with environment(self._own):
            import wandb

            self._wandb = wandb
            mode = wandb_mode(wandb.api)
            self.sends = mode not in ("offline", "disabled")
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=folder.name,
                id=run_id(folder),
                dir=str(folder),
                mode=mode,
                resume="allow" if self.sends else None,
                config=config.model_dump(mode="json"),
                settings=wandb.Settings(**WANDB_SETTINGS),
            )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def scalars(self, figures: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        self._log({**figures, "step": step})

    def completions(self, shown: Sequence[Shown], step: int) -> None:
        """A table with a column for each image; its cells are shown as plain text."""
        most = max((len(row.images) for row in shown), default=0)
        table = self._wandb.Table(columns=[*HEADINGS, *(f"image {i + 1}" for i in range(most))])
        for row in shown:
            images = [self._wandb.Image(image) for image in row.images]
            table.add_data(*row.cells(), *images, *[None] * (most - len(images)))
        self._log({"completions": table, "step": step})

    def _log(self, row: dict[str, Any]) -> None:
        with environment(self._own):
            self._run.log(row)

    def close(self) -> None:
        """See `Tracker`."""
        with environment(self._own):
            self._run.finish()


WANDB_SETTINGS: Mapping[str, Any] = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "init_timeout": INIT_SECONDS,
    "save_code": False,
    "silent": True,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}
"""Nothing of the machine, the code or the terminal: what we log, alone."""


def wandb_mode(api: Any) -> Any:
    """`WANDB_MODE` or "online"; "offline" without credentials, for which wandb would ask, or without a server."""
    asked = os.environ.get("WANDB_MODE", "").lower() or "online"
    if asked in ("offline", "dryrun"):
        return "offline"
    if asked == "disabled":
        return asked
    why = "" if api.is_authenticated else "no API key"
    why = why or ("" if answers(api.api_url) else f"no answer from {api.api_url}")
    if why:
        log.info("wandb: %s, so the run is kept offline; send it later with: wandb sync RUN/wandb/offline-run-*", why)
    return "offline" if why else asked


def answers(url: str) -> bool:
    """Whether the server of `url` takes a connection. What a proxy reaches is not looked into."""
    parts = urlsplit(url)
    if parts.hostname is None or getproxies().keys() - {"no"}:
        return True
    try:
        socket.create_connection((parts.hostname, parts.port or 443), ANSWER_SECONDS).close()
    except OSError:
        return False
    return True


def run_id(folder: Path) -> str:
    """What names a run on a server: kept in its folder, so that a resumed run goes on as the same."""
    path = folder / "wandb" / "run-id"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(os.urandom(8).hex())
    return path.read_text().strip()


class Trackio:
    """A local project in RUN/trackio; look at it with TRACKIO_DIR=RUN/trackio trackio show."""

    sends = False

    def __init__(self, output: Path, config: RunConfig, first: int | None) -> None:
        folder = output.resolve()
        self._trackio = _trackio_in(folder / "trackio")

        class Local(self._trackio.Run):  # type: ignore[name-defined]
            """Not trackio.init, which would look for a Space or a server in the environment."""

            def _get_username(self) -> None:
                """It would ask the hub."""

        name = folder.name
        self._run = Local(None, PROJECT, None, name=name, run_id=name, config=config.model_dump(mode="json"))

    def scalars(self, figures: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        self._run.log(dict(figures), step=step)

    def completions(self, shown: Sequence[Shown], step: int) -> None:
        """A table whose last column holds the images; its cells are shown as plain text."""
        pictured = any(row.images for row in shown)
        rows = []
        for row in shown:
            images = [self._trackio.Image(image) for image in row.images]
            rows.append([*row.cells(), *([images] if pictured else [])])
        columns = [*HEADINGS, *(["images"] if pictured else [])]
        self._run.log({"completions": self._trackio.Table(columns=columns, data=rows)}, step=step)

    def close(self) -> None:
        """See `Tracker`."""
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.finish()


def _trackio_in(folder: Path) -> Any:
    """trackio, imported anew: it reads its folder once, when it is imported, and a process may have several runs."""
    for name in [name for name in sys.modules if name == "trackio" or name.startswith("trackio.")]:
        del sys.modules[name]
    with environment({"TRACKIO_DIR": str(folder)}):
        return importlib.import_module("trackio")


class Row(NamedTuple):
    """The package that a tracker needs, and how it is opened: (run's folder, configuration, first step if resumed)."""

    package: str
    open: Callable[[Path, RunConfig, int | None], Tracker]


TRACKERS: Mapping[str, Row] = {
    "tensorboard": Row("tensorboard", TensorBoard),
    "wandb": Row("wandb", WeightsAndBiases),
    "trackio": Row("trackio", Trackio),
}
"""The names of `reporting.trackers`. A new one is a class and a row, and its name in the configuration."""


def check(reporting: ReportingConfig) -> None:
    """Raise ConfigError for a tracker whose package is not installed."""
    for name in reporting.trackers:
        if find_spec(TRACKERS[name].package) is None:
            raise ConfigError(
                f"reporting.trackers: {name} is not installed; {install_command('trackers')}, or leave it out"
            )


class Trackers:
    """A run's open trackers. One that fails is closed with a warning; the run goes on."""

    def __init__(self, reporting: ReportingConfig, trackers: Mapping[str, Tracker] | None = None) -> None:
        self.reporting, self._open = reporting, dict(trackers or {})
        if any(tracker.sends for tracker in self._open.values()) and self._pictured and not reporting.send_images:
            log.info("images stay on this machine; reporting.send_images=true has them sent with the responses")

    @property
    def _pictured(self) -> bool:
        return self.reporting.images and self.reporting.tracked_completions > 0

    def __bool__(self) -> bool:
        return bool(self._open)

    def step(self, report: Mapping[str, Any], timing: Mapping[str, Any], groups: Sequence[Group]) -> None:
        """The lines of steps.jsonl and timings.jsonl, and `reporting.tracked_completions` of the step's responses."""
        step = int(report["step"])
        self.figures({"steps": _without_step(report), "timings": _without_step(timing)}, step)
        chosen = first_responses(groups, self.reporting.tracked_completions) if self._open else []
        if chosen:
            self._completions(chosen, step)

    def _completions(self, chosen: Sequence[ShownResponse], step: int) -> None:
        bare = [Shown(completion, ()) for completion in chosen]
        full = [Shown(c, thumbnails(c.question)) for c in chosen] if self.reporting.images else bare
        here = self.reporting.send_images
        self._tell(lambda tracker: tracker.completions(bare if tracker.sends and not here else full, step))

    def figures(self, figures: Mapping[str, Any], step: int) -> None:
        """Points of curves: the numbers of nested mappings, named by their keys."""
        numbers = dict(flat(figures))
        if numbers:
            self._tell(lambda tracker: tracker.scalars(numbers, step))

    def accuracy(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """The rows of evaluation/steps.jsonl, at their steps: what is known only after the run."""
        for row in rows:
            self.figures({"accuracy": _without_step(row)}, int(row["step"]))

    def close(self) -> None:
        """Close them all."""
        self._tell(lambda tracker: tracker.close())
        self._open.clear()

    def _tell(self, event: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                event(tracker)
            except Exception as error:
                self._open.pop(name, None)
                log.warning("%s has failed and is told nothing more; the run goes on: %s", name, error)
                with contextlib.suppress(Exception):
                    tracker.close()


def start(output: Path, config: RunConfig, first: int | None = None) -> Trackers:
    """Open the trackers that `config.reporting` names for the run in `output`, resumed at step `first` if given."""
    opened: dict[str, Tracker] = {}
    for name in dict.fromkeys(config.reporting.trackers):
        try:
            opened[name] = TRACKERS[name].open(output, config, first)
        except Exception as error:
            log.warning("%s could not be opened; the run goes on without: %s", name, error)
    return Trackers(config.reporting, opened)


def flat(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The finite numbers in nested mappings as ("a/b/c", value); what is no number is left out."""
    for key, value in figures.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flat(value, f"{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value):
            yield name, value


def markdown(text: str) -> str:
    """`text` for a cell of a Markdown table that is shown as it is: no markup, link or image comes of it."""
    return "<br>".join("".join(map(_escaped, line)) for line in text.splitlines())


def _escaped(character: str) -> str:
    return character if character.isalnum() or character == " " else f"&#{ord(character)};"


def _plain(cell: object) -> str:
    return "" if cell is None else f"{cell:.3g}" if isinstance(cell, float) else str(cell)


def _without_step(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "step"}
