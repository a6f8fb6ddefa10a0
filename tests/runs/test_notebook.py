"""What a notebook shows while a run goes on: one line and one table, replaced in place and not too often."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from mm_spine.reporting.responses import ShownResponse
from mm_spine.runs.listeners.listener import Step, StepTiming
from mm_spine.runs.listeners.notebook import PAUSE, ROWS, Notebook, following, in_notebook
from mm_spine.types import AnswerSpec, Question, StepReport


class Cell:
    """The output of a cell: what is displayed, in order, each in its last state."""

    def __init__(self) -> None:
        self.outputs: list[Any] = []
        self.drawn = 0

    def show(self, content: Any) -> Any:
        place = len(self.outputs)
        self.outputs.append(content)
        self.drawn += 1
        return SimpleNamespace(update=lambda content: self.replace(place, content))

    def replace(self, place: int, content: Any) -> None:
        self.outputs[place] = content
        self.drawn += 1

    def lines(self) -> list[str]:
        console = Console(width=120, no_color=True, force_jupyter=False)
        with console.capture() as captured:
            for content in self.outputs:
                console.print(content)
        return [line.rstrip() for line in captured.get().splitlines()]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def a_step(step: int, **more: Any) -> Step:
    return Step(StepReport(step, majority_share=0.75), StepTiming(step, 1.5, 0.5, 0, 0, 0), 40, **more)


def test_a_line_and_a_table_are_replaced_in_place() -> None:
    cell, clock = Cell(), Clock()
    view = Notebook(cell.show, clock)
    view.phase("adapting", 40)
    view.part("sample")
    for step in range(ROWS + 3):
        view.step(a_step(step))
        clock.now += 10.0
        view.advance()
    assert len(cell.outputs) == 2
    line, heading, *rows = cell.lines()
    assert line.startswith("adapting ━") and f" {ROWS + 3}/40 " in line and line.endswith("4:10 left")
    assert heading.split()[:3] == ["step", "vote", "unparsed"]
    assert [row.split()[0] for row in rows] == [f"{step}/40" for step in range(4, ROWS + 4)]
    view.close()
    assert cell.lines()[0] == f"adapting {ROWS + 3}/40 2:30"


def test_the_line_is_not_drawn_for_every_response() -> None:
    cell, clock = Cell(), Clock()
    view = Notebook(cell.show, clock)
    view.phase("asking", 10)
    for _ in range(100):
        view.sampled(1)
    assert cell.drawn == 1
    clock.now = PAUSE
    view.part("sample", 64)
    view.sampled(1)
    assert cell.drawn == 2
    clock.now *= 2
    view.sampled(11)
    assert cell.drawn == 3 and "sample 12/64" in cell.lines()[0]


def test_phases_that_are_over_are_named_at_the_end() -> None:
    cell, clock = Cell(), Clock()
    view = Notebook(cell.show, clock)
    view.phase("asking before", 2)
    view.advance(2)
    clock.now = 61.0
    view.phase("adapting", 4)
    view.advance(4)
    clock.now = 63.0
    view.close()
    assert cell.lines() == ["asking before 2/2 1:01 · adapting 4/4 0:02"]


def test_responses_to_print_stand_below_the_table_as_they_are() -> None:
    cell = Cell()
    view = Notebook(cell.show)
    question = Question("[red]q[/red]", (), "?", AnswerSpec("integer"))
    view.step(a_step(0, responses=[ShownResponse(question, 0, "so [bold]7[/bold]", "7", "7", 1.0)]))
    assert cell.lines()[-1].strip() == "[red]q[/red]  answer 7  reward 1.00  so [bold]7[/bold]"


def test_a_kernel_is_told_from_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not in_notebook()
    for shell, found in ((None, False), (SimpleNamespace(), False), (SimpleNamespace(kernel=object()), True)):
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda shell=shell: shell))
        assert in_notebook() is found


def test_without_progress_nobody_listens() -> None:
    with following(False) as listeners:
        assert listeners._entries == []
    with following(True) as listeners:
        assert len(listeners._entries) == 1
