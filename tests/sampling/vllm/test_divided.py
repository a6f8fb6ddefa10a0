"""vLLM samples for two ranks that divide the weights: the steps are those of one process with whole weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from small import BASE, write_data, write_model
from tiny import TINY_CONFIGS
from vllm_policies import needs_vllm, with_wide_heads

from mm_spine import files

ROOT = Path(__file__).resolve().parents[3]
TIMEOUT = 600


def steps(folder: Path, name: str, processes: int, engine: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of steps.jsonl of a run of two steps."""
    layers = {
        **BASE,
        "benchmark": str(folder / "data"),
        "model": {"path": str(folder / "model")},
        "engine": engine,
        "sampling": {**BASE["sampling"], "backend": "vllm"},
        "optim": {"steps": 2, "questions_per_step": 3, "lr": 0.0005},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(layers))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    usual = {k: v for k, v in os.environ.items() if k not in {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"}}
    arguments = ["-m", "mm_spine.cli", "adapt", str(folder / f"{name}.yaml"), "--output", str(folder / name)]
    done = subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), *arguments],
        env={**usual, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=TIMEOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return files.read_json_lines(folder / name / "steps.jsonl")


@needs_vllm
@pytest.mark.slow
def test_divided_weights_give_the_steps_of_whole_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = TINY_CONFIGS["qwen2_5_vl"]
    monkeypatch.setitem(TINY_CONFIGS, "qwen2_5_vl", lambda tied: with_wide_heads("qwen2_5_vl", tied, usual))
    write_model(tmp_path / "model")
    # Three questions for two ranks: one of them samples without the other.
    write_data(tmp_path / "data", golds="12121")
    # DeepSpeed would keep weights as small as these whole.
    (tmp_path / "deepspeed.json").write_text(
        json.dumps({"zero_optimization": {"stage3_param_persistence_threshold": 0}})
    )
    divided = {"zero_stage": 3, "keep_whole": False, "deepspeed": str(tmp_path / "deepspeed.json")}
    found, expected = steps(tmp_path, "divided", 2, divided), steps(tmp_path, "whole", 1, {})
    assert len(found) == len(expected) == 2
    for two, one in zip(found, expected, strict=True):
        for name in ("rollouts_sampled", "tokens_sampled", "tokens_trained"):
            assert two[name] == one[name]
        for name in ("loss", "loss_kl", "grad_norm", "entropy_mean"):
            assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6)
        assert two["parity_max"] < 1e-4
    assert (tmp_path / "divided" / "adapted" / "model.safetensors").is_file()
