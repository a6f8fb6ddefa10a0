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


PROCESSORS = {"internvl": internvl_processor, "llava_onevision": llava_onevision_processor}

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
