"""`mm-spine demo`: four methods beside each other, and what of an earlier demo it may replace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Command

from mm_spine.commands.demo import METHODS

SMALL = (
    *("limit=2", "threads=1", "optim.steps=1", "sampling.votes=2", "sampling.train_rollouts=2"),
    *("evaluation.samples=1", "evaluation.limit=1", "reporting.images=false"),
)


@pytest.mark.slow
def test_a_demo_runs_every_method_and_replaces_an_earlier_one(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in (1, 2):
        ended = command("demo", "--seed", seed, *SMALL)
        assert ended.code == 0, ended.err
        summaries = [json.loads((tmp_path / "runs" / "demo" / name / "summary.json").read_text()) for name in METHODS]
        assert [summary["method"] for summary in summaries] == list(METHODS)
        assert {summary["seed"] for summary in summaries} == {seed}
        assert "4 runs in" in ended.out and "report.html" in ended.out


def test_a_folder_that_is_no_run_is_left_alone(command: Command, tmp_path: Path) -> None:
    (tmp_path / "spine").mkdir()
    (tmp_path / "spine" / "mine.txt").write_text("kept")
    ended = command("demo", "--output", tmp_path, *SMALL)
    assert ended.code == 2 and f"{tmp_path / 'spine'}: in the way of the demo" in " ".join(ended.err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["spine"] and (tmp_path / "spine" / "mine.txt").exists()


def test_a_wrong_override_removes_nothing(command: Command, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "config.yaml").write_text("seed: 0\n")
    ended = command("demo", "--output", tmp_path, "optim.stps=1")
    assert ended.code == 2 and "optim.stps: no such key" in ended.err
    assert (tmp_path / "none" / "config.yaml").exists()
