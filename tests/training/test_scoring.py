"""A sampler without entropies: the loop scores the rollouts itself, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small import Silent
from tiny import END, TEMPERATURE, entropy, plain_log_probs, tiny_model, tiny_policy, tiny_questions

from mm_spine.adapt import Hooks, StepRecord, adapt
from mm_spine.config import RunConfig
from mm_spine.methods.table import configure, find
from mm_spine.policy.distribution import Distribution
from mm_spine.sampling.hf import HFSampler
from mm_spine.training.scoring import needs_scores, score
from mm_spine.types import Rollout
from mm_spine.voting import make_group


def _config(**method: object) -> RunConfig:
    return configure(
        {
            "method": {"name": "spine", "kl": "none", "advantage": "batch", **method},
            "sampling": {"votes": 4, "train_rollouts": 4, "max_new_tokens": 10, "temperature": 0.8},
            "optim": {"steps": 1, "questions_per_step": 3, "lr": 1e-4},
        }
    )


def test_scored_entropies_are_the_samplers() -> None:
    policy, questions, config = tiny_policy(), tiny_questions(3), _config()
    rollouts = HFSampler(policy, config.sampling).sample(questions, 4, step=0, purpose="train")
    groups = [make_group(q, [replace(r, entropy=None) for r in rs]) for q, rs in zip(questions, rollouts, strict=True)]
    for budget in (1, 10_000):
        scored, gap = score(policy, groups, Distribution(0.8, policy.banned), budget)
        assert gap.tokens > 0 and gap.most < 1e-4
        for group, given in zip(scored, rollouts, strict=True):
            for mine, its in zip(group.rollouts, given, strict=True):
                assert its.entropy is not None and mine.entropy is not None
                np.testing.assert_allclose(mine.entropy, its.entropy, atol=1e-5)


@pytest.mark.parametrize("kind", ["qwen3_vl", "qwen2", "qwen3"])
def test_scoring_is_the_plain_forward_of_every_family(kind: str) -> None:
    """Identical responses, one that continues another, one of no tokens, and a question that has no other."""
    policy, plain = tiny_policy(3, kind=kind), tiny_model(3, kind=kind)
    questions = tiny_questions(2, images=1 if kind.endswith("vl") else 0, side=32)
    answers = {"q0": [(5, 6, 7), (5, 6, 7, 8, END), (5, 6, 7), ()], "q1": [(), ()]}
    groups = [make_group(q, [silent(q.id, i, t) for i, t in enumerate(answers[q.id])]) for q in questions]
    for budget in (1, 10_000):
        for group in score(policy, groups, Distribution(TEMPERATURE, policy.banned), budget)[0]:
            for rollout in group.rollouts:
                assert rollout.entropy is not None and len(rollout.entropy) == len(rollout.token_ids)
                if rollout.token_ids:
                    expected = entropy(plain_log_probs(plain, group.question, rollout.token_ids)).detach().numpy()
                    np.testing.assert_allclose(rollout.entropy, expected, atol=1e-5)


def silent(question: str, index: int, tokens: tuple[int, ...]) -> Rollout:
    """A response without entropies."""
    return Rollout(question, index, tokens, "", np.zeros(len(tokens), np.float32), None, "stop")


def test_a_sampler_without_entropies_selects_the_same_tokens() -> None:
    records: list[list[StepRecord]] = []
    for silent in (False, True):
        policy, config = tiny_policy(), _config(band_anchor="initial")
        sampler = HFSampler(policy, config.sampling)
        seen: list[StepRecord] = []
        adapt(
            tiny_questions(3), policy, Silent(sampler) if silent else sampler, config=config, hooks=Hooks(seen.append)
        )
        records.append(seen)
    (given,), (scored,) = records
    masks = [[t.policy_T.tolist() for group in record.tokens for t in group] for record in (given, scored)]
    assert masks[0] == masks[1]
    assert scored.report.band_low is not None and given.report.band_low is not None
    np.testing.assert_allclose(scored.report.band_low, given.report.band_low, atol=1e-5)
    np.testing.assert_allclose(scored.report.grad_norm, given.report.grad_norm, rtol=1e-4)
    assert scored.report.grad_norm > 0


def test_a_statistic_is_measured_at_every_token_with_a_sampler_that_gives_entropies_too() -> None:
    """Here the entropy itself, so that both must be equal."""
    policy, questions, config = tiny_policy(), tiny_questions(2), _config()
    rollouts = HFSampler(policy, config.sampling).sample(questions, 3, step=0, purpose="train")
    groups = [make_group(q, rs) for q, rs in zip(questions, rollouts, strict=True)]
    entropy_again = lambda log_probs, anchor, target: -(log_probs.exp() * log_probs.clamp(min=-1e4)).sum(-1)  # noqa: E731
    assert needs_scores(groups, replace(find("ttrl"), statistic=lambda options: entropy_again))
    assert not needs_scores(groups, find("spine"))
    scored, _ = score(policy, groups, Distribution(0.8, policy.banned), 10_000, statistic=entropy_again)
    for group in scored:
        for rollout in group.rollouts:
            np.testing.assert_allclose(rollout.statistic, rollout.entropy, atol=1e-6)
