"""Image features, once per distinct image: with a frozen tower they are constants of the run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mm_spine.processors.chat import EncodedImage


class ImageCache:
    """Features (image tokens, width) by the hash of the processed patches, one image a unit.

    One image at a time, because a tower's row is not bit-equal to the same row in a larger batch. With
    `before_merger` the cache holds what enters the merger (its patches side by side), so that the merger may train.
    """

    def __init__(self, tower: Any, before_merger: bool = False) -> None:
        self._tower = tower
        self._before_merger = before_merger
        self._features: dict[str, Tensor] = {}
        self.width: int = tower.merger.hidden_size if before_merger else tower.merger.mlp[-1].out_features
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
        with self._without_merger():
            return self._tower(pixels, grid_thw=grid).pooler_output.detach()

    @contextmanager
    def _without_merger(self) -> Iterator[None]:
        merger = self._tower.merger
        if self._before_merger:
            self._tower.merger = _SideBySide(self.width)
        try:
            yield
        finally:
            self._tower.merger = merger


class _SideBySide(nn.Module):
    """In the merger's place: the patches that it would merge, (patches, h) -> (image tokens, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, patches: Tensor) -> Tensor:
        return patches.view(-1, self.width)
