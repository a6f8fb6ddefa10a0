"""Worker of `test_image_cache`: one of two processes on a folder, or one that dies while it writes. Not a test module.

Imports no more than the cache needs, so that it starts in a few seconds.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from mm_spine.config import CacheConfig
from mm_spine.policy.image_cache import ImageCache
from mm_spine.processors.chat import EncodedImage

GRID = torch.tensor([1, 2, 2])


class Tower(nn.Module):
    """Adds up patches in a way that shows every bit; DeepStack features of `layers` layers."""

    def __init__(self, layers: int = 0) -> None:
        super().__init__()
        self.merger = nn.Identity()
        self.deepstack_merger_list = nn.ModuleList(nn.Identity() for _ in range(layers))
        self.config = SimpleNamespace(out_hidden_size=8, _attn_implementation="sdpa")
        self.device, self.dtype, self.calls = torch.device("cpu"), torch.float32, 0

    def forward(self, pixels: Tensor, grid_thw: Tensor) -> Any:
        self.calls += 1
        layers = [pixels.sin() * (i + 1) for i, _ in enumerate(self.deepstack_merger_list)]
        return SimpleNamespace(pooler_output=pixels.exp(), deepstack_features=layers)


def encoded(seed: int, tokens: int = 4) -> EncodedImage:
    pixels = torch.randn(tokens, 8, generator=torch.Generator().manual_seed(seed))
    return EncodedImage(pixels, GRID, f"image {seed}")


def cache_of(folder: Path | None, tower: Tower | None = None, memory: float = 1e9, disk: float = 1e9) -> ImageCache:
    """A cache around `tower` with budgets in bytes."""
    config = CacheConfig(folder=folder, memory_gb=memory / 1e9, disk_gb=disk / 1e9)
    return ImageCache(tower or Tower(), config=config, checksum=lambda: "weights", width=8)


def main(folder: Path, mode: str, disk: float = 1e9) -> None:
    """Ask 100 times for 7 images, beside another process; print tower runs. In mode "dies", end before the rename."""
    if mode == "dies":
        Path.replace = lambda self, target: os._exit(9)  # type: ignore[method-assign, assignment]
        cache_of(folder).features(encoded(0))
    (folder / f"ready {mode}").touch()
    while len(list(folder.glob("ready *"))) < 2:
        time.sleep(0.005)
    cache = cache_of(folder, memory=0, disk=disk)
    for i in range(100):
        image = encoded(i % 7)
        assert torch.equal(cache.features(image), image.pixel_values.exp()), i
    print(cache.tower_runs)
