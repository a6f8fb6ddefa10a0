"""Image features, once per distinct image: with a frozen tower they are constants of the run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mm_spine.processors.chat import EncodedImage


class ImageCache:
    """Features (image tokens, hidden) by the hash of the processed patches, one image a unit.

    One image at a time, because a tower's row is not bit-equal to the same row in a larger batch.
    """

    def __init__(self, tower: Any) -> None:
        self._tower = tower
        self._features: dict[str, Tensor] = {}
        self.hits = 0
        self.misses = 0

    def features(self, image: EncodedImage) -> Tensor:
        """Features of `image`, on the tower's device, without gradient."""
        if image.key in self._features:
            self.hits += 1
        else:
            self.misses += 1
            self._features[image.key] = self._encode(image)
        return self._features[image.key]

    @torch.no_grad()
    def _encode(self, image: EncodedImage) -> Tensor:
        pixels = image.pixel_values.to(self._tower.device, self._tower.dtype)
        grid = image.grid_thw[None].to(self._tower.device)
        return self._tower(pixels, grid_thw=grid).pooler_output.detach()
