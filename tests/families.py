"""Every family of models: what it can see, and questions for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tiny import TINY_CONFIGS, tiny_questions

from mm_spine.config import LoraConfig, ModelConfig
from mm_spine.policy.families import FAMILIES
from mm_spine.policy.model import Policy
from mm_spine.types import Question

KINDS = tuple(TINY_CONFIGS)
VISION = tuple(kind for kind in KINDS if FAMILIES[kind].placeholder)
MERGING = tuple(kind for kind in VISION if FAMILIES[kind].mergers)
TEXT = tuple(kind for kind in KINDS if kind not in VISION)
SIDE = {"qwen3_vl": 32}
"""Pixels of an image token, so that neither processor resizes: they do not resample alike."""
LORA = ModelConfig(train="lora", lora=LoraConfig(rank=2, alpha=4))
MERGER = ModelConfig(train_merger=True)


def ask(kind: str, images: Sequence[int]) -> list[Question]:
    """A question for each count of images, all of different lengths."""
    return [tiny_questions(i + 1, count, SIDE.get(kind, 28))[i] for i, count in enumerate(images)]


def mixed(kind: str) -> list[Question]:
    """Without images, with one and with three where the family can see."""
    return ask(kind, (1, 3, 0, 1) if kind in VISION else (0, 0, 0))


@torch.no_grad()
def move(policy: Policy, scale: float = 0.1) -> None:
    """Move the trainable weights, as training would."""
    generator = torch.Generator().manual_seed(4)
    for parameter in policy.trainable().values():
        parameter += scale * torch.randn(parameter.shape, generator=generator)
