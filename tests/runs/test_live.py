"""What a run shows while it goes on: lines that fit, time left, plain logs elsewhere, and never a bit of difference."""

from __future__ import annotations

import io
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console
from small import Silent, digit_policy, small_config, write_data, write_model
from tiny import tiny_image, tiny_questions

from mm_spine import distributed, files
from mm_spine.adapt import Hooks, adapt
from mm_spine.files import rollout_table
from mm_spine.reporting.responses import ShownResponse
from mm_spine.runs.evaluate import evaluate_model
from mm_spine.runs.listeners import live
from mm_spine.runs.listeners.listener import Listener, Listeners, Step, StepTiming
from mm_spine.runs.listeners.live import LogLines, Phase, Terminal, add_live, progress_line
from mm_spine.runs.plan import check
from mm_spine.runs.run import Run, run
from mm_spine.sampling.hf import HFSampler
from mm_spine.types import AnswerSpec, Question, StepReport
from mm_spine.words import one_line

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def terminal(width: int = 100, clock: Clock | None = None) -> tuple[Terminal, io.StringIO]:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=width, color_system="truecolor")
    view = Terminal(console, clock or Clock())
    view._live.auto_refresh = False
    return view, file


def shown(file: io.StringIO) -> list[str]:
    """The lines that remain: control codes are obeyed as far as erasing the line goes."""
    lines = [line.rpartition("\r")[2] for line in CONTROL.sub("", file.getvalue()).split("\n")]
    return [line.rstrip() for line in lines]


def question(name: str = "q1", images: int = 1) -> Question:
    return Question(name, tuple(tiny_image(i, 28) for i in range(images)), "What?", AnswerSpec("integer"))


def a_step(step: int = 0, **more: Any) -> Step:
    report = StepReport(step, loss=-0.01234, grad_norm=0.5, majority_share=0.75, unparsed=0.125, length_mean=17.25)
    report.entropy_mean, report.entropy_forks, report.parity_max, report.tokens_sampled = 0.2, 0.8, 1e-6, 600
    return Step(report, StepTiming(step, 1.5, 0.5, 0, 0, 0), 12, **more)


# The table and the progress line


def test_a_wide_terminal_shows_every_column() -> None:
    view, file = terminal(100)
    view.phase("adapting", 12)
    view.step(a_step())
    view.close()
    heading, row = [line.split() for line in shown(file) if line.strip()][:2]
    assert heading == [column.name for column in live.COLUMNS]
    assert row == ["1/12", "0.75", "0.12", "17.2", "0.200", "0.800", "-0.0123", "0.500", "1.0e-06", "400", "2.0"]


@pytest.mark.parametrize("width", [100, 80, 60, 30, 12])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    view, file = terminal(width)
    long = ShownResponse(question("a" * 90, 3), 0, "漢字 " * 200, "7", "7", 1.0)
    view.phase("evaluating before", 1000)
    view.advance(123)
    view._live.refresh()
    view.phase("adapting", 500)
    view.part("sample", 4096)
    view.sampled(1234)
    for step in range(2):
        view.step(a_step(step, responses=[long]))
        view._live.refresh()
    view.close()
    lines = [part for line in CONTROL.sub("", file.getvalue()).split("\n") for part in line.split("\r")]
    assert max(cell_len(line) for line in lines) <= width
    assert [line.split()[:2] for line in shown(file) if line.lstrip().startswith("1/12")] != []


def test_the_least_important_columns_go_first() -> None:
    names = {width: [column.name for column in live.fitting(width)] for width in (88, 87, 60, 1)}
    assert names[88] == [column.name for column in live.COLUMNS]
    assert names[87] == [name for name in names[88] if name != "tok/s"]
    assert names[60] == ["step", "vote", "length", "entropy", "forks", "loss", "s"]
    assert names[1] == ["step"]


def test_the_heading_comes_again() -> None:
    view, file = terminal()
    for step in range(live.HEADING_EVERY + 1):
        view.step(a_step(step))
    view.close()
    assert sum(line.lstrip().startswith("step") for line in shown(file)) == 2


