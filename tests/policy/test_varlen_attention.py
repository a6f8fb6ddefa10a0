"""flash-attn for the tower, and which kernels a policy says that it runs; the text model's calls are tested elsewhere.

`test_tree_attention.py` and `test_packed.py` hold the calls over token trees against dense attention and plain
forwards.
"""

from __future__ import annotations

from typing import Any

import flash_stand_in
import pytest
import torch
import transformers
from exactness import InDouble, assert_exact, double_of
from families import MERGING, ask
from tiny import tiny_model, tiny_policy, tiny_processor
from torch import Tensor
from transformers import modeling_flash_attention_utils as loaded

from mm_spine.policy import image_cache, model
from mm_spine.policy.model import FLASH
from mm_spine.processors.chat import encode


@pytest.fixture
def flash_attn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which flash-attn runs, for Policy and for transformers."""
    flash_stand_in.install(monkeypatch)
    monkeypatch.setattr(loaded, "is_flash_attn_2_available", lambda: True)
    monkeypatch.setattr(loaded, "_loaded_implementation", None)
    monkeypatch.setattr(transformers.utils.import_utils, "is_flash_attn_2_available", lambda: True)
    monkeypatch.setattr(model, "why_not_flash_attn", lambda *_: "")


@pytest.mark.parametrize("kind", MERGING)
def test_the_tower_attends_over_images_of_unequal_sizes_in_one_call(kind: str, flash_attn: None) -> None:
    """Features of three images by the rule of `exactness`; a call for each layer, not one for each window or image."""
    (question,) = ask(kind, (3,))
    images = encode(question, tiny_processor(kind), None, None).images
    assert len({tuple(image.grid_thw.tolist()) for image in images}) > 1
    pixels = torch.cat([image.pixel_values for image in images])
    grids = torch.stack([image.grid_thw for image in images])

    @torch.no_grad()
    def features(tower: Any) -> Tensor:
        found: Tensor = tower(pixels.to(tower.dtype), grid_thw=grids).pooler_output
        return found

    plain = tiny_model(kind=kind).model.visual
    exact = double_of(plain)
    with InDouble():
        double = features(exact)
    policy = tiny_policy(kind=kind)
    assert policy.kernels == {"text": "flash_cpu", "tower": FLASH}
    ours = features(policy.tower)
    assert len(flash_stand_in.calls) == len(policy.tower.blocks)
    assert_exact([ours], [features(plain)], [double])


def test_features_of_another_kernel_have_another_key(flash_attn: None) -> None:
    """Files keep their names where flash-attn does not run."""
    fast, usual = tiny_policy(), tiny_policy()
    usual.tower.config._attn_implementation = "sdpa"
    stamps = [image_cache.ImageCache(policy.tower)._stamp for policy in (fast, usual)]
    assert stamps[0] == stamps[1].replace("'cpu'", f"'cpu {FLASH}'") != stamps[1]


def test_without_flash_attn_the_tower_stays_as_it_is() -> None:
    assert tiny_policy().kernels == {"text": "flash_cpu", "tower": "sdpa"}
    assert tiny_policy(kind="qwen3").kernels == {"text": "flash_cpu", "tower": None}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", MERGING)
def test_the_tower_on_a_card_agrees(kind: str) -> None:
    """In bfloat16, with flash-attn where it is installed, against the same weights in fp32."""
    (question,) = ask(kind, (3,))
    half = model.Policy(tiny_model(kind=kind).bfloat16().cuda(), tiny_processor(kind))
    if half.kernels["tower"] != FLASH:
        pytest.skip("flash-attn is not installed")
    whole = model.Policy(tiny_model(kind=kind).bfloat16().float(), tiny_processor(kind))
    for image in encode(question, tiny_processor(kind), None, None).images:
        found, expected = (policy.images.features(image).float().cpu() for policy in (half, whole))
        assert float((found - expected).norm() / expected.norm()) < 0.03
