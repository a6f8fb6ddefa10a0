"""Losses of a step over labels of the vote: their values, their gradients, and what the trainer makes of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from credited_groups import polled
from torch import Tensor

from mm_spine.methods.apply import assign_credit, by_step_loss, choose_tokens
from mm_spine.methods.method import Batch
from mm_spine.methods.rows_credit import ROWS
from mm_spine.methods.sections import PacsConfig, RealConfig
from mm_spine.methods.step_losses import as_classes, supervised
from mm_spine.methods.table import configure
from mm_spine.types import Group

LOSSES = {"pacs": partial(supervised, PacsConfig(beta=0.5)), "real": partial(as_classes, RealConfig(tau=0.5))}


def labelled(*groups: Group) -> Batch:
    own = configure({"method": "ttrl"}).method
    return Batch(assign_credit(Batch(groups), ROWS["pacs"], own))


def constant(batch: Batch, values: Sequence[Sequence[float]]) -> list[list[Tensor]]:
    """Log-ratios of two tokens whose sum is the given value."""
    return [[torch.tensor([v / 2, v / 2], dtype=torch.float64) for v in group] for group in values]


def test_pacs_by_hand() -> None:
    # Scores 0.5 (0.4, 0, -0.4, 0.8) = (0.2, 0, -0.2, 0.4); less the others' means: 4/3 of the distance from 0.1.
    batch = labelled(polled([*"AAAB"]))
    loss = LOSSES["pacs"](batch, constant(batch, [[0.4, 0.0, -0.4, 0.8]]))
    logits = [4 / 3 * (s - 0.1) for s in (0.2, 0.0, -0.2, 0.4)]
    right = sum(math.log1p(math.exp(-z)) for z in logits[:3]) * 4 / (2 * 3)
    wrong = math.log1p(math.exp(logits[3])) * 4 / 2
    assert float(loss) == pytest.approx((right + wrong) / 4, rel=1e-6)


def test_real_by_hand() -> None:
    # Mean log-ratios over two tokens: (0.2, 0, -0.2, 0.4), over tau 0.5.
    batch = labelled(polled([*"AAAB"]))
    loss = LOSSES["real"](batch, constant(batch, [[0.4, 0.0, -0.4, 0.8]]))
    right = math.log(1 + sum(math.exp(-s / 0.5) for s in (0.2, 0.0, -0.2)))
    assert float(loss) == pytest.approx(right + math.log(1 + math.exp(0.4 / 0.5)), rel=1e-6)


def test_a_unanimous_question_moves_nothing_in_pacs_and_something_in_real() -> None:
    batch = labelled(polled([*"AAAA"]))
    for name, moves in (("pacs", False), ("real", True)):
        _, tokens = step(batch, LOSSES[name])
        assert all(bool(t.advantage_T.abs().max() > 1e-7) is moves for t in tokens[0]), name


def test_a_question_without_a_winner_is_left_out_of_real() -> None:
    batch = labelled(polled([None, None]), polled([*"AAB"], question=1))
    _, tokens = step(batch, LOSSES["real"])
    assert not any(t.advantage_T.any() for t in tokens[0]) and all(t.advantage_T.any() for t in tokens[1])


def step(batch: Batch, loss: Callable[..., Tensor], over: float = 24.0) -> Any:
    own = configure({"method": "pacs"}).method
    return by_step_loss(batch, choose_tokens(batch, ROWS["pacs"], own), loss, own, over)


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_that_of_finite_differences(name: str) -> None:
    batch = labelled(polled([*"AAAB"]), polled([*"AABC"], question=1))
    loss = LOSSES[name]
    leaves = [torch.linspace(-0.3, 0.2 + i / 10, 2, dtype=torch.float64, requires_grad=True) for i in range(8)]
    assert torch.autograd.gradcheck(lambda *flat: loss(batch, [list(flat[:4]), list(flat[4:])]), leaves)


@pytest.mark.parametrize("name", LOSSES)
def test_advantages_are_the_gradient_at_the_start_of_the_update(name: str) -> None:
    """-d loss / d ratio of each token, times the denominator; equal within a response; positive for the label."""
    batch = labelled(polled([*"AAAB"]))
    value, tokens = step(batch, LOSSES[name])
    flat = [torch.zeros(2, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    loss = LOSSES[name](batch, [flat])
    assert value == pytest.approx(float(loss.detach()), rel=1e-6)
    for chosen, gradient in zip(tokens[0], torch.autograd.grad(loss, flat), strict=True):
        torch.testing.assert_close(chosen.advantage_T, (-24.0 * gradient).float(), atol=1e-5, rtol=1e-5)
        assert chosen.advantage_T[0] == chosen.advantage_T[1]
    assert tokens[0][0].advantage_T[0] > 0 > tokens[0][3].advantage_T[0]


@pytest.mark.parametrize("name", LOSSES)
def test_copies_count_as_often_as_they_are_and_dropped_ones_not_at_all(name: str) -> None:
    """A rollout of weight 2 among the groups trains as two rollouts; a dropped one as if it had never been drawn."""
    group = polled([*"AAAB"])
    counted = replace(
        group,
        rollouts=(replace(group.rollouts[0], weight=2), group.rollouts[1], group.rollouts[3]),
        answers=("A", "A", "B"),
        parsed=(None,) * 3,
    )
    whole, heavy = (labelled(g) for g in (group, counted))
    one, two = step(whole, LOSSES[name]), step(heavy, LOSSES[name])
    assert one[0] == pytest.approx(two[0])
    torch.testing.assert_close(one[1][0][0].advantage_T, two[1][0][0].advantage_T)
    torch.testing.assert_close(one[1][0][3].advantage_T, two[1][0][2].advantage_T)
    more = polled([*"AAABC"])
    with_dropped = labelled(replace(more, vote=group.vote, dropped=frozenset({4})))
    three = step(with_dropped, LOSSES[name])
    assert three[0] == pytest.approx(one[0]) and not three[1][0][4].advantage_T.any()
    torch.testing.assert_close(three[1][0][3].advantage_T, one[1][0][3].advantage_T)


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_to_learn_from_is_no_loss(name: str) -> None:
    nobody = labelled(replace(polled([*"AAB"]), dropped=frozenset({0, 1, 2})))
    value, tokens = step(nobody, LOSSES[name])
    assert value == 0.0 and all(t.advantage_T is None for t in tokens[0])
