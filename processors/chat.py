"""A question -> the token ids, image patches and M-RoPE types that the model's own processor makes of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mm_spine.processors.vision import BadQuestion, open_image
from mm_spine.types import Question


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """One image: patches (P, channels x patch), its grid (3,) in patches, and a key of exactly these values."""

    pixel_values: Tensor
    grid_thw: Tensor
    key: str


@dataclass(frozen=True, eq=False)
class Encoded:
    """A prompt of L tokens: ids (L,), token types (L,; 0 text, 1 image), images in order of appearance."""

    ids_L: Tensor
    types_L: Tensor
    images: tuple[EncodedImage, ...]


def encode(question: Question, processor: Any, min_pixels: int | None = None, max_pixels: int | None = None) -> Encoded:
    """Render the chat template and run the model's processor, one question at a time.

    Raises BadQuestion for an empty prompt, one with a special token, or an image that cannot be read.
    """
    _check_prompt(question, processor.tokenizer.all_special_tokens)
    images = [open_image(image, question.id) for image in question.images]
    content = [{"type": "image"} for _ in images] + [{"type": "text", "text": question.prompt}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    size = _size(processor, min_pixels, max_pixels)
    features = processor(text=[text], images=images or None, return_tensors="pt", images_kwargs={"size": size})
    ids_L = features["input_ids"][0]
    types_L = features.get("mm_token_type_ids", torch.zeros(1, len(ids_L), dtype=torch.long))[0]
    return Encoded(ids_L, types_L, _split_images(features))


def _check_prompt(question: Question, special_tokens: Iterable[str]) -> None:
    """A special token in the text would stand for an image that is not there, or end the user's turn."""
    if not question.prompt.strip():
        raise BadQuestion(f"{question.id}: the question is empty")
    for token in special_tokens:
        if token in question.prompt:
            raise BadQuestion(f"{question.id}: the question contains the special token {token}; take it out")


def _size(processor: Any, min_pixels: int | None, max_pixels: int | None) -> dict[str, int]:
    own = processor.image_processor.size
    return {"shortest_edge": min_pixels or own["shortest_edge"], "longest_edge": max_pixels or own["longest_edge"]}


def _split_images(features: Any) -> tuple[EncodedImage, ...]:
    if "pixel_values" not in features:
        return ()
    grids = features["image_grid_thw"]
    patches = torch.split(features["pixel_values"], grids.prod(-1).tolist())
    return tuple(EncodedImage(p, g, _key(p, g)) for p, g in zip(patches, grids, strict=True))


def _key(pixel_values: Tensor, grid_thw: Tensor) -> str:
    digest = hashlib.sha256(pixel_values.contiguous().numpy().tobytes())
    digest.update(str(grid_thw.tolist()).encode())
    return digest.hexdigest()
