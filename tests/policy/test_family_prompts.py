"""Prompts and positions of every family, as transformers makes them."""

from __future__ import annotations

import pytest
import torch
from families import KINDS, TEXT, ask, mixed
from PIL import Image
from tiny import (
    inputs,
    tiny_model,
    tiny_policy,
    tiny_questions,
)

from mm_spine.config import DecodingConfig
from mm_spine.processors.vision import BadQuestion
from mm_spine.sampling.hf import HFSampler
from mm_spine.types import AnswerSpec, Question


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_and_positions_are_those_of_transformers(kind: str) -> None:
    policy, plain = tiny_policy(kind=kind), tiny_model(kind=kind)
    for question in mixed(kind):
        prompt, made = policy.prompt(question), inputs(question, (), kind)
        assert torch.equal(prompt.ids_L, made["input_ids"][0])
        expected = torch.arange(len(prompt.ids_L)).expand(3, -1)
        if question.images and hasattr(plain.model, "get_rope_index"):
            expected = plain.model.get_rope_index(
                made["input_ids"], made["mm_token_type_ids"], made["image_grid_thw"], attention_mask=None
            )[0][:, 0]
        assert torch.equal(prompt.positions_3L, expected)


def test_image_tokens_follow_the_patch_size_of_the_processor() -> None:
    """96 x 64 pixels: 3 x 2 tokens of 32 pixels, and of 28 (84 x 56) in Qwen2.5-VL."""
    for kind, width, height, features in (("qwen3_vl", 96, 64, 3), ("qwen2_5_vl", 84, 56, 1)):
        question = Question("q", (Image.new("RGB", (width, height)),), "Add.", AnswerSpec("integer"))
        prompt = tiny_policy(kind=kind).prompt(question)
        assert len(prompt.image_at_I) == 6
        assert prompt.features_ID.shape == (6, features * 64), "the final features, and two DeepStack layers"


@pytest.mark.parametrize("kind", TEXT)
def test_a_text_model_skips_questions_with_images_and_says_so(kind: str) -> None:
    policy = tiny_policy(kind=kind)
    seeing, blind = tiny_questions(1, 2)[0], ask(kind, (0, 0))[1]
    with pytest.raises(BadQuestion, match=r"q0: 2 image\(s\), but the model has no vision tower; give a vision model"):
        policy.prompt(seeing)
    rows = HFSampler(policy, DecodingConfig(max_new_tokens=3)).sample([seeing, blind], 2, step=0, purpose="test")
    assert [len(row) for row in rows] == [0, 2]
    assert list(policy.skipped) == ["q0"]


@pytest.mark.parametrize("kind", TEXT)
@pytest.mark.parametrize(("prompt", "says"), [(" ", "is empty"), ("Stop<|im_end|>", r"special token <\|im_end\|>")])
def test_a_text_model_refuses_what_a_vision_model_refuses(kind: str, prompt: str, says: str) -> None:
    with pytest.raises(BadQuestion, match=says):
        tiny_policy(kind=kind).prompt(Question("q", (), prompt, AnswerSpec("integer")))


def test_markers_of_images_that_are_not_there_become_words_for_a_text_model() -> None:
    policy = tiny_policy(kind="qwen2")
    marked, plain = (Question(p, (), p, AnswerSpec("integer")) for p in ("See <image1> now", "See image 1 now"))
    assert torch.equal(policy.prompt(marked).ids_L, policy.prompt(plain).ids_L)
