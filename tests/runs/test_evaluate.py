"""Evaluations of a run: a "before" that runs share, and the worth of votes."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab import Lab, summary_of, table
from small import golds_of, small_config

from mm_spine import files
from mm_spine.config import ConfigError
from mm_spine.runs.run import run


@pytest.mark.slow
def test_another_runs_before_is_reused_only_for_the_same_start(lab: Lab, tmp_path: Path) -> None:
    base = lab.run("base")
    shared = lab.run("shared-before", {"evaluation": {"before": str(base)}})
    assert (shared / "evaluation/before.jsonl").read_bytes() == (base / "evaluation/before.jsonl").read_bytes()
    assert summary_of(shared)["before"] == summary_of(base)["before"]
    for i, layer in enumerate(({"seed": 1}, {"evaluation": {"samples": 3}}, {"limit": 5})):
        other = small_config(lab.config(layer).model_dump(), {"evaluation": {"before": str(base)}})
        with pytest.raises(ConfigError, match="another model, data or evaluation"):
            run(other, tmp_path / str(i))


def test_changed_weights_do_not_share_a_before(lab: Lab, tmp_path: Path) -> None:
    base = lab.run("base")
    moved = {"model": {"path": str(base / "adapted")}, "evaluation": {"before": str(base)}}
    with pytest.raises(ConfigError, match="another model"):
        run(lab.config(moved), tmp_path / "run")


def test_label_accuracy_is_computed_afterwards(lab: Lab) -> None:
    output = lab.run("base")
    rows = files.read_json_lines(output / "evaluation" / "steps.jsonl")
    gold = {f"questions-{i + 1}": golds_of(digit) for i, digit in enumerate("121212")}
    assert len(rows) == 3 and any(row["reward_accuracy"] > 0 for row in rows)
    for step, row in enumerate(rows):
        drawn = table(output, step)
        votes = {r["question_id"]: r["vote"] for r in drawn}
        assert row["label_accuracy"] == pytest.approx(sum(v in gold[q] for q, v in votes.items()) / len(votes))
        agree = [(r["answer"] in gold[r["question_id"]]) == bool(r["reward"]) for r in drawn]
        assert row["reward_accuracy"] == pytest.approx(sum(agree) / len(agree))
