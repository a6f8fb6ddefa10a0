"""What a tracker is, and the listener that passes a run's events on to one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from mm_spine.config import ReportingConfig
from mm_spine.reporting.responses import ShownResponse, first_responses
from mm_spine.reporting.thumbnails import thumbnails
from mm_spine.runs.listeners.listener import Listener, Step
from mm_spine.words import one_line

log = logging.getLogger(__name__)

PROJECT = "mm-spine"
"""The project under which a tracker files its runs."""

HEADINGS = ("question", "rollout", "answer", "vote", "reward", "response")
"""The columns of a table of responses, before those of images."""


class TrackedResponse(NamedTuple):
    """A response and its question's images; no images if they may not be shown."""

    response: ShownResponse
    images: Sequence[Image.Image]

    def cells(self) -> tuple[str, int, str | None, str | None, float | None, str]:
        """Return its cells in the columns of `HEADINGS`."""
        response = self.response
        question = one_line(response.question.id)
        return question, response.index, response.answer, response.vote, response.reward, response.text


class Tracker(Protocol):
    """One open tracker. It may raise: it is then closed with a warning, and the run goes on."""

    @property
    def sends(self) -> bool:
        """Whether its data leaves this machine."""

    def scalars(self, figures: Mapping[str, float], step: int) -> None:
        """Add a point at `step` to each named curve. It may be called again for a step, and for an earlier one."""

    def responses(self, rows: Sequence[TrackedResponse], step: int) -> None:
        """Add a table of responses at `step`."""

    def close(self) -> None:
        """Write what is not yet written."""


class TrackerListener(Listener):
    """Passes the steps and figures of a run on to one tracker."""

    def __init__(self, tracker: Tracker, reporting: ReportingConfig) -> None:
        self._tracker, self._reporting = tracker, reporting
        if self._with_images and tracker.sends and not reporting.send_images:
            log.info("images stay on this machine; reporting.send_images=true has them sent with the responses")

    @property
    def _with_images(self) -> bool:
        return self._reporting.images and self._reporting.tracked_completions > 0

    def step(self, step: Step) -> None:
        """Track the lines of steps.jsonl and timings.jsonl, and `reporting.tracked_completions` responses."""
        number = step.report.step
        lines = {"steps": _without_step(vars(step.report)), "timings": _without_step(vars(step.timing))}
        self.figures(lines, number)
        chosen = first_responses(step.groups, self._reporting.tracked_completions)
        if chosen:
            shown = self._with_images and (self._reporting.send_images or not self._tracker.sends)
            rows = [TrackedResponse(response, thumbnails(response.question) if shown else ()) for response in chosen]
            self._tracker.responses(rows, number)

    def figures(self, figures: Mapping[str, Any], step: int) -> None:
        """Add a point for each number, named by its keys: "evaluation/adapted/pass_at_1"."""
        numbers = dict(flat(figures))
        if numbers:
            self._tracker.scalars(numbers, step)

    def close(self) -> None:
        """Close the tracker."""
        self._tracker.close()


def flat(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the finite numbers in nested mappings as ("a/b/c", value). Other values are left out."""
    for key, value in figures.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flat(value, f"{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value):
            yield name, value


def _without_step(line: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name != "step"}
