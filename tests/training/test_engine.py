"""The optimiser's memory, and activations that are recomputed instead of kept."""

from __future__ import annotations

import gc
import json
from bisect import bisect_left, bisect_right
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from adapting import MIXED, PLAIN, run
from small import digit_model, digit_policy, small_config
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile, record_function

from mm_spine.benchmarks.digits import MODEL_DIR
from mm_spine.commands.estimate import Load, read_sizes, step_bytes
from mm_spine.policy.model import Policy
from mm_spine.training.engine import Engine
from mm_spine.training.update import Updater

STAGES = [0, 1, 2, 3]


def test_adamws_moments_are_still_to_come_before_the_first_step() -> None:
    config, policy = small_config(), digit_policy()
    engine = Engine(policy, config.optim, config.engine)
    assert engine.bytes_to_come() == 2 * 4 * sum(p.numel() for p in policy.trainable().values())
    for parameter in policy.trainable().values():
        parameter.grad = torch.zeros_like(parameter)
    engine._adamw.step()
    assert engine.bytes_to_come() == 0
    engine.close()


def gradients(*layers: Any, lora: bool = False) -> tuple[dict[str, Tensor], int]:
    """The gradients of one step, and the bytes that its forwards kept for the backward, weights left out."""
    found: dict[str, Tensor] = {}
    kept: dict[int, int] = {}
    steps, forward = Engine.step, Engine.forward

    def stepping(self: Engine, lr: float) -> Any:
        found.update(self.gradients())
        return steps(self, lr)

    def keeping(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def watched(self: Engine, *arguments: Any) -> Any:
        with saved_tensors_hooks(keeping, lambda tensor: tensor):
            return forward(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "step", stepping)
        patch.setattr(Engine, "forward", watched)
        run(MIXED, {"optim": {"steps": 1}, "model": {"train": "lora" if lora else "full"}}, *layers)
    return found, sum(kept.values())


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_recomputed_activations_give_the_same_gradients_and_take_less_memory(stage: int, lora: bool) -> None:
    engine = {"zero_stage": stage}
    expected, usual = gradients({"engine": engine}, lora=lora)
    found, less = gradients({"engine": {**engine, "checkpoint_activations": True}}, lora=lora)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert float((found[name] - tensor).norm()) <= 1e-5 * float(tensor.norm()), name
    assert any(float(tensor.norm()) > 0 for tensor in expected.values())
    assert less < 0.5 * usual


@pytest.mark.parametrize("stage", [0, 3])
def test_a_whole_run_with_recomputed_activations_ends_with_the_same_weights(stage: int) -> None:
    """The sampler between the steps, KL anchor and two epochs included."""
    layers = [{"optim": {"epochs": 2}, "engine": {"zero_stage": stage}}]
    usual = run(*layers)[0].trainable()
    found = run(*layers, {"engine": {"checkpoint_activations": True}})[0].trainable()
    for name, weight in usual.items():
        assert float((found[name] - weight).norm()) <= 1e-5 * float(weight.norm()), name


@pytest.mark.parametrize("stage", [0, 3])
def test_each_layer_runs_twice_while_it_trains_and_only_then(monkeypatch: pytest.MonkeyPatch, stage: int) -> None:
    """And nothing of it is left: no layer is in training, none would drop a sampler's cache."""
    passes: list[bool] = []
    usual = Engine.__init__

    def hooked(self: Engine, policy: Policy, *rest: Any) -> None:
        for layer in policy.text.language_model.layers:
            layer.register_forward_pre_hook(lambda *ignored: passes.append(torch.is_grad_enabled()))
        usual(self, policy, *rest)

    monkeypatch.setattr(Engine, "__init__", hooked)
    engine = {"zero_stage": stage, "checkpoint_activations": True}
    policy = run(PLAIN, {"optim": {"steps": 1}, "engine": engine})[0]
    assert sum(passes) == 2 * len(policy.text.language_model.layers)
    assert not any(
        module.training or getattr(module, "gradient_checkpointing", False) for module in policy.model.modules()
    )


def test_the_tower_is_never_recomputed(monkeypatch: pytest.MonkeyPatch) -> None:
    config, policy = small_config({"engine": {"checkpoint_activations": True}}), digit_policy()
    engine = Engine(policy, config.optim, config.engine)
    assert policy.text.language_model.is_gradient_checkpointing
    assert not any(getattr(module, "gradient_checkpointing", False) for module in policy.tower.modules())
    engine.close()


def live_bytes(monkeypatch: pytest.MonkeyPatch, *layers: Any) -> list[tuple[str, int, int, int]]:
    """(region, bytes alive before, at most, after) of each backward and step of a run in bfloat16 or fp32, AdamW fused
    as on a GPU, by torch's profiler."""
    starts, steps, accumulates = Engine.__init__, Engine.step, Updater._accumulate

    def starting(self: Engine, *arguments: Any) -> None:
        starts(self, *arguments)
        for group in self._adamw.param_groups:
            group["fused"] = True

    def marked(name: str, usual: Any) -> Any:
        def call(*arguments: Any) -> Any:
            with record_function(name):
                result = usual(*arguments)
                # When reference cycles are collected is chance.
                gc.collect()
                return result

        return call

    monkeypatch.setattr(Engine, "__init__", starting)
    monkeypatch.setattr(Engine, "step", marked("step", steps))
    monkeypatch.setattr(Updater, "_accumulate", marked("backward", accumulates))
    # What other tests have left must not be freed within.
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        run(MIXED, *layers)
    events = watched.profiler.kineto_results.events()
    memory = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    times, alive = [time for time, _ in memory], np.cumsum([count for _, count in memory])
    found = []
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() in ("backward", "step"):
            first = bisect_left(times, event.start_ns())
            last = bisect_right(times, event.start_ns() + event.duration_ns())
            within = alive[first:last]
            found.append((event.name(), int(alive[first - 1]), int(within.max()), int(within[-1])))
    return found


@pytest.mark.parametrize("stage, half", [(0, False), (0, True), (1, False), (2, True)])
def test_the_memory_of_a_step_is_what_the_dry_run_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stage: int, half: bool
) -> None:
    """Within a twentieth of the weights: gradients, the optimiser's state, and the temporaries of its step."""
    if half:
        monkeypatch.setattr(small, "digit_model", lambda seed=0: digit_model(seed).bfloat16())
    # A bucket holds the whole gradient of so small a model otherwise, a second time.
    settings = tmp_path / "deepspeed.json"
    settings.write_text(json.dumps({"zero_optimization": {"reduce_bucket_size": 30_000}}))
    layers = [
        {"engine": {"zero_stage": stage, "token_budget": 40, "parity_limit": 1e9, "deepspeed": str(settings)}},
        {"model": {"dtype": "bfloat16" if half else "float32"}, "optim": {"steps": 2, "lr": 1e-6}},
    ]
    config, policy = small_config(MIXED, *layers), digit_policy()
    count = sum(p.numel() for p in policy.trainable().values())
    load = Load(count, 0, count, 0, read_sizes(MODEL_DIR), 2 if half else 4, prompt=40)
    backward, first, again, second = live_bytes(monkeypatch, *layers)
    assert [region[0] for region in (backward, first, again, second)] == ["backward", "step"] * 2
    slack = 0.05 * count * load.size
    assert again[3] - again[1] == pytest.approx(count * load.size, abs=slack)
    assert first[3] - backward[1] == pytest.approx(8 * count, abs=slack)
    assert second[2] - second[1] == pytest.approx(step_bytes(config, load), abs=slack)
