"""Vision towers that read images in square tiles: the tower, the projector behind it, and what joins their features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

TileFeatures = Callable[[Any, Tensor, Tensor], Tensor]
"""(transformers' model without its head, tiles (N, 3, height, width), (tiles, height, width)) -> features (I, D)."""


class TowerOutput(NamedTuple):
    """The features (I, D) that stand in place of the embeddings of an image's I tokens."""

    pooler_output: Tensor


class TileTower(nn.Module):
    """All that lies between the pixels of an image and its features: the modules and parameters `parts` of `model`."""

    # They stay where they are in `model`, so that it is saved and called as before; this is a second way to them.

    def __init__(self, model: Any, parts: Sequence[str], features: TileFeatures) -> None:
        super().__init__()
        for name in parts:
            part = getattr(model, name)
            if isinstance(part, nn.Parameter):
                self.register_parameter(name, part)
            else:
                self.add_module(name, part)
        # In a tuple the model does not become a child of this module.
        self._whole = (model,)
        self._features = features

    @property
    def config(self) -> Any:
        return self._whole[0].vision_tower.config

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def forward(self, pixels: Tensor, grid_thw: Tensor) -> TowerOutput:
        """Return the features of one image: its tiles (N, 3, height, width), and `EncodedImage.grid_thw` as (1, 3)."""
        return TowerOutput(self._features(self._whole[0], pixels, grid_thw[0]))


def internvl_tower(model: Any) -> TileTower:
    """Return the tower of InternVL, whose tiles each have the same number of tokens."""
    return TileTower(model.model, ("vision_tower", "multi_modal_projector"), _side_by_side)


def gemma3_tower(model: Any) -> TileTower:
    """Return the tower of Gemma 3, which reads an image as one tile."""
    return TileTower(model.model, ("vision_tower", "multi_modal_projector"), _side_by_side)


def llava_onevision_tower(model: Any) -> TileTower:
    """Return the tower of LLaVA-OneVision, with the embedding that ends each row of patches."""
    return TileTower(model.model, ("vision_tower", "multi_modal_projector", "image_newline"), _any_resolution)


def _side_by_side(model: Any, pixels: Tensor, grid_3: Tensor) -> Tensor:
    found: Tensor = model.get_image_features(pixels, return_dict=True).pooler_output
    return found.flatten(0, 1)


def _any_resolution(model: Any, pixels: Tensor, grid_3: Tensor) -> Tensor:
    # One tile is an image among several, which the model does not cut: it wants to know that there are others.
    images = torch.tensor([2 if len(pixels) == 1 else 1])
    output = model.get_image_features(pixels[None], grid_3[None, 1:], batch_num_images=images, return_dict=True)
    found: Tensor = output.pooler_output[0]
    return found
