"""What a run shows while it goes on: in a terminal a progress line and a row for each step, elsewhere log lines."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.text import Text

from mm_spine.reporting.responses import ShownResponse
from mm_spine.reporting.thumbnails import image_sizes
from mm_spine.types import StepReport
from mm_spine.words import one_line

log = logging.getLogger(__name__)

HEADING_EVERY = 20
BAR = 16
"""Rows between two headings, and characters of the progress bar."""


@dataclass(frozen=True)
class Step:
    """One step as it is shown: its report, of how many steps, its seconds by phase, the responses asked for."""

    report: StepReport
    of: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    completions: Sequence[ShownResponse] = ()


class View:
    """Hears a run's events, in order; as it stands it shows nothing. Nothing that it does reaches the run."""

    def phase(self, name: str, total: int | None = None, done: int = 0) -> None:
        """The phase before has ended, and one of `total` units begins, of which `done` are done."""

    def advance(self, units: float = 1.0) -> None:
        """So much more of the phase is done."""

    def part(self, name: str, total: int | None = None) -> None:
        """What happens now within a step: it samples `total` responses at most, scores, updates."""

    def sampled(self, count: int) -> None:
        """`count` more responses of the part are finished."""

    def step(self, step: Step) -> None:
        """A step has ended."""

    def close(self) -> None:
        """Nothing more comes."""


class Plain(View):
    """A log line for each step, and one for each response that was asked for."""

    def step(self, step: Step) -> None:
        """Log it."""
        log.info(log_line(step.report, step.of))
        for completion in step.completions:
            log.info("  %s", told(completion))


def log_line(report: StepReport, of: int) -> str:
    """A step in one line, for a log."""
    return (
        f"step {report.step + 1}/{of}  vote share {report.majority_share:.2f}  unparsed {report.unparsed:.2f}  "
        f"length {report.length_mean:.1f}  entropy {report.entropy_mean:.3f}  forks {report.entropy_forks:.3f}  "
        f"loss {report.loss:+.4f}  grad {report.grad_norm:.3f}  parity {report.parity_max:.1e}"
    )


def told(completion: ShownResponse) -> str:
    """A response in one line: question, answer, reward, the sizes of its images, text."""
    question, answer = one_line(completion.question.id), completion.answer
    reward = "" if completion.reward is None else f"  reward {completion.reward:.2f}"
    images = f"  [{', '.join(image_sizes(completion.question))}]" if completion.question.images else ""
    shown = "no answer" if answer is None else f"answer {one_line(answer)}"
    return f"{question}  {shown}{reward}{images}  {one_line(completion.text)[:300]}"


class Guarded(View):
    """A view that gives way to log lines when it fails: its failure is not the run's."""

    def __init__(self, view: View) -> None:
        self._view = view

    def _tell(self, event: Callable[[View], None]) -> None:
        try:
            event(self._view)
        except Exception:
            failed, self._view = self._view, Plain()
            with suppress(Exception):
                failed.close()
            log.warning("the live view has failed; the run goes on with log lines", exc_info=True)
            with suppress(Exception):
                event(self._view)

    def phase(self, name: str, total: int | None = None, done: int = 0) -> None:
        """Tell the view."""
        self._tell(lambda view: view.phase(name, total, done))

    def advance(self, units: float = 1.0) -> None:
        """Tell the view."""
        self._tell(lambda view: view.advance(units))

    def part(self, name: str, total: int | None = None) -> None:
        """Tell the view."""
        self._tell(lambda view: view.part(name, total))

    def sampled(self, count: int) -> None:
        """Tell the view."""
        self._tell(lambda view: view.sampled(count))

    def step(self, step: Step) -> None:
        """Tell the view."""
        self._tell(lambda view: view.step(step))

    def close(self) -> None:
        """Tell the view."""
        self._tell(lambda view: view.close())


@dataclass
class Phase:
    """A phase and the part of it that runs; times in seconds of one clock. `first` is what was done when it `began`."""

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
        """Seconds: units that remain times the mean of the past ones; None before the first."""
        past = self.done - self.first
        if self.total is None or past <= 0:
            return None
        mean = (self.moved - self.began) / past
        return max(0.0, mean * (self.total - self.done) - (now - self.moved))

    def counted(self) -> str:
        """ "3/12", what of the part is sampled."""
        parts = [] if self.total is None else [f"{min(int(self.done + 1e-6), self.total)}/{self.total}"]
        if self.part:
            of = f"/{self.part_total}" if self.part_total else ""
            parts.append(f"{self.part} {self.sampled}{of}" if self.sampled else self.part)
        return "  ".join(parts)


def progress_line(phase: Phase, now: float) -> Text:
    """The phase in one line: name, bar, count, part, time left or passed."""
    line = Text(f"{phase.name} ", no_wrap=True, overflow="ellipsis", end="")
    if phase.total:
        filled = min(BAR, int(BAR * phase.done / phase.total))
        line.append("━" * filled, "cyan").append("━" * (BAR - filled) + " ", "bright_black")
    left = phase.left(now)
    line.append(f"{phase.counted()}  " if phase.counted() else "")
    line.append(f"{clock_time(now - phase.began)} passed" if left is None else f"{clock_time(left)} left")
    return line


def clock_time(seconds: float) -> str:
    """ "1:02:03", without the hours "2:03"."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Column(NamedTuple):
    """A column of the steps' table; where it does not fit, those of the highest `rank` go first."""

    name: str
    width: int
    rank: int
    show: Callable[[Step], str]


