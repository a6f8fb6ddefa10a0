"""From voted groups to one step's loss, on small groups worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from small import digit_policy, small_config
from tiny import tiny_questions
from torch import Tensor

from mm_spine.config import MethodConfig
from mm_spine.methods.apply import Tokens, assign_credit, choose_tokens
from mm_spine.methods.band import Bounds
from mm_spine.methods.table import find
from mm_spine.policy.distribution import Distribution
from mm_spine.policy.model import Policy
from mm_spine.policy.text import Trained
from mm_spine.training.batch import (
    Leaf,
    LeafGroup,
    MicroBatch,
    collate,
    merge_identical,
    micro_batches,
    share_identical,
    trained_groups,
)
from mm_spine.training.loss import Denominators, denominators, losses
from mm_spine.types import Group, Rollout, TokenStats, Vote

QUESTIONS = tiny_questions(4)


def rollout(index: int, tokens: Sequence[int], entropy: Sequence[float], question: int = 0) -> Rollout:
    """A response with log-probs of minus its entropies."""
    values = np.array(entropy, np.float32)
    return Rollout(f"q{question}", index, tuple(tokens), "", -values, values, "stop")


def group(rollouts: Sequence[Rollout], answers: Sequence[str | None], question: int = 0) -> Group:
    """A group whose vote is the first answer."""
    share = sum(a == answers[0] for a in answers) / len(answers)
    vote = Vote(answers[0], share, {}, 0.0, sum(a is not None for a in answers))
    return Group(QUESTIONS[question], tuple(rollouts), tuple(answers), vote, parsed=(None,) * len(rollouts))


def mixed() -> list[Group]:
    """One group that differs and one that is unanimous."""
    first = [
        rollout(0, [1, 2, 3], [0.1, 0.9, 0.5]),
        rollout(1, [1, 2], [0.1, 0.9]),
        rollout(2, [1, 2], [0.1, 0.9]),
        rollout(3, [7], [2.0]),
    ]
    second = [rollout(i, [5, 6, 7, 8, 9], [0.1, 0.2, 0.3, 0.4, 0.5], 1) for i in range(4)]
    return [group(first, ["1", "2", "2", None]), group(second, ["5"] * 4, 1)]


def options(method: str, **values: Any) -> MethodConfig:
    """A method's options, some replaced."""
    return small_config({"method": {"name": method, "share": 0.2, **values}}).method


def credited(method: str = "spine", **values: Any) -> tuple[list[Group], list[list[Tokens]], MethodConfig]:
    """`mixed` with credit and token masks."""
    own = options(method, **values)
    groups = assign_credit(mixed(), find(method), own)
    return groups, choose_tokens(groups, find(method), own, seed=0, step=0), own


def test_identical_responses_share_the_first_ones_figures() -> None:
    noisy = [rollout(0, [1, 2], [0.1, 0.2]), rollout(1, [1, 2], [0.3, 0.4]), rollout(2, [1], [0.5])]
    shared = share_identical(group(noisy, ["1", "1", "2"])).rollouts
    np.testing.assert_array_equal(shared[1].entropy, noisy[0].entropy)
    np.testing.assert_array_equal(shared[1].logp, noisy[0].logp)
    assert [r.index for r in shared] == [0, 1, 2]
    np.testing.assert_array_equal(shared[2].entropy, noisy[2].entropy)


def test_credit_is_one_for_the_vote_and_normalised_within_the_group() -> None:
    """r = [1, 0, 0, 0]: mean 1/4, sample std 1/2, so A = [3/2, -1/2, -1/2, -1/2]."""
    first, second = assign_credit(mixed(), find("ttrl"), options("ttrl"))
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
    anchor = Bounds(torch.tensor(0.25), torch.tensor(0.75))
    anchored = choose_tokens(mixed(), find("spine"), options("spine"), seed=0, step=0, fixed_bounds=anchor)
    assert all(t.bounds is anchor for chosen in anchored for t in chosen)


def test_a_method_without_band_has_no_band_tokens() -> None:
    _, tokens, _ = credited("ttrl")
    assert all(t.bounds is None and not t.band_T.any() and t.policy_T.all() for chosen in tokens for t in chosen)


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
    (chosen,) = choose_tokens([equal], find("spine"), own, seed=0, step=0)
    row = merge_identical(replace(equal, advantages=torch.tensor([1.0, 1.0, 1.0, 1.0, 2.0, 1.0])), chosen)
    assert [(leaf.rollout.weight, leaf.advantage) for leaf in row.leaves] == [(3, 1.0), (1, 1.0), (1, 2.0), (1, 1.0)]
    counted = sum(leaf.rollout.weight * int(leaf.tokens.policy_T.sum()) for leaf in row.leaves)
    assert counted == denominators([chosen], options("spine", policy_denominator="selected")).policy == 3


