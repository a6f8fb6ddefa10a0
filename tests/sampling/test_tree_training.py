"""Training on tree rollouts: like flat training on their leaves, in the loop, and in whole runs."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import digit_policy, small_config, write_data, write_model
from tiny import entropy, plain_log_probs, tiny_model, tiny_policy
from torch import Tensor
from tree_backends import QUESTIONS, Plain, Scripted, branches, digits, outline, policy, trees

from mm_spine.adapt import Hooks, StepRecord, adapt
from mm_spine.config import DecodingConfig, MethodConfig, TreeConfig, VotesConfig
from mm_spine.draws import generator
from mm_spine.files import rollout_table
from mm_spine.methods.apply import assign_credit, choose_tokens
from mm_spine.methods.method import Batch
from mm_spine.methods.table import find
from mm_spine.methods.tokens import Tokens
from mm_spine.policy.distribution import Distribution
from mm_spine.runs.listeners.listener import Listener, Step
from mm_spine.runs.run import run
from mm_spine.sampling.hf import HFSampler
from mm_spine.sampling.rounds import vote_in_rounds
from mm_spine.sampling.tree import (
    TreeSampler,
)
from mm_spine.training.batch import collate, packed_length, trained_groups
from mm_spine.training.loss import Denominators, denominators, losses
from mm_spine.types import Group, Question, Rollout, Vote

TOLERANCE = 1e-5


def group_of(question: Question, rollouts: Sequence[Rollout]) -> Group:
    """Every third rollout gave the vote's answer."""
    answers = tuple("1" if i % 3 == 0 else str(i) for i in range(len(rollouts)))
    share = answers.count("1") / len(answers)
    vote = Vote("1", share, {}, 0.0, len(answers))
    return Group(question, tuple(rollouts), answers, vote, parsed=(None,) * len(answers))


def hinge(values: Tensor) -> Tensor:
    return torch.where(values > 1e-4, values, 0.0)


def plain_loss(
    model: Any, groups: Sequence[Group], tokens: Sequence[Sequence[Tokens]], options: MethodConfig, over: Denominators
) -> Tensor:
    """Policy term and band, one forward for each leaf of each group."""
    total = torch.zeros(())
    for group, chosen in zip(groups, tokens, strict=True):
        for rollout, advantage, own in zip(group.rollouts, group.advantages, chosen, strict=True):
            log_probs = plain_log_probs(model, group.question, rollout.token_ids, 0.8)
            logp = log_probs.gather(-1, torch.tensor(rollout.token_ids)[:, None])[:, 0]
            ratio = torch.exp(logp - logp.detach())
            each = len(own.policy_T) if options.policy_denominator == "response" else 1
            total = total - (ratio * advantage)[own.policy_T].sum() / each / over.policy
            if own.bounds is not None:
                certain = entropy(log_probs)[own.band_T]
                below, above = hinge(own.bounds.low - certain), hinge(certain - own.bounds.high)
                hinges = options.band_low_weight * below + options.band_high_weight * above
                total = total + hinges.sum() / over.band
    return total


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spine", "ettrl"])
def test_training_on_trees_is_flat_training_on_their_leaves(method: str) -> None:
    """Loss and every gradient, against a plain forward for each leaf with its own advantage, mask and bounds."""
    own, model = tiny_policy(2, tied=False), tiny_model(2, tied=False)
    options = small_config({"method": {"name": method, "share": 0.5, "kl": "none"}}).method
    rollouts = trees(Plain(own, DecodingConfig(max_new_tokens=24, temperature=0.8)), 6, QUESTIONS[:2])
    groups = [group_of(*pair) for pair in zip(QUESTIONS, rollouts, strict=False)]
    groups = assign_credit(Batch(groups), find(method), options)
    tokens = choose_tokens(Batch(groups), find(method), options)
    over, rows = denominators(groups, tokens, options), trained_groups(groups, tokens, options)
    trained = own.text((micro := collate(own, rows)).packed, Distribution(0.8, own.banned))
    parts = losses(trained, micro, trained.stats.logp_NT.detach(), options, over)
    (parts.policy + parts.band).backward()
    expected = plain_loss(model, groups, tokens, options, over)
    expected.backward()
    torch.testing.assert_close(parts.policy + parts.band, expected, rtol=TOLERANCE, atol=TOLERANCE)
    names = {id(parameter): name for name, parameter in own.model.named_parameters()}
    flat = dict(model.named_parameters())
    for name, parameter in own.trainable().items():
        wanted = flat[names[id(parameter)]].grad
        assert wanted is not None and parameter.grad is not None and wanted.norm() > 0, name
        assert (parameter.grad - wanted).norm() <= TOLERANCE * wanted.norm(), name
    prompts = sum(len(own.prompt(question).ids_L) for question in QUESTIONS[:2])
    leaves = sum(len(r.token_ids) - 1 for group in rollouts for r in group)
    assert micro.packed.plan.length < prompts + leaves


