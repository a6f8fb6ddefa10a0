"""The trackers by name: what each needs, and how it is opened."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from mm_spine.compat import install_command
from mm_spine.config import ConfigError, ReportingConfig, RunConfig
from mm_spine.runs.listeners.trackers.tensorboard import TensorBoard
from mm_spine.runs.listeners.trackers.tracker import Tracker, TrackerListener
from mm_spine.runs.listeners.trackers.trackio import Trackio
from mm_spine.runs.listeners.trackers.wandb import WeightsAndBiases

log = logging.getLogger(__name__)


class TrackerEntry(NamedTuple):
    """A tracker: the package it needs, and its class.

    `open` takes the run's folder, the configuration, and the first step of a resumed run or None.
    """

    package: str
    open: Callable[[Path, RunConfig, int | None], Tracker]


TRACKERS: Mapping[str, TrackerEntry] = {
    "tensorboard": TrackerEntry("tensorboard", TensorBoard),
    "wandb": TrackerEntry("wandb", WeightsAndBiases),
    "trackio": TrackerEntry("trackio", Trackio),
}
"""The values of `reporting.trackers`."""


def check(reporting: ReportingConfig) -> None:
    """Raise ConfigError for a tracker whose package is not installed."""
    for name in reporting.trackers:
        if find_spec(TRACKERS[name].package) is None:
            raise ConfigError(
                f"reporting.trackers: {name} is not installed; {install_command('trackers')}, or leave it out"
            )


def open_trackers(output: Path, config: RunConfig, first: int | None = None) -> dict[str, TrackerListener]:
    """Open the trackers that `config.reporting` names, for the run in the folder `output`.

    `first` is the first step of a resumed run. A tracker that cannot be opened is left out with a warning.
    """
    opened: dict[str, TrackerListener] = {}
    for name in dict.fromkeys(config.reporting.trackers):
        try:
            opened[name] = TrackerListener(TRACKERS[name].open(output, config, first), config.reporting)
        except Exception as error:
            log.warning("%s could not be opened; the run goes on without it: %s", name, error)
    return opened