def test_a_group_without_a_selected_token_is_no_row() -> None:
    """All forks of the batch lie in the unanimous group, which is skipped: nothing is left to run."""
    quiet = group([rollout(i, [i], [0.1 * i]) for i in range(4)], ["1", "2", "2", "2"])
    loud = group([rollout(i, [5, 6, 7, 8], [3.0, 3.1, 3.2, 3.3], 1) for i in range(4)], ["5"] * 4, 1)
    own = options("spine", mask_scope="batch")
    groups = assign_credit([quiet, loud], find("spine"), own)
    tokens = choose_tokens(groups, find("spine"), own, seed=0, step=0)
    assert groups[0].advantages is not None and groups[0].advantages.any()
    assert trained_groups(groups, tokens, own) == []
    assert len(trained_groups(groups, tokens, options("spine", mask_scope="batch", unanimous="regularise"))) == 1


def test_a_row_without_credit_is_refused() -> None:
    with pytest.raises(ValueError, match="q0: no advantages yet"):
        merge_identical(mixed()[0], [])


def test_unanimous_groups_train_only_where_they_regularise() -> None:
    groups, tokens, own = credited()
    assert [row.question.id for row in trained_groups(groups, tokens, own)] == ["q0"]
    regularising = options("spine", unanimous="regularise")
    assert [row.question.id for row in trained_groups(groups, tokens, regularising)] == ["q0", "q1"]


@pytest.mark.parametrize("policy, band, kl", [("all", "selected", "all"), ("selected", "all", "selected")])
def test_denominators_count_every_kept_rollout(policy: str, band: str, kl: str) -> None:
    """3 + 2 + 2 + 1 + 4 x 5 = 28 tokens, 8 of them selected: skipped groups and repeats count too."""
    _, tokens, own = credited(policy_denominator=policy, band_denominator=band, kl_denominator=kl)
    sizes = {"all": 28.0, "selected": 8.0}
    assert denominators(tokens, own) == Denominators(sizes[policy], sizes[band], sizes[kl])


def test_losses_by_hand() -> None:
    """Two leaves, the second twice; ratio 1.5 at one token of A = 2 (clipped to 1.2), 0.5 at one of A = -1.

    policy: -(1.2 x 2 + 1 x 2 + 2 x (-0.8)) / 10 = -0.28 (min(0.5 A, 0.8 A) = -0.8);
    band: (2 x 0.3 x 0.1 + 2 x 3 x 0.3) / 5; KL: 0.5 x (0.7 + 2 x 0.9) / 4.
    """
    mask = torch.tensor([[True, True], [True, False]])
    micro = MicroBatch(
        packed=None,  # type: ignore[arg-type]  # the loss does not look at it
        advantage_N1=torch.tensor([[2.0], [-1.0]]),
        weight_N=torch.tensor([1.0, 2.0]),
        sampled_logp_NT=torch.zeros(2, 2),
        policy_NT=mask,
        band_NT=torch.tensor([[False, False], [True, True]]),
        low_N1=torch.tensor([[0.0], [1.0]]),
        high_N1=torch.tensor([[9.0], [2.0]]),
    )
    old_NT = torch.tensor([[-1.0, -2.0], [-3.0, 0.0]])
    now_NT = old_NT + torch.tensor([[1.5, 1.0], [0.5, 1.0]]).log()
    entropy_NT = torch.tensor([[5.0, 5.0], [0.9, 2.3]])
    kl_NT = torch.tensor([[0.7, 0.0], [0.9, 4.0]])
    own = options("spine", band_low_weight=0.3, band_high_weight=3, kl_weight=0.5)
    parts = losses(Trained(TokenStats(now_NT, entropy_NT, mask), kl_NT), micro, old_NT, own, Denominators(10, 5, 4))
    assert float(parts.policy) == pytest.approx(-0.28, rel=1e-5)
    assert float(parts.band) == pytest.approx((2 * 0.3 * 0.1 + 2 * 3 * 0.3) / 5, rel=1e-5)
    assert float(parts.kl) == pytest.approx(0.5 * (0.7 + 2 * 0.9) / 4, rel=1e-5)


@pytest.mark.parametrize("noise, slope", [(-2e-6, 0.0), (2e-6, 0.0), (-1e-2, -0.25), (1e-2, 1.0)])
def test_a_token_on_its_bound_is_not_pushed_by_rounding(noise: float, slope: float) -> None:
    """Both bounds are at 1.5; the hinge of weight 1 (low) or 4 (high) over 4 tokens has its slope only beyond them."""
    one = torch.ones(1, 1)
    micro = MicroBatch(None, one, one[0], one * 0, one > 0, one > 0, one * 1.5, one * 1.5)  # type: ignore[arg-type]
    entropy_NT = torch.tensor([[1.5 + noise]], requires_grad=True)
    own = options("spine", band_low_weight=1, band_high_weight=4)
    trained = Trained(TokenStats(one * 0, entropy_NT, one > 0), one * 0)
    losses(trained, micro, one * 0, own, Denominators(4, 4, 4)).band.backward()
    assert entropy_NT.grad is not None and float(entropy_NT.grad) == pytest.approx(slope)


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


