"""Encode a question by the model's own processor: token ids, image patches and token types for M-RoPE."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mm_spine.compat import heal_torchvision
from mm_spine.processors.markers import PROMPT_LIMIT, markers, mismatch, places
from mm_spine.processors.vision import BadQuestion, open_image
from mm_spine.types import Question
from mm_spine.words import check_characters, visible_line

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """One image: patches (P, channels x patch), grid (3,) in patches (time, height, width), and a hash of both."""

    pixel_values: Tensor
    grid_thw: Tensor
    key: str


@dataclass(frozen=True, eq=False)
class Encoded:
    """A prompt of L tokens: ids (L,), token types (L,) with 0 for text and 1 for images, images in order."""

    ids_L: Tensor
    types_L: Tensor
    images: tuple[EncodedImage, ...]


@dataclass(frozen=True)
class Chat:
    """What a chat holds beside the question: a system message, and variables of the chat template by name."""

    system: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def turns(self, question: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the messages for the chat template. A system message is text, or parts if the question is parts."""
        user = {"role": "user", "content": question}
        if self.system is None:
            return [user]
        system = self.system if isinstance(question, str) else [_text(self.system)]
        return [{"role": "system", "content": system}, user]


PLAIN = Chat()
"""No system message but the template's own, and no variables."""

VISION_SPECIALS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
"""The tokens that stand for an image or a video, and those around them."""


def content(prompt: str, n_images: int) -> list[dict[str, Any]]:
    """Split a prompt into parts {"type": "image", "image": number from 1} and {"type": "text", "text": ...}.

    Images go where `markers.places` says. Later marks of the same image, and numbers of images that do not exist,
    become the words "image K". Images without a mark come first, in order. All other text is kept.
    """
    placed = {place.start: place.image for place in places(prompt, n_images)}
    texts, named = [""], list[int]()
    at = 0
    for start, end, number in markers(prompt):
        texts[-1] += prompt[at:start]
        at = end
        if start in placed:
            named.append(placed[start])
            texts.append("")
        else:
            texts[-1] += prompt[start:end] if number is None else f"image {number}"
    texts[-1] += prompt[at:]
    parts = [_image(number) for number in range(1, n_images + 1) if number not in named] + [_text(texts[0])]
    for number, text in zip(named, texts[1:], strict=True):
        parts += [_image(number), _text(text)]
    return [part for part in parts if part.get("text") != ""]


def _image(number: int) -> dict[str, Any]:
    return {"type": "image", "image": number}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def encode(
    question: Question,
    processor: Any,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    chat: Chat = PLAIN,
) -> Encoded:
    """Render the chat, resize its images, and run the model's processor on one question.

    The pixel limits (pixels of an image) are the processor's own unless given.

    Raises BadQuestion for an empty prompt, one with a special token, or an image that cannot be read; ValueError
    for pixel limits that no image can satisfy.
    """
    # The processor puts an image in the place of each such token, also where the tokenizer does not list it.
    _check_prompt(question, {*special_tokens(processor.tokenizer), *VISION_SPECIALS})
    limits = _pixel_limits(processor.image_processor, min_pixels, max_pixels)
    images = [open_image(image, question.id) for image in question.images]
    parts = content(question.prompt, len(images))
    turns = chat.turns([_with_image(part, images, limits) for part in parts])
    text = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False, **chat.arguments)
    # Only qwen-vl-utils resizes, as in Qwen's own code: the processor resamples to other values, and to another grid
    # where a side has 14 pixels or less.
    resized = _resize(turns, question.id, processor.image_processor.patch_size)
    features = processor(text=[text], images=resized, return_tensors="pt", images_kwargs={"do_resize": False})
    ids_L = features["input_ids"][0]
    types_L = features.get("mm_token_type_ids", torch.zeros(1, len(ids_L), dtype=torch.long))[0]
    return Encoded(ids_L, types_L, _split_images(features))


def encode_text(
    question: Question,
    tokenizer: Any,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    chat: Chat = PLAIN,
) -> Encoded:
    """Render the chat of a model without vision by its tokenizer's template. The pixel limits are not used.

    Raises BadQuestion for a question with images, an empty prompt, or one with a special token.
    """
    if question.images:
        raise BadQuestion(
            f"{question.id}: {len(question.images)} image(s), but the model has no vision tower; "
            "give a vision model (`model.path`), or a question without images"
        )
    _check_prompt(question, special_tokens(tokenizer))
    text = "".join(part["text"] for part in content(question.prompt, 0))
    features = tokenizer.apply_chat_template(
        chat.turns(text),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        **chat.arguments,
    )
    ids_L = features["input_ids"][0]
    return Encoded(ids_L, torch.zeros_like(ids_L), ())


