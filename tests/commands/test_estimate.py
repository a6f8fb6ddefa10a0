"""What a run takes by arithmetic: bytes, parameters and tokens, counted by hand and on the loaded model."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from families import ask
from safetensors.torch import save_file
from tiny import tiny_model, tiny_processor
from torch.profiler import ProfilerActivity, profile

from mm_spine.benchmarks.digits import MODEL_DIR
from mm_spine.commands.estimate import (
    Load,
    Sizes,
    count_adapter,
    count_parameters,
    describe,
    estimate,
    load_of,
    read_sizes,
    step_bytes,
)
from mm_spine.config import LoraConfig, ModelConfig
from mm_spine.methods.table import configure
from mm_spine.policy.distribution import Distribution
from mm_spine.policy.model import DTYPES, Policy
from mm_spine.policy.packed import Branches, pack
from mm_spine.training.engine import Engine


@pytest.fixture
def small_model(tmp_path: Path) -> Path:
    """100 text, 20 tower and 6 merger parameters; sizes worked with by hand below."""
    text = {"hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 10}
    sizes = {**text, "num_hidden_layers": 3, "vocab_size": 20}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl", "text_config": sizes}))
    save_file({"model.w": torch.zeros(10, 9), "visual.w": torch.zeros(4, 5)}, tmp_path / "a.safetensors")
    save_file({"model.b": torch.zeros(10), "visual.merger.w": torch.zeros(2, 3)}, tmp_path / "b.safetensors")
    return tmp_path


SMALL_STEP: dict[str, Any] = {
    "sampling": {"votes": 4, "train_rollouts": 2, "max_new_tokens": 5},
    "optim": {"questions_per_step": 3, "steps": 7},
}


def test_bytes_of_full_training_by_hand(small_model: Path) -> None:
    config = configure({**SMALL_STEP, "model": {"dtype": "bfloat16"}, "method": {"name": "spine"}})
    assert estimate(config, small_model) == {
        "parameters_trainable": 100,
        "parameters_frozen": 26,
        "parameters_tower_and_merger": 26,
        "bytes_weights": 126 * 2,
        "bytes_zero3_copy": 0,
        "bytes_gradients": 100 * 2,
        "bytes_gradients_while_adding_up": 100 * 2,
        "bytes_optimizer": 100 * (4 + 4 + 4),  # two fp32 moments and the fp32 copy of bf16 weights
        "bytes_optimizer_step": 100 * (2 + 4),  # all gradients in one tensor, and in fp32
        "bytes_saving": 0,  # the weights are written as they are
        "bytes_reference": 100 * 2,  # one copy of what trains
        "bytes_sampler_weights": 0,
        "bytes_cache_of_responses": 3 * 4 * 5 * (3 * 2 * 4) * 2,  # tokens x (layers x k and v x key width)
        "bytes_activations_per_packed_token": 3 * (2 * 64 + 48 + 80) + 48,  # layers, and the last norm
        "bytes_activations_at_most": 390 * 816,  # all tokens of the step: 3 x (a prompt of 120, 2 x 5)
        # Ten tensors of all logits; hidden states three times; the head's gradient and its sum in fp32.
        "bytes_head_at_most": 10 * 390 * 20 * 4 + 3 * 390 * 8 * 2 + 20 * 8 * (2 + 4),
        "steps": 7,
        "rollouts_per_step": 12,
        "tokens_sampled_per_step_at_most": 60,
        "response_tokens_trained_per_step_at_most": 30,
    }


@pytest.mark.parametrize(
    ("stage", "state", "copy", "step"), [(0, 800, 0, 0), (1, 1200, 0, 400), (2, 1200, 0, 400), (3, 1200, 400, 400)]
)
def test_bytes_of_fp32_by_zero_stage(small_model: Path, stage: int, state: int, copy: int, step: int) -> None:
    config = configure({**SMALL_STEP, "engine": {"zero_stage": stage}, "method": {"name": "rent"}})
    found = estimate(config, small_model)
    assert (found["bytes_weights"], found["bytes_gradients"]) == (126 * 4, 400)
    assert (found["bytes_optimizer"], found["bytes_zero3_copy"], found["bytes_reference"]) == (state, copy, 0)
    assert (found["bytes_gradients_while_adding_up"], found["bytes_optimizer_step"]) == (400, step)


def allocated_by(work: Callable[[], object]) -> int:
    """Return the most bytes that torch had allocated at a time during `work`, beyond those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        work()
    events = watched.profiler.kineto_results.events()  # type: ignore[union-attr]
    return max(accumulate((event.nbytes() for event in events if event.name() == "[memory]"), initial=0))


