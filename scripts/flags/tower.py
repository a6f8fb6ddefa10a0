"""The vision tower of `flags`: its shape, its pictures as patches, and what its image tokens are to become."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mm_spine.benchmarks.flag_pictures import HEIGHT, WIDTH
from mm_spine.compat import heal_torchvision

# Before transformers imports it.
heal_torchvision()

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "study"))

PATCH, MERGE = 20, 2
TOKENS = WIDTH * HEIGHT // (PATCH * MERGE) ** 2
"""Image tokens of a picture."""

VISION = {
    "depth": 4, "hidden_size": 192, "intermediate_size": 512, "num_heads": 6, "patch_size": PATCH,
    "spatial_merge_size": MERGE, "temporal_patch_size": 2, "fullatt_block_indexes": [0, 1, 2, 3],
    "window_size": 8 * PATCH * MERGE,
}  # fmt: skip
"""The tower's configuration: every patch sees the whole picture."""

# Those of Qwen2.5-VL's image processor.
_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])


def build_tower(width: int, seed: int) -> Any:
    """Build a random tower whose image tokens have `width` values, with one attention call for all pictures."""
    from source_model import attend_equal_images
    from transformers import AttentionInterface
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

    torch.manual_seed(seed)
    tower = Qwen2_5_VisionTransformerPretrainedModel(Qwen2_5_VLVisionConfig(**VISION, out_hidden_size=width))
    AttentionInterface.register("flash_equal_images", attend_equal_images)  # "flash": called once, with cu_seqlens
    tower.config._attn_implementation = "flash_equal_images"
    # A convolution whose kernel is the whole patch is a matrix product, which is three times faster here.
    weight = tower.patch_embed.proj.weight
    tower.patch_embed.forward = lambda patches: F.linear(patches, weight.flatten(1))
    return tower


def patches(pictures: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Return the patches (24 B, 2400) and grids (B, 3) of B pictures, as Qwen2.5-VL's image processor makes them."""
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).float() / 255
    pixels = ((pixels - _MEAN) / _STD).permute(0, 3, 1, 2)
    side = PATCH * MERGE
    blocks = pixels.reshape(len(pictures), 3, HEIGHT // side, MERGE, PATCH, WIDTH // side, MERGE, PATCH)
    blocks = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7).flatten(0, 4)
    # A still picture is shown twice: two frames make one patch in time.
    patches = blocks[:, :, None].expand(-1, -1, 2, -1, -1).reshape(len(blocks), -1)
    grid = torch.tensor([1, HEIGHT // PATCH, WIDTH // PATCH])
    return patches, grid.expand(len(pictures), -1)


def name_tokens(tokenizer: Any, name: str) -> list[int]:
    """Return the tokens of a name within a sentence, cut or filled with spaces to TOKENS."""
    ids, (space,) = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (f" {name}", " "))
    return (ids + [space] * TOKENS)[:TOKENS]
