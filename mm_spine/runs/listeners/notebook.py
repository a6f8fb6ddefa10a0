"""What a notebook shows while a run goes on: a progress line and a table of steps, redrawn in place."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.table import Table
from rich.text import Text

from mm_spine.compat import quiet_logs
from mm_spine.runs.listeners.listener import Listener, Listeners, Step
from mm_spine.runs.listeners.live import COLUMNS, Phase, add_live, clock_time, progress_line, response_line, watching

ROWS = 12
"""Steps in the table: the last ones. All of them are in the frame `steps`."""

PAUSE = 0.25
"""Seconds between two drawings of the progress line."""


def in_notebook() -> bool:
    """Return whether this code runs in the kernel of a notebook."""
    # IPython is imported wherever a notebook runs, and importing it elsewhere would take time for nothing.
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


class Notebook(Listener):
    """Draws a progress line and below it a table of the last steps. Both stay in the cell's output."""

    def __init__(self, show: Callable[[Any], Any], clock: Callable[[], float] = time.monotonic) -> None:
        """`show` displays something and returns a handle whose `update` displays something else in its place."""
        self._show, self._clock = show, clock
        self._line: Any = None
        self._table: Any = None
        self._phase: Phase | None = None
        self._past: list[str] = []
        self._steps: deque[Step] = deque(maxlen=ROWS)
        self._drawn = float("-inf")

    def phase(self, name: str, total: int | None = None, done: int = 0) -> None:
        """Put the previous phase behind and start the new one."""
        now = self._clock()
        self._leave(now)
        self._phase = Phase(name, total, done, began=now, done=done, moved=now)
        self._draw(now)

    def advance(self, units: float = 1.0) -> None:
        """Let the bar grow."""
        if self._phase is not None:
            self._phase.done, self._phase.moved, self._phase.part = self._phase.done + units, self._clock(), ""
            self._draw_in_time()

    def part(self, name: str, total: int | None = None) -> None:
        """Name the part behind the count of units."""
        if self._phase is not None:
            self._phase.part, self._phase.part_total, self._phase.sampled = name, total, 0
            self._draw_in_time()

    def sampled(self, count: int) -> None:
        """Count the responses behind the part's name."""
        if self._phase is not None:
            self._phase.sampled += count
            self._draw_in_time()

    def step(self, step: Step) -> None:
        """Add the step to the table."""
        self._steps.append(step)
        table = steps_table(self._steps)
        self._table = self._placed(self._table, table)

    def close(self) -> None:
        """Leave a line about the phases and their times."""
        now = self._clock()
        self._leave(now)
        self._draw(now)

    def _leave(self, now: float) -> None:
        if self._phase is not None:
            counted = f" {self._phase.counted()}" if self._phase.total else ""
            self._past.append(f"{self._phase.name}{counted} {clock_time(now - self._phase.began)}")
        self._phase = None

    def _draw_in_time(self) -> None:
        now = self._clock()
        if now - self._drawn >= PAUSE:
            self._draw(now)

    def _draw(self, now: float) -> None:
        line = Text(" · ".join(self._past), "bright_black")
        if self._phase is not None:
            line = progress_line(self._phase, now)
        self._line = self._placed(self._line, line)
        self._drawn = now

    def _placed(self, handle: Any, content: Any) -> Any:
        if handle is None:
            return self._show(content)
        handle.update(content)
        return handle


def steps_table(steps: deque[Step]) -> Table:
    """Return the table of `steps`, the responses to print below."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in COLUMNS:
        table.add_column(column.name, justify="right", no_wrap=True)
    for step in steps:
        table.add_row(*(column.show(step) for column in COLUMNS))
    last = steps[-1] if steps else None
    if last is not None and last.responses:
        table.caption = Text("\n".join(map(response_line, last.responses)))
        table.caption_justify = "left"
    return table


@contextmanager
def following(progress: bool) -> Iterator[Listeners]:
    """Yield listeners that show what happens: in a notebook, in a terminal or as log lines; none without `progress`.

    In a notebook, notices of other libraries are silenced, which would stand in the output of the cell.
    """
    listeners = Listeners()
    if not progress:
        yield listeners
    elif in_notebook():
        from IPython.display import display

        quiet_logs()
        view = Notebook(lambda content: display(content, display_id=True))
        add_live(listeners, view)
        try:
            yield listeners
        finally:
            view.close()
    else:
        with watching() as live:
            add_live(listeners, live)
            yield listeners
