"""Whole runs in their folders: the firewall, repeatability and resuming to the bit, and what a run leaves behind."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from small import golds_of, small_config, write_data, write_model

from mm_spine import files, rollout_table
from mm_spine.config import ConfigError
from mm_spine.policy.errors import FrozenError, ModelError
from mm_spine.policy.model import Policy
from mm_spine.runs.folder import check_same_config
from mm_spine.runs.listeners.listener import Listener, Step
from mm_spine.runs.plan import load_config
from mm_spine.runs.run import Run, run
from mm_spine.types import Answer

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

VARIANTS: dict[str, Mapping[str, Any]] = {
    "spine": {
        "method": {"kl": "exact", "kl_weight": 0.1, "band_anchor": "initial"},
        "optim": {"steps": 4, "epochs": 2, "questions_per_step": 4},
    },
    "lora": {"method": "ttrl", "model": {"train": "lora"}, "optim": {"steps": 4, "lr": 0.01, "weight_decay": 0.1}},
    "zero2": {"method": "ttrl", "engine": {"zero_stage": 2}, "optim": {"steps": 4}},
    "zero3": {"method": "spine-v2", "engine": {"zero_stage": 3}, "optim": {"steps": 4}},
}


class Lab:
    """A model, its questions, and finished runs by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = write_model(folder / "model")
        self.data = write_data(folder / "data")

    def config(self, *layers: Mapping[str, Any], data: Path | None = None) -> Any:
        """A small run on this model and these questions."""
        base = {"benchmark": str(data or self.data), "model": {"path": str(self.model)}, "method": {"kl_weight": 0.1}}
        return small_config(base, *layers)

    def run(self, name: str, *layers: Mapping[str, Any], data: Path | None = None, **options: Any) -> Path:
        """The folder of that run, which is started once."""
        output = self.folder / "runs" / name
        if not output.exists():
            assert run(self.config(*layers, data=data), output, **options) is not None
        return output


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"))


def traces(output: Path) -> dict[str, bytes]:
    """The bytes of what training left: step lines, rollouts, weights."""
    paths = [output / "steps.jsonl", *sorted(output.glob("rollouts/*")), *sorted(output.glob("adapted/*.safetensors"))]
    return {str(path.relative_to(output)): path.read_bytes() for path in paths}


def assert_same(a: Path, b: Path) -> None:
    """Equal traces, with the name of the first that differs."""
    left, right = traces(a), traces(b)
    assert left.keys() == right.keys()
    assert [name for name in left if left[name] != right[name]] == []


def steps_of(output: Path) -> list[dict[str, Any]]:
    return files.read_json_lines(output / "steps.jsonl")


def summary_of(output: Path) -> dict[str, Any]:
    return json.loads((output / "summary.json").read_text())


def table(output: Path, step: int) -> list[dict[str, Any]]:
    return rollout_table.read_rollout_table(output / "rollouts" / f"step_{step:06d}.parquet").to_pylist()


def never_load(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("the model was loaded before the check")


# The firewall


def test_a_scrambled_key_changes_no_bit_of_the_training(lab: Lab) -> None:
    wrong = write_data(lab.folder / "scrambled", golds="345678", held_out="90")
    true, scrambled = lab.run("base"), lab.run("scrambled", data=wrong)
    assert_same(true, scrambled)
    assert summary_of(true)["before"]["pass_at_1"] > 0 == summary_of(scrambled)["before"]["pass_at_1"]
    assert any(step["grad_norm"] > 0 for step in steps_of(true))


def test_no_key_at_all_changes_no_bit_either(lab: Lab) -> None:
    data = write_data(lab.folder / "unlabelled")
    for path in data.glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "answer"}) + "\n" for row in rows))
    unlabelled = lab.run("unlabelled", data=data)
    assert_same(lab.run("base"), unlabelled)
    assert summary_of(unlabelled)["after"]["pass_at_1"] is None
    assert summary_of(unlabelled)["after"]["mean_length"] > 0


def test_evaluation_changes_no_bit_of_the_training(lab: Lab) -> None:
    """One question instead of all, none held out, more samples; and an evaluation that never runs."""
    less = {"evaluation": {"limit": 1, "held_out": False, "samples": 3, "max_new_tokens": 3}}
    assert_same(lab.run("base"), lab.run("less-evaluation", less))
    shared = lab.run("shared-before", {"evaluation": {"before": str(lab.run("base"))}})
    assert_same(lab.run("base"), shared)


def test_the_oracle_is_refused_before_any_model_loads(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Policy, "load", never_load)
    output = lab.folder / "refused"
    with pytest.raises(ConfigError, match="--allow-labels"):
        run(lab.config({"method": "oracle"}), output)
    assert not output.exists()


