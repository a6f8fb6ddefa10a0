"""Rows that sample otherwise: what they train on, against plain forwards, over ranks, resumed and scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sampled_ranks import QUESTIONS, ROWS, config_of, main
from small import Silent, digit_policy, small_config
from test_distributed import assert_close, launch
from tiny import plain_log_probs, tiny_model, tiny_policy, tiny_questions
from torch import Tensor

from mm_spine.adapt import Hooks, StepRecord, adapt
from mm_spine.config import MethodConfig, RunConfig
from mm_spine.evaluation import oracle_reward
from mm_spine.methods.apply import assign_credit, choose_tokens
from mm_spine.methods.method import Batch
from mm_spine.methods.rows_sampling import WORDINGS
from mm_spine.methods.table import configure, find
from mm_spine.methods.tokens import Tokens
from mm_spine.policy.distribution import Distribution
from mm_spine.policy.model import Policy
from mm_spine.sampling import Request
from mm_spine.sampling.registry import make_sampler
from mm_spine.sampling.wordings import by_wording, worded
from mm_spine.training.batch import collate, share_identical, trained_groups
from mm_spine.training.loss import denominators, losses
from mm_spine.types import Group, Growth, Question, Rollout, Vote
from mm_spine.voting import make_group

TOLERANCE = 1e-5


def adapted(config: RunConfig, hooks: Hooks | None = None, sampler: Any = None) -> tuple[Policy, list[StepRecord]]:
    policy, records = digit_policy(config.model), []
    own = Silent(make_sampler(policy, config)) if sampler is Silent else sampler
    adapt(QUESTIONS, policy, own, config=config, hooks=hooks or Hooks(on_step=records.append))
    return policy, records


def test_the_rows_sample_as_their_papers_say() -> None:
    cure = configure({"method": "cure"})
    assert cure.sampling.votes.max == 16 and cure.sampling.regenerate is not None
    assert (cure.sampling.regenerate.continuations, cure.sampling.regenerate.candidates) == (3, 20)
    assert (cure.method.clip_low, cure.method.clip_high, cure.method.kl) == (0.2, 0.28, "none")
    assert configure({"method": "consistency"}).sampling.wordings == WORDINGS
    assert configure({"method": "ttrl"}).sampling.plain


@pytest.mark.parametrize("name", ROWS)
def test_a_step_has_one_group_for_each_question(name: str) -> None:
    """Rollouts in order, under the question's own id, with the vote of all eight and one baseline."""
    _, records = adapted(config_of(name))
    for record in records:
        for group, tokens in zip(record.groups, record.tokens, strict=True):
            assert group.question.id in {question.id for question in QUESTIONS} and group.wording_of is None
            assert [r.index for r in group.rollouts] == list(range(7)) and len(tokens) == 7
            assert sum(group.vote.counts.values()) + 8 * (1 - group.vote.share) >= 8 - 1e-6
            assert group.rewards is not None and group.advantages is not None
            assert group.rewards.tolist() == [float(answer == group.vote.answer) for answer in group.answers]
            rewards = group.rewards.numpy()
            spread = rewards.std(ddof=1) + 1e-6
            assert group.advantages.numpy() == pytest.approx((rewards - rewards.mean()) / spread, abs=1e-5)
        assert record.report.rollouts_sampled == 8 * len(record.groups)
        assert 0 < record.report.parity_max < 1e-4
    assert any(record.report.grad_norm > 0 for record in records)


