"""Responses left out to keep the entropy within its range."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from adapting import run, stopping_after
from credited_groups import polled

from mm_spine.config import ConfigError
from mm_spine.methods.apply import assign_credit, choose_tokens
from mm_spine.methods.method import Batch
from mm_spine.methods.rejection import START, bounds, level, remember_start
from mm_spine.methods.rows_credit import ROWS
from mm_spine.methods.sections import EntrocraftConfig
from mm_spine.methods.table import configure
from mm_spine.types import Group

ROW = ROWS["entrocraft"]


def masks(groups: list[Group], start: float, **options: Any) -> list[list[bool]]:
    """Whether the policy term keeps each response, where the first step's entropy was `start`."""
    own = configure({"method": {"name": "entrocraft", **options}}).method
    batch = Batch(groups, memory={START: start})
    done = batch._replace(groups=assign_credit(batch, ROW, own))
    return [[bool(t.policy_T.all()) for t in chosen] for chosen in choose_tokens(done, ROW, own)]


def test_the_sign_that_would_lead_further_away_is_left_out() -> None:
    groups = [polled([*"AAB"], [1.0] * 3), polled([*"AAA"], [1.0] * 3, question=1)]
    assert masks(groups, 1.0) == [[True] * 3, [True] * 3]
    assert masks(groups, 0.5) == [[True, True, False], [True] * 3], "too high: only positive advantages, and none"
    assert masks(groups, 2.0) == [[False, False, True], [True] * 3]


def test_the_entropy_is_the_mean_over_responses_with_credit() -> None:
    group = polled([*"AAB"], [1.0, 2.0, 6.0])
    assert level(Batch([group])) == 3.0
    assert level(Batch([replace(group, dropped=frozenset({2}))])) == 1.5
    heavy = replace(group, rollouts=(replace(group.rollouts[0], weight=2), *group.rollouts[1:]))
    assert level(Batch([heavy])) == 2.5 and level(Batch([])) == 0.0


def test_the_range_moves_in_a_straight_line() -> None:
    options = EntrocraftConfig(entropy_range=(0.8, 1.2), entropy_range_end=(0.2, 0.4), anneal_steps=4)
    for step, expected in ((0, (0.8, 1.2)), (1, (0.65, 1.0)), (4, (0.2, 0.4)), (9, (0.2, 0.4))):
        assert bounds(options, step) == pytest.approx(expected)
    assert bounds(EntrocraftConfig(), 100) == (0.9, 1.1)


def test_a_range_is_in_order() -> None:
    with pytest.raises(ConfigError, match=r"entropy_range=\[1.2, 0.8\]: the first must not be above the second"):
        configure({"method": {"name": "entrocraft", "entropy_range": [1.2, 0.8]}})


def test_the_first_step_is_remembered() -> None:
    batch = Batch([polled([*"AB"], [1.0, 2.0])])
    assert remember_start(EntrocraftConfig(), batch, []) == {START: 1.5}
    assert remember_start(EntrocraftConfig(), batch._replace(memory={START: 0.25}), []) == {START: 0.25}
    dropped = batch._replace(groups=[replace(batch.groups[0], dropped=frozenset({0, 1}))])
    assert remember_start(EntrocraftConfig(), dropped, []) == {}, "no entropy of no responses"


def test_the_kl_keeps_what_the_policy_term_leaves_out() -> None:
    own = configure({"method": {"name": "entrocraft", "kl": "k3"}}).method
    batch = Batch([polled([*"AAB"], [1.0] * 3)], memory={START: 0.5})
    done = batch._replace(groups=assign_credit(batch, ROW, own))
    (chosen,) = choose_tokens(done, ROW, own)
    assert not chosen[2].policy_T.any() and chosen[2].anchored_T.all()


def test_a_resumed_run_has_the_first_steps_entropy(tmp_path: Any) -> None:
    layers = {"method": {"name": "entrocraft", "entropy_range": (0.99, 1.01)}, "checkpoint": {"every": 1}}
    whole = run(layers)
    run(layers, checkpoints=tmp_path, should_stop=stopping_after(1))
    policy, _, records, _ = run(layers, checkpoints=tmp_path, resume=True)
    left = [not t.policy_T.any() for record in whole[2] for chosen in record.tokens for t in chosen]
    assert any(left) and not all(left)
    for mine, other in zip(records, whole[2][1:], strict=True):
        assert mine.report.row() == other.report.row()
    assert all(torch.equal(weight, policy.trainable()[name]) for name, weight in whole[0].trainable().items())
