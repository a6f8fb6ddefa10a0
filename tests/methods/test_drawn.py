"""Credit over wordings and the tokens of a continuation, worked by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from credited_groups import group, options, rollout

from mm_spine.methods.band import Bounds
from mm_spine.methods.credit import normalised
from mm_spine.methods.drawn import over_wordings, own_tokens
from mm_spine.methods.method import Batch
from mm_spine.methods.tokens import Tokens
from mm_spine.types import Group


def wordings() -> list[Group]:
    """Two wordings of q0, of three and two responses, and q1 by itself."""
    three = replace(group([rollout(i, [1], [0.0]) for i in range(3)], ["1"] * 3), wording_of="q0")
    two = replace(group([rollout(i, [1], [0.0], 2) for i in range(2)], ["2"] * 2, 2), wording_of="q0")
    return [three, group([rollout(i, [1], [0.0], 1) for i in range(2)], ["1", "2"], 1), two]


REWARDS = [torch.tensor([1.0, 1.0, 1.0]), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0])]


def test_the_wordings_of_a_question_have_one_baseline() -> None:
    """Mean 3/5 and sample variance 3/10 over the five; a wording alone has no preference at all."""
    found = over_wordings(options("ttrl", eps=1e-9), Batch(wordings()), list(REWARDS))
    assert [len(advantages_N) for advantages_N in found] == [3, 2, 2]
    assert found[0].tolist() == pytest.approx([0.4 / 0.3**0.5] * 3)
    assert found[1].tolist() == pytest.approx([0.5 / 0.5**0.5, -0.5 / 0.5**0.5])
    assert found[2].tolist() == pytest.approx([-0.6 / 0.3**0.5] * 2)
    alone = normalised(options("ttrl"), Batch(wordings()), list(REWARDS))
    assert alone[0].tolist() == [0, 0, 0] and alone[2].tolist() == [0, 0]


def test_the_options_say_how_they_are_normalised() -> None:
    centred = over_wordings(options("ttrl", advantage="center"), Batch(wordings()), list(REWARDS))
    assert centred[0].tolist() == pytest.approx([0.4] * 3) and centred[2].tolist() == pytest.approx([-0.6] * 2)


def test_without_wordings_credit_is_the_usual_one() -> None:
    groups = [replace(each, wording_of=None) for each in wordings()]
    found = over_wordings(options("ttrl"), Batch(groups), list(REWARDS))
    usual = normalised(options("ttrl"), Batch(groups), list(REWARDS))
    assert all(torch.equal(a, b) for a, b in zip(found, usual, strict=True))
    assert over_wordings(options("ttrl"), Batch([]), []) == []


def test_a_continuation_trains_from_the_token_that_was_drawn_anew() -> None:
    """The root trains what both begin with. Band and KL keep their tokens."""
    root = rollout(0, [1, 2, 3, 4], [0.0] * 4)
    continued = replace(rollout(1, [1, 2, 9], [0.0] * 3), parent=0, fork_at=2)
    band = Bounds(torch.zeros(()), torch.ones(()))
    masks = [torch.tensor([True, True, False, True]), torch.tensor([True, False, True])]
    tokens = [Tokens(mask_T, torch.ones_like(mask_T), band, torch.ones_like(mask_T)) for mask_T in masks]
    ((first, second),) = own_tokens(options("ttrl"), Batch([group([root, continued], ["1", "1"])]), [tokens])
    assert first.policy_T.tolist() == [True, True, False, True]
    assert second.policy_T.tolist() == [False, False, True]
    assert second.band_T.all() and second.anchored_T.all() and second.bounds is band
