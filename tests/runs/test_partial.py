"""An evaluation that was stopped goes on at the next block, with the same items to the byte."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from lab import Lab

from mm_spine import evaluation
from mm_spine.runs import evaluate as module
from mm_spine.runs.evaluate import evaluate_model
from mm_spine.runs.run import run

BLOCKS = {"evaluation": {"block": 2}}


class Stopping:
    """`evaluation.evaluate` that stops the process, as a crash does, at its call number `at`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self.calls, self.at, self._usual = 0, at, evaluation.evaluate
        monkeypatch.setattr(module.evaluation, "evaluate", self)

    def __call__(self, *arguments: Any, **more: Any) -> list[evaluation.Item]:
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return self._usual(*arguments, **more)


def test_an_evaluation_goes_on_at_the_next_block(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config, whole, stopped = lab.config(BLOCKS), tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    counted = Stopping(monkeypatch, at=0)
    figures = evaluate_model(config, whole)
    blocks = counted.calls
    assert blocks >= 3 and not whole.with_suffix(".partial.jsonl").exists()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        Stopping(patch, at=3)
        evaluate_model(config, stopped)
    partial = stopped.with_suffix(".partial.jsonl")
    assert len(partial.read_text().splitlines()) == 1 + 2 and not stopped.exists()
    # A line that a crash has cut is done again.
    partial.write_text(partial.read_text()[:-5])
    resumed = Stopping(monkeypatch, at=0)
    assert evaluate_model(config, stopped) == figures
    assert resumed.calls == blocks - 1 and not partial.exists()
    assert stopped.read_bytes() == whole.read_bytes()
    # Of another seed: nothing is taken over.
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        Stopping(patch, at=3)
        evaluate_model(config, stopped)
    other = Stopping(monkeypatch, at=0)
    with caplog.at_level(logging.WARNING):
        evaluate_model(lab.config(BLOCKS, {"seed": 5}), stopped)
    assert other.calls == blocks and "of another model, data or evaluation; evaluating from the start" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("at", [2, 5])
def test_a_run_stopped_in_an_evaluation_is_the_uninterrupted_one(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Call 2 is in the evaluation before, call 5 in the one after."""
    whole = lab.run("blocks", BLOCKS)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        Stopping(patch, at)
        run(lab.config(BLOCKS), tmp_path / "run")
    name = "before" if at == 2 else "after"
    assert (tmp_path / "run" / "evaluation" / f"{name}.partial.jsonl").is_file()
    assert run(lab.config(BLOCKS), tmp_path / "run", resume=True) is not None
    for file in ("before.jsonl", "after.jsonl"):
        assert (tmp_path / "run/evaluation" / file).read_bytes() == (whole / "evaluation" / file).read_bytes()
    assert not list((tmp_path / "run/evaluation").glob("*.partial.jsonl"))
