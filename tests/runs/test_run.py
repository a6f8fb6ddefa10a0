"""Whole runs: the label firewall, repeatability, what stays frozen, what is saved, one adaptation per question."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lab import VARIANTS, Interrupting, Lab, assert_same, steps_of, summary_of, table, traces
from small import golds_of, write_data

from mm_spine import files
from mm_spine.policy.errors import FrozenError
from mm_spine.policy.model import Policy
from mm_spine.runs.plan import load_config
from mm_spine.runs.run import Run, run
from mm_spine.types import Answer

# The firewall


@pytest.mark.slow
def test_a_scrambled_key_changes_no_bit_of_the_training(lab: Lab) -> None:
    wrong = write_data(lab.folder / "scrambled", golds="345678", held_out="90")
    true, scrambled = lab.run("base"), lab.run("scrambled", data=wrong)
    assert_same(true, scrambled)
    assert summary_of(true)["before"]["pass_at_1"] > 0 == summary_of(scrambled)["before"]["pass_at_1"]
    assert any(step["grad_norm"] > 0 for step in steps_of(true))


@pytest.mark.slow
def test_no_key_at_all_changes_no_bit_either(lab: Lab) -> None:
    data = write_data(lab.folder / "unlabelled")
    for path in data.glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "answer"}) + "\n" for row in rows))
    unlabelled = lab.run("unlabelled", data=data)
    assert_same(lab.run("base"), unlabelled)
    assert summary_of(unlabelled)["after"]["pass_at_1"] is None
    assert summary_of(unlabelled)["after"]["mean_length"] > 0


@pytest.mark.slow
def test_evaluation_changes_no_bit_of_the_training(lab: Lab) -> None:
    """One question instead of all, none held out, more samples; and an evaluation that never runs."""
    less = {"evaluation": {"limit": 1, "held_out": False, "samples": 3, "max_new_tokens": 3}}
    assert_same(lab.run("base"), lab.run("less-evaluation", less))
    shared = lab.run("shared-before", {"evaluation": {"before": str(lab.run("base"))}})
    assert_same(lab.run("base"), shared)


def test_the_oracle_is_rewarded_by_the_truth_and_stamped(lab: Lab) -> None:
    output = lab.run("oracle", {"method": "oracle"}, allow_labels=True)
    assert summary_of(output)["label_free"] is False
    gold = {f"questions-{i + 1}": golds_of(digit) for i, digit in enumerate("121212")}
    rows = [row for step in range(3) for row in table(output, step)]
    assert all(row["reward"] == float(row["answer"] in gold[row["question_id"]]) for row in rows)
    assert any(row["reward"] != float(row["answer"] == row["vote"]) for row in rows)
    assert summary_of(lab.run("base"))["label_free"] is True


# Repeatability and resuming


@pytest.mark.slow
def test_the_same_seed_is_the_same_run_and_another_is_not(lab: Lab) -> None:
    again = lab.run("again")
    assert_same(lab.run("base"), again)
    for name in ("before", "after"):
        path = f"evaluation/{name}.jsonl"
        assert (lab.run("base") / path).read_bytes() == (again / path).read_bytes()
    other = traces(lab.run("seed1", {"seed": 1}))
    assert all(other[name] != content for name, content in traces(again).items())


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_question_alone_is_the_run_on_that_question(
    lab: Lab, single: tuple[Path, list[dict[str, torch.Tensor]]]
) -> None:
    alone = lab.run("alone", {"scope": "question", "limit": 1, "optim": {"steps": 2, "lr": 0.01}})
    assert steps_of(alone) == steps_of(single[0])[:2]


@pytest.mark.slow
def test_the_steps_of_all_questions_are_counted_as_one_run(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        lab.run("counted", {"scope": "question", "limit": 2, "optim": {"steps": 2}, "reporting": {"images": False}})
    lines = [record.getMessage().split("  ")[0] for record in caplog.records]
    assert [line for line in lines if re.match(r"step \d+/", line)] == [f"step {k}/4" for k in (1, 2, 3, 4)]


@pytest.mark.slow
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


def test_votes_in_the_files_are_answers_of_the_evaluation(lab: Lab) -> None:
    """One grader: a response in both places is read alike."""
    from mm_spine.processors.answers import parse
    from mm_spine.types import AnswerSpec

    for row in table(lab.run("base"), 0):
        answer: Answer | None = parse(row["text"], AnswerSpec("integer"))
        assert (answer and answer.key) == row["answer"]