def test_the_oracle_is_rewarded_by_the_truth_and_stamped(lab: Lab) -> None:
    output = lab.run("oracle", {"method": "oracle"}, allow_labels=True)
    assert summary_of(output)["label_free"] is False
    gold = {f"questions-{i + 1}": golds_of(digit) for i, digit in enumerate("121212")}
    rows = [row for step in range(3) for row in table(output, step)]
    assert all(row["reward"] == float(row["answer"] in gold[row["question_id"]]) for row in rows)
    assert any(row["reward"] != float(row["answer"] == row["vote"]) for row in rows)
    assert summary_of(lab.run("base"))["label_free"] is True


# Repeatability and resuming


def test_the_same_seed_is_the_same_run_and_another_is_not(lab: Lab) -> None:
    again = lab.run("again")
    assert_same(lab.run("base"), again)
    for name in ("before", "after"):
        path = f"evaluation/{name}.jsonl"
        assert (lab.run("base") / path).read_bytes() == (again / path).read_bytes()
    other = traces(lab.run("seed1", {"seed": 1}))
    assert all(other[name] != content for name, content in traces(again).items())


class Interrupting(Listener):
    """Acts right after the step of that number was written, before its checkpoint."""

    def __init__(self, number: int, act: Callable[[], None]) -> None:
        self.number, self.act = number, act

    def step(self, step: Step) -> None:
        if step.report.step == self.number:
            self.act()


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def crash() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_stopped_and_resumed_is_the_uninterrupted_one(lab: Lab, variant: str) -> None:
    whole = lab.run(variant, VARIANTS[variant])
    output, config = lab.folder / "stopped" / variant, lab.config(VARIANTS[variant])
    usual = signal.getsignal(signal.SIGTERM)
    assert run(config, output, listener=Interrupting(1, terminate)) is None
    assert signal.getsignal(signal.SIGTERM) is usual
    assert json.loads((output / "stopped.json").read_text()) == {"stopped_by": "SIGTERM", "steps": 2}
    assert len(steps_of(output)) == 2 and not (output / "summary.json").exists() and not (output / "adapted").exists()
    summary = run(config, output, resume=True)
    assert summary is not None and (summary["steps"], summary["stopped_by"]) == (4, "steps")
    assert not (output / "stopped.json").exists()
    assert_same(whole, output)
    assert (whole / "evaluation/after.jsonl").read_bytes() == (output / "evaluation/after.jsonl").read_bytes()
    assert summary["tokens"] == summary_of(whole)["tokens"]
    assert summary["seconds"]["total"] > summary["seconds"]["sample"] + summary["seconds"]["update"]


