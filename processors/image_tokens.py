"""How many tokens an image has, by arithmetic on the settings of a model, without loading it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

MOST_PIXELS = 12_845_056
"""Pixels to which Qwen2.5-VL's processor reduces an image: 16,384 tokens."""

TILES = 12
"""`max_patches` of InternVL's image processor in transformers, where no file says it."""

ROWS = 6
"""Tiles on top of each other at most in LLaVA-OneVision, where config.json lists no grids: 2,304 / 384."""


class ImageTokens(NamedTuple):
    """Tokens of an image at most: `fixed` of any, and `each` for every `pixels` pixels, at most `most` times.

    `pixels` is 0 if an image has `fixed` tokens at most, whatever its size. All are 0 if the model takes no images.
    """

    fixed: int = 0
    each: int = 0
    pixels: int = 0
    most: int = 0

    def within(self, max_pixels: int | None) -> int:
        """Return the tokens of an image at most, if it is reduced to `max_pixels` pixels."""
        parts = max_pixels // self.pixels if max_pixels and self.pixels else self.most
        return self.fixed + self.each * max(parts, min(self.most, 1))


ReadImageTokens = Callable[[Mapping[str, Any], Mapping[str, Any]], ImageTokens]
"""(config.json, settings of the image processor) -> tokens of an image."""


def no_image_tokens(config: Mapping[str, Any], processor: Mapping[str, Any]) -> ImageTokens:
    """Return zeros: the model takes no images."""
    return ImageTokens()


def tokens_by_pixels(config: Mapping[str, Any], processor: Mapping[str, Any]) -> ImageTokens:
    """Return a token for each square of (patch size x merge size) pixels along a side, as in the Qwen families."""
    vision = config.get("vision_config")
    if vision is None:
        return ImageTokens()
    pixels = int(vision.get("patch_size", 14) * vision.get("spatial_merge_size", 2)) ** 2
    most = processor.get("max_pixels") or (processor.get("size") or {}).get("longest_edge") or MOST_PIXELS
    return ImageTokens(each=1, pixels=pixels, most=int(most) // pixels)


def internvl_tokens(config: Mapping[str, Any], processor: Mapping[str, Any]) -> ImageTokens:
    """Return patches x downsample_ratio^2 for each tile, and for the whole image beside its tiles."""
    vision = config["vision_config"]
    side, patch = (_side(vision.get(key, default)) for key, default in (("image_size", 448), ("patch_size", 14)))
    tile = int((side // patch * config.get("downsample_ratio", 0.5)) ** 2)
    return ImageTokens(fixed=tile, each=tile, pixels=side**2, most=processor.get("max_patches") or TILES)


def llava_onevision_tokens(config: Mapping[str, Any], processor: Mapping[str, Any]) -> ImageTokens:
    """Return the patches of the whole image and of its tiles, with one more token at the end of each row of patches.

    The model reduces the features of more than N x 1.1^2 tiles to N, which `vision_aspect_ratio` names.
    """
    vision = config["vision_config"]
    side = _side(vision.get("image_size", 384))
    patches = side // _side(vision.get("patch_size", 14))
    tiles = int(str(config.get("vision_aspect_ratio", "anyres_max_9")).removeprefix("anyres_max_"))
    rows = max((height for height, _ in config.get("image_grid_pinpoints") or ()), default=ROWS * side) // side
    return ImageTokens(fixed=patches**2 + math.floor(1.1**2 * tiles * patches**2) + rows * patches)


def gemma3_tokens(config: Mapping[str, Any], processor: Mapping[str, Any]) -> ImageTokens:
    """Return the same number for every image, `mm_tokens_per_image`."""
    return ImageTokens(fixed=config.get("mm_tokens_per_image", 256))


def _side(size: Any) -> int:
    """Return a side of a square that config.json gives as a number or as [height, width]."""
    return int(size[0] if isinstance(size, list | tuple) else size)
