"""The optimiser's memory, and activations that are recomputed instead of kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from adapting import MIXED, PLAIN, run
from small import digit_policy, small_config
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from mm_spine.policy.model import Policy
from mm_spine.training.engine import Engine

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
