"""What a method asks of rollouts is answered by the plain forward, once for equal asks, whatever the budget."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small import digit_policy, small_config
from tiny import END, TEMPERATURE, plain_log_probs, tiny_model, tiny_policy, tiny_questions

from mm_spine.adapt import Hooks, StepRecord, adapt
from mm_spine.methods.likelihood import voted_asks
from mm_spine.policy.distribution import Distribution
from mm_spine.training import measuring
from mm_spine.training.measuring import answer, judged
from mm_spine.types import Ask, Group, Rollout
from mm_spine.voting import make_group

ASKS = {0: Ask((5, 6, 7), 2), 1: Ask((5, 6, 8, END), 4), 2: None, 3: Ask((5, 6, 7), 2)}


def asks(group: Group, tokenizer: Any) -> list[Ask | None]:
    return [ASKS[rollout.index] for rollout in group.rollouts]


def groups_of(count: int = 2) -> list[Group]:
    questions = tiny_questions(count)
    silent = np.zeros(1, np.float32)
    return [make_group(q, [Rollout(q.id, i, (9,), "", silent, None, "stop") for i in range(4)]) for q in questions]


def test_asks_are_answered_by_the_plain_forward() -> None:
    policy, plain = tiny_policy(3), tiny_model(3)
    for budget in (1, 10_000):
        for group in answer(policy, groups_of(), asks, Distribution(TEMPERATURE, policy.banned), budget):
            assert group.measured is not None and group.measured[2] is None
            assert np.array_equal(group.measured[0], group.measured[3])
            for index in (0, 1):
                ask, found = ASKS[index], group.measured[index]
                assert ask is not None and found is not None and len(found) == ask.counted
                log_probs_TV = plain_log_probs(plain, group.question, ask.token_ids)
                expected = log_probs_TV.gather(-1, torch.tensor(ask.token_ids)[:, None])[:, 0][-ask.counted :]
                np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-5)


def test_a_group_of_which_nothing_is_asked_costs_no_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mm_spine.training.scoring.score_responses", lambda *_: pytest.fail("a forward"))
    policy = tiny_policy(3)
    nothing = answer(policy, groups_of(), lambda group, _: [None] * 4, Distribution(TEMPERATURE, policy.banned), 100)
    assert [group.measured for group in nothing] == [(None,) * 4] * 2


def test_a_judge_sees_the_images_of_the_question() -> None:
    policy, seen = tiny_policy(3), []

    def judge(group: Group, images: Any, device: Any) -> list[np.ndarray]:
        seen.append((group.question.id, [image.mode for image in images], device))
        return [np.ones(1)] * len(group.rollouts)

    assert len(judged(policy, groups_of(1), judge)[0].measured or ()) == 4
    assert seen == [("q0", ["RGB"], policy.device)]


def test_rows_without_it_measure_nothing_and_a_step_reports_the_mean_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(policy: Any, groups: Any, *rest: Any) -> Any:
        calls.append(len(groups))
        return answer(policy, groups, *rest)

    monkeypatch.setattr(measuring, "answer", counted)
    records: list[StepRecord] = []
    for name in ("ttrl", "likelihood"):
        config = small_config({"method": {"name": name}, "optim": {"steps": 1}})
        adapt(tiny_questions(4), digit_policy(), config=config, hooks=Hooks(records.append))
    without, measured = records
    assert calls == [4]
    assert "reward_mean" not in without.report.row()
    rewards = torch.cat([group.rewards for group in measured.groups])
    assert measured.report.row()["reward_mean"] == pytest.approx(float(rewards.mean()))
    assert len(set(rewards.tolist())) > 2 and rewards.max() <= 0


def test_the_reward_is_what_the_model_says_of_its_own_answer() -> None:
    """Where a response won the vote, its ask is itself, so that the reward is its tokens' log-probs in the rollout."""
    records: list[StepRecord] = []
    config = small_config({"method": {"name": "likelihood", "floor": 1e9}, "optim": {"steps": 1}})
    policy = digit_policy()
    adapt(tiny_questions(4), policy, config=config, hooks=Hooks(records.append))
    checked = 0
    for group in records[0].groups:
        for rollout, ask, reward in zip(
            group.rollouts, voted_asks(config.method, group, policy.tokenizer), group.rewards, strict=True
        ):
            if ask is not None and rollout.token_ids[: len(ask.token_ids)] == ask.token_ids:
                end = len(ask.token_ids)
                assert float(reward) == pytest.approx(float(rollout.logp[end - ask.counted : end].sum()), abs=1e-4)
                checked += 1
    assert checked > 2