def test_shared_tokens_are_computed_once() -> None:
    """A row is its prompt and the tokens drawn; the last token of a leaf predicts nothing and is left out."""

    def script(name: str, index: int) -> tuple[Any, Any]:
        logp = np.full(60, -0.1)
        logp[[20, 40]] = -2.0
        return generator(name, index).integers(0, 200, 60), logp

    backend = Scripted(policy(), 60, script)
    (rollouts,) = trees(backend, 10, QUESTIONS[:1])
    silent = [replace(r, entropy=np.zeros(60, np.float32)) for r in rollouts]
    options = small_config({"method": {"name": "ttrl"}}).method
    groups = assign_credit(Batch([group_of(QUESTIONS[0], silent)]), find("ttrl"), options)
    (row,) = trained_groups(groups, choose_tokens(Batch(groups), find("ttrl"), options), options)
    prompt = len(policy().prompt(QUESTIONS[0]).ids_L)
    assert backend.drawn == 2 * (60 + 2 * 40 + 2 * 20)
    assert packed_length(policy(), row) == prompt + backend.drawn - len(rollouts)


ETTRL: Mapping[str, Any] = {
    "method": "ettrl",
    "sampling": {"votes": 11, "train_rollouts": 7},
    "optim": {"steps": 3, "lr": 0.003},
}


def test_the_loop_trains_on_trees() -> None:
    """With the configured sampler; votes over all leaves, the first 7 trained on, shared tokens counted once."""
    config = small_config(ETTRL)
    own, seen = digit_policy(config.model), []
    start = own.weights()
    assert adapt(QUESTIONS, own, config=config, hooks=Hooks(on_step=seen.append)).steps == 3
    assert any(not torch.equal(p, start[name]) for name, p in own.trainable().items())
    for record in seen:
        assert record.report.parity_max < 1e-4
        for group in record.groups:
            assert [r.index for r in group.rollouts] == list(range(7))
            assert {r.parent for r in group.rollouts} <= {None, 0, 5}
    assert any(branches(group.rollouts) for record in seen for group in record.groups)
    assert any(record.report.grad_norm > 0 for record in seen)


def test_the_loop_counts_what_trees_share_once() -> None:
    config = small_config(ETTRL, {"optim": {"steps": 1}, "sampling": {"votes": 7}})
    seen: list[StepRecord] = []
    adapt(QUESTIONS, digit_policy(config.model), config=config, hooks=Hooks(on_step=seen.append))
    found = [r for group in seen[0].groups for r in group.rollouts]
    assert seen[0].report.tokens_sampled == sum(len(r.token_ids) - (r.fork_at or 0) for r in found)
    assert any(r.fork_at for r in found)


def test_votes_in_rounds_end_at_whole_trees() -> None:
    """Each question's leaves are the first of its full vote, however many rounds it took."""
    tree = TreeSampler(HFSampler(digits(), DecodingConfig(max_new_tokens=4)), TreeConfig())
    votes = VotesConfig(max=22, stop="decided", round=4)
    full = tree.sample(QUESTIONS, 22, step=0, purpose="train")
    groups = vote_in_rounds(tree, QUESTIONS, votes, 3, step=0, purpose="train")
    counts = [len(group.rollouts) for group in groups]
    assert all(count % 5 == 0 or count == 22 for count in counts)
    assert outline(group.rollouts for group in groups) == outline(g[:n] for g, n in zip(full, counts, strict=True))


@pytest.mark.slow
def test_the_loop_scores_trees_that_come_without_entropies() -> None:
    config = small_config(ETTRL, {"optim": {"steps": 1}, "sampling": {"max_new_tokens": 4}})
    reports = []
    for silent in (False, True):
        own, seen = digit_policy(config.model), []
        backend = Plain(own, config.sampling, config.seed, silent=silent)
        tree = TreeSampler(backend, config.sampling.tree or TreeConfig())
        adapt(QUESTIONS, own, tree, config=config, hooks=Hooks(on_step=seen.append))
        reports.append(seen[0].report)
    given, scored = reports
    assert given.grad_norm > 0 and scored.grad_norm == pytest.approx(given.grad_norm, rel=1e-4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A finished run with trees, and its configuration."""
    folder = tmp_path_factory.mktemp("trees")
    model, data = write_model(folder / "model"), write_data(folder / "data")
    off = {"evaluation": {"held_out": False, "limit": 1}}
    config = small_config({"benchmark": str(data), "model": {"path": str(model)}}, ETTRL, off)
    assert run(config, folder / "whole") is not None
    return folder / "whole", config


@pytest.mark.slow
def test_a_run_records_parents_and_forks(whole: tuple[Path, Any]) -> None:
    tables = [rollout_table.read_rollout_table(path) for path in sorted(whole[0].glob("rollouts/*.parquet"))]
    assert len(tables) == 3
    forked = 0
    for table in tables:
        rows = {(row["question_id"], row["index"]): row for row in table.to_pylist()}
        for row in rows.values():
            if row["parent"] is not None:
                root, at = rows[row["question_id"], row["parent"]], row["fork_at"]
                assert row["token_ids"][:at] == root["token_ids"][:at]
                forked += 1
    assert forked > 12


@pytest.mark.slow
def test_a_run_with_trees_resumes_to_the_bit(whole: tuple[Path, Any], tmp_path: Path) -> None:
    class Stopping(Listener):
        def step(self, step: Step) -> None:
            if step.report.step == 0:
                os.kill(os.getpid(), signal.SIGTERM)

    assert run(whole[1], tmp_path / "stopped", listener=Stopping()) is None
    assert run(whole[1], tmp_path / "stopped", resume=True) is not None
    for pattern in ("steps.jsonl", "rollouts/*.parquet", "adapted/*.safetensors"):
        paths = sorted(whole[0].glob(pattern))
        assert paths
        for path in paths:
            assert path.read_bytes() == (tmp_path / "stopped" / path.relative_to(whole[0])).read_bytes(), path.name
