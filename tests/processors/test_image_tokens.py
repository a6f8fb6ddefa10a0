"""Tokens of an image by arithmetic: against prompts of tiny models, and figures of released ones."""

from __future__ import annotations

from typing import Any

import pytest
from families import VISION
from PIL import Image
from tiny import TINY_CONFIGS, tiny_policy, tiny_processor

from mm_spine.policy.families import FAMILIES
from mm_spine.processors.image_tokens import ImageTokens
from mm_spine.types import AnswerSpec, Question

SIZES = [(28, 28), (84, 56), (56, 84), (300, 40), (40, 300), (200, 200)]


@pytest.mark.parametrize("kind", VISION)
def test_no_image_has_more_tokens(kind: str) -> None:
    """And one has as many, of those families whose number does not depend on rounding."""
    config, processor = TINY_CONFIGS[kind](True).to_dict(), tiny_processor(kind).image_processor.to_dict()
    found, policy = FAMILIES[kind].image_tokens(config, processor), tiny_policy(kind=kind)
    questions = [Question(f"{s}", (Image.new("RGB", s),), "Add.", AnswerSpec("integer")) for s in SIZES]
    counts = [len(policy.prompt(question).image_at_I) for question in questions]
    assert max(counts) <= found.within(None)
    if kind in ("internvl", "gemma3"):
        assert max(counts) == found.within(None)


RELEASED: list[tuple[str, dict[str, Any], dict[str, Any], int | None, int]] = [
    (
        "qwen2_vl",
        {"vision_config": {"patch_size": 14, "spatial_merge_size": 2}},
        {"max_pixels": 12_845_056},
        None,
        16384,
    ),
    ("qwen2_5_vl", {"vision_config": {}}, {}, 1_003_520, 1280),
    ("internvl", {"vision_config": {"image_size": [448, 448], "patch_size": [14, 14]}}, {}, None, 13 * 256),
    ("internvl", {"vision_config": {"image_size": [448, 448]}}, {"max_patches": 6}, None, 7 * 256),
    ("internvl", {"vision_config": {}}, {"max_patches": 12}, 1_003_520, 6 * 256),
    ("gemma3", {"mm_tokens_per_image": 256, "vision_config": {}}, {}, 1_003_520, 256),
    ("llava_onevision", {"vision_config": {"image_size": 384, "patch_size": 14}}, {}, 1_003_520, 729 + 7938 + 162),
    ("llama", {}, {}, 1_003_520, 0),
]


@pytest.mark.parametrize(("kind", "config", "processor", "max_pixels", "tokens"), RELEASED)
def test_released_settings(
    kind: str, config: dict[str, Any], processor: dict[str, Any], max_pixels: int | None, tokens: int
) -> None:
    assert FAMILIES[kind].image_tokens(config, processor).within(max_pixels) == tokens


def test_few_pixels_are_one_token_and_none_where_there_are_no_images() -> None:
    assert ImageTokens(each=1, pixels=784, most=100).within(10) == 1
    assert ImageTokens().within(10) == 0
