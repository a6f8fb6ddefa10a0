"""The model families that can be adapted, one table entry each.

Whatever differs between families is a field of the entry; no other module branches on the model type.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mm_spine.config import ModelConfig
from mm_spine.policy.errors import ModelError
from mm_spine.policy.tile_towers import gemma3_tower, internvl_tower, llava_onevision_tower
from mm_spine.processors.chat import VISION_SPECIALS, Chat, Encoded, encode, encode_text
from mm_spine.processors.image_tokens import (
    ReadImageTokens,
    gemma3_tokens,
    internvl_tokens,
    llava_onevision_tokens,
    no_image_tokens,
    tokens_by_pixels,
)
from mm_spine.processors.tiles import encode_gemma3, encode_internvl, encode_llava_onevision
from mm_spine.types import Question

Encode = Callable[[Question, Any, int | None, int | None, Chat], Encoded]
"""(question, processor or tokenizer, min_pixels, max_pixels, chat) -> the encoded prompt."""

Arguments = Callable[[Tensor, Tensor, Sequence[Tensor]], dict[str, Any]]
"""(M-RoPE positions (3, B, P), flat places (I,) of image tokens, DeepStack features, (I, D) per layer)
-> keyword arguments of the language model."""

Positions = Callable[[Any, Encoded], Tensor]
"""(model, encoded prompt) -> its positions (3, L); a model with one position for each token takes the first row."""


@dataclass(frozen=True)
class Family:
    """How transformers loads, encodes for and calls models of one `model_type`.

    `auto_model` and `auto_processor` are names of its Auto classes. `mergers` names the tower's children that turn
    patches into image tokens and may train; the first is the one for the text model's input. `arguments` makes the
    keyword arguments by which the language model takes positions and DeepStack features.

    `placeholder` is what the chat template writes for an image, "" for a model without vision. `vision_tokens` are
    those that no prompt text and no response may hold. `named` says which token has the id of which key of config.json.
    `image_tokens` is (config.json, settings of the image processor) -> how many tokens an image has.
    `window` is (text config) -> the tokens that a token sees, None for all before it. With `mutual` the tokens of an
    image read one another both ways. `fault` is (text config) -> what of it this package does not compute, "" if it
    computes all. `flash_width` is (tower config)
    -> the width of the tower's heads, None where the tower keeps transformers' own attention. `vllm` says whether vLLM
    takes the images as this package hands them over.
    """

    auto_model: str
    auto_processor: str
    tokenizer: Callable[[Any], Any]
    encode: Encode
    language_model: Callable[[Any], Any]
    tower: Callable[[Any], Any]
    mergers: tuple[str, ...]
    arguments: Arguments
    positions: Positions
    placeholder: str = ""
    vision_tokens: tuple[str, ...] = VISION_SPECIALS
    named: Mapping[str, str] = field(default_factory=dict)
    image_tokens: ReadImageTokens = no_image_tokens
    window: Callable[[Any], int | None] = lambda config: None
    mutual: bool = False
    fault: Callable[[Any], str] = lambda text: ""
    flash_width: Callable[[Any], int] | None = None
    vllm: bool = True


def _mrope(positions_3BP: Tensor, image_at_I: Tensor, deepstack: Sequence[Tensor]) -> dict[str, Any]:
    return {"position_ids": positions_3BP}


def _mrope_and_deepstack(positions_3BP: Tensor, image_at_I: Tensor, deepstack: Sequence[Tensor]) -> dict[str, Any]:
    # The model adds the features after each of its first layers, in the order of the places that the mask marks.
    if not len(image_at_I):
        return {"position_ids": positions_3BP}
    rows, width = positions_3BP.shape[1:]
    marks = torch.zeros(rows * width, dtype=torch.bool, device=image_at_I.device).index_fill(0, image_at_I, True)
    return {
        "position_ids": positions_3BP,
        "visual_pos_masks": marks.view(rows, width),
        "deepstack_visual_embeds": list(deepstack),
    }


def _one_dimensional(positions_3BP: Tensor, image_at_I: Tensor, deepstack: Sequence[Tensor]) -> dict[str, Any]:
    return {"position_ids": positions_3BP[0]}


def _count(model: Any, encoded: Encoded) -> Tensor:
    """Return 0, 1, ... for every token, images or not."""
    return torch.arange(len(encoded.ids_L)).expand(3, -1)


def _time_height_width(model: Any, encoded: Encoded) -> Tensor:
    """Return M-RoPE positions: time, height and width at image tokens, one running index at text."""
    if not encoded.images:
        return _count(model, encoded)
    grids = torch.stack([image.grid_thw for image in encoded.images])
    positions, _ = model.model.get_rope_index(
        encoded.ids_L[None], mm_token_type_ids=encoded.types_L[None], image_grid_thw=grids
    )
    found: Tensor = positions[:, 0]
    return found


_VISION = Family(
    auto_model="AutoModelForImageTextToText",
    auto_processor="AutoProcessor",
    tokenizer=lambda processor: processor.tokenizer,
    encode=encode,
    language_model=lambda model: model.model.language_model,
    tower=lambda model: model.model.visual,
    mergers=("merger",),
    arguments=_mrope,
    positions=_time_height_width,
    placeholder="<|image_pad|>",
    named={"<|image_pad|>": "image_token_id", "<|vision_start|>": "vision_start_token_id"},
    image_tokens=tokens_by_pixels,
    flash_width=lambda vision: vision.hidden_size // vision.num_heads,
)

# `hidden_size` of Qwen2-VL's tower is the width of what leaves it.
_QWEN2_VL = replace(_VISION, flash_width=lambda vision: vision.embed_dim // vision.num_heads)

_DEEPSTACK = replace(_VISION, mergers=("merger", "deepstack_merger_list"), arguments=_mrope_and_deepstack)

_TEXT = Family(
    auto_model="AutoModelForCausalLM",
    auto_processor="AutoTokenizer",
    tokenizer=lambda tokenizer: tokenizer,
    encode=encode_text,
    language_model=lambda model: model.model,
    tower=lambda model: None,
    mergers=(),
    arguments=_one_dimensional,
    positions=_count,
)


def _window(text: Any) -> int | None:
    found: int | None = text.sliding_window
    return found


def _gemma3_fault(text: Any) -> str:
    keys = ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention")
    return next((f"{key}={getattr(text, key)}" for key in keys if getattr(text, key)), "")


_MISTRAL = replace(_TEXT, window=_window)

_GEMMA3_TEXT = replace(_TEXT, window=_window, fault=_gemma3_fault)

_TILES = replace(
    _VISION, mergers=(), arguments=_one_dimensional, positions=_count, named={}, flash_width=None, vllm=False
)

# Token names: `convert_internvl_weights_to_hf.py` in transformers' repository.
_INTERNVL = replace(
    _TILES,
    encode=encode_internvl,
    tower=internvl_tower,
    placeholder="<IMG_CONTEXT>",
    vision_tokens=("<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
    named={"<IMG_CONTEXT>": "image_token_id"},
    image_tokens=internvl_tokens,
)

# Token names: `convert_llava_onevision_weights_to_hf.py` in transformers' repository.
_LLAVA_ONEVISION = replace(
    _TILES,
    encode=encode_llava_onevision,
    tower=llava_onevision_tower,
    placeholder="<image>",
    vision_tokens=("<image>", "<video>"),
    named={"<image>": "image_token_id"},
    image_tokens=llava_onevision_tokens,
)

# Token names: `tokenizer_config.json` of google/gemma-3-4b-it. The template writes the token that begins an image, for
# which the processor writes that token, 256 of the second kind, and one that ends it.
_GEMMA3 = replace(
    _TILES,
    encode=encode_gemma3,
    tower=gemma3_tower,
    placeholder="<start_of_image>",
    vision_tokens=("<start_of_image>", "<end_of_image>", "<image_soft_token>"),
    named={"<start_of_image>": "boi_token_id", "<image_soft_token>": "image_token_id"},
    image_tokens=gemma3_tokens,
    window=_window,
    mutual=True,
    fault=_gemma3_fault,
)

FAMILIES: dict[str, Family] = {
    "qwen2_5_vl": _VISION,
    "qwen3_vl": _DEEPSTACK,
    "qwen2_vl": _QWEN2_VL,
    "internvl": _INTERNVL,
    "llava_onevision": _LLAVA_ONEVISION,
    "gemma3": _GEMMA3,
    "qwen2": _TEXT,
    "qwen3": _TEXT,
    "llama": _TEXT,
    "mistral": _MISTRAL,
    "gemma3_text": _GEMMA3_TEXT,
}

SUPPORTED = tuple(FAMILIES)

LENGTH_ROPE = frozenset(("dynamic", "longrope"))
"""Kinds of rotary embedding in transformers that depend on the largest position of a call."""


def family_of(model_type: Any, model: Path | str) -> Family:
    """Return the family of `model_type`. Raises ModelError naming `model` if it is not supported."""
    if model_type not in SUPPORTED:
        raise ModelError(f"model={model}: model_type is {model_type!r}; supported: {', '.join(SUPPORTED)}")
    return FAMILIES[model_type]


def check_trainable(kind: str, family: Family, language_model: Any, config: ModelConfig) -> None:
    """Raise ModelError for a model that a packed row cannot hold, or for a merger that does not exist."""
    text = language_model.config
    if "sliding_attention" in (getattr(text, "layer_types", None) or ()) and family.window(text) is None:
        raise ModelError(f"model ({kind}): its layers see a sliding window only; set use_sliding_window to false")
    if fault := family.fault(text):
        raise ModelError(f"model ({kind}): {fault} in its text_config is not computed here; give a model without it")
    scaled = set(_rope_types(getattr(text, "rope_parameters", None) or {})) & LENGTH_ROPE
    if scaled:
        raise ModelError(
            f"model ({kind}): rope_type={min(scaled)!r} turns positions by the length of the whole row, and a packed "
            "row holds several texts; give a model with another rope_type, or remove it from config.json"
        )
    if config.train_merger and not family.mergers:
        what = "no merger that can be trained here" if family.placeholder else "no vision tower, hence no merger"
        raise ModelError(f"model.train_merger: a model of type {kind} has {what}; unset it")


def _rope_types(parameters: Mapping[str, Any]) -> Iterator[str]:
    """Yield the `rope_type` of a model, or of each type of its layers."""
    for value in (parameters, *parameters.values()):
        if isinstance(value, Mapping) and "rope_type" in value:
            yield value["rope_type"]


def find_mergers(owner: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return name -> merger of the children `names` of `owner`, in order; a list's mergers are named one by one."""
    found: dict[str, Any] = {}
    for name in names:
        part = owner.get_submodule(name)
        several = part.named_children() if isinstance(part, nn.ModuleList) else ()
        found |= {f"{name}.{i}": merger for i, merger in several} if several else {name: part}
    return found


def lora_targets(model: Any, language_model: Any) -> str:
    """Return a pattern that matches the names of `language_model`'s projections in `model`, and nothing else."""
    name = next(name for name, module in model.named_modules() if module is language_model)
    return re.escape(name) + r"\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"
