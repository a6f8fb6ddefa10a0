"""The models of the check: the shape of Qwen2.5-VL-3B with random weights, a slice of it, and tiny stand-ins."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import workload
from workload import Sizes

LAYERS = 36
REAL = Sizes(image_tokens=1024, vocab=151_936, hidden=2048, layers=LAYERS, dtype="bfloat16")
TINY = Sizes(image_tokens=16, vocab=500, hidden=64, layers=2, dtype="bfloat16")
"""What a rehearsal has in its place."""

RESPONSES = ((8, 512), (32, 256))
TINY_RESPONSES = ((2, 12), (4, 6))


def responses(rehearsal: bool) -> tuple[tuple[int, int], ...]:
    """Return (responses, tokens of each) of the updates that are measured."""
    return TINY_RESPONSES if rehearsal else RESPONSES


def of_3b(rehearsal: bool, rollouts: int, tokens: int) -> Sizes:
    """Return the sizes of an update or a phase of sampling."""
    return replace(TINY if rehearsal else REAL, rollouts=rollouts, response_tokens=tokens)


def slice_of_3b(rehearsal: bool, dtype: str) -> Sizes:
    """Return two layers of the same widths and vocabulary, with an image of 64 tokens."""
    return replace(TINY if rehearsal else REAL, layers=2, image_tokens=16 if rehearsal else 64, dtype=dtype)


def make_config(sizes: Sizes) -> Any:
    """Make the configuration: of Qwen2.5-VL-3B's own widths with its tower, its depth cut with that of the text."""
    config = workload.make_config(sizes)
    if sizes.hidden == REAL.hidden:
        whole = sizes.layers == LAYERS
        vision = config.vision_config
        vision.depth, vision.hidden_size, vision.intermediate_size, vision.num_heads = 32, 1280, 3420, 16
        vision.window_size, vision.fullatt_block_indexes = 112, [7, 15, 23, 31]
        if not whole:
            vision.depth, vision.fullatt_block_indexes = sizes.layers, [sizes.layers - 1]
    return config


def make_model(sizes: Sizes, device: torch.device) -> Any:
    """Build a random model on the device."""
    return workload.make_model(sizes, device, make_config(sizes))


def in_words(sizes: Sizes) -> str:
    """Describe a model of these sizes."""
    return f"{sizes.layers} layers, hidden {sizes.hidden}, vocabulary {sizes.vocab:,}, {sizes.dtype}"