@pytest.mark.parametrize(
    ("dtype", "stage"), [("float32", 0), ("float32", 1), ("float32", 3), ("bfloat16", 0), ("bfloat16", 3)]
)
def test_a_fused_step_allocates_what_is_estimated(dtype: str, stage: int) -> None:
    model = ModelConfig.model_validate({"dtype": dtype})
    policy = Policy(tiny_model(0, True, "qwen2").to(DTYPES[model.dtype]), tiny_processor("qwen2"), model)
    config = configure({"model": model.model_dump(), "engine": {"zero_stage": stage}})
    engine = Engine(policy, config.optim, config.engine)
    # As on a GPU; on a CPU torch's default has temporaries of its own.
    for group in engine._adamw.param_groups:
        group["fused"] = True
    (question,) = ask("qwen2", (0,))
    batch = pack([Branches(policy.prompt(question), [torch.tensor([3, 4, 5])], [torch.ones(3, dtype=torch.bool)])])
    # The first step allocates the moments, too.
    for _ in range(2):
        engine.backward(-engine.forward(batch, Distribution(1.0), None).stats.logp_NT.sum(), True)
        found = allocated_by(lambda: engine.step(1e-3))
    engine.close()
    trained = sum(parameter.numel() for parameter in policy.trainable().values())
    load = Load(trained, 0, trained, 0, Sizes(0, 0, 0, 0, 0, 0), policy.text.head.weight.element_size(), 0)
    # Norms and flags of single numbers, and padding, are not in the estimate.
    assert step_bytes(config, load) <= found <= step_bytes(config, load) + 0.01 * trained


def test_bytes_of_lora_by_hand(small_model: Path) -> None:
    model = {"dtype": "bfloat16", "train": "lora", "lora": {"rank": 2}}
    found = estimate(configure({**SMALL_STEP, "model": model}), small_model)
    # q, o: 8 to 8; k, v: 8 to 4; gate, up, down: between 8 and 10
    adapter = 2 * 3 * (2 * 16 + 2 * 12 + 3 * 18)
    assert adapter == 660
    assert (found["parameters_trainable"], found["parameters_frozen"]) == (660, 126)
    assert (found["bytes_weights"], found["bytes_gradients"], found["bytes_optimizer"]) == (786 * 2, 1320, 660 * 12)
    assert found["bytes_reference"] == 660 * 2
    # All layers' merged weights, less than a file of 1 GiB; gate's product of adapters in fp32, and scaled.
    assert found["bytes_saving"] == 3 * 8 * (2 * 8 + 2 * 4 + 3 * 10) * 2 + 2 * 4 * 8 * 10


def test_few_rows_at_a_time_bound_the_cache_and_no_method_takes_nothing(small_model: Path) -> None:
    sampling = {**SMALL_STEP["sampling"], "batch_rows": 9}
    found = estimate(configure({**SMALL_STEP, "sampling": sampling}), small_model)
    assert found["bytes_cache_of_responses"] == 9 * 5 * 24 * 4
    limited = {**SMALL_STEP["sampling"], "kv_cache_gb": 1e-6}
    assert estimate(configure({**SMALL_STEP, "sampling": limited}), small_model)["bytes_cache_of_responses"] == 1000
    idle = estimate(configure({**SMALL_STEP, "method": {"name": "none"}}), small_model)
    kept = {"parameters_frozen": 126, "parameters_tower_and_merger": 26, "bytes_weights": 126 * 4}
    assert idle == dict.fromkeys(idle, 0) | kept


def test_vllm_holds_the_text_weights_once_more_and_its_cache_at_once(small_model: Path) -> None:
    sampling = {**SMALL_STEP["sampling"], "backend": "vllm", "vllm": {"kv_cache_gb": 3}}
    found = estimate(configure({**SMALL_STEP, "sampling": sampling}), small_model)
    assert (found["bytes_sampler_weights"], found["bytes_cache_of_responses"]) == (100 * 4, 3 * 2**30)


def test_a_prompt_has_as_many_image_tokens_as_the_processor_allows(small_model: Path) -> None:
    """28 x 28 pixels a token: 16,384 of them where no file says less, 64 in the shipped model, or what the key says."""
    sizes = json.loads((small_model / "config.json").read_text())
    (small_model / "config.json").write_text(json.dumps({**sizes, "vision_config": {"patch_size": 14}}))
    config, limited = configure(), configure({"model": {"max_pixels": 10 * 784}})
    assert load_of(config, describe(small_model)).prompt == 120 + 16384
    assert load_of(limited, describe(small_model)).prompt == 120 + 10
    assert load_of(config, describe(MODEL_DIR)).prompt == 120 + 64
    (small_model / "preprocessor_config.json").write_text(json.dumps({"max_pixels": 5 * 784}))
    assert load_of(config, describe(small_model)).prompt == 120 + 5


def test_sizes_of_an_older_config_stand_on_top(small_model: Path) -> None:
    nested = read_sizes(small_model)
    assert nested == Sizes(layers=3, hidden=8, queries=8, keys=4, ffn=10, vocabulary=20)
    text = json.loads((small_model / "config.json").read_text())["text_config"]
    (small_model / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl", **text}))
    assert read_sizes(small_model) == nested


@pytest.mark.parametrize("model", [{}, {"train_merger": True}, {"train": "lora", "lora": {"rank": 3}}])
def test_the_arithmetic_counts_what_the_loaded_model_has(model: dict[str, Any]) -> None:
    config = configure({"model": model})
    found = estimate(config, MODEL_DIR)
    policy = Policy.load(MODEL_DIR, ModelConfig(**model))
    assert (found["parameters_trainable"], found["parameters_frozen"]) == policy.count_parameters()
    assert found["parameters_tower_and_merger"] == sum(p.numel() for p in policy.tower.parameters())
    assert sum(count_parameters(MODEL_DIR).values()) == found["parameters_trainable"] + found["parameters_frozen"] - (
        count_adapter(read_sizes(MODEL_DIR), LoraConfig(rank=3)) if model.get("train") == "lora" else 0
    )
