"""The shapes of public models, against the parameters that their model cards count."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mm_spine.benchmarks.digits import MODEL_DIR
from mm_spine.commands.estimate import count_parameters
from mm_spine.policy.public_models import PUBLIC_MODELS, text_parameters, write_config

# Of the safetensors of each model, as the hub counts them.
COUNTED = {
    "Qwen/Qwen3-VL-2B-Instruct": 2_127_532_032,
    "Qwen/Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen/Qwen3-VL-4B-Instruct": 4_437_815_808,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen/Qwen3-VL-8B-Instruct": 8_767_123_696,
    "Qwen/Qwen2.5-VL-32B-Instruct": 33_452_718_336,
}


@pytest.mark.parametrize("name", PUBLIC_MODELS)
def test_the_shapes_have_the_parameters_of_the_model(tmp_path: Path, name: str) -> None:
    counts = count_parameters(write_config(name, tmp_path))
    if name in COUNTED:
        assert sum(counts.values()) == COUNTED[name]
    assert text_parameters(PUBLIC_MODELS[name]) == pytest.approx(counts["text"], rel=1e-3)


def test_a_config_with_the_text_model_in_a_section_of_its_own_is_counted_too() -> None:
    config = json.loads((MODEL_DIR / "config.json").read_text())
    assert text_parameters(config) == pytest.approx(count_parameters(MODEL_DIR)["text"], rel=0.01)


@pytest.mark.parametrize("config", [{}, {"text_config": None}, {"hidden_size": "wide"}, {"text_config": 3}])
def test_a_config_without_sizes_has_no_count(config: dict[str, object]) -> None:
    assert text_parameters(config) is None