def fewest_tokens(question: Question, tokenizer: Any) -> int:
    """Return how many tokens the text of a prompt has at least, without tokenising it; 0 where nothing is known.

    A byte is no part of a longer token than the longest in the vocabulary that holds such a byte, so it stands for at
    least one part in so many of a token. This bounds the tokens of a byte-level tokenizer, which has all 256 bytes.
    """
    longest_256 = _longest_tokens(tokenizer)
    if longest_256 is None:
        return 0
    texts = [part["text"] for part in content(question.prompt, len(question.images)) if part["type"] == "text"]
    # Chat templates may strip a message.
    text = "".join(texts).strip().encode("utf-8", "replace").decode("utf-8")
    normalizer = tokenizer.backend_tokenizer.normalizer
    normal = text if normalizer is None else normalizer.normalize_str(text)
    counts_256 = np.bincount(np.frombuffer(normal.encode("utf-8"), np.uint8), minlength=256)
    # Rounded down, also where the sum of a whole number of tokens is not exact.
    return int((counts_256 / longest_256).sum() - 1e-6)


@cache
def _longest_tokens(tokenizer: Any) -> np.ndarray | None:
    """Return for each byte the most bytes of a token that holds it, (256,); None if `tokenizer` is not byte-level."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    vocabulary, added = tokenizer.get_vocab(), tokenizer.added_tokens_decoder.values()
    # An added token that takes the white space around it may stand for any number of bytes.
    if not byte_of.keys() <= vocabulary.keys() or any(token.lstrip or token.rstrip for token in added):
        return None
    longest_256 = np.ones(256)
    texts = {str(token).encode("utf-8") for token in added}
    pieces = (bytes(byte_of[c] for c in piece) for piece in vocabulary if all(c in byte_of for c in piece))
    for piece in (*texts, *pieces):
        for byte in {*piece}:
            longest_256[byte] = max(longest_256[byte], len(piece))
    return longest_256


def _with_image(part: dict[str, Any], images: Sequence[Image.Image], limits: tuple[int, int]) -> dict[str, Any]:
    """Put the image, and its pixel limits, in the place of its number."""
    if part["type"] == "text":
        return part
    return {**part, "image": images[part["image"] - 1], "min_pixels": limits[0], "max_pixels": limits[1]}


def _resize(chat: list[dict[str, Any]], question_id: str, patch_size: int) -> list[Image.Image] | None:
    """Return the images of `chat` in order, resized to whole image tokens; None without images."""
    heal_torchvision()  # qwen_vl_utils imports torchvision
    from qwen_vl_utils import process_vision_info

    try:
        images: list[Image.Image] | None = process_vision_info(chat, image_patch_size=patch_size)[0]
    except ValueError as error:
        raise BadQuestion(f"{question_id}: too thin an image for max_pixels; raise it or pad it ({error})") from error
    return images


def special_tokens(tokenizer: Any) -> set[str]:
    """Return the special tokens of `tokenizer`, those that only its vocabulary file marks as special too."""
    marked = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return marked | set(tokenizer.all_special_tokens)


def _check_prompt(question: Question, special_tokens: Iterable[str]) -> None:
    """Raise BadQuestion for an empty or endless prompt, half a character, or a special token in the prompt.

    Log where the marks of the prompt and its images do not agree.
    """
    if not question.prompt.strip():
        raise BadQuestion(f"{question.id}: the question is empty")
    if len(question.prompt) > PROMPT_LIMIT:
        size = f"{len(question.prompt):,} characters is longer than {PROMPT_LIMIT:,}"
        raise BadQuestion(f"{question.id}: its prompt of {size}; shorten it")
    try:
        check_characters("its id", question.id)
        check_characters("its prompt", question.prompt)
    except ValueError as error:
        raise BadQuestion(f"{question.id}: {error}") from error
    # A special token would stand for an image that does not exist, or end the user's turn.
    for token in sorted(special_tokens):
        if token in question.prompt:
            raise BadQuestion(f"{question.id}: the question contains the special token {token}; take it out")
    # Released benchmarks and lmms-eval have their own rules: MathVision's one picture holds all figures of a text.
    if question.benchmark == "own" and (why := mismatch(question.prompt, len(question.images))):
        log.warning("%s: %s", visible_line(question.id), why)


def _pixel_limits(image_processor: Any, min_pixels: int | None, max_pixels: int | None) -> tuple[int, int]:
    """Return (least, most) pixels of an image. ValueError: limits that no image can satisfy."""
    own = image_processor.size
    least, most = min_pixels or own["shortest_edge"], max_pixels or own["longest_edge"]
    token = (image_processor.patch_size * image_processor.merge_size) ** 2
    if most < max(least, token):
        raise ValueError(
            f"max_pixels={most} is less than min_pixels={least} or than the {token} pixels of one image token; "
            "set both limits in the section `model`"
        )
    return least, most


def _split_images(features: Any) -> tuple[EncodedImage, ...]:
    """Split the patches of all images into those of each image."""
    if "pixel_values" not in features:
        return ()
    grids = features["image_grid_thw"]
    patches = torch.split(features["pixel_values"], grids.prod(-1).tolist())
    return tuple(EncodedImage(p, g, _key(p, g)) for p, g in zip(patches, grids, strict=True))


def _key(pixel_values: Tensor, grid_thw: Tensor) -> str:
    """Hash the patches and the grid, so that equal images are encoded once by the vision tower."""
    digest = hashlib.sha256(pixel_values.contiguous().numpy().tobytes())
    digest.update(str(grid_thw.tolist()).encode())
    return digest.hexdigest()
