"""Two ranks that divide the weights take the step of one process, and neither ever holds all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from divided import one_step
from ranks import CASES, STEP, save_rollouts
from safetensors.torch import load_file
from small import small_config, write_model

from mm_spine.config import ConfigError
from mm_spine.policy.model import Policy
from mm_spine.runs.fingerprint import starting_weights
from mm_spine.runs.plan import check
from mm_spine.sampling.vllm.weights import served_weights

TIMEOUT = 600


def launch(folder: Path, train: str) -> None:
    """The worker under torchrun, on two processes."""
    worker = Path(__file__).parents[1] / "divided.py"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    usual = {k: v for k, v in os.environ.items() if k not in {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"}}
    done = subprocess.run(
        [sys.executable, *launcher, str(worker), str(folder), train],
        env={**usual, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(worker.parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=TIMEOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("train", ["full", "lora"])
def test_divided_weights_take_the_same_step_and_are_never_whole_on_a_rank(train: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    save_rollouts(tmp_path / "rollouts.pt")
    launch(tmp_path, train)
    ranks: list[dict[str, Any]] = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1)]

    # One process with whole weights.
    config = small_config(STEP, CASES["epochs"], {"model": {"path": str(model), "train": train}})
    policy = Policy.load(model, config.model, 0)
    start, counts = starting_weights(policy), policy.count_parameters()
    expected = one_step(policy, config, torch.load(tmp_path / "rollouts.pt", weights_only=False))
    served = dict(served_weights(policy))

    for found in ranks:
        assert found["partitioned"] and found["start"] == start and found["counts"] == counts
        assert found["whole_while_loading"] == 1
        # The embedding alone is a third of this model.
        assert found["looks"] > 100 and 0.1 < found["share"] < 0.5, found["share"]
        assert len(found["gradients"]) == len(expected["gradients"]) == 2
        for gradients, whole in zip(found["gradients"], expected["gradients"], strict=True):
            _assert_close(gradients, whole)
        _assert_close(found["served"], served)
        for name in ("entropy_mean", "loss", "loss_kl"):
            assert found["report"][name] == pytest.approx(expected["report"][name], rel=1e-4), name
    # What rank 0 has saved are whole weights, merged.
    policy.save(tmp_path / "whole")
    one, two = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", tmp_path / "run" / "adapted")
    )
    _assert_close(two, one)
    if train == "lora":
        one, two = (
            load_file(folder / "adapter" / "adapter_model.safetensors")
            for folder in (tmp_path / "whole", tmp_path / "run" / "adapted")
        )
        _assert_close(two, one)


def _assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Equal up to rounding: AdamW makes a visible part of its learning rate of the last bits of a gradient."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape, name
        assert float((found[name] - tensor).norm()) <= 1e-3 * max(float(tensor.norm()), 1e-6), name


BACKEND = {"sampling": {"backend": "vllm"}}


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"engine": {"zero_stage": 2}}, "only engine.zero_stage=3 divides"),
        ({"sampling": {"backend": "hf"}}, "sampling.backend=hf reads whole weights.*set sampling.backend=vllm"),
        ({"model": {"train_merger": True}}, "model.train_merger=true reads"),
        ({"engine": {"zero_stage": 3, "measure_update": True}}, "engine.measure_update=true reads"),
    ],
)
def test_what_needs_whole_weights_is_refused_before_a_model_loads(
    layers: dict[str, Any], message: str, nothing_loads: None
) -> None:
    divided = {"engine": {"zero_stage": 3, "keep_whole": False}, **BACKEND, "benchmark": "digits"}
    config = small_config(divided, layers, {"engine": {"keep_whole": False}})
    with pytest.raises(ConfigError, match=message):
        check(config)
