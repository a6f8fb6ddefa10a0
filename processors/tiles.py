"""Encode questions for models that cut images into square tiles, by their own processors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mm_spine.processors.chat import PLAIN, Chat, Encoded, EncodedImage, check_prompt, content, hashed, special_tokens
from mm_spine.processors.vision import open_image
from mm_spine.types import Question

log = logging.getLogger(__name__)

Split = Callable[[Mapping[str, Tensor], Any, Tensor], Iterator[tuple[Tensor, Tensor]]]
"""(what the processor made, the processor, token types (L,)) -> for each image its tiles (N, 3, height, width) and
(3,): their number, and the height and width by which the tower places them."""

Settings = Callable[[Any, int], dict[str, Any]]
"""(image processor, `max_pixels`) -> its settings that keep an image within so many pixels; none if it has none."""


class TileRules(NamedTuple):
    """What differs between the processors: the token of which an image has many, what splits images, and limits."""

    token: str
    split: Split
    settings: Settings


def encode_in_tiles(
    rules: TileRules,
    question: Question,
    processor: Any,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    chat: Chat = PLAIN,
) -> Encoded:
    """Render the chat and run the model's processor on one question, images included.

    The model's own tiles decide how large an image is. `max_pixels` lowers their number where the processor can do
    that; otherwise a warning says, once, that the limits have no effect.

    Raises BadQuestion for an empty prompt, one with a special token, or an image that cannot be read.
    """
    parts = content(question.prompt, len(question.images))
    # A mark such as <image> may be a special token here: those that stand for an image are no longer in the parts.
    texts = [part["text"] for part in parts if part["type"] == "text"]
    check_prompt(question, special_tokens(processor.tokenizer), texts)
    images = [open_image(image, question.id) for image in question.images]
    message = [{**part, "image": images[part["image"] - 1]} if part["type"] == "image" else part for part in parts]
    settings = {} if max_pixels is None or not images else rules.settings(processor.image_processor, max_pixels)
    if images and (min_pixels is not None or (max_pixels is not None and not settings)):
        _warn(type(processor).__name__, "min_pixels" if settings else "min_pixels and model.max_pixels")
    made = processor.apply_chat_template(
        chat.turns(message),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        processor_kwargs={"return_tensors": "pt", **({"images_kwargs": settings} if settings else {})},
        **chat.arguments,
    )
    ids_L = made["input_ids"][0]
    types_L = (ids_L == processor.tokenizer.convert_tokens_to_ids(rules.token)).long()
    found = rules.split(made, processor, types_L) if images else iter(())
    return Encoded(ids_L, types_L, tuple(EncodedImage(p, g, hashed(p, g)) for p, g in found))


@cache
def _warn(processor: str, keys: str) -> None:
    log.warning("model.%s: %s cuts images into tiles of its own and has no such limit; it is not used", keys, processor)


def runs(types_L: Tensor) -> tuple[tuple[int, int], ...]:
    """Return where the runs of image tokens start and stop in a prompt, in order."""
    edges = torch.diff(types_L, prepend=types_L.new_zeros(1), append=types_L.new_zeros(1))
    starts, stops = (edges.eq(step).nonzero()[:, 0].tolist() for step in (1, -1))
    return tuple(zip(starts, stops, strict=True))


def _internvl_images(made: Mapping[str, Tensor], processor: Any, types_L: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    # Each image stands between <img> and </img>, and each of its tiles has the same number of tokens.
    counts = [(stop - start) // processor.image_seq_length for start, stop in runs(types_L)]
    for tiles in torch.split(made["pixel_values"], counts):
        yield tiles, torch.tensor([len(tiles), *tiles.shape[-2:]])


def _internvl_settings(image_processor: Any, max_pixels: int) -> dict[str, Any]:
    tile = image_processor.size["height"] * image_processor.size["width"]
    most = max(max_pixels // tile, 1)
    return {"max_patches": most, "min_patches": min(most, image_processor.min_patches)}


def _llava_onevision_images(
    made: Mapping[str, Tensor], processor: Any, types_L: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    # Several images are one tile each and not cut; a single one is cut, and its tiles are not padded.
    for tiles, size in zip(made["pixel_values"], made["image_sizes"], strict=True):
        yield tiles, torch.tensor([len(tiles), *size.tolist()])


def _gemma3_images(made: Mapping[str, Tensor], processor: Any, types_L: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for tile in made["pixel_values"]:
        yield tile[None], torch.tensor([1, *tile.shape[-2:]])


def _no_settings(image_processor: Any, max_pixels: int) -> dict[str, Any]:
    return {}


encode_internvl = partial(encode_in_tiles, TileRules("<IMG_CONTEXT>", _internvl_images, _internvl_settings))
encode_llava_onevision = partial(encode_in_tiles, TileRules("<image>", _llava_onevision_images, _no_settings))
encode_gemma3 = partial(encode_in_tiles, TileRules("<image_soft_token>", _gemma3_images, _no_settings))
