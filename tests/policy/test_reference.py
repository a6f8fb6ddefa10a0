"""The KL anchor: the starting policy's hidden states, while the trained weights stay."""

from __future__ import annotations

import pytest
import torch
from plain import (
    LORA,
    OPTIONS,
    make_step,
    perturb,
)
from tiny import (
    TEMPERATURE,
    tiny_policy,
)

from mm_spine.config import ModelConfig
from mm_spine.policy.distribution import Distribution
from mm_spine.policy.reference import Reference
from mm_spine.training.batch import collate, trained_groups
from mm_spine.training.loss import DIVERGENCES


@pytest.mark.parametrize("config", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("tied", [True, False])
def test_anchor_is_the_starting_policy_and_leaves_the_weights_alone(config: ModelConfig | None, tied: bool) -> None:
    policy, start = tiny_policy(5, config, tied), tiny_policy(5, config, tied)
    reference = Reference(policy)
    perturb(policy, 0.1, seed=1)
    moved = policy.weights()
    micro = collate(policy, trained_groups(*make_step(), OPTIONS))
    anchor = reference.anchor(micro.packed, DIVERGENCES["exact"])
    assert all(torch.equal(p, moved[name]) for name, p in policy.trainable().items())
    assert torch.equal(anchor.hidden_SD, start.text.trunk(micro.packed))
    assert torch.equal(anchor.weight_VD, start.text.head.weight)
    assert not anchor.hidden_SD.requires_grad
    assert not torch.equal(anchor.hidden_SD, policy.text.trunk(micro.packed))


def test_anchor_puts_the_weights_back_when_its_forward_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    reference = Reference(policy)
    perturb(policy, 0.1, seed=1)
    moved = policy.weights()
    monkeypatch.setattr(policy.text, "trunk", lambda batch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        reference.anchor(collate(policy, trained_groups(*make_step(), OPTIONS)).packed, DIVERGENCES["exact"])
    assert all(torch.equal(p, moved[name]) for name, p in policy.trainable().items())


def test_divergence_from_an_unchanged_reference_is_zero() -> None:
    policy = tiny_policy()
    micro = collate(policy, trained_groups(*make_step(), OPTIONS))
    anchor = Reference(policy).anchor(micro.packed, DIVERGENCES["exact"])
    trained = policy.text(micro.packed, Distribution(TEMPERATURE, policy.banned), anchor)
    assert trained.kl_NT.abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_anchor_follows_the_policy_by_a_moving_average(dtype: torch.dtype) -> None:
    """After two moves at decay 0.9: 0.81 start + 0.09 first + 0.1 second. In bf16 the average is kept in fp32."""
    policy = tiny_policy()
    policy.text.to(dtype)
    start, reference = policy.weights(), Reference(policy)
    seen = []
    for seed in (1, 2):
        perturb(policy, 0.1, seed)
        seen.append(policy.weights())
        reference.follow(0.9)
    state = reference.state()
    assert state.keys() == start.keys() and all(weight.dtype == torch.float32 for weight in state.values())
    for name, weight in state.items():
        expected = 0.81 * start[name].float() + 0.09 * seen[0][name].float() + 0.1 * seen[1][name].float()
        torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(p, seen[1][name]) for name, p in policy.trainable().items())


def test_an_anchor_that_is_restored_goes_on_as_if_it_had_not_been_away() -> None:
    policy = tiny_policy()
    policy.text.to(torch.bfloat16)
    reference = Reference(policy)
    perturb(policy, 0.1, seed=1)
    reference.follow(0.9)
    other = Reference(policy)
    other.restore({name: weight.clone() for name, weight in reference.state().items()})
    perturb(policy, 0.1, seed=2)
    for each in (reference, other):
        each.to_host()
        each.follow(0.9)
        each.to_card()
    micro = collate(policy, trained_groups(*make_step(), OPTIONS))
    mine, its = (each.anchor(micro.packed, None) for each in (other, reference))
    assert torch.equal(mine.hidden_SD, its.hidden_SD) and torch.equal(mine.weight_VD, its.weight_VD)
    assert all(torch.equal(weight, other.state()[name]) for name, weight in reference.state().items())
