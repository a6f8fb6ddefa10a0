"""lmms-eval within a run: the responses and scores of our evaluation, and no effect on the run."""

from __future__ import annotations

import logging
import os
import random
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lmms import DIGITS, asked, needed, texts_of
from small import digit_policy, small_config, write_data, write_model
from torch.distributed import distributed_c10d

from mm_spine import cli, evaluation, files
from mm_spine.benchmarks import resolve
from mm_spine.benchmarks.digits import MODEL_DIR
from mm_spine.config import ConfigError
from mm_spine.integrations import lmms_hook
from mm_spine.policy.model import Policy
from mm_spine.runs.plan import load_config
from mm_spine.runs.run import run
from mm_spine.sampling.registry import make_sampler


@needed
def test_both_evaluations_of_the_embedded_benchmark_agree_item_by_item() -> None:
    config = load_config("digits", [f"evaluation.lmms_eval=[{DIGITS}]", "evaluation.lmms_eval_limit=16"])
    policy, digits = Policy.load(MODEL_DIR), resolve("digits").load("adapt")
    results = lmms_hook.evaluate(policy, config)
    sampler = make_sampler(policy, config, config.evaluation)
    items = evaluation.evaluate(digits.questions[:16], digits.key, sampler, samples=1, split="adapt")
    rows = results["samples"][DIGITS]
    assert [row["id"] for row in rows] == [item.id for item in items]
    assert texts_of(results, DIGITS) == [item.greedy_text for item in items]
    assert [row["score"] for row in rows] == [item.greedy.score for item in items if item.greedy]
    assert lmms_hook.figures(results)[DIGITS]["score"] == evaluation.metrics(items)["greedy"]
    assert 0 < evaluation.metrics(items)["greedy"] < 1


