"""Weights & Biases: a run in RUN/wandb, sent only where the user is logged in and online."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from mm_spine.compat import environment
from mm_spine.config import RunConfig
from mm_spine.runs.listeners.trackers.tracker import HEADINGS, PROJECT, TrackedResponse

log = logging.getLogger(__name__)

INIT_SECONDS = 30
"""How long a run waits for wandb to start before it goes on without it."""

CONNECT_SECONDS = 5
"""How long a run waits for wandb's server before it stays offline."""

# wandb gets what we log and nothing else: no terminal output, code, commit or facts about the machine.
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


class WeightsAndBiases:
    """A run in RUN/wandb, offline without credentials.

    Its curves have a step of their own, so that points may come late or again. Offline, each part of a resumed run has
    files of its own; `wandb sync --append` joins them.
    """

    def __init__(self, output: Path, config: RunConfig, first: int | None) -> None:
        folder = output.resolve()
        # By default wandb reports its errors to its makers, and keeps files of tables in the home folder.
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
        """Add a point at `step` to each named curve."""
        self._log({**figures, "step": step})

    def responses(self, rows: Sequence[TrackedResponse], step: int) -> None:
        """Add a table with one column for each image; wandb shows its cells as plain text."""
        most = max((len(row.images) for row in rows), default=0)
        table = self._wandb.Table(columns=[*HEADINGS, *(f"image {i + 1}" for i in range(most))])
        for row in rows:
            images = [self._wandb.Image(image) for image in row.images]
            table.add_data(*row.cells(), *images, *[None] * (most - len(images)))
        self._log({"completions": table, "step": step})

    def _log(self, row: dict[str, Any]) -> None:
        with environment(self._own):
            self._run.log(row)

    def close(self) -> None:
        """Finish the run: its own process writes, and sends, what is left."""
        with environment(self._own):
            self._run.finish()


def wandb_mode(api: Any) -> Any:
    """Return the mode to start wandb in: `WANDB_MODE`, or "online" if that is not set.

    "offline" where no credentials are known, because wandb would ask for them, or where the server does not answer.
    """
    asked = os.environ.get("WANDB_MODE", "").lower() or "online"
    if asked in ("offline", "dryrun"):
        return "offline"
    if asked == "disabled":
        return asked
    why = ""
    if not api.is_authenticated:
        why = "no API key"
    elif not answers(api.api_url):
        why = f"no answer from {api.api_url}"
    if why:
        log.info("wandb: %s, so the run is kept offline; send it later with: wandb sync RUN/wandb/offline-run-*", why)
    return "offline" if why else asked


def answers(url: str) -> bool:
    """Return whether the server of `url` accepts a connection. Behind a proxy, assume that it does."""
    parts = urlsplit(url)
    if parts.hostname is None or getproxies().keys() - {"no"}:
        return True
    try:
        socket.create_connection((parts.hostname, parts.port or 443), CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def run_id(folder: Path) -> str:
    """Return the name of the run on a server. It is kept in the run's folder, so that a resumed run has the same."""
    path = folder / "wandb" / "run-id"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(os.urandom(8).hex())
    return path.read_text().strip()
