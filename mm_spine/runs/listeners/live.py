"""What a run shows while it goes on: a progress line and a table of steps in a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.text import Text

from mm_spine.reporting.responses import ShownResponse
from mm_spine.reporting.thumbnails import image_sizes
from mm_spine.runs.listeners.listener import Listener, Listeners, Step
from mm_spine.types import StepReport
from mm_spine.words import one_line

log = logging.getLogger(__name__)

HEADING_EVERY = 20
"""Rows between two headings of the table of steps."""

BAR = 16
"""Characters of the progress bar."""


class LogLines(Listener):
    """Logs a line for each step, and one for each response to print."""

    def step(self, step: Step) -> None:
        """Log the step."""
        log.info(log_line(step.report, step.total))
        for response in step.responses:
            log.info("  %s", response_line(response))


def add_live(listeners: Listeners, listener: Listener | None) -> None:
    """Add the caller's listener, which gives way to log lines if it fails; without one, add the log lines."""
    listeners.add("the live view", LogLines() if listener is None else listener, fallback=LogLines(), close=False)


def log_line(report: StepReport, total: int) -> str:
    """Format a step, one of `total`, as one line of a log."""
    return (
        f"step {report.step + 1}/{total}  vote share {report.majority_share:.2f}  unparsed {report.unparsed:.2f}  "
        f"length {report.length_mean:.1f}  entropy {measured(report.entropy_mean, '.3f')}  "
        f"forks {measured(report.entropy_forks, '.3f')}  "
        f"loss {report.loss:+.4f}  grad {report.grad_norm:.3f}  parity {report.parity_max:.1e}"
    )


def measured(value: float | None, form: str) -> str:
    """Format a figure of a step, "-" where the step did not measure it."""
    return "-" if value is None else format(value, form)


def response_line(response: ShownResponse) -> str:
    """Format a response as one line: question, answer, reward, the sizes of its images, text."""
    question = one_line(response.question.id)
    answer = "no answer" if response.answer is None else f"answer {one_line(response.answer)}"
    reward = "" if response.reward is None else f"  reward {response.reward:.2f}"
    images = f"  [{', '.join(image_sizes(response.question))}]" if response.question.images else ""
    return f"{question}  {answer}{reward}{images}  {one_line(response.text)[:300]}"


@dataclass
class Phase:
    """A phase and the part of it that is going on.

    `began` and `moved`, the time of the last progress, are seconds of one clock. `first` and `done` are units: those
    done when the phase began, and those done now.
    """

    name: str
    total: int | None
    first: float
    began: float
    done: float = 0.0
    moved: float = 0.0
    part: str = ""
    part_total: int | None = None
    sampled: int = 0

    def left(self, now: float) -> float | None:
        """Estimate the seconds left: the units left times the mean of the past ones. None before the first unit."""
        past = self.done - self.first
        if self.total is None or past <= 0:
            return None
        mean = (self.moved - self.began) / past
        return max(0.0, mean * (self.total - self.done) - (now - self.moved))

    def counted(self) -> str:
        """Format the units and the part: "3/12  sample 12/64"."""
        parts = [] if self.total is None else [f"{min(int(self.done + 1e-6), self.total)}/{self.total}"]
        if self.part:
            of = f"/{self.part_total}" if self.part_total else ""
            parts.append(f"{self.part} {self.sampled}{of}" if self.sampled else self.part)
        return "  ".join(parts)


def progress_line(phase: Phase, now: float) -> Text:
    """Format the phase as one line: name, bar, count, part, time left or passed."""
    line = Text(f"{phase.name} ", no_wrap=True, overflow="ellipsis", end="")
    if phase.total:
        filled = min(BAR, int(BAR * phase.done / phase.total))
        line.append("━" * filled, "cyan").append("━" * (BAR - filled) + " ", "bright_black")
    left = phase.left(now)
    line.append(f"{phase.counted()}  " if phase.counted() else "")
    line.append(f"{clock_time(now - phase.began)} passed" if left is None else f"{clock_time(left)} left")
    return line


