"""Attention kernels against plain products."""

from __future__ import annotations

import pytest
import torch

from mm_spine.policy import kernels


@pytest.mark.parametrize("causal", [False, True])
def test_kernels_agree_with_the_plain_products(causal: bool) -> None:
    """Of the output and the log-sum-exp, with fewer key heads than query heads, padded keys and strided buffers."""
    random = torch.Generator().manual_seed(0)
    q = torch.randn(3, 4, 5, 16, generator=random)
    k, v = torch.randn(2, 3, 2, 9, 16, generator=random)[:, :, :, : 5 if causal else 7]
    bias = None if causal else kernels.padding_bias(7, torch.tensor([7, 3, 1]), torch.float32)
    found = kernels.attend(q, k, v, 0.3, bias, causal)
    for fast, plain in zip(found, kernels.attend_plainly(q, k, v, 0.3, bias, causal), strict=True):
        assert fast.shape == plain.shape
        torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)
