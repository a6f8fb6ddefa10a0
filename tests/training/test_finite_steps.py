"""A step whose numbers are not finite moves nothing, names its question, and leaves the last good checkpoint."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from adapting import MIXED, QUESTIONS, moved
from small import digit_policy, small_config

from mm_spine.adapt import Hooks, adapt
from mm_spine.policy.errors import NotFinite
from mm_spine.policy.text import TextPolicy
from mm_spine.training import update
from mm_spine.training.engine import Engine
from mm_spine.training.loss import Losses

STAGES: list[Any] = [0, 2]


@pytest.mark.parametrize("stage", STAGES)
def test_a_loss_that_is_not_finite_names_step_and_questions(stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = update.losses
    monkeypatch.setattr(update, "losses", lambda *a: Losses(*(x * torch.nan for x in usual(*a)[:3])))
    policy, start = digit_policy(), digit_policy().weights()
    with pytest.raises(NotFinite, match="step 0: the loss is not finite in the micro-batch of q"):
        adapt(QUESTIONS, policy, config=small_config(MIXED, {"engine": {"zero_stage": stage}}))
    assert not moved(policy, start)


def test_a_further_term_that_is_not_finite_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where its gradient is."""
    usual = update.losses
    monkeypatch.setattr(update, "losses", lambda *a: usual(*a)._replace(terms=(torch.tensor(torch.nan),)))
    policy, start = digit_policy(), digit_policy().weights()
    with pytest.raises(NotFinite, match="step 0: the loss is not finite in the micro-batch of q"):
        adapt(QUESTIONS, policy, config=small_config(MIXED))
    assert not moved(policy, start)


@pytest.mark.parametrize("stage", STAGES)
def test_a_gradient_that_is_not_finite_moves_nothing(stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = TextPolicy.trunk

    def broken(self: TextPolicy, batch: Any) -> Any:
        hidden = usual(self, batch)
        if hidden.requires_grad:
            hidden.register_hook(lambda gradient: gradient * torch.inf)
        return hidden

    monkeypatch.setattr(TextPolicy, "trunk", broken)
    policy, start = digit_policy(), digit_policy().weights()
    with pytest.raises(NotFinite, match="step 0: the gradient is not finite"):
        adapt(QUESTIONS, policy, config=small_config(MIXED, {"engine": {"zero_stage": stage}}))
    assert not moved(policy, start)


def test_log_probs_that_are_not_finite_name_their_question(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = Engine.forward

    def broken(self: Engine, *args: Any) -> Any:
        found = usual(self, *args)
        found.stats.logp_NT.data[-1] = torch.nan
        return found

    monkeypatch.setattr(Engine, "forward", broken)
    with pytest.raises(NotFinite, match=r"step 0: q\d: the log-probs of its responses are not finite"):
        adapt(QUESTIONS, digit_policy(), config=small_config(MIXED))


@pytest.mark.parametrize("lr", [1e10, 1e30])
def test_a_step_far_too_large_leaves_no_checkpoint_of_it(lr: float, tmp_path: Path) -> None:
    config = small_config(MIXED, {"optim": {"lr": lr, "steps": 2}, "checkpoint": {"every": 1}})
    with pytest.raises(NotFinite, match="nothing is saved; go on from the last checkpoint with a lower optim.lr"):
        adapt(QUESTIONS, digit_policy(), config=config, hooks=Hooks(checkpoints=tmp_path))
    assert not list(tmp_path.glob("step_*"))


def test_responses_that_are_nearly_all_cut_off_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    policy = digit_policy()
    with torch.no_grad():
        policy.text.head.weight[list(policy.end_ids)] = 0.0
    with caplog.at_level(logging.WARNING):
        adapt(QUESTIONS, policy, config=small_config(MIXED, {"optim": {"steps": 2}}))
    assert [r.getMessage().startswith("step 0: ") for r in caplog.records if "were cut off" in r.getMessage()] == [True]
