"""The distribution that is sampled from and trained."""

from __future__ import annotations

import torch

from mm_spine.policy.distribution import Distribution


def test_distribution_bans_before_the_temperature_and_computes_in_fp32() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0, 1e6]], dtype=torch.bfloat16)
    found = Distribution(2.0, (3,)).log_probs(logits)
    expected = torch.tensor([[0.5, 1.0, 1.5]]).log_softmax(-1)
    assert found.dtype == torch.float32 and found[0, 3] == -torch.inf
    torch.testing.assert_close(found[:, :3], expected)
