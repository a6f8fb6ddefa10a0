"""Features of images in tiles, as transformers' own model computes them from what its own processor makes."""

from __future__ import annotations

import pytest
import torch
from families import VISION, ask
from tiny import inputs, tiny_model, tiny_policy

from mm_spine.policy.families import FAMILIES
from mm_spine.policy.tile_towers import TileTower
from mm_spine.types import Question

TILES = tuple(kind for kind in VISION if not FAMILIES[kind].mergers)
TAKES = ("pixel_values", "image_sizes", "batch_num_images")


@torch.no_grad()
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("kind", TILES)
def test_features_are_those_of_all_images_together(kind: str, images: int) -> None:
    policy, plain, question = tiny_policy(kind=kind), tiny_model(kind=kind), ask(kind, (images,))[0]
    made = inputs(question, (), kind)
    found = plain.model.get_image_features(**{k: v for k, v in made.items() if k in TAKES}).pooler_output
    expected = torch.cat([part.reshape(-1, 64) for part in found])
    torch.testing.assert_close(policy.prompt(question).features_ID, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", TILES)
def test_the_tower_shares_its_parameters_with_the_model_and_adds_none(kind: str) -> None:
    policy = tiny_policy(kind=kind)
    assert isinstance(policy.tower, TileTower)
    inside = {id(p): name for name, p in policy.model.named_parameters()}
    text = {id(p) for p in policy.text.parameters()}
    assert {id(p) for p in policy.tower.parameters()} == inside.keys() - text
    assert policy.kernels["tower"] == "sdpa"


def test_a_large_image_among_llava_onevisions_is_reduced() -> None:
    """Six tiles of 4 x 4 patches: more than two tiles are brought down, and each row ends with the newline."""
    image = ask("internvl", (1,))[0].images[0].resize((84, 56))
    question = Question("q", (image,), "Add.", ask("internvl", (1,))[0].spec)
    # 12 x 8 patches have 3 times those of two tiles: reduced by sqrt(3) to 6 x 4, with a newline for each of 4 rows.
    assert len(tiny_policy(kind="llava_onevision").prompt(question).image_at_I) == 16 + 6 * 4 + 4
