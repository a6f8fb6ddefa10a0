"""What holds for each row that selects, weighs or clips tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from credited_groups import group, options, rollout

from mm_spine.methods.apply import assign_credit, choose_tokens
from mm_spine.methods.method import Batch
from mm_spine.methods.rows_tokens import ROWS
from mm_spine.methods.table import configure, find
from mm_spine.methods.tokens import Tokens
from mm_spine.types import Group

ENTROPIES = [0.3, 1.7, 0.6, 0.05, 1.1, 0.9]


def answered() -> list[Group]:
    """Two copies of a long response that wins the vote, three that differ, and a unanimous group."""
    long, other = [1, 2, 3, 4, 5, 6], [2.0, 0.2, 1.4, 0.8]
    rows = [
        rollout(0, long, ENTROPIES),
        rollout(1, long, ENTROPIES),
        rollout(2, [7, 8, 9, 3], other),
        rollout(3, [7, 8], [2.0, 0.2]),
        rollout(4, [5], [1.3]),
    ]
    return [
        group(rows, ["1", "1", "2", "3", None]),
        group([rollout(i, [4, 5], [0.4, 0.7], 1) for i in range(3)], ["5"] * 3, 1),
    ]


def chosen(name: str, groups: Sequence[Group]) -> tuple[list[Group], list[list[Tokens]]]:
    own = options(name)
    credited = assign_credit(Batch(groups, 3, 5), find(name), own)
    return credited, choose_tokens(Batch(credited, 3, 5), find(name), own)


def same(one: Tokens, other: Tokens) -> bool:
    return one.parts() == other.parts()


@pytest.mark.parametrize("name", ROWS)
def test_copies_of_a_response_get_the_same_and_a_weight_is_as_many_copies(name: str) -> None:
    groups = answered()
    credited, tokens = chosen(name, groups)
    assert credited[0].advantages is not None and credited[0].advantages[0] == credited[0].advantages[1]
    assert same(tokens[0][0], tokens[0][1]) and all(same(tokens[1][0], t) for t in tokens[1])
    first = groups[0]
    merged = replace(
        first,
        rollouts=(replace(first.rollouts[0], weight=2), *first.rollouts[2:]),
        answers=first.answers[1:],
        parsed=first.parsed[1:],
    )
    weighted, found = chosen(name, [merged, groups[1]])
    assert weighted[0].advantages is not None
    torch.testing.assert_close(weighted[0].advantages, credited[0].advantages[1:])
    assert all(same(t, u) for t, u in zip(found[0], tokens[0][1:], strict=True))


@pytest.mark.parametrize("name", ROWS)
def test_a_dropped_rollout_stays_out_and_moves_no_other_s_tokens(name: str) -> None:
    """As if the rules that compare tokens over the step had not seen it."""
    groups = answered()
    without = replace(
        groups[0], rollouts=groups[0].rollouts[:4], answers=groups[0].answers[:4], parsed=groups[0].parsed[:4]
    )
    _, tokens = chosen(name, [replace(groups[0], dropped=frozenset({4})), groups[1]])
    left = tokens[0][4]
    assert not left.policy_T.any() and not any(weight_T.any() for weight_T in left.weights.values())
    assert left.advantage_T is None or not left.advantage_T.any()
    if find(name).policy_mask is ROWS["clip-higher"].policy_mask:
        _, expected = chosen(name, [without, groups[1]])
        assert all(same(t, u) for t, u in zip(tokens[0][:4], expected[0], strict=True))


@pytest.mark.parametrize("name", ROWS)
def test_a_row_does_what_it_says(name: str) -> None:
    """Its mechanism leaves some token otherwise than the common algorithm does."""
    row, own = find(name), options(name)
    _, tokens = chosen(name, answered())
    flat = [t for group_tokens in tokens for t in group_tokens]
    assert own.kl == ("k3" if name == "earl" else "none")
    assert own.clip_high == row.options.get("clip_high", 0.2)
    selected = not all(t.policy_T.all() for t in flat)
    differs = selected or any(t.advantage_T is not None or t.clip is not None or t.weights for t in flat)
    assert differs or name in ("clip-higher", "clip-cov", "position-perplexity"), "limits, no draw and credit only"


def test_the_mask_of_the_whole_step_and_both_denominators() -> None:
    """Of the 25 tokens the quantile 0.8 is the 20.2th smallest; a response may have none."""
    _, tokens = chosen("top20-batch", answered())
    flat = torch.cat([t.policy_T for own in tokens for t in own])
    entropies = torch.tensor([*ENTROPIES, *ENTROPIES, 2.0, 0.2, 1.4, 0.8, 2.0, 0.2, 1.3, *[0.4, 0.7] * 3])
    assert torch.equal(flat, entropies >= entropies.double().quantile(0.8)) and not flat[-6:].any()
    assert configure({"method": "top20-batch"}).method.policy_denominator == "all"