def test_a_crashed_run_resumes_from_its_last_checkpoint(lab: Lab) -> None:
    """Step 3 was written but not checkpointed, a checkpoint and a line are torn: all of that is done again."""
    config = lab.config(VARIANTS["spine"], {"checkpoint": {"every": 1}})
    output = lab.folder / "stopped" / "crashed"
    with pytest.raises(KeyboardInterrupt):
        run(config, output, listener=Interrupting(2, crash))
    assert len(steps_of(output)) == 3
    checkpoints = output / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step_000001", "step_000002"]
    shutil.copytree(checkpoints / "step_000002" / "engine", checkpoints / "writing" / "engine")
    next((checkpoints / "writing").rglob("*.pt")).write_bytes(b"torn")
    with (output / "steps.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    assert run(config, output, resume=True) is not None
    assert_same(lab.run("spine", VARIANTS["spine"]), output)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step_000003", "step_000004"]


@pytest.fixture
def stopped(lab: Lab, tmp_path: Path) -> Path:
    """A run of three steps stopped after the first."""
    output = tmp_path / "stopped"
    assert run(lab.config(), output, listener=Interrupting(0, terminate)) is None
    return output


@pytest.mark.parametrize(
    "layer, key",
    [
        ({"optim": {"lr": 0.1}}, "optim.lr was 0.0005, now 0.1"),
        ({"method": "ttrl"}, "method.kl was 'exact', now 'k3'"),
        ({"seed": 3}, "seed was 0, now 3"),
    ],
)
def test_another_configuration_is_not_resumed(
    lab: Lab, stopped: Path, layer: Mapping[str, Any], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Policy, "load", never_load)
    before = (stopped / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match=key):
        run(lab.config(layer), stopped, resume=True)
    assert (stopped / "config.yaml").read_bytes() == before


def test_threads_and_token_budget_may_change_but_it_is_said(
    lab: Lab, stopped: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        try:
            run(lab.config({"threads": 2, "engine": {"token_budget": 99}}), stopped, resume=True)
        finally:
            torch.set_num_threads(1)
    text = "\n".join(caplog.messages)
    assert "threads=2, written with 1" in text and "token_budget=99, written with 8192" in text


def test_what_only_rounds_otherwise_may_change_and_is_said_what_only_reports_without_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rounds = {"sampling.kv_cache_gb": 1, "evaluation.batch_rows": 7, "sampling.vllm.max_rows": 8}
    silent = {"reporting.images": "false", "reporting.completions": 3, "checkpoint.every": 2, "engine.parity_limit": 1}
    old, new = load_config("digits"), load_config("digits", [f"{k}={v}" for k, v in (rounds | silent).items()])
    with caplog.at_level(logging.WARNING):
        check_same_config(old.model_dump(mode="json"), new.model_dump(mode="json"), Path("config.yaml"))
    assert [re.findall(r"with ([\w.]+)=", message) for message in caplog.messages] == [[key] for key in sorted(rounds)]
    with pytest.raises(ConfigError, match=r"reporting\.rollouts was True, now False"):
        other = load_config("digits", ["reporting.rollouts=false", "sampling.kv_cache_gb=1"])
        check_same_config(old.model_dump(mode="json"), other.model_dump(mode="json"), Path("config.yaml"))


def test_there_must_be_something_to_resume(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished = lab.run("base")
    monkeypatch.setattr(Policy, "load", never_load)
    with pytest.raises(ConfigError, match="that run is finished"):
        run(lab.config(), finished, resume=True)
    with pytest.raises(ConfigError, match="nothing to resume"):
        run(lab.config(), tmp_path / "nowhere", resume=True)
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_in_use_is_left_alone(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    finished = lab.run("base")
    before = traces(finished)
    monkeypatch.setattr(Policy, "load", never_load)
    with pytest.raises(ConfigError, match="already holds a run"):
        run(lab.config(), finished)
    assert traces(finished) == before


def test_a_second_signal_acts_at_once(lab: Lab, tmp_path: Path) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(lab.config(), tmp_path / "run", listener=Interrupting(0, twice))


# Frozen


def test_the_tower_is_unchanged_and_the_counts_are_those_of_requires_grad(lab: Lab) -> None:
    from safetensors.torch import load_file

    summary = summary_of(lab.run("base"))
    start, end = (load_file(folder / "model.safetensors") for folder in (lab.model, lab.run("base") / "adapted"))
    assert start.keys() == end.keys()
    tower = [name for name in start if "visual" in name]
    assert all(torch.equal(start[name], end[name]) for name in tower)
    assert summary["frozen_parameters"] == sum(start[name].numel() for name in tower)
    assert summary["trainable_parameters"] == sum(w.numel() for name, w in start.items() if name not in tower)
    assert any(not torch.equal(start[name], end[name]) for name in start if name not in tower)
    assert summary["tower_checksum_unchanged"] is True


def test_a_tower_unfrozen_behind_the_back_is_refused(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    freeze = Policy._freeze

    def forgetting(self: Policy) -> None:
        freeze(self)
        next(self.tower.merger.parameters()).requires_grad_(True)

    monkeypatch.setattr(Policy, "_freeze", forgetting)
    with pytest.raises(FrozenError, match=r"visual\.merger\."):
        run(lab.config(), tmp_path / "run")
    assert not (tmp_path / "run" / "steps.jsonl").exists()


def test_a_tower_weight_changed_during_the_run_voids_it(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, held = Policy.load, []
    monkeypatch.setattr(Policy, "load", lambda *a: held.append(load(*a)) or held[0])

    def nudge() -> None:
        with torch.no_grad():
            next(held[0].tower.parameters()).view(-1)[3] += 1e-6

    with pytest.raises(FrozenError, match="checksum changed"):
        run(lab.config(), tmp_path / "run", listener=Interrupting(1, nudge))
    assert not (tmp_path / "run" / "summary.json").exists() and not (tmp_path / "run" / "adapted").exists()


# What a run leaves behind


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
    assert json.loads((output / "environment.json").read_text())["seed"] == 0


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


def test_the_adapted_folder_loads_with_transformers(lab: Lab) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = lab.run("base") / "adapted"
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    prompt = processor(text=["Which digit?"], return_tensors="pt")
    assert model(**prompt).logits.isfinite().all()
    assert model.generation_config.eos_token_id == processor.tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_the_saved_configuration_starts_the_same_run(lab: Lab, tmp_path: Path) -> None:
    saved = lab.run("base") / "config.yaml"
    assert load_config(str(saved)) == lab.config()


def test_none_is_its_own_before_and_saves_no_model(lab: Lab) -> None:
    output = lab.run("none", {"method": "none"})
    summary = summary_of(output)
    assert summary["steps"] == 0 and summary["before"] == summary["after"]
    assert summary["held_out"]["before"] == summary["held_out"]["after"]
    assert not (output / "adapted").exists() and not (output / "steps.jsonl").exists()


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


# Per question, and adapters


@pytest.fixture(scope="module")
def single(lab: Lab) -> Iterator[tuple[Path, list[dict[str, torch.Tensor]]]]:
    """A run per question, and the weights each question started from."""
    starts: list[dict[str, torch.Tensor]] = []
    usual = Run._adapt_to

    def adapting(self: Run, policy: Policy, *rest: Any, **options: Any) -> Any:
        starts.append(policy.weights())
        return usual(self, policy, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "_adapt_to", adapting)
        yield lab.run("single", {"scope": "question", "limit": 3, "optim": {"steps": 2, "lr": 0.01}}), starts


def test_each_question_starts_from_the_same_weights(single: tuple[Path, list[dict[str, torch.Tensor]]]) -> None:
    _, starts = single
    assert len(starts) == 3
    for start in starts[1:]:
        assert all(torch.equal(start[name], starts[0][name]) for name in starts[0])


def test_each_question_is_adapted_and_answered_alone(
    lab: Lab, single: tuple[Path, list[dict[str, torch.Tensor]]]
) -> None:
    output, _ = single
    steps, summary = steps_of(output), summary_of(output)
    assert [step["step"] for step in steps] == list(range(6))
    assert [{row["question_id"] for row in table(output, step)} for step in range(6)] == [
        {f"questions-{i + 1}"} for i in (0, 0, 1, 1, 2, 2)
    ]
    after = files.read_json_lines(output / "evaluation" / "after.jsonl")
    assert [item["id"] for item in after] == ["questions-1", "questions-2", "questions-3"]
    assert summary["held_out"] is None and summary["n_questions"] == 3 and summary["steps"] == 6
    assert any(step["grad_norm"] > 0 for step in steps) and not (output / "adapted").exists()


def test_a_question_alone_is_the_run_on_that_question(
    lab: Lab, single: tuple[Path, list[dict[str, torch.Tensor]]]
) -> None:
    alone = lab.run("alone", {"scope": "question", "limit": 1, "optim": {"steps": 2, "lr": 0.01}})
    assert steps_of(alone) == steps_of(single[0])[:2]


def test_the_steps_of_all_questions_are_counted_as_one_run(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        lab.run("counted", {"scope": "question", "limit": 2, "optim": {"steps": 2}, "reporting": {"images": False}})
    lines = [record.getMessage().split("  ")[0] for record in caplog.records]
    assert [line for line in lines if line.startswith("step ")] == [f"step {k}/4" for k in (1, 2, 3, 4)]


def test_lora_saves_its_adapter_and_the_merged_model(lab: Lab) -> None:
    import peft
    from safetensors.torch import load_file
    from transformers import AutoModelForImageTextToText

    folder = lab.run("lora", VARIANTS["lora"]) / "adapted"
    base = AutoModelForImageTextToText.from_pretrained(lab.model)
    merged = peft.PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload().state_dict()
    saved = AutoModelForImageTextToText.from_pretrained(folder).state_dict()
    assert saved.keys() == merged.keys()
    for name, weight in saved.items():
        torch.testing.assert_close(weight, merged[name], atol=1e-6, rtol=1e-5)
    start = load_file(lab.model / "model.safetensors")
    summary = summary_of(folder.parent)
    assert summary["trainable_parameters"] < summary["frozen_parameters"]
    changed = {
        name for name, weight in load_file(folder / "model.safetensors").items() if not weight.equal(start[name])
    }
    assert changed and all("_proj" in name and "visual" not in name for name in changed)


# Seen before anything is loaded


@pytest.mark.parametrize(
    "layer, error, words",
    [
        ({"method": {"name": "ttrl", "band_anchor": "initial"}}, ConfigError, "band_anchor=initial.*has no band"),
        ({"model": {"path": "nowhere"}}, ModelError, "nowhere"),
    ],
)
def test_a_wrong_configuration_stops_before_the_model_loads(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: Any, error: Any, words: str
) -> None:
    monkeypatch.setattr(Policy, "load", never_load)
    with pytest.raises(error, match=words):
        run(lab.config(layer), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_votes_in_the_files_are_answers_of_the_evaluation(lab: Lab) -> None:
    """One grader: a response in both places is read alike."""
    from mm_spine.processors.answers import parse
    from mm_spine.types import AnswerSpec

    for row in table(lab.run("base"), 0):
        answer: Answer | None = parse(row["text"], AnswerSpec("integer"))
        assert (answer and answer.key) == row["answer"]
