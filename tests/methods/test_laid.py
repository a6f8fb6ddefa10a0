"""Tokens of a step laid end to end, and back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from credited_groups import everywhere, rollout, with_credit
from torch import Tensor

from mm_spine.methods.laid import Laid, largest, lay, over_the_step, unit_range, with_advantages
from mm_spine.methods.method import Batch


def test_tokens_are_laid_in_order_as_often_as_they_count_and_values_go_back() -> None:
    first = replace(rollout(0, [1, 2, 3], [0.1, 0.9, 0.5]), weight=2)
    own = with_credit([first, rollout(1, [4], [2.0])], [1.0, -2.0])
    tokens = everywhere([own])
    tokens[0][0] = tokens[0][0]._replace(policy_T=torch.tensor([True, False, True]))
    seen: list[Laid] = []

    def counted(laid: Laid) -> Tensor:
        seen.append(laid)
        return torch.arange(len(laid.logp_S), dtype=torch.float64)

    found = over_the_step(Batch([own]), tokens, counted)
    assert [t.tolist() for t in found[0]] == [[0.0, 0.0, 1.0], [4.0]]
    assert seen[0].advantage_S.tolist() == [1.0, 1.0, 1.0, 1.0, -2.0]
    assert seen[0].entropy_S.tolist() == pytest.approx([0.1, 0.5, 0.1, 0.5, 2.0])
    assert torch.equal(seen[0].logp_S, -seen[0].entropy_S)
    assert found[0][0].dtype == torch.float32 and seen[0].logp_S.dtype == torch.float64
    places = [torch.arange(3.0), torch.tensor([9.0])]
    assert lay(Batch([own]), tokens, places).tolist() == [0.0, 2.0, 0.0, 2.0, 9.0]


def test_no_tokens_have_no_values_and_no_rule_is_asked() -> None:
    empty = with_credit([rollout(0, [], [])], [0.0])

    def never(laid: Laid) -> Tensor:
        raise AssertionError

    assert [t.shape for t in over_the_step(Batch([empty]), everywhere([empty]), never)[0]] == [(0,)]
    assert over_the_step(Batch([]), [], never) == []


def test_missing_entropies_are_nan_and_missing_advantages_are_said() -> None:
    own = with_credit([replace(rollout(0, [1, 2], [0.1, 0.2]), entropy=None)], [1.0])
    found = over_the_step(Batch([own]), everywhere([own]), lambda laid: laid.entropy_S)
    assert np.isnan(found[0][0].numpy()).all()
    with pytest.raises(ValueError, match="q0: no advantages yet"):
        over_the_step(Batch([replace(own, advantages=None)]), everywhere([own]), lambda laid: laid.logp_S)


def test_advantages_of_tokens() -> None:
    own = with_credit([rollout(0, [1, 2], [0.1, 0.2]), rollout(1, [3], [0.3])], [1.0, -1.0])
    ((first, second),) = with_advantages(Batch([own]), everywhere([own]), lambda laid: 2 * laid.advantage_S)
    assert first.advantage_T is not None and second.advantage_T is not None
    assert (first.advantage_T.tolist(), second.advantage_T.tolist()) == ([2.0, 2.0], [-2.0])


def test_the_largest_keep_ties_and_are_at_least_one() -> None:
    values = torch.tensor([3.0, 1.0, 2.0, 2.0])
    assert largest(values, 0.5).tolist() == [True, False, True, True]
    assert largest(values, 1e-6).tolist() == [True, False, False, False]
    assert int(largest(torch.arange(100.0), 0.29).sum()) == 29, "0.29 * 100 is 28.999999999999996"


def test_the_unit_range_and_that_of_equal_values() -> None:
    assert unit_range(torch.tensor([1.0, 3.0, 2.0])).tolist() == [0.0, 1.0, 0.5]
    assert unit_range(torch.tensor([2.0, 2.0])).tolist() == [0.0, 0.0]
