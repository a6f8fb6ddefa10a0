"""Leaves, merged responses, micro-batches and their tensors, on small groups worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import chain

import numpy as np
import pytest
import torch
from credited_groups import QUESTIONS, credited, group, mixed, options, rollout
from small import digit_policy

from mm_spine.methods.apply import assign_credit, choose_tokens
from mm_spine.methods.method import Batch
from mm_spine.methods.table import find
from mm_spine.methods.tokens import Limits, Tokens
from mm_spine.policy.model import Policy
from mm_spine.training.batch import (
    Leaf,
    LeafGroup,
    collate,
    merge_identical,
    micro_batches,
    share_identical,
    trained_groups,
)
from mm_spine.training.loss import denominators


def test_identical_responses_share_the_first_ones_figures() -> None:
    noisy = [rollout(0, [1, 2], [0.1, 0.2]), rollout(1, [1, 2], [0.3, 0.4]), rollout(2, [1], [0.5])]
    shared = share_identical(group(noisy, ["1", "1", "2"])).rollouts
    np.testing.assert_array_equal(shared[1].entropy, noisy[0].entropy)
    np.testing.assert_array_equal(shared[1].logp, noisy[0].logp)
    assert [r.index for r in shared] == [0, 1, 2]
    np.testing.assert_array_equal(shared[2].entropy, noisy[2].entropy)


def test_a_row_holds_each_distinct_response_once_with_its_multiplicity() -> None:
    groups, tokens, _ = credited("ttrl")
    row = merge_identical(groups[0], tokens[0])
    assert [leaf.rollout.token_ids for leaf in row.leaves] == [(1, 2, 3), (1, 2), (7,)]
    assert [leaf.rollout.weight for leaf in row.leaves] == [1, 2, 1]
    assert [leaf.advantage for leaf in row.leaves] == pytest.approx([1.5, -0.5, -0.5], abs=1e-5)
    assert [leaf.rollout.weight for leaf in merge_identical(groups[1], tokens[1]).leaves] == [4]


def test_equal_responses_with_other_masks_or_credit_are_leaves_of_their_own() -> None:
    """Exactly 3 of 12 tokens of the batch: a third of six equal ones falls to the first two responses alone."""
    equal = group([rollout(i, [1, 2], [0.9, 0.1]) for i in range(5)] + [rollout(5, [3, 4], [0.2, 0.3])], ["1"] * 6)
    own = options("spine", mask_rule="top_k", mask_scope="batch", share=0.25)
    (chosen,) = choose_tokens(Batch([equal]), find("spine"), own)
    row = merge_identical(replace(equal, advantages=torch.tensor([1.0, 1.0, 1.0, 1.0, 2.0, 1.0])), chosen)
    assert [(leaf.rollout.weight, leaf.advantage) for leaf in row.leaves] == [(3, 1.0), (1, 1.0), (1, 2.0), (1, 1.0)]
    counted = sum(leaf.rollout.weight * int(leaf.tokens.policy_T.sum()) for leaf in row.leaves)
    assert counted == denominators([equal], [chosen], options("spine", policy_denominator="selected")).policy == 3


def test_equal_responses_that_other_policies_drew_are_leaves_of_their_own() -> None:
    groups, tokens, _ = credited("ttrl")
    fresh = groups[1].rollouts
    earlier = [replace(r, logp=r.logp - n, replayed=True) for n, r in zip((1, 1, 2), fresh[1:], strict=True)]
    row = merge_identical(replace(groups[1], rollouts=(fresh[0], *earlier)), tokens[1])
    assert [(leaf.rollout.replayed, leaf.rollout.weight) for leaf in row.leaves] == [(False, 1), (True, 2), (True, 1)]


def test_a_group_without_a_selected_token_is_no_row() -> None:
    """All forks of the batch lie in the unanimous group, which is skipped: nothing is left to run."""
    quiet = group([rollout(i, [i], [0.1 * i]) for i in range(4)], ["1", "2", "2", "2"])
    loud = group([rollout(i, [5, 6, 7, 8], [3.0, 3.1, 3.2, 3.3], 1) for i in range(4)], ["5"] * 4, 1)
    own = options("spine", mask_scope="batch", unanimous="skip")
    groups = assign_credit(Batch([quiet, loud]), find("spine"), own)
    tokens = choose_tokens(Batch(groups), find("spine"), own)
    assert groups[0].advantages is not None and groups[0].advantages.any()
    assert trained_groups(groups, tokens, own) == []
    assert len(trained_groups(groups, tokens, options("spine", mask_scope="batch"))) == 1


def test_a_row_without_credit_is_refused() -> None:
    with pytest.raises(ValueError, match="q0: no advantages yet"):
        merge_identical(mixed()[0], [])


def test_unanimous_groups_train_only_where_they_regularise() -> None:
    groups, tokens, own = credited(unanimous="skip")
    assert [row.question.id for row in trained_groups(groups, tokens, own)] == ["q0"]
    regularising = options("spine")
    assert [row.question.id for row in trained_groups(groups, tokens, regularising)] == ["q0", "q1"]


@cache
def policy() -> Policy:
    return digit_policy()


def lengths(batches: list[list[LeafGroup]]) -> list[list[int]]:
    """Leaves of each row of each batch, which `rows_of` makes its length."""
    return [[len(row.leaves) for row in batch] for batch in batches]


def rows_of(*sizes: int) -> list[LeafGroup]:
    """A row of q0 with that many different leaves of 11 tokens for every size."""
    off = Tokens(torch.ones(11, dtype=torch.bool), torch.zeros(11, dtype=torch.bool), None)
    return [
        LeafGroup(QUESTIONS[0], tuple(Leaf(rollout(i, [i] * 11, [0.5] * 11), 1.0, off) for i in range(size)))
        for size in sizes
    ]


def test_groups_within_the_budget_stay_whole_and_fill_it_longest_first() -> None:
    prompt = len(policy().prompt(QUESTIONS[0]).ids_L)
    rows = rows_of(1, 4, 2, 3)
    assert lengths(micro_batches(policy(), rows, 4 * prompt + 100)) == [[4, 3, 2, 1]]
    assert lengths(micro_batches(policy(), rows, 3 * prompt + 90)) == [[4, 3, 2], [1]]
    assert lengths(micro_batches(policy(), rows, 2 * prompt + 69)) == [[4], [3, 2], [1]]
    assert lengths(micro_batches(policy(), rows, prompt + 40)) == [[4], [3], [2], [1]]
    assert micro_batches(policy(), [], 100) == []


def test_a_group_over_the_budget_is_divided_into_parts_within_it() -> None:
    """Leaves of 10 packed tokens: 35 beside the prompt are 3 of them; a leaf alone stays, whatever the budget."""
    prompt = len(policy().prompt(QUESTIONS[0]).ids_L)
    assert lengths(micro_batches(policy(), rows_of(7), prompt + 35)) == [[3], [3], [1]]
    assert lengths(micro_batches(policy(), rows_of(1, 4), prompt + 35)) == [[3], [1], [1]]
    assert lengths(micro_batches(policy(), rows_of(3), 1)) == [[1], [1], [1]]
    (whole,) = rows_of(7)
    divided = chain(*micro_batches(policy(), [whole], prompt + 35))
    assert [leaf.key for part in divided for leaf in part.leaves] == [leaf.key for leaf in whole.leaves]


def test_leaves_with_a_common_beginning_stay_in_one_part() -> None:
    """Of each pair the first 99 of 100 packed tokens are shared: two pairs are 202 of them, in another order 400."""
    off = Tokens(torch.ones(101, dtype=torch.bool), torch.zeros(101, dtype=torch.bool), None)
    drawn = [[first] * 99 + [last] * 2 for last in (7, 8) for first in (1, 2, 3, 4)]
    leaves = [Leaf(rollout(i, tokens, [0.5] * 101), 1.0, off) for i, tokens in enumerate(drawn)]
    prompt = len(policy().prompt(QUESTIONS[0]).ids_L)
    parts = micro_batches(policy(), [LeafGroup(QUESTIONS[0], tuple(leaves))], prompt + 210)
    assert [[leaf.rollout.token_ids[0] for leaf in part.leaves] for (part,) in parts] == [[1, 1, 2, 2], [3, 3, 4, 4]]


def test_a_batch_is_within_the_budget() -> None:
    rows = rows_of(5, 1, 2, 4, 3, 1, 1)
    prompt = len(policy().prompt(QUESTIONS[0]).ids_L)
    for budget in (prompt + 10, prompt + 50, 2 * prompt + 70, 3 * prompt + 130, 1000):
        batches = micro_batches(policy(), rows, budget)
        assert sum(chain(*lengths(batches))) == 17
        assert all(len(sizes) * prompt + 10 * sum(sizes) <= budget for sizes in lengths(batches))


def test_clipping_limits_of_some_responses_only_are_refused() -> None:
    groups, tokens, own = credited("ttrl")
    limits_T = torch.full((3,), 0.2)
    tokens[0][0] = tokens[0][0]._replace(clip=Limits(limits_T, limits_T))
    with pytest.raises(ValueError, match=r"question 'q0', rollout 2: no clipping limits, but other responses have"):
        collate(policy(), trained_groups(groups, tokens, own))


def test_collate_puts_everything_in_its_place() -> None:
    groups, tokens, own = credited(unanimous="regularise", share=0.5)
    micro = collate(policy(), trained_groups(groups, tokens, own))
    assert micro.weight_N.tolist() == [1, 2, 1, 4]
    assert micro.advantage_NT[:, 0].tolist() == pytest.approx([1.5, -0.5, -0.5, 0.0], abs=1e-5)
    torch.testing.assert_close(micro.sampled_logp_NT[1], torch.tensor([-0.1, -0.9, 0, 0, 0]))
    assert micro.policy_NT[0].tolist() == [False, True, True, False, False]
    assert micro.band_NT.equal(micro.policy_NT)
    assert micro.high_N1[2].item() == pytest.approx(2.0)
    assert micro.packed.shape_NT == (4, 5)
