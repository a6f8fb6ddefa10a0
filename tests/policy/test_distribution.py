"""The distribution that is sampled from and trained."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from exactness import assert_exact

from mm_spine.policy import distribution
from mm_spine.policy.distribution import Distribution, logits_of


def test_distribution_bans_before_the_temperature_and_computes_in_fp32() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0, 1e6]], dtype=torch.bfloat16)
    found = Distribution(2.0, (3,)).log_probs(logits)
    expected = torch.tensor([[0.5, 1.0, 1.5]]).log_softmax(-1)
    assert found.dtype == torch.float32 and found[0, 3] == -torch.inf
    torch.testing.assert_close(found[:, :3], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("piece", [1, 500, 2**20])
def test_logits_of_half_floats_are_those_of_fp32(dtype: torch.dtype, piece: int) -> None:
    """Held against the product of the same numbers in float64, by the rule for fp32; in pieces of any size."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 96, generator=generator).to(dtype) for n in (7, 150))
    exact = hidden.double() @ weight.double().T
    with mock.patch.object(distribution, "PIECE", piece):
        found = logits_of(hidden, weight)
    assert found.dtype == torch.float32
    assert_exact([found], [hidden.float() @ weight.float().T], [exact])
    rounded = (hidden @ weight.T).float()
    assert float((rounded - exact).abs().max()) > 100 * float((found - exact).abs().max())


def test_logits_of_fp32_are_one_plain_product() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 96, generator=generator) for n in (7, 150))
    assert torch.equal(logits_of(hidden, weight), hidden @ weight.T)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.gpu
def test_logits_of_bf16_are_those_of_fp32_on_a_card() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 96, generator=generator).bfloat16() for n in (7, 150))
    found = logits_of(hidden.cuda(), weight.cuda())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.cpu(), hidden.float() @ weight.float().T, rtol=1e-5, atol=1e-4)