def test_time_left_is_the_mean_of_the_past_units() -> None:
    phase = Phase("adapting", 10, first=4, began=100.0, done=4, moved=100.0)
    assert phase.left(107.0) is None
    phase.done, phase.moved = 6, 120.0
    assert phase.left(120.0) == pytest.approx(4 * 10.0)
    assert phase.left(125.0) == pytest.approx(35.0)
    assert phase.left(900.0) == 0.0
    assert progress_line(phase, 120.0).plain.endswith(" 6/10  0:40 left")


def test_a_phase_without_units_tells_the_time_passed() -> None:
    phase = Phase("loading", None, 0.0, began=10.0)
    assert progress_line(phase, 3735.0).plain == "loading 1:02:05 passed"


def test_the_line_says_what_a_step_does() -> None:
    clock = Clock()
    view, file = terminal(100, clock)
    view.phase("adapting", 3)
    for part, total, count in (("sample", 64, 12), ("score", None, 0), ("update", None, 0)):
        view.part(part, total)
        view.sampled(count)
        clock.now += 1
        view._live.refresh()
    view.advance()
    clock.now += 1
    view._live.refresh()
    view.close()
    lines = [line.split("  ", 1)[1] for line in CONTROL.sub("", file.getvalue()).split("\r") if "adapting ━" in line]
    told = [line.strip() for line in lines]
    assert told[:3] == ["sample 12/64  0:01 passed", "score  0:02 passed", "update  0:03 passed"]
    assert told[3] == "0:05 left"
    assert "adapting  1/3  0:04" in shown(file), "a line remains of a phase"


# Responses


def test_a_response_is_told_in_a_line_without_its_images() -> None:
    completion = ShownResponse(question("q7", images=2), 3, "so\n\tit is  1", "1", "1", 1.0)
    assert live.response_line(completion) == "q7  answer 1  reward 1.00  [56x56, 56x28]  so it is 1"
    unknown = ShownResponse(Question("q8", (), "?", AnswerSpec("integer")), 0, "hm", None, None, None)
    assert live.response_line(unknown) == "q8  no answer  hm"


def test_a_response_cannot_steer_the_terminal() -> None:
    evil = "\x1b[2J\x1b]0;title\x07[bold]x[/bold]\r\u202egone"
    assert not re.search(r"[\x00-\x1f\x7f\u202e]", one_line(evil))
    view, file = terminal()
    view.step(a_step(responses=[ShownResponse(question(evil), 0, evil, evil, "1", 0.0)]))
    view.close()
    assert "[2J" in CONTROL.sub("", file.getvalue()) and "\x1b[2J" not in file.getvalue()
    assert "\x1b]0" not in file.getvalue() and "[bold]x[/bold]" in CONTROL.sub("", file.getvalue())


# Where there is no terminal


