"""Tiny random policies of every family around the shipped tokenizer and processor, questions, and the plain forward."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import tiny_tiles
import torch
from PIL import Image
from torch import Tensor

from mm_spine.benchmarks.digits import MODEL_DIR
from mm_spine.config import ModelConfig
from mm_spine.policy.families import FAMILIES
from mm_spine.policy.model import Policy
from mm_spine.types import AnswerSpec, Question

END, BANNED = 415, (418, 419, 420, 421, 422)
BANNED_TILES = {"internvl": (423, 424, 425, 426), "llava_onevision": (423, 424), "gemma3": (424, 425, 426)}
TEMPERATURE = 0.7
WORDS = ("Which digit?", "Read the two digits from left to right.", "Is it even? Answer yes or no.", "Add them.")


@cache
def tiny_processor(kind: str = "qwen2_5_vl") -> Any:
    """The shipped processor or tokenizer, or one made of its parts. None keeps state: the session's policies share."""
    from transformers import AutoProcessor, AutoTokenizer

    if kind in tiny_tiles.PROCESSORS:
        return tiny_tiles.PROCESSORS[kind]()
    if kind == "qwen3_vl":
        return _patches_of_16(AutoProcessor.from_pretrained(MODEL_DIR))
    if kind == "qwen2_vl":
        return _older(AutoProcessor.from_pretrained(MODEL_DIR))
    return (AutoProcessor if kind == "qwen2_5_vl" else AutoTokenizer).from_pretrained(MODEL_DIR)


def _older(shipped: Any) -> Any:
    from transformers import Qwen2VLProcessor

    parts = {"image_processor": shipped.image_processor, "tokenizer": shipped.tokenizer}
    return Qwen2VLProcessor(**parts, video_processor=shipped.video_processor, chat_template=shipped.chat_template)


def _patches_of_16(shipped: Any) -> Any:
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    size = {"shortest_edge": 32 * 32, "longest_edge": 50 * 32 * 32}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=16, size=size),
        tokenizer=shipped.tokenizer,
        video_processor=Qwen3VLVideoProcessor(patch_size=16),
        chat_template=shipped.chat_template,
    )


def tiny_model(seed: int = 0, tied: bool = True, kind: str = "qwen2_5_vl") -> Any:
    """A random model in fp32 with 2 + 2 layers (Qwen3-VL 3 + 3); every tensor is random, so that no gradient vanishes
    by design.

    Embeddings are wider than the rest: distributions are peaked enough for entropies to differ.
    """
    import transformers

    config = TINY_CONFIGS[kind](tied)
    auto = getattr(transformers, FAMILIES[kind].auto_model)
    model = auto.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    _randomise(model, torch.Generator().manual_seed(seed))
    model.generation_config = transformers.GenerationConfig.from_pretrained(MODEL_DIR)
    return model.eval()


def _qwen2_5_vl(tied: bool) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(MODEL_DIR)
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 64, 96, 2
    text.layer_types = ["full_attention"] * 2
    text.rope_parameters = {**text.rope_parameters, "mrope_section": [2, 3, 3]}
    vision.depth, vision.fullatt_block_indexes, vision.hidden_size = 2, [1], 32
    vision.intermediate_size, vision.num_heads, vision.out_hidden_size = 48, 2, 64
    config.tie_word_embeddings = text.tie_word_embeddings = tied
    return config


SIZES = {
    "vocab_size": 423,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 20.0},
}
"""Of every text model but Qwen2.5-VL's, which takes them from the shipped model."""

LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 20.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
"""Turns slow dimensions less, as Llama 3.1 does."""


def _qwen3_vl(tied: bool) -> Any:
    """Heads wider than hidden / heads; DeepStack after two of three text layers, from the first two tower layers."""
    from transformers import Qwen3VLConfig

    rope = {**SIZES["rope_parameters"], "mrope_section": [6, 3, 3], "mrope_interleaved": True}
    vision = {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "num_position_embeddings": 16}
    return Qwen3VLConfig(
        text_config={**SIZES, "num_hidden_layers": 3, "head_dim": 24, "rope_parameters": rope, "pad_token_id": 416},
        vision_config={**vision, "out_hidden_size": 64, "deepstack_visual_indexes": [0, 1]},
        image_token_id=421,
        video_token_id=422,
        vision_start_token_id=418,
        vision_end_token_id=419,
        tie_word_embeddings=tied,
    )


def _qwen2_vl(tied: bool) -> Any:
    from transformers import Qwen2VLConfig

    rope = {**SIZES["rope_parameters"], "mrope_section": [2, 3, 3]}
    vision = {"depth": 2, "embed_dim": 32, "mlp_ratio": 2, "num_heads": 2, "hidden_size": 64, "in_channels": 3}
    return Qwen2VLConfig(
        text_config={**SIZES, "rope_parameters": rope, "pad_token_id": 416},
        vision_config=vision,
        image_token_id=421,
        video_token_id=422,
        vision_start_token_id=418,
        vision_end_token_id=419,
        tie_word_embeddings=tied,
    )


