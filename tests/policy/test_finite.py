"""Numbers that are not finite stop before anything is made of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small import digit_policy
from tiny import tiny_questions

from mm_spine.config import DecodingConfig, ModelConfig
from mm_spine.policy.errors import NotFinite
from mm_spine.policy.finite import assert_finite, first_not_finite
from mm_spine.sampling.hf import HFSampler


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_first_tensor_that_is_not_finite_is_named(value: float, dtype: torch.dtype) -> None:
    broken = torch.ones(1000, dtype=dtype)
    broken[-1] = value
    assert first_not_finite([("whole", torch.ones(3, dtype=dtype)), ("broken", broken)]) == "broken"
    with pytest.raises(NotFinite, match="^broken is not finite: what and why$"):
        assert_finite([("broken", broken)], "what and why")
    assert first_not_finite([("large", torch.full((10**6,), 1e10, dtype=dtype)), ("none", torch.ones(0))]) is None


@pytest.mark.parametrize("train", ["full", "lora"])
def test_nothing_is_saved_of_a_policy_that_is_not_finite(train: str, tmp_path: Path) -> None:
    policy = digit_policy(ModelConfig.model_validate({"train": train}))
    next(iter(policy.trainable().values())).data.view(-1)[0] = float("nan")
    with pytest.raises(NotFinite, match="is not written"):
        policy.save(tmp_path / "adapted")
    assert not (tmp_path / "adapted").exists()


def test_features_that_are_not_finite_name_the_question() -> None:
    policy = digit_policy()
    next(policy.tower.parameters()).data.view(-1)[0] = float("nan")
    with pytest.raises(NotFinite, match="^q0: image 1 after the vision tower"):
        policy.prompt(tiny_questions(1)[0])


@pytest.mark.parametrize("greedy", [False, True])
def test_a_sampler_with_broken_weights_names_the_question(greedy: bool) -> None:
    policy = digit_policy()
    policy.text.language_model.norm.weight.data[0] = float("nan")
    sampler = HFSampler(policy, DecodingConfig(max_new_tokens=4))
    with pytest.raises(NotFinite, match="^q[01]: the policy's log-probs are not finite"):
        sampler.sample(tiny_questions(2), 2, step=0, purpose="test", greedy=greedy)
