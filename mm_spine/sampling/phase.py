"""A sampling phase: scripts say what is drawn next, each as soon as what it waits for is drawn.

A script is a generator. It yields jobs, which are requests or further scripts that run beside each other, and is
resumed with their results in order. A phase takes the requests of all scripts and decides which are drawn together.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

Asked = TypeVar("Asked")
Drawn = TypeVar("Drawn")
Drawn_co = TypeVar("Drawn_co", covariant=True)
Result = TypeVar("Result")

Script = Generator[Sequence[Any], list[Any], Result]
"""Jobs out, their results in, and at the end what the script was for."""


class Phase(Protocol[Asked, Drawn_co]):
    """What draws the requests of a phase."""

    def submit(self, requests: Sequence[Asked]) -> None:
        """Add requests. They may be drawn beside those that have begun."""

    def drain(self) -> Sequence[tuple[Asked, Drawn_co]]:
        """Wait until at least one request is finished; return those that are, in the order they were submitted in."""


class Waves(Generic[Asked, Drawn]):
    """A phase that draws all requests submitted so far in one call of `complete`, and hands them out together."""

    def __init__(self, complete: Callable[[Sequence[Asked]], Sequence[Drawn]]) -> None:
        self._complete = complete
        self._submitted: list[Asked] = []

    def submit(self, requests: Sequence[Asked]) -> None:
        """See `Phase.submit`."""
        self._submitted += requests

    def drain(self) -> list[tuple[Asked, Drawn]]:
        """See `Phase.drain`."""
        wave, self._submitted = self._submitted, []
        return list(zip(wave, self._complete(wave), strict=True))


def drive(scripts: Sequence[Script[Any]], phase: Phase[Any, Any]) -> list[Any]:
    """Run `scripts` to their ends in `phase` and return their results, in order.

    Requests are submitted in the order in which they were yielded, those of an earlier script first.
    """
    found: list[Any] = _Driver(phase).run(_all_of(scripts))
    return found


def _all_of(scripts: Sequence[Script[Any]]) -> Script[list[Any]]:
    return (yield scripts)


@dataclass(eq=False)
class _Task:
    """A script that has begun, what waits for it (the task and its place there), and the results it waits for."""

    script: Script[Any]
    waiting: tuple[_Task, int] | None = None
    # A generator is begun with None.
    results: Any = None
    missing: int = 0


class _Driver:
    """`tasks` holds, for each request that is not finished, the task that waits for it and its place there."""

    def __init__(self, phase: Phase[Any, Any]) -> None:
        self.phase = phase
        self.tasks: dict[Any, tuple[_Task, int]] = {}
        self.new: list[Any] = []
        self.result: Any = None

    def run(self, script: Script[Any]) -> Any:
        self._resume(_Task(script))
        while self.tasks:
            if self.new:
                new, self.new = self.new, []
                self.phase.submit(new)
            for request, drawn in self.phase.drain():
                self._take(*self.tasks.pop(request), drawn)
        return self.result

    def _resume(self, task: _Task) -> None:
        """Let `task` go on until it waits again or ends."""
        try:
            jobs = task.script.send(task.results)
        except StopIteration as end:
            self._end(task, end.value)
            return
        # One more than the jobs, so that jobs that end at once do not resume the task while others are being started.
        task.results, task.missing = [None] * len(jobs), len(jobs) + 1
        for place, job in enumerate(jobs):
            if isinstance(job, Generator):
                self._resume(_Task(job, (task, place)))
            else:
                self.tasks[job] = (task, place)
                self.new.append(job)
        self._arrived(task)

    def _end(self, task: _Task, result: Any) -> None:
        if task.waiting is None:
            self.result = result
        else:
            self._take(*task.waiting, result)

    def _take(self, task: _Task, place: int, result: Any) -> None:
        task.results[place] = result
        self._arrived(task)

    def _arrived(self, task: _Task) -> None:
        task.missing -= 1
        if not task.missing:
            self._resume(task)