def halves(question: Question, drawn: Sequence[Rollout], draws: Any) -> list[Request]:
    """The root's first half goes on otherwise."""
    root = drawn[0]
    return [Request(question, root.index + 1, root.token_ids[: len(root.token_ids) // 2], parent=root.index)]


def test_a_row_may_say_how_rollouts_grow() -> None:
    """The configuration's own sections come first."""
    row = replace(find("ttrl"), growth=lambda options, policy: Growth(2, halves))
    for sampling, parents in (({}, [None, 0, None, 2]), ({"tree": {"forks": 1, "branches": 3}}, [None, 0, 0, 0])):
        config, records = small_config({"method": "ttrl", "sampling": sampling, "optim": {"steps": 1}}), []
        adapt(QUESTIONS, digit_policy(), method=row, config=config, hooks=Hooks(on_step=records.append))
        assert all([r.parent for r in group.rollouts] == parents for group in records[0].groups)


def drawn(name: str, policy: Policy, config: RunConfig) -> list[Group]:
    """Groups as the loop makes them, every third rollout agreeing with the vote."""
    questions = tiny_questions(2)
    found = make_sampler(policy, config).sample(questions, 8, step=0, purpose="train")
    groups = []
    for question, rollouts in zip(questions, found, strict=True):
        answers = tuple("1" if i % 3 == 0 else str(i) for i in range(8))
        group = Group(question, tuple(rollouts), answers, Vote("1", 0.375, {}, 0.0, 8), parsed=(None,) * 8)
        groups += [share_identical(part) for part in by_wording(group, config.sampling.wordings)]
    return assign_credit(Batch(groups), find(name), config.method)


def plain_loss(model: Any, groups: Sequence[Group], tokens: Sequence[Sequence[Tokens]], over: float) -> Tensor:
    total = torch.zeros(())
    for group, chosen in zip(groups, tokens, strict=True):
        for rollout, advantage, own in zip(group.rollouts, group.advantages, chosen, strict=True):
            log_probs = plain_log_probs(model, group.question, rollout.token_ids, 1.0)
            logp = log_probs.gather(-1, torch.tensor(rollout.token_ids)[:, None])[:, 0]
            total = total - (torch.exp(logp - logp.detach()) * advantage)[own.policy_T].sum() / over
    return total


def assert_trained_as(name: str, options: MethodConfig, groups: Sequence[Group], policy: Policy, model: Any) -> None:
    tokens = choose_tokens(Batch(groups), find(name), options)
    over = denominators(groups, tokens, options)
    rows = trained_groups(groups, tokens, options)
    trained = policy.text((micro := collate(policy, rows)).packed, Distribution(1.0, policy.banned))
    parts = losses(trained, micro, trained.stats.logp_NT.detach(), options, over)
    parts.policy.backward()
    expected = plain_loss(model, groups, tokens, over.policy)
    expected.backward()
    torch.testing.assert_close(parts.policy, expected, rtol=TOLERANCE, atol=TOLERANCE)
    names = {id(parameter): name for name, parameter in policy.model.named_parameters()}
    flat = dict(model.named_parameters())
    for name_, parameter in policy.trainable().items():
        wanted = flat[names[id(parameter)]].grad
        assert wanted is not None and parameter.grad is not None and wanted.norm() > 0, name_
        assert (parameter.grad - wanted).norm() <= TOLERANCE * wanted.norm(), name_


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_the_loss_is_that_of_plain_forwards(name: str) -> None:
    """Each response under the prompt that it answers; of a continuation only the tokens that were drawn for it."""
    policy, model = tiny_policy(2, tied=False), tiny_model(2, tied=False)
    config = config_of(name, {"method": {"kl": "none"}, "sampling": {"max_new_tokens": 12}})
    groups = drawn(name, policy, config)
    prompts = {group.question.prompt for group in groups}
    assert len(prompts) == len(groups) == (6 if name == "consistency" else 2)
    tokens = choose_tokens(Batch(groups), find(name), config.method)
    inherited = [
        (r.fork_at or 0, own.policy_T)
        for group, chosen in zip(groups, tokens, strict=True)
        for r, own in zip(group.rollouts, chosen, strict=True)
    ]
    assert all(not mask_T[:at].any() and mask_T[at:].all() for at, mask_T in inherited)
    assert any(at for at, _ in inherited) == (name == "cure")
    assert_trained_as(name, config.method, groups, policy, model)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_a_resumed_run_is_the_uninterrupted_one(name: str, tmp_path: Path) -> None:
    config = config_of(name)
    stops = iter([None, "SIGTERM"])
    whole, _ = adapted(config)
    stopped, _ = adapted(config, Hooks(should_stop=lambda: next(stops), checkpoints=tmp_path))
    resumed, _ = adapted(config, Hooks(checkpoints=tmp_path, resume=True))
    weights = resumed.weights()
    assert all(torch.equal(weights[name], weight) for name, weight in whole.weights().items())
    assert not all(torch.equal(weights[name], weight) for name, weight in stopped.weights().items())


@pytest.mark.slow
def test_two_processes_take_the_step_of_one(tmp_path: Path) -> None:
    folders = {count: tmp_path / str(count) for count in (1, 2)}
    for folder in folders.values():
        folder.mkdir()
    main(folders[1])
    assert launch(folders[2], 2, "sampled_ranks.py") == 0, (folders[2] / "log").read_text()[-3000:]
    for name in ROWS:
        one, two = (torch.load(folder / f"{name}.pt", weights_only=False) for folder in folders.values())
        assert one["rollouts"] == two["rollouts"]
        assert_close(two["weights"], one["weights"])
        assert two["report"]["tokens_trained"] == one["report"]["tokens_trained"] > 0
        assert two["report"]["tokens_sampled"] == one["report"]["tokens_sampled"]
        assert two["report"]["loss"] == pytest.approx(one["report"]["loss"], rel=1e-4)
        assert two["report"]["cache_hits"] == one["report"]["cache_hits"]


@pytest.mark.slow
@pytest.mark.parametrize("band", ["running", "initial"])
def test_entropies_are_scored_under_the_wording_that_was_answered(band: str) -> None:
    """Equal responses to two wordings have different entropies; a sampler that gives none changes nothing."""
    layers = {"method": {"name": "spine", "band_anchor": band, "share": 0.5}, "optim": {"steps": 1}}
    config = config_of("consistency", layers)
    given, scored = (adapted(config, sampler=kind)[1][0] for kind in (None, Silent))
    assert scored.report.entropy_mean == pytest.approx(given.report.entropy_mean, rel=1e-4)
    assert scored.report.band_low == pytest.approx(given.report.band_low, rel=1e-4)
    assert scored.report.grad_norm == pytest.approx(given.report.grad_norm, rel=1e-3) and given.report.grad_norm > 0


def test_the_control_grades_a_wording_by_its_questions_answer() -> None:
    question = QUESTIONS[0]
    asked = worded(question, WORDINGS, 1)
    rollout = replace(adapted(config_of("consistency", {"optim": {"steps": 1}}))[1][0].groups[0].rollouts[0])
    group = make_group(asked, [replace(rollout, question_id=asked.id, text="\\boxed{7}", finish_reason="stop")])
    part = replace(group, wording_of=question.id)
    assert oracle_reward({question.id: ("7",)})(part).tolist() == [1.0]
    with pytest.raises(ValueError, match=f"question {question.id!r} has no gold answer"):
        oracle_reward({asked.id: ("7",)})(part)
