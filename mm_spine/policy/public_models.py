"""Shapes of the public vision-language models that a user may take, so that arithmetic needs no download.

The values are those of each model's config.json on the Hugging Face hub. The parameters that they describe add up to
what the hub's model cards count, which tests/policy/test_public_models.py checks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_QWEN2_5_TOWER = {
    "model_type": "qwen2_5_vl",
    "depth": 32,
    "hidden_size": 1280,
    "num_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "in_chans": 3,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "hidden_act": "silu",
}

_QWEN3_TOWER = {
    "model_type": "qwen3_vl",
    "num_heads": 16,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "num_position_embeddings": 2304,
    "in_channels": 3,
}
_SMALL_QWEN3_TOWER = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack": [5, 11, 17]}
_LARGE_QWEN3_TOWER = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack": [8, 16, 24]}


def _qwen2_5(
    layers: int, hidden: int, ffn: int, heads: int, key_heads: int, vocabulary: int, tower_ffn: int, tied: bool = False
) -> dict[str, Any]:
    return {
        "model_type": "qwen2_5_vl",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "vocab_size": vocabulary,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "tie_word_embeddings": tied,
        "vision_config": {**_QWEN2_5_TOWER, "intermediate_size": tower_ffn, "out_hidden_size": hidden},
    }


def _qwen3(
    layers: int, hidden: int, ffn: int, heads: int, tower: Mapping[str, Any], tied: bool = False
) -> dict[str, Any]:
    seen = {key: value for key, value in tower.items() if key != "deepstack"}
    return {
        "model_type": "qwen3_vl",
        "tie_word_embeddings": tied,
        "text_config": {
            "model_type": "qwen3_vl_text",
            "num_hidden_layers": layers,
            "hidden_size": hidden,
            "intermediate_size": ffn,
            "num_attention_heads": heads,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151_936,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
            "tie_word_embeddings": tied,
        },
        "vision_config": {
            **_QWEN3_TOWER,
            **seen,
            "deepstack_visual_indexes": tower["deepstack"],
            "out_hidden_size": hidden,
        },
    }


PUBLIC_MODELS: Mapping[str, Mapping[str, Any]] = {
    "Qwen/Qwen3-VL-2B-Instruct": _qwen3(28, 2048, 6144, 16, _SMALL_QWEN3_TOWER, tied=True),
    "Qwen/Qwen2.5-VL-3B-Instruct": _qwen2_5(36, 2048, 11008, 16, 2, 151_936, 3420, tied=True),
    "Qwen/Qwen3-VL-4B-Instruct": _qwen3(36, 2560, 9728, 32, _SMALL_QWEN3_TOWER, tied=True),
    "Qwen/Qwen2.5-VL-7B-Instruct": _qwen2_5(28, 3584, 18944, 28, 4, 152_064, 3420),
    "Qwen/Qwen3-VL-8B-Instruct": _qwen3(36, 4096, 12288, 32, _LARGE_QWEN3_TOWER),
    "Qwen/Qwen3-VL-32B-Instruct": _qwen3(64, 5120, 25600, 64, _LARGE_QWEN3_TOWER),
    "Qwen/Qwen2.5-VL-32B-Instruct": _qwen2_5(64, 5120, 27648, 40, 8, 152_064, 3456),
    # The tower's FFN width is taken from the 32B: 3,456 or 3,420 differ by 0.006 % of the parameters.
    "Qwen/Qwen2.5-VL-72B-Instruct": _qwen2_5(80, 8192, 29568, 64, 8, 152_064, 3456),
}
"""Hub id -> the values of config.json that say how many parameters there are; by size."""


def write_config(name: str, folder: Path) -> Path:
    """Write the config.json of one of PUBLIC_MODELS into `folder`, and return the folder."""
    (folder / "config.json").write_text(json.dumps(PUBLIC_MODELS[name]))
    return folder


def text_parameters(config: Mapping[str, Any]) -> int | None:
    """Return about how many parameters the text model of a config.json has, None where it does not say.

    layers x (4 projections of attention + 3 of the FFN) + embedding, and the head where it is not tied. Norms and
    biases are left out, less than 0.1 %.
    """
    text = config.get("text_config", config)
    try:
        hidden, heads, layers = (text[key] for key in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
        head = text.get("head_dim") or hidden // heads
        keys = text.get("num_key_value_heads", heads) * head
        vocabulary = text.get("vocab_size", config.get("vocab_size"))
        tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))
        layer = 2 * hidden * (heads * head + keys) + 3 * hidden * text["intermediate_size"]
        return int(layers * layer + vocabulary * hidden * (1 if tied else 2))
    except (KeyError, TypeError, AttributeError, ZeroDivisionError):
        return None
