"""Model folders of every family: saved and loaded again, counted, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from families import KINDS, LORA, MERGER, MERGING, VISION, mixed, move
from tiny import (
    END,
    plain_log_probs,
    tiny_model,
    tiny_policy,
    tiny_processor,
)

from mm_spine.commands.estimate import count_adapter, count_parameters, read_sizes
from mm_spine.config import ModelConfig
from mm_spine.policy.errors import ModelError
from mm_spine.policy.folder import check_model_folder
from mm_spine.policy.model import Policy


def written(policy: Policy, folder: Path) -> Path:
    policy.save(folder)
    return folder


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("config", [ModelConfig(), LORA], ids=["full", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_folder_loads_again_to_the_same_distribution(
    kind: str, config: ModelConfig, tied: bool, tmp_path: Path
) -> None:
    policy, question = tiny_policy(4, config, tied, kind), mixed(kind)[0]
    move(policy)
    adapted = plain_log_probs(policy.model, question, (5, 6, END))
    folder = written(policy, tmp_path / "adapted")
    auto = transformers.AutoModelForImageTextToText if kind in VISION else transformers.AutoModelForCausalLM
    found = plain_log_probs(auto.from_pretrained(folder).eval(), question, (5, 6, END))
    torch.testing.assert_close(found, adapted, rtol=1e-5, atol=1e-5)
    again = Policy.load(folder)
    assert torch.equal(again.prompt(question).ids_L, policy.prompt(question).ids_L)
    assert again.tower_checksum() == policy.tower_checksum()
    torch.testing.assert_close(plain_log_probs(again.model, question, (5, 6, END)), found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_arithmetic_counts_what_the_loaded_model_has(kind: str, tmp_path: Path) -> None:
    policy, folder = tiny_policy(kind=kind), written(tiny_policy(kind=kind), tmp_path)
    counts, sizes = count_parameters(folder), read_sizes(folder)
    assert counts["text"] == policy.count_parameters()[0]
    assert counts["tower"] + counts["merger"] == policy.count_parameters()[1]
    first = policy.text.language_model.layers[0].self_attn
    assert (sizes.queries, sizes.keys) == (first.q_proj.out_features, first.k_proj.out_features)
    assert count_adapter(sizes, LORA.lora) == tiny_policy(config=LORA, kind=kind).count_parameters()[0]
    if kind in MERGING:
        trained = tiny_policy(config=MERGER, kind=kind).count_parameters()[0]
        assert trained == counts["text"] + counts["merger"]


def test_an_unsupported_model_type_is_told_all_that_are(tmp_path: Path) -> None:
    folder = written(tiny_policy(kind="qwen2"), tmp_path)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"model_type": "qwen2"', '"model_type": "llava"'))
    with pytest.raises(ModelError, match=r"model_type is 'llava'; supported: qwen2_5_vl, .*, gemma3_text$"):
        check_model_folder(folder)


def test_a_sliding_window_is_refused() -> None:
    model = tiny_model(kind="qwen2")
    model.config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(ModelError, match="sliding window"):
        Policy(model, tiny_processor("qwen2"))
