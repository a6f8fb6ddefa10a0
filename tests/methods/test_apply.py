"""Credit and token masks of small groups, worked out by hand."""

from __future__ import annotations

import pytest
import torch
from credited_groups import credited, mixed, options

from mm_spine.methods.apply import BAND, assign_credit, choose_tokens
from mm_spine.methods.method import Batch
from mm_spine.methods.table import find


def test_credit_is_one_for_the_vote_and_normalised_within_the_group() -> None:
    """r = [1, 0, 0, 0]: mean 1/4, sample std 1/2, so A = [3/2, -1/2, -1/2, -1/2]."""
    first, second = assign_credit(Batch(mixed()), find("ttrl"), options("ttrl"))
    torch.testing.assert_close(first.rewards, torch.tensor([1.0, 0, 0, 0]))
    torch.testing.assert_close(first.advantages, torch.tensor([1.5, -0.5, -0.5, -0.5]), atol=1e-5, rtol=0)
    assert second.rewards.tolist() == [1.0] * 4 and second.advantages.tolist() == [0.0] * 4


def test_masks_by_response_and_by_batch() -> None:
    """The top fifth of 3, 2, 2, 1 and 5 tokens each; of all 28 tokens the quantile 0.8 is 0.5."""
    _, by_response, _ = credited()
    assert [t.policy_T.tolist() for t in by_response[0]] == [[False, True, False], [False, True], [False, True], [True]]
    assert by_response[1][0].policy_T.tolist() == [False] * 4 + [True]
    _, by_batch, _ = credited(mask_scope="batch")
    assert [t.policy_T.tolist() for t in by_batch[0]] == [[False, True, True], [False, True], [False, True], [True]]
    assert by_batch[1][0].policy_T.tolist() == [False] * 4 + [True]


def test_bounds_are_of_the_response_the_batch_or_the_anchor() -> None:
    _, own, _ = credited(share=1.0)
    assert [float(t.bounds.high) for t in own[0]] == pytest.approx([0.5, 0.5, 0.5, 2.0])
    assert float(own[1][0].bounds.low) == pytest.approx(0.14)
    _, batch, _ = credited(share=1.0, band_scope="batch")
    assert len({float(t.bounds.high) for chosen in batch for t in chosen}) == 1
    remembered = Batch(mixed(), memory={BAND: [0.25, 0.75]})
    anchored = choose_tokens(remembered, find("spine"), options("spine"))
    assert {tuple(map(float, t.bounds)) for chosen in anchored for t in chosen} == {(0.25, 0.75)}


def test_a_method_without_band_has_no_band_tokens() -> None:
    _, tokens, _ = credited("ttrl")
    assert all(t.bounds is None and not t.band_T.any() and t.policy_T.all() for chosen in tokens for t in chosen)