@needed
def test_both_evaluations_of_a_folder_agree_item_by_item(folder: Path, tmp_path: Path) -> None:
    config, policy, own = asked(folder, tmp_path), digit_policy(), resolve(str(folder)).load("adapt")
    results = lmms_hook.evaluate(policy, config)
    sampler = make_sampler(policy, config, config.evaluation)
    items = evaluation.evaluate(own.questions, own.key, sampler, samples=1, split="adapt")
    (task,) = config.evaluation.lmms_eval
    assert texts_of(results, task) == [item.greedy_text for item in items]
    scores = [row.get("score") for row in results["samples"][task]]
    assert scores == [item.greedy and item.greedy.score for item in items]
    assert scores[0] is None and results["results"][task]["score,none"] == np.mean(scores[1:])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of one run without and with lmms-eval, of three steps each."""
    place = tmp_path_factory.mktemp("runs")
    model, data = write_model(place / "model"), write_data(place / "data")
    asking = asked(data, place / "tasks", lmms_eval_every=2, lmms_eval_limit=3)
    for name, layer in (("off", {}), ("on", asking.evaluation.model_dump(mode="json", exclude_unset=True))):
        # The tasks ask as a folder's run does by default.
        asked_alike = {"benchmark": str(data), "model": {"path": str(model)}, "prompt": "reason"}
        config = small_config(asked_alike, {"evaluation": layer})
        assert run(config, place / name) is not None
    return place / "off", place / "on"


@pytest.mark.slow
@needed
def test_a_run_is_the_same_to_the_bit_with_lmms_eval_on_or_off(runs: tuple[Path, Path]) -> None:
    off, on = runs
    names = ["steps.jsonl", "evaluation/before.jsonl", "evaluation/after.jsonl", "adapted/model.safetensors"]
    names += [str(path.relative_to(off)) for path in sorted(off.glob("rollouts/*"))]
    assert len(names) == 7
    assert [name for name in names if (off / name).read_bytes() != (on / name).read_bytes()] == []
    one, other = (files.read_json(folder / "summary.json") for folder in runs)
    assert one["lmms_eval"] is None
    assert one["skipped"] == other["skipped"] and one["fingerprint"] == other["fingerprint"]


@pytest.mark.slow
@needed
def test_results_of_before_between_and_after_are_in_the_runs_folder(runs: tuple[Path, Path]) -> None:
    _, on = runs
    folder = on / "evaluation" / "lmms_eval"
    assert sorted(path.name for path in folder.iterdir()) == ["after.json", "before.json", "step_000002.json"]
    summary = files.read_json(on / "summary.json")["lmms_eval"]
    for when in ("before", "after"):
        results = files.read_json(folder / f"{when}.json")
        assert lmms_hook.figures(results) == summary[when]
        items = files.read_json_lines(on / "evaluation" / f"{when}.jsonl")
        assert texts_of(results, "mm_spine_data_adapt") == [item["greedy_text"] for item in items[:3]]
        assert summary[when]["mm_spine_data_adapt"]["score"] == np.mean([i["greedy"]["score"] for i in items[:3]])


@needed
def test_nothing_of_the_process_changes(folder: Path, tmp_path: Path) -> None:
    def state() -> list[Any]:
        draws = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]  # type: ignore
        return [
            *draws,
            dict(os.environ),
            list(warnings.filters),
            logging.getLogger().level,
            distributed_c10d.default_pg_timeout,
        ]

    before = state()
    with lmms_hook.unchanged():
        random.random(), np.random.random(), torch.rand(1)
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
        warnings.filterwarnings("ignore")
        logging.getLogger().setLevel(1)
        distributed_c10d.default_pg_timeout = None
    assert state() == before
    lmms_hook.evaluate(digit_policy(), asked(folder, tmp_path))
    assert state() == before


@needed
def test_a_task_that_fails_ends_no_run_that_has_trained(folder: Path, tmp_path: Path) -> None:
    config = asked(folder, tmp_path)
    (tmp_path / f"{config.evaluation.lmms_eval[0]}.yaml").write_text("task: mm_spine_scans_adapt\noutput_type: talk\n")
    with pytest.raises(ConfigError, match=r"evaluation\.lmms_eval: ValueError: .*output_type 'talk'"):
        lmms_hook.evaluate(digit_policy(), config)
    found = lmms_hook.evaluate(digit_policy(), config, strict=False)
    assert "output_type 'talk'" in found["error"] and lmms_hook.figures(found) == {}


def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *overrides: str) -> str:
    """What `mm-spine adapt digits` says before it ends with exit code 2, no model loaded."""
    command = ["mm-spine", "adapt", "digits", "--output", "nowhere", *overrides]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(Policy, "load", lambda *args, **kwargs: pytest.fail("the model was loaded before the check"))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_without_lmms_eval_the_extra_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmms_hook, "find_spec", lambda name: None)
    said = refused(capsys, monkeypatch, f"evaluation.lmms_eval=[{DIGITS}]")
    install = 'pip install -c constraints.txt "mm-spine[eval]"'
    assert said.startswith("mm-spine: evaluation.lmms_eval: ") and said.endswith(install)


@needed
@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["evaluation.lmms_eval_tasks=absent"], "evaluation.lmms_eval_tasks=absent: no such folder"),
        (["scope=question"], "needs scope=dataset"),
    ],
)
def test_what_cannot_be_asked_of_lmms_eval_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, overrides: list[str], why: str
) -> None:
    assert why in refused(capsys, monkeypatch, f"evaluation.lmms_eval=[{DIGITS}]", *overrides)


@needed
def test_an_unknown_task_is_named_with_the_nearest(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmms_hook, "_task_manager", lambda settings: SimpleNamespace(all_tasks=["pope", DIGITS]))
    said = refused(capsys, monkeypatch, "evaluation.lmms_eval=[pope, mm_spine_digit_adapt]")
    assert f"no task 'mm_spine_digit_adapt'; did you mean '{DIGITS}'? see `lmms-eval --tasks list`" in said
