"""What a run would take, by arithmetic, before anything is loaded (`mm-spine adapt --dry-run`)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from safetensors import safe_open

from mm_spine.config import RunConfig

_BYTES = {"float32": 4, "bfloat16": 2}


def count_parameters(folder: Path) -> dict[str, int]:
    """Parameters of the tower and of the text model, read from the safetensors headers."""
    counts = {"tower": 0, "text": 0}
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                part = "tower" if "visual." in name else "text"
                counts[part] += math.prod(tensors.get_slice(name).get_shape())
    return counts


def estimate(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Parameters, bytes of weights, gradients and optimiser state per process, and tokens per step at most.

    Full training keeps gradients and two fp32 AdamW moments of every text weight, and an fp32 master copy in bf16;
    activations and the key-value cache come on top.
    """
    counts = count_parameters(folder)
    size = _BYTES[config.model.dtype]
    trained = counts["text"] if config.model.train == "full" else 0
    master = 4 if size == 2 else 0
    rollouts = config.optim.questions_per_step * config.sampling.votes
    kept = config.optim.questions_per_step * config.sampling.train_rollouts
    return {
        "parameters_frozen_tower": counts["tower"],
        "parameters_text": counts["text"],
        "bytes_weights": (counts["tower"] + counts["text"]) * size,
        "bytes_gradients": trained * size,
        "bytes_optimizer": trained * (8 + master),
        "bytes_reference": trained * size if config.method.kl != "none" else 0,
        "rollouts_per_step": rollouts,
        "tokens_sampled_per_step_at_most": rollouts * config.sampling.max_new_tokens,
        "response_tokens_trained_per_step_at_most": kept * config.sampling.max_new_tokens,
        "steps": config.optim.steps,
    }
