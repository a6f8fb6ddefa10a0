"""Whether a run fits on a card: the shipped configuration of SLAKE with Qwen2.5-VL, worked by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from public_configs import DESCRIBED, OTHER_FAMILIES, write_config

from mm_spine.commands import card
from mm_spine.commands.card import CARDS, advice, decoding_seconds, find_card, peak, phases, seconds, shortage
from mm_spine.commands.estimate import describe, load_of, micro_batch_tokens
from mm_spine.config import ConfigError
from mm_spine.runs.plan import load_config

GB = 10**9
TEXT_3B, ALL_3B = 3_085_938_688, 3_754_622_976
TEXT_7B, ALL_7B = 7_615_616_512, 8_292_166_656
PROMPT = 1280 + 120


def slake(*overrides: str) -> Any:
    return load_config("slake", overrides)


def totals(name: str, where: str, *overrides: str) -> dict[str, int]:
    """Phase -> bytes."""
    config = slake(*overrides)
    found = phases(config, load_of(config, DESCRIBED[name]), CARDS[where])
    return {phase: sum(parts.values()) for phase, parts in found.items()}


@pytest.mark.parametrize("name", OTHER_FAMILIES)
def test_released_models_of_other_families_are_counted(tmp_path: Path, name: str) -> None:
    _, parameters, image_tokens = OTHER_FAMILIES[name]
    found = describe(write_config(tmp_path, name))
    assert sum(found.counts.values()) == parameters
    assert found.image.within(None) == image_tokens


@pytest.mark.parametrize("name", ["3B", "7B"])
def test_the_config_is_enough_to_describe_a_model(tmp_path: Path, name: str) -> None:
    """Parameters as the model cards count them, from a model without memory for weights."""
    assert describe(write_config(tmp_path, name)) == DESCRIBED[name]


def test_full_3b_with_vllm_beside_it_on_one_card_of_80_gb() -> None:
    """The shipped configuration, sampled with vLLM: optimiser state and anchor wait on the host."""
    config = slake("sampling.backend=vllm")
    found = phases(config, load_of(config, DESCRIBED["3B"]), CARDS["h100-80"])
    weights, state, one = ALL_3B * 2, TEXT_3B * (8 + 4), TEXT_3B * 2
    idle = {"weights": weights, "optimiser": 0, "anchor": 0, "temporaries": 0}
    assert found["sample"] == idle | {"vLLM": int(0.45 * 80 * GB)}
    # Of a token 36 layers keep their input, and one layer all its activations.
    a_token = 36 * 2048 * 2 + (2 * 2048 * 8 + 2 * 2 * (2048 + 256) + 8 * 11008) + 2048 * 8 - 2048 * 2
    # Ten chunks of logits, hidden states three times, and the head's gradient in bf16 beside its sum in fp32.
    head = 10 * 64 * 2**20 + 3 * 8192 * 2048 * 2 + 151936 * 2048 * (2 + 4)
    assert found["backward"] == {
        "weights": weights,
        "optimiser": state,
        "vLLM": GB,
        "anchor": one,
        "gradients": 2 * one,
        "activations": 8192 * a_token,
        "head": head,
    }
    assert found["step"] == {
        "weights": weights,
        "optimiser": state,
        "vLLM": GB,
        "anchor": 0,
        "gradients": one,
        "temporaries": TEXT_3B * (2 + 4),
    }
    assert peak(found) == sum(found["step"].values()) == 70_228_019_712 < 72 * GB
    assert shortage(config, DESCRIBED["3B"], CARDS["h100-80"]) is None


def test_the_transformers_sampler_needs_no_offload_on_that_card() -> None:
    assert totals("3B", "h100-80")["step"] == 70_228_019_712 - GB + TEXT_3B * 2 < 76 * GB


def test_lora_of_7b_on_a_card_of_24_gb() -> None:
    adapter = 16 * 28 * (2 * (3584 + 3584) + 2 * (3584 + 512) + 3 * (3584 + 18944))
    weights, state, one = (ALL_7B + adapter) * 2, adapter * 12, adapter * 2
    config = slake("model.train=lora")
    found = phases(config, load_of(config, DESCRIBED["7B"]), CARDS["rtx4090-24"])
    a_token = 28 * 3584 * 2 + (2 * 3584 * 8 + 2 * 2 * (3584 + 512) + 8 * 18944) + 3584 * 8 - 3584 * 2
    # The cache is at its limit; beside it a draw, and a layer of the cache while rows join.
    assert found["sample"] == {
        "weights": weights,
        "optimiser": state,
        "anchor": one,
        "key-value cache": 4 * GB,
        "temporaries": 8 * 64 * 2**20 + 4 * GB // 28,
    }
    assert found["backward"]["activations"] == 8192 * a_token
    assert found["backward"]["head"] == 10 * 64 * 2**20 + 3 * 8192 * 3584 * 2
    assert found["save"]["temporaries"] == 2**30 + 2 * 4 * 3584 * 18944
    assert max(totals("7B", "l4-24", "model.train=lora").values()) == peak(found) < 22 * GB
    assert shortage(config, DESCRIBED["7B"], CARDS["rtx4090-24"]) is None


@pytest.mark.parametrize("budget", [1, 2048, 8192, 16384])
def test_many_long_responses_of_a_question_are_bound_by_the_budget(budget: int) -> None:
    """32 x 3,072 tokens of the 3B fit on 80 GB: a micro-batch is the budget, or one response with its prompt."""
    long = ("sampling.votes=32", "sampling.train_rollouts=32", "sampling.max_new_tokens=3072")
    config = slake(*long, "sampling.backend=vllm", f"engine.token_budget={budget}")
    load = load_of(config, DESCRIBED["3B"])
    assert micro_batch_tokens(config, load) == max(budget, PROMPT + 3072)
    assert peak(phases(config, load, CARDS["h100-80"])) < 76 * GB


def test_a_whole_step_may_be_less_than_the_budget() -> None:
    config = slake("optim.questions_per_step=1", "sampling.max_new_tokens=16", "engine.token_budget=auto")
    load = load_of(config, DESCRIBED["3B"])
    assert micro_batch_tokens(config, load) == PROMPT + 16
    small = slake("optim.questions_per_step=1", "sampling.max_new_tokens=16")
    assert micro_batch_tokens(small, load) == PROMPT + 8 * 16


def test_what_does_not_fit_says_what_to_change() -> None:
    whole, vllm = slake("sampling.backend=vllm"), slake("sampling.backend=vllm", "model.train=lora")
    assert shortage(whole, DESCRIBED["3B"], CARDS["a100-40"]) == "70.2 GB are more than 38.0 GB"
    assert advice(whole, DESCRIBED["3B"], CARDS["a100-40"]) == ["model.train=lora"]
    # 16.7 GB of weights and 10.8 of vLLM's share; the share is also less than vLLM's own 15.3 GB of weights.
    why = shortage(vllm, DESCRIBED["7B"], CARDS["rtx4090-24"])
    assert why == "vLLM's share of 10.8 GB is less than the 16.5 GB that it needs"
    assert advice(vllm, DESCRIBED["7B"], CARDS["rtx4090-24"]) == ["sampling.backend=hf"]
    apart = slake("sampling.backend=vllm", "engine.offload_while_sampling=false")
    # What changes no result comes first, what trains another model last.
    assert advice(apart, DESCRIBED["3B"], CARDS["h100-80"]) == [
        "engine.offload_while_sampling=true",
        "sampling.backend=hf",
        "model.train=lora",
    ]
    kept = slake("engine.checkpoint_activations=false", "model.train=lora", "engine.token_budget=4096")
    assert "engine.checkpoint_activations=true" in advice(kept, DESCRIBED["7B"], CARDS["rtx4090-24"])


def test_settings_that_are_needed_together_and_cards_that_are_too_small() -> None:
    """8.29 G parameters in fp32 are 33 GB; in bf16 with adapters they fit."""
    config = slake("model.dtype=float32", "sampling.backend=vllm")
    (line,) = advice(config, DESCRIBED["7B"], CARDS["rtx4090-24"])
    assert {"model.dtype=bfloat16", "model.train=lora", "sampling.backend=hf"} <= set(line.split())
    small = CARDS["l4-24"]._replace(gb=12)
    assert advice(slake("model.train=lora"), DESCRIBED["7B"], small) == []


def test_seconds_by_hand() -> None:
    config = slake()
    load, h100 = load_of(config, DESCRIBED["3B"]), CARDS["h100-80"]
    # Full, recomputed, anchored: 10 operations. A group of 8 x 300 tokens is one micro-batch, of 8 x 2,048 three:
    # 16,384 in parts of at most 8,192 - 1,400.
    assert seconds(config, load, h100, 300).update == pytest.approx(
        10 * TEXT_3B * 32 * (PROMPT + 2400) / (0.4 * 989.5e12)
    )
    assert seconds(config, load, h100, 2048).update == pytest.approx(
        10 * TEXT_3B * 32 * (3 * PROMPT + 16384) / (0.4 * 989.5e12)
    )
    # 4 GB of cache hold 52 rows of 2,048 tokens of 36,864 bytes.
    read = 2 * TEXT_3B + 52 * (PROMPT / 8 + 150) * 36_864
    assert decoding_seconds(config, load, h100, 256, 300) == pytest.approx(256 / 52 * 300 * read / (0.5 * 3.35e12))
    took = seconds(config, load, h100, 300)
    assert took.evaluate == pytest.approx(2 * decoding_seconds(config, load, h100, 34 * 32 * 9, 300))
    assert took.move == 0 and took.hours(34) == pytest.approx((34 * (took.sample + took.update) + took.evaluate) / 3600)
    moved = TEXT_3B * (12 + 2)
    vllm = slake("sampling.backend=vllm")
    assert seconds(vllm, load, h100, 300).move == pytest.approx(2 * moved / 20e9)


def test_a_wrong_card_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"card='h10080': no such card; did you mean 'h100-80'\? valid: a10-24, "):
        find_card("h10080")


def test_the_command_needs_the_config_alone(command: Any, tmp_path: Path) -> None:
    folder = write_config(tmp_path, "3B")
    given = ("adapt", "slake", "--dry-run", f"model.path={folder}", "sampling.backend=vllm")
    ended = command(*given, "--card", "h100-80")
    assert ended.code == 0, ended
    assert "fits on one h100-80: 70.2 of 76.0 GB" in ended.out and "assumed, not measured: 40% of 989.5" in ended.out
    assert all(part in ended.out for part in ("optimiser 37.0 GB", "anchor 6.2 GB", "image cache 4.0 GB"))
    ended = command(*given, "--card", "l4-24")
    assert "does not fit on one l4-24: 70.2 GB are more than 22.8 GB" in ended.out and "model.train=lora" in ended.out


def test_cards_are_for_the_dry_run(command: Any, tmp_path: Path) -> None:
    folder = write_config(tmp_path, "3B")
    ended = command("adapt", "slake", f"model.path={folder}", "--card", "h100-80", "--output", str(tmp_path / "run"))
    assert ended.code == 2 and "--card=h100-80 is for --dry-run" in ended.err
    ended = command("adapt", "slake", "--dry-run", f"model.path={folder}", "--card", "h200")
    assert ended.code == 2 and "did you mean 'h200-141'?" in ended.err
    ended = command("adapt", "slake", "--dry-run", "model.path=nobody/has-this-one", "--card", "h100-80")
    assert ended.code == 2 and "nobody/has-this-one" in ended.err


def test_every_card_has_the_memory_that_its_name_says() -> None:
    assert all(int(name.rpartition("-")[2]) == found.gb for name, found in card.CARDS.items())
