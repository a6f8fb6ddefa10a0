"""A run in its folder: resumed to the bit, and nothing overwritten."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lab import VARIANTS, Interrupting, Lab, assert_same, never_load, steps_of, summary_of, terminate, traces

from mm_spine.config import ConfigError
from mm_spine.policy.model import Policy
from mm_spine.runs.folder import check_same_config
from mm_spine.runs.plan import load_config
from mm_spine.runs.run import run


def crash() -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_crashed_run_resumes_from_its_last_checkpoint(lab: Lab) -> None:
    """Step 3 was written but not checkpointed, a checkpoint and a line are torn: all of that is done again."""
    config = lab.config(VARIANTS["spine"], {"checkpoint": {"every": 1}})
    output = lab.folder / "stopped" / "crashed"
    with pytest.raises(KeyboardInterrupt):
        run(config, output, listener=Interrupting(2, crash))
    assert len(steps_of(output)) == 3
    checkpoints = output / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step_000001", "step_000002"]
    shutil.copytree(checkpoints / "step_000002", checkpoints / "writing")
    (checkpoints / "writing" / "weights.safetensors").write_bytes(b"torn")
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
        ({"prompt": {"system": "Be exact."}}, "prompt.system was None, now 'Be exact.'"),
        ({"prompt": {"template_arguments": {"x": 1}}}, "prompt.template_arguments.x was None, now 1"),
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


def test_a_run_saved_before_prompt_was_a_section_is_resumed_with_the_same_prompt_only() -> None:
    now = load_config("digits").model_dump(mode="json")
    check_same_config({**now, "prompt": "reason"}, now, Path("config.yaml"))
    with pytest.raises(ConfigError, match="prompt.style was 'short', now 'reason'"):
        check_same_config({**now, "prompt": "short"}, now, Path("config.yaml"))


@pytest.mark.slow
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