def test_groups_are_never_split_and_fill_the_budget_longest_first() -> None:
    prompt = len(policy().prompt(QUESTIONS[0]).ids_L)
    rows = rows_of(1, 4, 2, 3)
    assert lengths(micro_batches(policy(), rows, 4 * prompt + 100)) == [[4, 3, 2, 1]]
    assert lengths(micro_batches(policy(), rows, 3 * prompt + 90)) == [[4, 3, 2], [1]]
    assert lengths(micro_batches(policy(), rows, 2 * prompt + 69)) == [[4], [3, 2], [1]]
    assert lengths(micro_batches(policy(), rows, 1)) == [[4], [3], [2], [1]]
    assert micro_batches(policy(), [], 100) == []


def test_a_batch_is_within_the_budget() -> None:
    rows = rows_of(5, 1, 2, 4, 3, 1, 1)
    prompt = len(policy().prompt(QUESTIONS[0]).ids_L)
    for budget in (prompt + 50, 2 * prompt + 70, 3 * prompt + 130, 1000):
        batches = micro_batches(policy(), rows, budget)
        assert sorted(chain(*lengths(batches))) == [1, 1, 1, 2, 3, 4, 5]
        packed = [len(sizes) * prompt + 10 * sum(sizes) for sizes in lengths(batches)]
        assert all(len(batch) == 1 or tokens <= budget for batch, tokens in zip(batches, packed, strict=True))


def gradient(batches: Sequence[Sequence[LeafGroup]], own: MethodConfig, over: Denominators) -> Tensor:
    """The whole gradient of the step's loss, summed over the micro-batches."""
    text = policy().text
    text.zero_grad()
    for rows in batches:
        micro = collate(policy(), rows)
        trained = text(micro.packed, Distribution(1.0, policy().banned))
        parts = losses(trained, micro, trained.stats.logp_NT.detach(), own, over)
        (parts.policy + parts.band + parts.kl).backward()
    return torch.cat([p.grad.flatten() for p in text.parameters() if p.grad is not None]).clone()


def test_neither_merging_nor_batching_changes_the_gradient() -> None:
    """Identical responses as one weighted leaf or apart; all groups in one micro-batch or each alone."""
    groups, tokens, own = credited(unanimous="regularise", share=0.5)
    over = denominators(tokens, own)
    merged = trained_groups(groups, tokens, own)
    apart = [
        LeafGroup(
            g.question, tuple(Leaf(r, a, t) for r, a, t in zip(g.rollouts, g.advantages.tolist(), chosen, strict=True))
        )
        for g, chosen in zip(groups, tokens, strict=True)
    ]
    expected = gradient([[row] for row in apart], own, over)
    assert float(expected.norm()) > 1e-3
    for batches in ([merged], [[row] for row in merged], [merged[::-1]], [apart]):
        assert float((gradient(batches, own, over) - expected).norm()) < 1e-5 * float(expected.norm())


def test_empty_responses_change_no_gradient() -> None:
    """Beside others in a group, as a group of their own, and alone in a micro-batch."""
    groups, tokens, own = credited(unanimous="regularise", share=0.5)
    rows = trained_groups(groups, tokens, own)
    nothing = torch.zeros(0, dtype=torch.bool)
    empty = Leaf(rollout(9, [], []), 1.0, Tokens(nothing, nothing, None))
    among = [LeafGroup(row.question, (empty, *row.leaves)) for row in rows]
    over = denominators(tokens, own)
    expected = gradient([rows], own, over)
    for batches in (
        [among],
        [[LeafGroup(QUESTIONS[2], (empty,)), *rows]],
        [rows, [LeafGroup(QUESTIONS[2], (empty, empty))]],
    ):
        assert float((gradient(batches, own, over) - expected).norm()) < 1e-5 * float(expected.norm())


def test_collate_puts_everything_in_its_place() -> None:
    groups, tokens, own = credited(unanimous="regularise", share=0.5)
    micro = collate(policy(), trained_groups(groups, tokens, own))
    assert micro.weight_N.tolist() == [1, 2, 1, 4]
    assert micro.advantage_N1[:, 0].tolist() == pytest.approx([1.5, -0.5, -0.5, 0.0], abs=1e-5)
    torch.testing.assert_close(micro.sampled_logp_NT[1], torch.tensor([-0.1, -0.9, 0, 0, 0]))
    assert micro.policy_NT[0].tolist() == [False, True, True, False, False]
    assert micro.band_NT.equal(micro.policy_NT)
    assert micro.high_N1[2].item() == pytest.approx(2.0)
    assert micro.packed.shape_NT == (4, 5)
