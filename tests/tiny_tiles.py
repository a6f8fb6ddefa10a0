"""Tiny configurations and processors of the families that read images in tiles, around the shipped tokenizer."""

from __future__ import annotations

from typing import Any

from mm_spine.benchmarks.digits import MODEL_DIR

SIDE, PATCH = 28, 7
"""Pixels of a tile and of a patch: 4 x 4 patches a tile."""

INTERNVL_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
LLAVA_TOKENS = {"image_token": "<image>", "video_token": "<video>"}
GEMMA3_TOKENS = {
    "bos_token": "<bos>",
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
    "sot_token": "<start_of_turn>",
    "eot_token": "<end_of_turn>",
}
GRIDS = [[28, 28], [28, 56], [56, 28], [56, 56], [28, 84], [84, 28], [56, 84]]

# Shortened from the templates of `convert_internvl_weights_to_hf.py` and `convert_llava_onevision_weights_to_hf.py` in
# transformers' repository: InternVL has its images where the message has them, LLaVA-OneVision puts them first.
INTERNVL_TEMPLATE = """\
{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% for part in message['content'] %}\
{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}\
{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
LLAVA_TEMPLATE = """\
{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}\
{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}\
{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}\
{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

# Shortened from `convert_gemma3_weights.py` in transformers' repository.
GEMMA3_TEMPLATE = """\
{{ bos_token }}{% for message in messages %}\
{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}\
{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}{% for part in message['content'] %}\
{% if part['type'] == 'image' %}{{ '<start_of_image>' }}{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}\
{% endif %}{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""


def _tokenizer(tokens: dict[str, str]) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL_DIR, extra_special_tokens=tokens)


def internvl_processor() -> Any:
    """Four tokens a tile, at most four tiles and one of the whole image."""
    from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor

    size = {"height": SIDE, "width": SIDE}
    return InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=size, max_patches=4),
        tokenizer=_tokenizer(INTERNVL_TOKENS),
        video_processor=InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=INTERNVL_TEMPLATE,
    )


def llava_onevision_processor() -> Any:
    """16 patches a tile; the features of more than two tiles are reduced."""
    from transformers import LlavaOnevisionImageProcessor, LlavaOnevisionProcessor, LlavaOnevisionVideoProcessor

    size = {"height": SIDE, "width": SIDE}
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=GRIDS),
        tokenizer=_tokenizer(LLAVA_TOKENS),
        video_processor=LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_2",
        chat_template=LLAVA_TEMPLATE,
    )


def gemma3_processor() -> Any:
    """Four tokens an image, whatever its size."""
    from transformers import Gemma3ImageProcessor, Gemma3Processor

    return Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size={"height": SIDE, "width": SIDE}),
        tokenizer=gemma3_tokenizer(),
        image_seq_length=4,
        chat_template=GEMMA3_TEMPLATE,
    )


def gemma3_tokenizer() -> Any:
    """The shipped tokenizer with Gemma's tokens, those of its turns too."""
    tokenizer = _tokenizer(GEMMA3_TOKENS)
    tokenizer.chat_template = GEMMA3_TEMPLATE
    return tokenizer


PROCESSORS = {
    "internvl": internvl_processor,
    "llava_onevision": llava_onevision_processor,
    "gemma3": gemma3_processor,
    "gemma3_text": gemma3_tokenizer,
}

_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}


def internvl_config(text: dict[str, Any], tied: bool) -> Any:
    """InternVL's tower before Qwen2."""
    from transformers import InternVLConfig, InternVLVisionConfig, Qwen2Config

    vision = {**_VISION, "image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]}
    return InternVLConfig(
        text_config=Qwen2Config(**{**text, "vocab_size": 427, "tie_word_embeddings": tied}),
        vision_config=InternVLVisionConfig(**vision),
        image_token_id=425,
        image_seq_length=4,
        tie_word_embeddings=tied,
    )


def gemma3_config(text: dict[str, Any], tied: bool) -> Any:
    """SigLIP before Gemma 3: heads of their own width, and layers that see a window beside those that see all."""
    from transformers import Gemma3Config, SiglipVisionConfig

    return Gemma3Config(
        text_config=gemma3_text_config(text, tied),
        vision_config=SiglipVisionConfig(**_VISION, vision_use_head=False),
        mm_tokens_per_image=4,
        boi_token_index=424,
        eoi_token_index=425,
        image_token_index=426,
        tie_word_embeddings=tied,
    )


def gemma3_text_config(text: dict[str, Any], tied: bool) -> Any:
    """Gemma 3 without a tower."""
    from transformers import Gemma3TextConfig

    more = {"vocab_size": 429, "head_dim": 24, "query_pre_attn_scalar": 20, "sliding_window": 128, "bos_token_id": 423}
    layers = {"num_hidden_layers": 3, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
        "full_attention": {"rope_type": "linear", "rope_theta": 50.0, "factor": 8.0},
    }
    return Gemma3TextConfig(**{**text, **more, **layers, "rope_parameters": rope, "tie_word_embeddings": tied})


def llava_onevision_config(text: dict[str, Any], tied: bool) -> Any:
    """SigLIP before Qwen2."""
    from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

    return LlavaOnevisionConfig(
        text_config=Qwen2Config(**{**text, "vocab_size": 425, "tie_word_embeddings": tied}),
        vision_config=SiglipVisionConfig(**_VISION, vision_use_head=False),
        image_token_id=423,
        video_token_id=424,
        image_grid_pinpoints=GRIDS,
        vision_aspect_ratio="anyres_max_2",
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=tied,
    )
