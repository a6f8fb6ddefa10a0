"""Build the processor and the randomly initialised model of the source checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import torch
from source_recipe import Config, reasoned
from torch import Tensor, nn

from mm_spine.benchmarks import digits
from mm_spine.compat import heal_torchvision

# Before transformers imports it.
heal_torchvision()

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_processor(config: Config) -> Any:
    """Build Qwen2.5-VL's processor around a byte-level BPE that is trained only on the questions and targets."""
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    pixels = {"shortest_edge": digits.CELL**2, "longest_edge": 64 * digits.CELL**2}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=pixels),
        tokenizer=_build_tokenizer(config),
        video_processor=Qwen2VLVideoProcessor(size=pixels),
        chat_template=CHAT_TEMPLATE,
    )


def _build_tokenizer(config: Config) -> Any:
    from tokenizers import pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    seed: Any = Qwen2Tokenizer()._tokenizer  # Qwen's normaliser and split pattern
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary - len(SPECIALS), initial_alphabet=alphabet, show_progress=False
    )
    seed.train_from_iterator(_corpus(config), trainer)
    model = json.loads(seed.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],  # type: ignore[misc]
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,  # type: ignore[arg-type]
        extra_special_tokens=list(SPECIALS),
        model_max_length=512,
    )


def _corpus(config: Config) -> Iterator[str]:
    """Yield every question and the words of every target, each many times, so that words become tokens."""
    prompts = [p for kind in digits.KINDS.values() for p in kind.phrasings]
    targets = [reasoned(k, (4, 7), o, c) for k in digits.KINDS for o in config.openers for c in config.closers]
    targets += [reasoned("even", (1, 3), o, c) for o in config.openers for c in config.closers]
    yield from (prompts + targets + ["The answer is \\boxed{yes}.", "user\n", "assistant\n"] * 8) * 4


def build_model(processor: Any, seed: int) -> Any:
    """Build a model of the shipped sizes with random weights."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    ids = dict(zip(SPECIALS, processor.tokenizer.convert_tokens_to_ids(list(SPECIALS)), strict=True))
    # theta 20, not 1e6: over 60 positions every frequency then turns far enough to tell neighbours apart.
    rope = {"rope_type": "default", "rope_theta": 20.0, "mrope_section": [4, 6, 6]}
    text = {
        "vocab_size": len(processor.tokenizer), "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "rope_parameters": rope,
        "tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }  # fmt: skip
    vision = {
        "depth": 3, "hidden_size": 160, "intermediate_size": 256, "num_heads": 4, "patch_size": 14,
        "spatial_merge_size": 2, "out_hidden_size": 128, "fullatt_block_indexes": [2], "window_size": 112,
    }  # fmt: skip
    torch.manual_seed(seed)
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=True,
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    model.generation_config.max_new_tokens = 40
    return model


def attend_equal_images(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, scaling: float,
    cu_seq_lens_q: Tensor, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attend within each of n equally large images, (1, H, n x S, D) -> (1, n x S, H, D), in one call.

    The tower otherwise loops over images, three times slower at this size; the result is the same.
    """
    n, heads = len(cu_seq_lens_q) - 1, query.shape[1]
    q, k, v = (x[0].unflatten(1, (n, -1)).transpose(0, 1) for x in (query, key, value))
    weights = torch.softmax((q @ k.transpose(-1, -2)).float() * scaling, dim=-1).to(v.dtype)
    return (weights @ v).transpose(1, 2).reshape(1, -1, heads, v.shape[-1]), None


def use_fast_attention(model: Any) -> None:
    """Set eager attention for text, whose bfloat16 backward pass is twice as fast here, and batched for images."""
    from transformers import AttentionInterface

    model.set_attn_implementation("eager")
    AttentionInterface.register("flash_equal_images", attend_equal_images)  # "flash": called once, with cu_seqlens
    model.model.visual.config._attn_implementation = "flash_equal_images"
