"""The events of a run, the `Listener` that receives them, and the guarded list of a run's listeners."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec

import numpy as np

from mm_spine.reporting.responses import ShownResponse
from mm_spine.sampling import Sampler
from mm_spine.sampling.backend import Backend
from mm_spine.types import Group, StepReport

log = logging.getLogger(__name__)

P = ParamSpec("P")


@dataclass(frozen=True)
class StepTiming:
    """One line of timings.jsonl: the costs of a step, which differ between equal runs.

    `sample` and `update` are seconds. `selected` counts the tokens in the policy term's mask, `token_budget` the
    packed tokens of a micro-batch at the end of the step.
    """

    step: int
    sample: float
    update: float
    selected: int
    peak_memory_bytes: int
    token_budget: int


@dataclass(frozen=True, eq=False)
class Step:
    """One finished step, as listeners receive it.

    `total` is the number of steps of the whole run. `responses` are the ones to print. `selected[g][i]` is the (T,)
    token mask of rollout i of `groups[g]`.
    """

    report: StepReport
    timing: StepTiming
    total: int
    responses: Sequence[ShownResponse] = ()
    groups: Sequence[Group] = ()
    selected: Sequence[Sequence[np.ndarray]] = ()


class Listener:
    """Receives the events of a run, in order. Override the methods of the events that matter; the others do nothing."""

    def phase(self, name: str, total: int | None = None, done: int = 0) -> None:
        """The previous phase has ended and this one begins. It has `total` units; `done` of them are already done."""

    def advance(self, units: float = 1.0) -> None:
        """`units` more of the phase are done."""

    def part(self, name: str, total: int | None = None) -> None:
        """A part of a step begins: "sample" (`total` responses at most), "score" or "update"."""

    def sampled(self, count: int) -> None:
        """`count` more responses of the part are finished."""

    def step(self, step: Step) -> None:
        """A step has ended."""

    def figures(self, figures: Mapping[str, Any], step: int) -> None:
        """Figures that belong to `step` are known: nested mappings, of an evaluation or of the accuracy of votes."""

    def close(self) -> None:
        """No event follows."""


@dataclass(frozen=True, eq=False)
class _Entry:
    name: str
    listener: Listener
    required: bool
    fallback: Listener | None
    close: bool


def _to_all(event: Callable[Concatenate[Listener, P], None]) -> Callable[Concatenate[Listeners, P], None]:
    """Make the method of `Listeners` that passes one event on to every listener."""

    def tell(self: Listeners, /, *args: P.args, **kwargs: P.kwargs) -> None:
        self._tell(lambda listener: getattr(listener, event.__name__)(*args, **kwargs))

    return tell


class Listeners:
    """The listeners of a run. Each receives every event, in the order in which they were added.

    A listener that raises is closed with a warning and receives nothing more; the others and the run go on.
    """

    def __init__(self) -> None:
        self._entries: list[_Entry] = []

    def add(
        self,
        name: str,
        listener: Listener,
        *,
        required: bool = False,
        fallback: Listener | None = None,
        close: bool = True,
    ) -> None:
        """Add a listener; `name` is what a warning calls it.

        The run stops with the error of a `required` listener. `fallback` takes the place of one that has failed, from
        the event at which it failed. With `close=False` the listener stays open when the run ends: it is the caller's.
        """
        self._entries.append(_Entry(name, listener, required, fallback, close))

    phase = _to_all(Listener.phase)
    advance = _to_all(Listener.advance)
    part = _to_all(Listener.part)
    sampled = _to_all(Listener.sampled)
    step = _to_all(Listener.step)
    figures = _to_all(Listener.figures)

    def close(self) -> None:
        """Close the listeners, except those of the caller, and forget them all."""
        self._entries = [entry for entry in self._entries if entry.close]
        self._tell(lambda listener: listener.close())
        self._entries.clear()

    def _tell(self, event: Callable[[Listener], None]) -> None:
        for entry in list(self._entries):
            try:
                event(entry.listener)
            except Exception as error:
                if entry.required:
                    raise
                self._replace(entry, error, event)

    def _replace(self, failed: _Entry, error: Exception, event: Callable[[Listener], None]) -> None:
        """Close a listener that has failed. Its fallback, if any, takes its place, from this event on."""
        place = self._entries.index(failed)
        del self._entries[place]
        with suppress(Exception):
            failed.listener.close()
        if failed.fallback is None:
            log.warning("%s failed and is closed; the run goes on without it: %s", failed.name, error)
            return
        log.warning("%s failed; the run goes on with log lines", failed.name, exc_info=error)
        self._entries.insert(place, _Entry(failed.name, failed.fallback, False, None, failed.close))
        with suppress(Exception):
            event(failed.fallback)


def listen_to_sampler(sampler: Sampler, on_finished: Callable[[int], None]) -> None:
    """Have the sampler's backend call `on_finished` with the number of further responses that are finished.

    A sampler without one of our backends reports nothing.
    """
    backend = getattr(sampler, "backend", sampler)
    if isinstance(backend, Backend):
        backend.on_finished = on_finished