COLUMNS = (
    Column("step", 9, 0, lambda s: f"{s.report.step + 1}/{s.of}"),
    Column("vote", 5, 1, lambda s: f"{s.report.majority_share:.2f}"),
    Column("unparsed", 8, 8, lambda s: f"{s.report.unparsed:.2f}"),
    Column("length", 7, 4, lambda s: f"{s.report.length_mean:.1f}"),
    Column("entropy", 7, 3, lambda s: f"{s.report.entropy_mean:.3f}"),
    Column("forks", 6, 5, lambda s: f"{s.report.entropy_forks:.3f}"),
    Column("loss", 8, 2, lambda s: f"{s.report.loss:+.4f}"),
    Column("grad", 8, 7, lambda s: f"{s.report.grad_norm:.3f}"),
    Column("parity", 7, 9, lambda s: f"{s.report.parity_max:.1e}"),
    Column("tok/s", 7, 10, lambda s: f"{tokens_per_second(s):.0f}"),
    Column("s", 6, 6, lambda s: f"{sum(s.seconds.values()):.1f}"),
)


def tokens_per_second(step: Step) -> float:
    """Of the sampling."""
    seconds = step.seconds.get("sample", 0.0)
    return step.report.tokens_sampled / seconds if seconds > 0 else 0.0


def fitting(width: int) -> list[Column]:
    """The columns that fit in `width` characters, one space between two of them."""
    kept = list(COLUMNS)
    while len(kept) > 1 and sum(column.width + 1 for column in kept) - 1 > width:
        kept.remove(max(kept, key=lambda column: column.rank))
    return kept


class Terminal(View):
    """The progress line at the bottom; above it, for good, a line per phase and a row per step."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self._clock = console, clock
        self._phase: Phase | None = None
        self._steps = 0
        stdout = sys.stdout.isatty()
        self._live = Live(
            console=console, get_renderable=self._line, transient=True, refresh_per_second=4, redirect_stdout=stdout
        )
        self._live.start()
        console.show_cursor(True)  # so that nothing is left hidden if the process is killed

    def _line(self) -> Text:
        """Anyone who prints renders it, too: it must not raise in their place."""
        try:
            return progress_line(self._phase, self._clock()) if self._phase else Text("", end="")
        except Exception:
            return Text("", end="")

    def phase(self, name: str, total: int | None = None, done: int = 0) -> None:
        """A line remains of the phase before."""
        now = self._clock()
        self._leave(now)
        self._phase = Phase(name, total, done, began=now, done=done, moved=now)

    def _leave(self, now: float) -> None:
        if self._phase is not None:
            of = f"  {self._phase.counted()}" if self._phase.total else ""
            self._print(Text(f"{self._phase.name}{of}  {clock_time(now - self._phase.began)}", "bright_black"))
        self._phase = None

    def advance(self, units: float = 1.0) -> None:
        """The bar grows."""
        if self._phase is not None:
            self._phase.done, self._phase.moved = self._phase.done + units, self._clock()
            self._phase.part = ""

    def part(self, name: str, total: int | None = None) -> None:
        """Named behind the count."""
        if self._phase is not None:
            self._phase.part, self._phase.part_total, self._phase.sampled = name, total, 0

    def sampled(self, count: int) -> None:
        """Counted behind the part's name."""
        if self._phase is not None:
            self._phase.sampled += count

    def step(self, step: Step) -> None:
        """A row, under a heading every `HEADING_EVERY` rows, and the responses asked for."""
        columns = fitting(self.console.width)
        if self._steps % HEADING_EVERY == 0:
            self._print(Text(" ".join(f"{c.name:>{c.width}}" for c in columns), "bold"))
        self._steps += 1
        self._print(Text(" ".join(f"{c.show(step):>{c.width}}" for c in columns)))
        for completion in step.completions:
            self._print(Text(f"  {told(completion)}", "bright_black"))

    def _print(self, text: Text) -> None:
        self.console.print(text, no_wrap=True, overflow="ellipsis", crop=True)

    def close(self) -> None:
        """Leave the terminal as it was, the lines above it aside."""
        self._leave(self._clock())
        self._live.stop()


def is_live(stream: object, environment: Mapping[str, str]) -> bool:
    """Whether lines may be redrawn on `stream`: a terminal that can, in UTF-8, whose user asks for no plain text."""
    asked = any(environment.get(name, "").lower() not in ("", "0", "false") for name in ("CI", "NO_COLOR"))
    dumb = environment.get("TERM", "").lower() in ("", "dumb", "unknown")
    utf8 = str(getattr(stream, "encoding", "")).lower().startswith("utf")
    isatty = getattr(stream, "isatty", None)
    return bool(isatty and isatty()) and utf8 and not asked and not dumb


@contextmanager
def watching() -> Iterator[View]:
    """The view for this process while the block runs: of several ranks, the first one shows. Log lines go above it."""
    if int(os.environ.get("RANK", "0")) > 0:
        yield View()
    elif not is_live(sys.stderr, os.environ):
        yield Plain()
    else:
        stream = sys.stderr
        view = Terminal(Console(file=stream))
        try:
            with _logging_to(FileProxy(view.console, stream), instead_of=stream):
                yield view
        finally:
            view.close()


@contextmanager
def _logging_to(proxy: FileProxy, instead_of: object) -> Iterator[None]:
    """Have the root logger's lines printed by the console, which puts them above the progress line."""
    handlers = [h for h in logging.getLogger().handlers if isinstance(h, logging.StreamHandler)]
    mine = [handler for handler in handlers if handler.stream is instead_of]
    for handler in mine:
        handler.setStream(proxy)
    try:
        yield
    finally:
        for handler in mine:
            handler.setStream(instead_of)
