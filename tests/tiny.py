"""Tiny random Qwen2.5-VL policies around the shipped tokenizer and processor, questions, and the plain forward."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mm_spine.benchmarks.digits import MODEL_DIR
from mm_spine.config import ModelConfig
from mm_spine.policy.model import Policy
from mm_spine.types import AnswerSpec, Question

END, BANNED = 415, (418, 419, 420, 421, 422)
TEMPERATURE = 0.7
WORDS = ("Which digit?", "Read the two digits from left to right.", "Is it even? Answer yes or no.", "Add them.")


@cache
def tiny_processor() -> Any:
    """The shipped processor. It keeps no state, so every policy of the test session shares it."""
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(MODEL_DIR)


def tiny_model(seed: int = 0, tied: bool = True) -> Any:
    """A random Qwen2.5-VL in fp32 with 2 + 2 layers; every tensor is random, so that no gradient vanishes by design.

    Embeddings are wider than the rest: distributions are peaked enough for entropies to differ.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig

    config = AutoConfig.from_pretrained(MODEL_DIR)
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 64, 96, 2
    text.layer_types = ["full_attention"] * 2
    text.rope_parameters = {**text.rope_parameters, "mrope_section": [2, 3, 3]}
    vision.depth, vision.fullatt_block_indexes, vision.hidden_size = 2, [1], 32
    vision.intermediate_size, vision.num_heads, vision.out_hidden_size = 48, 2, 64
    config.tie_word_embeddings = text.tie_word_embeddings = tied
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    _randomise(model, torch.Generator().manual_seed(seed))
    model.generation_config = GenerationConfig.from_pretrained(MODEL_DIR)
    return model.eval()


@torch.no_grad()
def _randomise(model: Any, generator: torch.Generator) -> None:
    for name, parameter in model.named_parameters():
        std = 0.2 if "embed_tokens" in name or "lm_head" in name else 0.1
        noise = std * torch.randn(parameter.shape, generator=generator)
        parameter.copy_(noise + 1 if "norm" in name else noise)


def tiny_policy(seed: int = 0, config: ModelConfig | None = None, tied: bool = True) -> Policy:
    """A policy of its own around `tiny_model(seed)`: equal for equal seeds, under 0.1 s."""
    with torch.random.fork_rng(devices=[]):
        return Policy(tiny_model(seed, tied), tiny_processor(), config, seed)


def tiny_image(seed: int) -> Image.Image:
    """A random RGB image of one to six image tokens."""
    rng = np.random.default_rng(seed)
    height, width = 28 * rng.integers(1, 3), 28 * rng.integers(1, 4)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def tiny_questions(n: int, images: int = 1) -> list[Question]:
    """n questions of different lengths with `images` images each; ids q0, q1, ..."""
    spec = AnswerSpec(kind="integer")
    return [
        Question(f"q{i}", tuple(tiny_image(100 * i + j) for j in range(images)), f"{WORDS[i % len(WORDS)]} ({i})", spec)
        for i in range(n)
    ]


def inputs(question: Question, tokens: Sequence[int]) -> dict[str, Tensor]:
    """What transformers' own processor makes of the chat, followed by the response."""
    content = [{"type": "image", "image": image} for image in question.images]
    chat = [{"role": "user", "content": [*content, {"type": "text", "text": question.prompt}]}]
    made = tiny_processor().apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    response = torch.tensor([list(tokens)], dtype=torch.long)
    ids = torch.cat([made["input_ids"], response], dim=1)
    types = torch.cat([made["mm_token_type_ids"], torch.zeros_like(response)], dim=1)
    return {**made, "input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": types}


def plain_log_probs(model: Any, question: Question, tokens: Sequence[int], temperature: float = TEMPERATURE) -> Tensor:
    """log pi (T, V) of one (prompt, response) row by the plain forward: no packing, no cache, no selection."""
    logits = model(**inputs(question, tokens)).logits[0, -len(tokens) - 1 : -1] / temperature
    return logits.index_fill(-1, torch.tensor(BANNED), -torch.inf).log_softmax(-1)


def entropy(log_probs: Tensor) -> Tensor:
    """-sum p log p, the banned tokens left out."""
    finite = log_probs[..., [v for v in range(log_probs.shape[-1]) if v not in BANNED]]
    return -(finite.exp() * finite).sum(-1)