def clock_time(seconds: float) -> str:
    """Format seconds as "1:02:03", or "2:03" below an hour."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Column(NamedTuple):
    """A column of the table of steps. In a narrow terminal the columns of the highest `rank` are left out first."""

    name: str
    width: int
    rank: int
    show: Callable[[Step], str]


COLUMNS = (
    Column("step", 9, 0, lambda s: f"{s.report.step + 1}/{s.total}"),
    Column("vote", 5, 1, lambda s: f"{s.report.majority_share:.2f}"),
    Column("unparsed", 8, 8, lambda s: f"{s.report.unparsed:.2f}"),
    Column("length", 7, 4, lambda s: f"{s.report.length_mean:.1f}"),
    Column("entropy", 7, 3, lambda s: measured(s.report.entropy_mean, ".3f")),
    Column("forks", 6, 5, lambda s: measured(s.report.entropy_forks, ".3f")),
    Column("loss", 8, 2, lambda s: f"{s.report.loss:+.4f}"),
    Column("grad", 8, 7, lambda s: f"{s.report.grad_norm:.3f}"),
    Column("parity", 7, 9, lambda s: f"{s.report.parity_max:.1e}"),
    Column("tok/s", 7, 10, lambda s: f"{tokens_per_second(s):.0f}"),
    Column("s", 6, 6, lambda s: f"{s.timing.sample + s.timing.update:.1f}"),
)


def tokens_per_second(step: Step) -> float:
    """Return how many tokens were sampled in a second of sampling."""
    seconds = step.timing.sample
    return step.report.tokens_sampled / seconds if seconds > 0 else 0.0


def fitting(width: int) -> list[Column]:
    """Return the columns that fit in `width` characters, with one space between two of them."""
    kept = list(COLUMNS)
    while len(kept) > 1 and sum(column.width + 1 for column in kept) - 1 > width:
        kept.remove(max(kept, key=lambda column: column.rank))
    return kept


class Terminal(Listener):
    """Draws a progress line at the bottom. Above it stay a line for each past phase and a row for each step."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self._clock = console, clock
        self._phase: Phase | None = None
        self._steps = 0
        stdout = sys.stdout.isatty()
        self._live = Live(
            console=console, get_renderable=self._line, transient=True, refresh_per_second=4, redirect_stdout=stdout
        )
        self._live.start()
        # Live hides the cursor. It would stay hidden if the process were killed.
        console.show_cursor(True)

    def _line(self) -> Text:
        # Every print to the console renders this line, also one from another part of the program, which must not fail
        # because of it.
        try:
            return progress_line(self._phase, self._clock()) if self._phase else Text("", end="")
        except Exception:
            return Text("", end="")

    def phase(self, name: str, total: int | None = None, done: int = 0) -> None:
        """Print a line about the previous phase and start the new one."""
        now = self._clock()
        self._leave(now)
        self._phase = Phase(name, total, done, began=now, done=done, moved=now)

    def _leave(self, now: float) -> None:
        if self._phase is not None:
            of = f"  {self._phase.counted()}" if self._phase.total else ""
            self._print(Text(f"{self._phase.name}{of}  {clock_time(now - self._phase.began)}", "bright_black"))
        self._phase = None

    def advance(self, units: float = 1.0) -> None:
        """Let the bar grow."""
        if self._phase is not None:
            self._phase.done, self._phase.moved = self._phase.done + units, self._clock()
            self._phase.part = ""

    def part(self, name: str, total: int | None = None) -> None:
        """Name the part behind the count of units."""
        if self._phase is not None:
            self._phase.part, self._phase.part_total, self._phase.sampled = name, total, 0

    def sampled(self, count: int) -> None:
        """Count the responses behind the part's name."""
        if self._phase is not None:
            self._phase.sampled += count

    def step(self, step: Step) -> None:
        """Print a row, under a heading every `HEADING_EVERY` rows, and the responses to print."""
        columns = fitting(self.console.width)
        if self._steps % HEADING_EVERY == 0:
            self._print(Text(" ".join(f"{c.name:>{c.width}}" for c in columns), "bold"))
        self._steps += 1
        self._print(Text(" ".join(f"{c.show(step):>{c.width}}" for c in columns)))
        for response in step.responses:
            self._print(Text(f"  {response_line(response)}", "bright_black"))

    def _print(self, text: Text) -> None:
        self.console.print(text, no_wrap=True, overflow="ellipsis", crop=True)

    def close(self) -> None:
        """Erase the progress line; the lines above it stay."""
        self._leave(self._clock())
        self._live.stop()


def is_live(stream: object, environment: Mapping[str, str]) -> bool:
    """Return whether lines may be redrawn on `stream`.

    It must be a terminal in UTF-8 that can redraw, and neither CI nor NO_COLOR may ask for plain text.
    """
    plain = any(environment.get(name, "").lower() not in ("", "0", "false") for name in ("CI", "NO_COLOR"))
    dumb = environment.get("TERM", "").lower() in ("", "dumb", "unknown")
    utf8 = str(getattr(stream, "encoding", "")).lower().startswith("utf")
    isatty = getattr(stream, "isatty", None)
    return bool(isatty and isatty()) and utf8 and not plain and not dumb


@contextmanager
def watching() -> Iterator[Listener]:
    """Yield the listener that shows a run of this process, and close it when the block ends.

    Of several ranks only the first shows anything. In a terminal, log lines go above the progress line.
    """
    if int(os.environ.get("RANK", "0")) > 0:
        yield Listener()
    elif not is_live(sys.stderr, os.environ):
        yield LogLines()
    else:
        stream = sys.stderr
        terminal = Terminal(Console(file=stream))
        try:
            with _logging_to(FileProxy(terminal.console, stream), instead_of=stream):
                yield terminal
        finally:
            terminal.close()


@contextmanager
def _logging_to(proxy: FileProxy, instead_of: object) -> Iterator[None]:
    """Have the console print the root logger's lines, which puts them above the progress line."""
    handlers = [h for h in logging.getLogger().handlers if isinstance(h, logging.StreamHandler)]
    mine = [handler for handler in handlers if handler.stream is instead_of]
    for handler in mine:
        handler.setStream(proxy)
    try:
        yield
    finally:
        for handler in mine:
            handler.setStream(instead_of)
