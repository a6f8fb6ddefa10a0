"""Badges, cost, steps and what was left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from saved_runs import BEFORE, text_of, write_run

from mm_spine.files import write_json
from mm_spine.reporting import overview
from mm_spine.reporting.saved_run import read_run


def test_a_run_that_read_labels_is_stamped(tmp_path: Path) -> None:
    assert "reads labels: a control, not a result" in text_of(write_run(tmp_path / "run", label_free=False))


def test_a_changed_tower_is_stamped(tmp_path: Path) -> None:
    assert "the checksum of the vision tower CHANGED" in text_of(
        write_run(tmp_path / "run", tower_checksum_unchanged=False)
    )


@pytest.mark.parametrize("value", [[], 3, "x", None, {"greedy": "high", "greedy_ci95": [1]}])
def test_figures_of_another_kind_cost_their_place_alone(copy: Path, value: Any) -> None:
    names = (
        "before",
        "after",
        "held_out",
        "seconds",
        "tokens",
        "skipped",
        "bad_rows",
        "breakdowns",
        "steps",
        "lmms_eval",
    )
    whole = json.loads((copy / "summary.json").read_text())
    write_json(copy / "summary.json", whole | dict.fromkeys(names, value))
    assert "spine on digits" in text_of(copy)


def test_the_numbers_of_every_step_are_a_table(finished: Path) -> None:
    table = overview.step_table(read_run(finished))
    assert table.columns[4] == "majority_share" and [row[4] for row in table.rows] == ["0.5", "0.6", "0.7"]


def test_a_run_of_no_step_trained_nothing_and_cast_no_vote(tmp_path: Path) -> None:
    text = text_of(write_run(tmp_path / "run", BEFORE, BEFORE, steps=0))
    assert "none: no step" in text and "votes a question" not in text and "adapted greedy minus" not in text


def test_votes_that_may_end_early_are_at_most(copy: Path) -> None:
    assert "4 votes a question" in text_of(copy) and "at most 4" not in text_of(copy)
    (copy / "config.yaml").write_text("sampling: {votes: {max: 4, stop: decided}}\nlimit: 9\n")
    text = text_of(copy)
    assert "at most 4 votes a question" in text and "limit 9: only the first questions" in text


def test_figures_of_several_processes_say_whose_they_are(copy: Path) -> None:
    write_json(copy / "environment.json", {"processes": 2, "gpus": ["H200", "H200"]})
    text = text_of(copy)
    assert "of the GPU, the first of 2" in text and "the first of 2 processes" in text


def test_a_run_with_scope_question_says_what_its_steps_are(copy: Path) -> None:
    assert "adapted to this question only" not in text_of(copy)
    (copy / "config.yaml").write_text("scope: question\n")
    assert "a model that was adapted to this question only" in text_of(
        copy
    ) and "The model was adapted to each question separately" in text_of(copy)


def test_a_stopped_run_says_by_what(copy: Path) -> None:
    (copy / "summary.json").unlink()
    write_json(copy / "stopped.json", {"stopped_by": "SIGINT", "steps": 2})
    assert "stopped by SIGINT after 2 steps" in text_of(copy)
