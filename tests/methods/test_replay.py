"""Responses of earlier steps: which are kept and recalled, their credit, and what their ratio is taken against."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from adapting import MIXED, moved, run
from credited_groups import group, rollout
from torch import Tensor

from mm_spine.config import ConfigError
from mm_spine.methods.method import Batch, Method
from mm_spine.methods.replay import KEPT, keep_losers, mixed, recall_opposed
from mm_spine.methods.sections import R3Config
from mm_spine.methods.table import configure, for_method
from mm_spine.training import update
from mm_spine.training.loss import losses
from mm_spine.types import Answer, Group, Rollout

OPTIONS = R3Config()


def said(*answers: str | None, first: int = 10, dropped: frozenset[int] = frozenset()) -> Group:
    """A group whose responses gave these answers, the first one the winner; each response is a token of its own."""
    drawn = [rollout(i, [first + i], [0.5 + i]) for i in range(len(answers))]
    parsed = tuple(None if answer is None else Answer(answer, answer) for answer in answers)
    return replace(group(drawn, answers), parsed=parsed, dropped=dropped)


def after(*groups: Group, options: R3Config = OPTIONS) -> dict[str, Any]:
    """The memory after these groups of one question, each of a step; as JSON holds it."""
    memory: dict[str, Any] = {}
    for each in groups:
        memory |= keep_losers(options, Batch([each], memory=memory), [])
        memory = json.loads(json.dumps(memory))
    return memory


def test_the_latest_responses_that_lost_are_kept_each_once() -> None:
    memory = after(said("8", "7", None, "8", "6", dropped=frozenset({4})))
    assert [row["token_ids"] for row in memory[KEPT]["q0"]] == [[11], [12]]
    assert [row["answer"] for row in memory[KEPT]["q0"]] == [["7", "7"], None]
    assert memory[KEPT]["q0"][0]["logp"] == [-1.5]
    again = after(said("8", "7", None), said("8", "5", first=20), said("8", "7"), options=R3Config(replay_kept=2))
    assert [row["token_ids"] for row in again[KEPT]["q0"]] == [[21], [11]]
    assert after(said("8", "8"), replace(said(None, None), dropped=frozenset()))[KEPT] == {}


def test_a_unanimous_group_gets_the_latest_responses_with_another_answer() -> None:
    memory = after(said("8", "7", "6", None, "7", first=30))
    (found,) = recall_opposed(R3Config(replay_count=2), Batch([said("7", "7")], memory=memory))
    assert [r.token_ids for r in found.rollouts] == [(10,), (11,), (32,), (33,)]
    assert [r.index for r in found.rollouts] == [0, 1, 2, 3]
    assert [r.replayed for r in found.rollouts] == [False, False, True, True]
    assert found.vote.answer == "7" and "7" not in found.answers[2:] and found.answers[3] is None
    np.testing.assert_array_equal(found.rollouts[2].logp, np.array([-2.5], np.float32))


def test_other_groups_stay_as_they_are() -> None:
    memory = after(said("8", "7", "6"))
    none = said(None, None)
    unread = replace(none, vote=replace(none.vote, answer=None))
    nameless = replace(said("7", "7"), parsed=(Answer("7", None),) * 2)
    for each in (said("7", "8"), unread, nameless):
        (found,) = recall_opposed(OPTIONS, Batch([each], memory=memory))
        assert found is each
    (found,) = recall_opposed(OPTIONS, Batch([said("7", "7")]))
    assert not any(r.replayed for r in found.rollouts)


def test_credit_of_a_mixed_group_by_hand() -> None:
    """Rewards 1, 1, 1, 0: mean 0.75, sample deviation 0.5, which counts twice. The other group is as usual."""
    memory = after(said("8", "7"))
    filled = recall_opposed(OPTIONS, Batch([said("8", "8", "8")], memory=memory))
    rewards = [torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.tensor([1.0, 0.0])]
    found = mixed(R3Config(replay_scale=2.0), Batch([*filled, said("8", "7")]), rewards)
    torch.testing.assert_close(found[0], torch.tensor([0.25, 0.25, 0.25, -0.75]))
    torch.testing.assert_close(found[1], torch.tensor([0.5**0.5, -(0.5**0.5)]), rtol=1e-5, atol=1e-5)
    alone = replace(filled[0], rollouts=filled[0].rollouts[3:])
    assert mixed(OPTIONS, Batch([alone]), [torch.zeros(1)])[0].tolist() == [0.0], "all others were left out"


def answers_by_turn(turns: Iterator[int]) -> Any:
    """Of the first 20 responses the first of each four says 7 and the others 8; all later ones say 8."""

    def change(drawn: Rollout) -> Rollout:
        number = "7" if next(turns) < 20 and drawn.index == 0 else "8"
        return replace(drawn, text=f"\\boxed{{{number}}}", finish_reason="stop")

    return change


R3 = {"method": {"name": "r3", "kl": "none"}}
TWO = {"optim": {"steps": 2, "lr": 0.003}}


def test_earlier_responses_train_unanimous_groups_against_their_own_log_probs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def spying(trained: Any, micro: Any, old_NT: Tensor, *rest: Any) -> Any:
        if micro.replayed_N is not None:
            seen.append((micro.replayed_N, old_NT, micro.sampled_logp_NT, trained.stats.logp_NT.detach()))
        return losses(trained, micro, old_NT, *rest)

    monkeypatch.setattr(update, "losses", spying)
    policy, _, records, _ = run(MIXED, R3, TWO, change=answers_by_turn(iter(range(1000))))
    first, second = (record.report for record in records)
    assert (first.replayed, second.replayed) == (0, 5) and first.row()["replayed"] == 0
    assert second.grad_norm > 0 and second.parity_max < 1e-4
    assert not any(r.replayed for record in records for g in record.groups for r in g.rollouts)
    assert [len(g.rollouts) for g in records[1].groups] == [4] * 5
    for replayed_N, old_NT, sampled_NT, now_NT in seen:
        assert torch.equal(old_NT[replayed_N], sampled_NT[replayed_N])
        assert torch.equal(old_NT[~replayed_N], now_NT[~replayed_N])
        assert float((old_NT - now_NT)[replayed_N].abs().max()) > 1e-3
    assert sum(int(replayed_N.sum()) for replayed_N, *_ in seen) == 5
    plain = run(MIXED, {"method": {"name": "ttrl", "kl": "none"}}, TWO, change=answers_by_turn(iter(range(1000))))
    assert plain[2][1].report.grad_norm == 0.0 and moved(policy, plain[0].weights())


def test_a_loss_of_the_whole_step_knows_no_earlier_responses() -> None:
    row = Method("both", "-", replay=lambda options: recall_opposed, step_loss=lambda options: lambda batch, ratios: 0)
    with pytest.raises(ConfigError, match="leave out step_loss or replay"):
        for_method(configure(), row)
