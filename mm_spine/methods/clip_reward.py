"""The similarity of image and answer under CLIP, as the reward (arXiv 2305.18010)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.functional import normalize

from mm_spine.config import ConfigError
from mm_spine.methods.rewards import measured
from mm_spine.methods.sections import ClipConfig
from mm_spine.types import Group

WEIGHT = 2.5
"""CLIPScore = 2.5 max(cos, 0) (arXiv 2104.08718)."""


class Clip(NamedTuple):
    """A frozen CLIP, its tokenizer and its image processor."""

    model: Any
    tokenizer: Any
    images: Any


@lru_cache(maxsize=1)
def load(folder: Path, device: torch.device) -> Clip:
    """Load CLIP from a folder, in float32, once. Raises ConfigError where weights are missing in it."""
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    local = {"local_files_only": True, "trust_remote_code": False}
    loaded: Any = CLIPModel.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
    )
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise ConfigError(f"method.clip={folder}: its weights lack {missing[0]}; fetch the folder again")
    model = model.to(device).eval().requires_grad_(False)
    return Clip(
        model, AutoTokenizer.from_pretrained(folder, **local), AutoImageProcessor.from_pretrained(folder, **local)
    )


def clip_judge(options: ClipConfig, group: Group, images: Sequence[Image], device: torch.device) -> list[np.ndarray]:
    """Return CLIPScore (1,) of each rollout, its mean over the images of the question; 0 without answer or image."""
    answers = [None if parsed is None else parsed.text for parsed in group.parsed]
    texts = answers if options.clip_text == "answer" else [rollout.text for rollout in group.rollouts]
    distinct = list(dict.fromkeys(t for t, answer in zip(texts, answers, strict=True) if t and answer is not None))
    if not images or not distinct:
        return [np.zeros(1, np.float32)] * len(texts)
    assert options.clip is not None
    scores = clip_scores(load(options.clip, device), images, distinct)
    found = dict(zip(distinct, scores.mean(0).cpu().numpy(), strict=True))
    pairs = zip(texts, answers, strict=True)
    return [np.array([0.0 if answer is None else found.get(t or "", 0.0)], np.float32) for t, answer in pairs]


@torch.no_grad()
def clip_scores(clip: Clip, images: Sequence[Image], texts: Sequence[str]) -> Tensor:
    """Return 2.5 max(cos(image, text), 0), shape (images, texts)."""
    device = clip.model.device
    pixels = clip.images(images=list(images), return_tensors="pt")["pixel_values"].to(device)
    most = clip.model.config.text_config.max_position_embeddings
    tokens = clip.tokenizer(list(texts), padding=True, truncation=True, max_length=most, return_tensors="pt").to(device)
    seen = _embedded(clip.model.get_image_features(pixel_values=pixels))
    read = _embedded(
        clip.model.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    )
    return WEIGHT * (seen @ read.T).clamp(min=0)


def _embedded(output: Any) -> Tensor:
    """Return unit vectors; transformers 5 wraps the projected features in an output object."""
    return normalize(output if isinstance(output, Tensor) else output.pooler_output, dim=-1)


def clip_reward(options: ClipConfig, group: Group) -> Tensor:
    """Return CLIPScore, shape (N,). With `method.advantage=center` credit subtracts its mean (arXiv 2305.18010)."""
    return torch.tensor([0.0 if score is None else float(score[0]) for score in measured(group)])
