"""config.json of models too large for a test, from their public figures: enough for arithmetic, without weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mm_spine.commands.estimate import Described, Sizes
from mm_spine.processors.image_tokens import ImageTokens

_VISION = {
    "model_type": "qwen2_5_vl",
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "in_chans": 3,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "hidden_act": "silu",
    "tokens_per_second": 2,
}

_QWEN = {
    "model_type": "qwen2_5_vl",
    "image_token_id": 151655,
    "video_token_id": 151656,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
}

CONFIGS: dict[str, dict[str, Any]] = {
    "3B": {
        **_QWEN,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
        "vision_config": {**_VISION, "out_hidden_size": 2048},
    },
    "7B": {
        **_QWEN,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
        "vision_config": {**_VISION, "out_hidden_size": 3584},
    },
}
"""Qwen2.5-VL-3B-Instruct and Qwen2.5-VL-7B-Instruct."""

DESCRIBED = {
    "3B": Described(
        {"tower": 631_975_680, "merger": 36_708_608, "text": 3_085_938_688},
        Sizes(layers=36, hidden=2048, queries=2048, keys=256, ffn=11008, vocabulary=151936),
        ImageTokens(each=1, pixels=28 * 28, most=16_384),
    ),
    "7B": Described(
        {"tower": 631_975_680, "merger": 44_574_464, "text": 7_615_616_512},
        Sizes(layers=28, hidden=3584, queries=3584, keys=512, ffn=18944, vocabulary=152064),
        ImageTokens(each=1, pixels=28 * 28, most=16_384),
    ),
}
"""What is read of them: together 3,754,622,976 and 8,292,166,656 parameters, as their model cards say."""


_LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}

OTHER_FAMILIES: dict[str, tuple[dict[str, Any], int, int]] = {
    "Llama-3.1-8B": (
        {
            **_LLAMA,
            "model_type": "llama",
            "vocab_size": 128256,
            "rope_theta": 500000.0,
            "rope_scaling": {
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
        },
        8_030_261_248,
        0,
    ),
    "Mistral-7B-v0.3": ({**_LLAMA, "model_type": "mistral", "vocab_size": 32768}, 7_248_023_552, 0),
    "Qwen2-VL-2B": (
        {
            **_QWEN,
            "model_type": "qwen2_vl",
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_attention_heads": 12,
            "num_hidden_layers": 28,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
            "vision_config": {
                "depth": 32,
                "embed_dim": 1280,
                "hidden_size": 1536,
                "num_heads": 16,
                "mlp_ratio": 4,
                "patch_size": 14,
                "spatial_merge_size": 2,
            },
        },
        2_208_985_600,
        16_384,
    ),
    # Its text_config leaves out heads, head width and vocabulary.
    "gemma-3-4b": (
        {
            "model_type": "gemma3",
            "mm_tokens_per_image": 256,
            "text_config": {
                "model_type": "gemma3_text",
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "num_hidden_layers": 34,
                "sliding_window": 1024,
            },
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": 1152,
                "image_size": 896,
                "intermediate_size": 4304,
                "num_attention_heads": 16,
                "num_hidden_layers": 27,
                "patch_size": 14,
                "vision_use_head": False,
            },
        },
        4_300_079_472,
        256,
    ),
}
"""config.json of released models, their parameters as the hub counts them, and the tokens of an image at most."""


def write_config(folder: Path, name: str) -> Path:
    """Write the config.json of one of CONFIGS or OTHER_FAMILIES, and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIGS[name] if name in CONFIGS else OTHER_FAMILIES[name][0]
    (folder / "config.json").write_text(json.dumps(config))
    return folder
