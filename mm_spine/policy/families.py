"""The model families that can be adapted, one table entry each.

Whatever differs between families is a field of the entry; no other module branches on the model type.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mm_spine.policy.errors import ModelError
from mm_spine.processors.chat import Chat, Encoded, encode, encode_text
from mm_spine.types import Question

Encode = Callable[[Question, Any, int | None, int | None, Chat], Encoded]
"""(question, processor or tokenizer, min_pixels, max_pixels, chat) -> the encoded prompt."""

Arguments = Callable[[Tensor, Tensor, Sequence[Tensor]], dict[str, Any]]
"""(M-RoPE positions (3, B, P), flat places (I,) of image tokens, DeepStack features, (I, D) per layer)
-> keyword arguments of the language model."""


@dataclass(frozen=True)
class Family:
    """How transformers loads, encodes for and calls models of one `model_type`.

    `auto_model` and `auto_processor` are names of its Auto classes. `mergers` names the tower's children that turn
    patches into image tokens; the first is the one for the text model's input. `arguments` makes the keyword
    arguments by which the language model takes positions and DeepStack features.
    """

    auto_model: str
    auto_processor: str
    tokenizer: Callable[[Any], Any]
    encode: Encode
    language_model: Callable[[Any], Any]
    tower: Callable[[Any], Any]
    mergers: tuple[str, ...]
    arguments: Arguments


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


_VISION = Family(
    auto_model="AutoModelForImageTextToText",
    auto_processor="AutoProcessor",
    tokenizer=lambda processor: processor.tokenizer,
    encode=encode,
    language_model=lambda model: model.model.language_model,
    tower=lambda model: model.model.visual,
    mergers=("merger",),
    arguments=_mrope,
)

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
)

FAMILIES: dict[str, Family] = {"qwen2_5_vl": _VISION, "qwen3_vl": _DEEPSTACK, "qwen2": _TEXT, "qwen3": _TEXT}

SUPPORTED = tuple(FAMILIES)


def family_of(model_type: Any, model: Path | str) -> Family:
    """Return the family of `model_type`. Raises ModelError naming `model` if it is not supported."""
    if model_type not in SUPPORTED:
        raise ModelError(f"model={model}: model_type is {model_type!r}; supported: {', '.join(SUPPORTED)}")
    return FAMILIES[model_type]


def find_mergers(owner: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return name -> merger of the children `names` of `owner`, in order; a list's mergers are named one by one."""
    found: dict[str, Any] = {}
    for name in names:
        part = owner.get_submodule(name)
        several = part.named_children() if isinstance(part, nn.ModuleList) else ()
        found |= {f"{name}.{i}": merger for i, merger in several} if several else {name: part}
    return found


def rope_positions(model: Any, encoded: Encoded) -> Tensor:
    """Return M-RoPE positions (3, L): time, height and width at image tokens, one running index at text.

    Without images all three are 0, 1, ...; a text-only model takes the first of them.
    """
    if not encoded.images:
        return torch.arange(len(encoded.ids_L)).expand(3, -1)
    grids = torch.stack([image.grid_thw for image in encoded.images])
    positions, _ = model.model.get_rope_index(
        encoded.ids_L[None], mm_token_type_ids=encoded.types_L[None], image_grid_thw=grids
    )
    found: Tensor = positions[:, 0]
    return found


def lora_targets(model: Any, language_model: Any) -> str:
    """Return a pattern that matches the names of `language_model`'s projections in `model`, and nothing else."""
    name = next(name for name, module in model.named_modules() if module is language_model)
    return re.escape(name) + r"\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"
