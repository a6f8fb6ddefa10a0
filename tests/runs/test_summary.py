"""What a run leaves behind: files, keys and figures."""

from __future__ import annotations

import json

import pytest
from lab import Lab, steps_of, summary_of, table
from small import write_data

from mm_spine import files

STEP_KEYS = {
    "step", "lr", "loss", "loss_policy", "loss_band", "loss_kl", "grad_norm", "majority_share", "margin", "unparsed",
    "unanimous", "length_mean", "entropy_mean", "entropy_forks", "band_low", "band_high", "share_below", "share_above",
    "selected_share", "ratio_clipped", "parity_mean", "parity_max", "parity_kl", "rollouts_sampled", "tokens_sampled",
    "tokens_saved", "tokens_trained", "cache_hits",
}  # fmt: skip
SUMMARY_KEYS = {
    "benchmark", "method", "model", "seed", "label_free", "n_questions", "votes", "train_rollouts", "steps", "before",
    "after", "held_out", "frozen_parameters", "trainable_parameters", "tower_checksum_unchanged", "seconds", "tokens",
    "peak_memory_bytes", "stopped_by",
}  # fmt: skip
METRIC_KEYS = {
    "greedy", "greedy_ci95", "pass_at_1", "pass_at_1_ci95", "maj_at_n", "pass_at_n", "mean_length", "mean_entropy",
    "unparsed",
}  # fmt: skip
ROLLOUT_COLUMNS = [
    "step", "question_id", "index", "text", "answer", "vote", "reward", "advantage", "finish_reason", "token_ids",
    "logp", "entropy", "selected", "parent", "fork_at",
]  # fmt: skip


def test_every_file_and_key_is_there(lab: Lab) -> None:
    output = lab.run("base")
    names = {"config.yaml", "environment.json", "steps.jsonl", "timings.jsonl", "rollouts", "adapted", "evaluation"}
    assert names | {"summary.json"} <= {path.name for path in output.iterdir()}
    assert {path.name for path in (output / "evaluation").iterdir()} >= {"before.jsonl", "after.jsonl", "steps.jsonl"}
    steps, summary = steps_of(output), summary_of(output)
    assert [step["step"] for step in steps] == [0, 1, 2]
    assert all(set(step) >= STEP_KEYS for step in steps)
    assert set(summary) >= SUMMARY_KEYS
    blocks = [summary["before"], summary["after"], summary["held_out"]["before"], summary["held_out"]["after"]]
    assert all(set(block) >= METRIC_KEYS for block in blocks)
    assert set(summary["seconds"]) == {"sample", "update", "evaluate", "total"}
    timings = files.read_json_lines(output / "timings.jsonl")
    assert all(row["sample"] > 0 and row["update"] > 0 and row["peak_memory_bytes"] > 0 for row in timings)
    environment = json.loads((output / "environment.json").read_text())
    assert environment["seed"] == 0 and environment["attention"] == {"text": "flash_cpu", "tower": "sdpa"}


def test_the_figures_agree_with_the_files(lab: Lab) -> None:
    output = lab.run("base")
    steps, summary = steps_of(output), summary_of(output)
    assert (summary["method"], summary["seed"], summary["votes"], summary["steps"]) == ("spine", 0, 4, 3)
    assert summary["n_questions"] == 6 and summary["skipped"] == {} and summary["attention"] == "flash_cpu"
    tables = [table(output, step) for step in range(3)]
    assert list(tables[0][0]) == ROLLOUT_COLUMNS
    assert summary["tokens"]["sampled"] == sum(step["tokens_sampled"] for step in steps)
    assert list(summary["tokens"]) == ["rollouts", "sampled", "tokens_saved", "trained", "selected"]
    assert summary["tokens"]["rollouts"] == sum(step["rollouts_sampled"] for step in steps) == sum(map(len, tables))
    assert summary["tokens"]["tokens_saved"] == sum(step["tokens_saved"] for step in steps) == 0
    assert summary["tokens"]["sampled"] == sum(len(row["token_ids"]) for rows in tables for row in rows)
    assert summary["tokens"]["selected"] == sum(sum(row["selected"]) for rows in tables for row in rows)
    items = files.read_json_lines(output / "evaluation" / "before.jsonl")
    scores = [v["score"] for item in items if item["split"] == "adapted" for v in item["verdicts"]]
    assert summary["before"]["pass_at_1"] == pytest.approx(sum(scores) / len(scores))
    for row in (row for rows in tables for row in rows):
        assert len(row["token_ids"]) == len(row["logp"]) == len(row["entropy"]) == len(row["selected"])
        assert row["reward"] == float(row["answer"] is not None and row["answer"] == row["vote"])


def test_a_bad_image_costs_its_question_and_is_named(lab: Lab) -> None:
    data = write_data(lab.folder / "torn")
    (data / "questions2.png").write_bytes(b"no image")
    output = lab.run("torn", {"optim": {"questions_per_step": 6, "steps": 2}}, data=data)
    summary = summary_of(output)
    assert list(summary["skipped"]) == ["questions-3"] and "questions2.png" in summary["skipped"]["questions-3"]
    assert summary["n_questions"] == 5
    assert {row["question_id"] for row in table(output, 0)} == {f"questions-{i}" for i in (1, 2, 4, 5, 6)}


def test_rows_that_lost_something_are_listed_at_the_end(lab: Lab) -> None:
    data = write_data(lab.folder / "odd")
    with (data / "questions.jsonl").open("a") as file:
        file.write("{half a row\n")
    summary = summary_of(lab.run("odd", {"optim": {"questions_per_step": 6, "steps": 1}}, data=data))
    assert summary["n_questions"] == 6
    assert len(summary["bad_rows"]) == 1 and "line 7" in summary["bad_rows"][0]