class Stream(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class Latin(Stream):
    encoding = "latin-1"


@pytest.mark.parametrize(
    "stream, variables, expected",
    [
        (Stream(), {"TERM": "xterm"}, True),
        (Stream(), {"TERM": "xterm", "CI": "false", "NO_COLOR": ""}, True),
        (io.StringIO(), {"TERM": "xterm"}, False),
        (Stream(), {"TERM": "xterm", "CI": "true"}, False),
        (Stream(), {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (Stream(), {"TERM": "dumb"}, False),
        (Stream(), {}, False),
        (Latin(), {"TERM": "xterm"}, False),
    ],
)
def test_only_a_terminal_that_can_gets_the_view(stream: Any, variables: dict[str, str], expected: bool) -> None:
    assert live.is_live(stream, variables) is expected


def test_without_a_terminal_the_view_is_plain() -> None:
    with live.watching() as view:
        assert type(view) is LogLines


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stream]:
    """What stands in for standard error is a terminal, and the root logger writes to it."""
    stream, root = Stream(), logging.getLogger()
    for name in ("CI", "NO_COLOR", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    handler = logging.StreamHandler(stream)
    root.addHandler(handler)
    yield stream
    root.removeHandler(handler)


def test_only_the_first_rank_shows(on_terminal: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with redirect_stderr(on_terminal), live.watching() as view:
        view.step(a_step())
        assert type(view) is Listener
    assert on_terminal.getvalue() == ""


def test_log_lines_go_above_the_progress_line(on_terminal: Stream) -> None:
    with redirect_stderr(on_terminal), live.watching() as view:
        assert isinstance(view, Terminal)
        view.phase("adapting", 2)
        view._live.refresh()
        logging.getLogger("mm_spine.x").warning("a [red]log[/red] line")
        print("printed", file=sys.stderr)
    raw = on_terminal.getvalue()
    assert re.search(r"\x1b\[2Ka \[red\]log\[/red\] line\n", raw), "the progress line is erased first"
    lines = shown(on_terminal)
    assert "a [red]log[/red] line" in lines and "printed" in lines


def test_an_interrupt_leaves_the_terminal_as_it_was(on_terminal: Stream) -> None:
    (handler,) = [h for h in logging.getLogger().handlers if getattr(h, "stream", None) is on_terminal]
    with redirect_stderr(on_terminal):
        with pytest.raises(KeyboardInterrupt), live.watching() as view:
            view.phase("adapting", 2)
            assert handler.stream is not on_terminal and sys.stderr is not on_terminal
            raise KeyboardInterrupt
        assert handler.stream is on_terminal and sys.stderr is on_terminal
    raw = on_terminal.getvalue()
    assert raw.rfind("\x1b[?25l") < raw.index("\x1b[?25h"), "the cursor is never hidden for long"
    assert raw.endswith("\x1b[2K"), "the progress line is erased"


# In a run


class Recorded(Listener):
    """Record every event."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def phase(self, name: str, total: int | None = None, done: int = 0) -> None:
        self.events.append(("phase", name, total, done))

    def advance(self, units: float = 1.0) -> None:
        self.events.append(("advance", units))

    def part(self, name: str, total: int | None = None) -> None:
        self.events.append(("part", name, total))

    def sampled(self, count: int) -> None:
        self.events.append(("sampled", count))

    def step(self, step: Step) -> None:
        self.events.append(("step", step))

    def within(self, name: str) -> list[tuple[Any, ...]]:
        """The events of one phase."""
        start = next(i for i, event in enumerate(self.events) if event[:2] == ("phase", name))
        end = next((i for i in range(start + 1, len(self.events)) if self.events[i][0] == "phase"), None)
        return self.events[start + 1 : end]


class Failing(Listener):
    """Fails at everything."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("live")
    model, data = write_model(folder / "model"), write_data(folder / "data")
    return small_config({"benchmark": str(data), "model": {"path": str(model)}, "optim": {"steps": 2}})


class Watched:
    def __init__(self, config: Any, folder: Path) -> None:
        self.view = Recorded()
        self.output = folder / "watched"
        asked = config.model_copy(update={"reporting": config.reporting.model_copy(update={"completions": 3})})
        assert run(asked, self.output, listener=self.view) is not None


@pytest.fixture(scope="module")
def watched(config: Any, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    return Watched(config, tmp_path_factory.mktemp("runs"))


def test_a_run_tells_its_phases(watched: Watched) -> None:
    phases = [event[1:] for event in watched.view.events if event[0] == "phase"]
    assert phases == [
        ("loading", None, 0),
        ("evaluating before", 8, 0),
        ("adapting", 2, 0),
        ("evaluating after", 8, 0),
        ("report", None, 0),
    ]


@pytest.mark.parametrize("phase", ["evaluating before", "evaluating after"])
def test_an_evaluation_advances_by_its_questions(watched: Watched, phase: str) -> None:
    events = watched.view.within(phase)
    assert {event[0] for event in events} == {"advance"}
    assert sum(event[1] for event in events) == pytest.approx(8)


def test_a_step_tells_its_parts_and_responses(watched: Watched) -> None:
    events = watched.view.within("adapting")
    rough = [event[:2] if event[0] == "part" else event[0] for event in events if event[0] != "sampled"]
    assert rough == [("part", "sample"), ("part", "update"), "step", "advance"] * 2
    assert [event[2] for event in events if event[:2] == ("part", "sample")] == [16, 16]
    assert sum(event[1] for event in events if event[0] == "sampled") == 32


def test_a_step_is_told_as_it_is_saved(watched: Watched) -> None:
    steps = [event[1] for event in watched.view.events if event[0] == "step"]
    assert [step.report.row() for step in steps] == files.read_json_lines(watched.output / "steps.jsonl")
    timings = files.read_json_lines(watched.output / "timings.jsonl")
    assert [vars(step.timing) for step in steps] == timings
    rows = rollout_table.read_rollout_table(watched.output / "rollouts" / "step_000000.parquet").to_pylist()
    saved = {(row["question_id"], row["index"]): (row["text"], row["answer"], row["reward"]) for row in rows}
    assert len(steps[0].responses) == 3
    for told in steps[0].responses:
        assert saved[told.question.id, told.index] == (told.text, told.answer, pytest.approx(told.reward))


def test_a_pass_of_our_own_for_the_entropies_is_told_as_score() -> None:
    heard: list[str] = []
    config, policy = small_config({"optim": {"steps": 1}}), digit_policy()
    sampler = Silent(HFSampler(policy, config.sampling, config.seed))
    adapt(tiny_questions(3), policy, sampler, config=config, hooks=Hooks(on_part=heard.append))
    assert heard == ["sample", "score", "update"]


@pytest.mark.slow
def test_without_a_view_a_run_logs_as_ever(
    config: Any, watched: Watched, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        run(config, tmp_path / "run")
    steps = files.read_json_lines(watched.output / "steps.jsonl")
    assert steps == files.read_json_lines(tmp_path / "run" / "steps.jsonl")
    lines = [message for message in caplog.messages if message.startswith("step ")]
    assert lines == [live.log_line(StepReport(**step), 2) for step in steps]
    assert re.fullmatch(
        r"step 1/2  vote share 0\.\d\d  unparsed 0\.\d\d  length \d\.\d  entropy \d\.\d{3}  forks \d\.\d{3}  "
        r"loss [+-]\d\.\d{4}  grad \d+\.\d{3}  parity \d\.\de-\d\d",
        lines[0],
    )
    assert not any("\x1b" in message for message in caplog.messages)


@pytest.mark.slow
def test_a_real_view_changes_no_step(config: Any, watched: Watched, tmp_path: Path, on_terminal: Stream) -> None:
    with redirect_stderr(on_terminal), live.watching() as view:
        run(config, tmp_path / "run", listener=view)
    names = ("steps.jsonl", "rollouts/step_000001.parquet", "adapted/model.safetensors")
    assert all((tmp_path / "run" / name).read_bytes() == (watched.output / name).read_bytes() for name in names)
    lines = shown(on_terminal)
    assert "evaluating before  8/8" in "\n".join(lines) and "adapting  2/2" in "\n".join(lines)
    assert [line.split()[0] for line in lines if line.lstrip().startswith(("1/2 ", "2/2 "))] == ["1/2", "2/2"]


@pytest.mark.slow
def test_a_failing_view_does_not_cost_the_run(
    config: Any, watched: Watched, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert run(config, tmp_path / "run", listener=Failing()) is not None
    assert caplog.text.count("the live view failed") == 1
    assert sum(message.startswith("step ") for message in caplog.messages) == 2
    assert (tmp_path / "run" / "steps.jsonl").read_bytes() == (watched.output / "steps.jsonl").read_bytes()


def test_a_view_that_fails_at_a_step_leaves_no_step_untold(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        listeners = Listeners()
        add_live(listeners, Failing())
        listeners.step(a_step(4))
    assert [message[:9] for message in caplog.messages if message.startswith("step")] == ["step 5/12"]


def test_a_line_that_cannot_be_drawn_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    view, _ = terminal()
    view.phase("adapting", 2)
    monkeypatch.setattr(live, "progress_line", Failing)
    assert view._line().plain == ""
    view.close()


def test_other_ranks_tell_their_view_nothing(config: Any, watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    view = Recorded()
    Run(check(config), watched.output / "other", listener=view).listeners.phase("loading")
    assert view.events == []


def test_an_evaluation_alone_shows_its_questions(config: Any) -> None:
    view = Recorded()
    evaluate_model(config, listener=view)
    assert [event[1:] for event in view.events if event[0] == "phase"] == [
        ("loading", None, 0),
        ("evaluating", 6, 0),
    ]
    assert sum(event[1] for event in view.within("evaluating")) == pytest.approx(6)