def _text_only(name: str, tied: bool, **more: Any) -> Any:
    import transformers

    return getattr(transformers, name)(
        **{**SIZES, **more}, pad_token_id=416, eos_token_id=END, tie_word_embeddings=tied
    )


TINY_CONFIGS = {
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen2_vl": _qwen2_vl,
    "internvl": partial(tiny_tiles.internvl_config, {**SIZES, "pad_token_id": 416, "eos_token_id": END}),
    "llava_onevision": partial(tiny_tiles.llava_onevision_config, {**SIZES, "pad_token_id": 416, "eos_token_id": END}),
    "gemma3": partial(tiny_tiles.gemma3_config, {**SIZES, "pad_token_id": 416, "eos_token_id": END}),
    "qwen2": partial(_text_only, "Qwen2Config"),
    "qwen3": partial(_text_only, "Qwen3Config", head_dim=24),
    "llama": partial(_text_only, "LlamaConfig", rope_parameters=LLAMA_3_ROPE),
    "mistral": partial(_text_only, "MistralConfig", head_dim=24, sliding_window=64),
    "gemma3_text": partial(tiny_tiles.gemma3_text_config, {**SIZES, "pad_token_id": 416, "eos_token_id": END}),
}
"""model_type -> (tied head?) -> the tiny configuration."""


@torch.no_grad()
def _randomise(model: Any, generator: torch.Generator) -> None:
    for name, parameter in model.named_parameters():
        std = 0.2 if "embed_tokens" in name or "lm_head" in name else 0.1
        noise = std * torch.randn(parameter.shape, generator=generator)
        parameter.copy_(noise + 1 if "norm" in name else noise)


def tiny_policy(
    seed: int = 0, config: ModelConfig | None = None, tied: bool = True, kind: str = "qwen2_5_vl"
) -> Policy:
    """A policy of its own around `tiny_model(seed)`: equal for equal seeds, under 0.1 s."""
    with torch.random.fork_rng(devices=[]):
        return Policy(tiny_model(seed, tied, kind), tiny_processor(kind), config, seed)


def tiny_image(seed: int, side: int = 28) -> Image.Image:
    """A random RGB image of one to six image tokens, which are `side` pixels wide."""
    rng = np.random.default_rng(seed)
    height, width = side * rng.integers(1, 3), side * rng.integers(1, 4)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def tiny_questions(n: int, images: int = 1, side: int = 28) -> list[Question]:
    """n questions of different lengths with `images` images each; ids q0, q1, ..."""
    spec = AnswerSpec(kind="integer")
    return [
        Question(
            f"q{i}", tuple(tiny_image(100 * i + j, side) for j in range(images)), f"{WORDS[i % len(WORDS)]} ({i})", spec
        )
        for i in range(n)
    ]


def inputs(question: Question, tokens: Sequence[int], kind: str = "qwen2_5_vl") -> dict[str, Tensor]:
    """What transformers' own processor (or tokenizer) makes of the chat, followed by the response."""
    content: Any = question.prompt
    if FAMILIES[kind].placeholder:
        images = [{"type": "image", "image": image} for image in question.images]
        content = [*images, {"type": "text", "text": question.prompt}]
    made = tiny_processor(kind).apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    response = torch.tensor([list(tokens)], dtype=torch.long)
    ids = torch.cat([made["input_ids"], response], dim=1)
    found = {**made, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in made:
        found["mm_token_type_ids"] = torch.cat([made["mm_token_type_ids"], torch.zeros_like(response)], dim=1)
    return found


def plain_log_probs(model: Any, question: Question, tokens: Sequence[int], temperature: float = TEMPERATURE) -> Tensor:
    """log pi (T, V) of one (prompt, response) row by the plain forward: no packing, no cache, no selection."""
    made = inputs(question, tokens, model.config.model_type)
    logits = model(**made).logits[0, -len(tokens) - 1 : -1] / temperature
    return logits.index_fill(-1, torch.tensor(banned(model.config.model_type)), -torch.inf).log_softmax(-1)


def banned(kind: str) -> tuple[int, ...]:
    """The ids of the family's vision tokens."""
    return BANNED_TILES.get(kind, BANNED)


def entropy(log_probs: Tensor) -> Tensor:
    """-sum p log p, the banned tokens left out."""
    finite = log_probs.isfinite()
    return -(log_probs.exp() * log_probs.where(finite, 0)).sum(-1)
