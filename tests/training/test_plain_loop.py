"""Losses and gradients through packed micro-batches and the engine, against a plain loop over rollouts and tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from exactness import InDouble, assert_exact_gradients
from plain import (
    OPTIONS,
    TOLERANCE,
    Step,
    assert_gradients_equal,
    gradients_of,
    make_step,
    perturb,
)
from tiny import (
    BANNED,
    TEMPERATURE,
    entropy,
    plain_log_probs,
    tiny_model,
    tiny_policy,
)
from torch import Tensor

from mm_spine.config import EngineConfig, MethodConfig, OptimConfig
from mm_spine.policy.distribution import Distribution
from mm_spine.policy.model import Policy
from mm_spine.policy.reference import Reference
from mm_spine.training.batch import collate, merge_identical, micro_batches, packed_length, trained_groups
from mm_spine.training.loss import DIVERGENCES, Denominators, Losses, denominators, losses


def plain_losses(plain: Any, anchor: Any, step: Step, options: MethodConfig, ratio_from: str) -> Losses:
    """The three terms by a loop over every rollout and token, duplicates included: TRL's shape, nothing shared."""
    counted = [(len(t.policy_T), int(t.policy_T.sum())) for row in step.tokens for t in row]
    band_tokens = sum(int(t.band_T.sum()) for row in step.tokens for t in row)
    everything, chosen = (sum(column) for column in zip(*counted, strict=True))
    over = {"all": everything, "selected": chosen, "response": len(counted)}
    over_band = {**over, "selected": band_tokens}[options.band_denominator]

    def each(kind: str, length: int) -> float:
        return 1 / length if kind == "response" else 1.0

    policy_term, band_term, kl_term = torch.zeros(3)
    for group, row in zip(step.groups, step.tokens, strict=True):
        for rollout, advantage, tokens in zip(group.rollouts, group.advantages, row, strict=True):
            log_probs = plain_log_probs(plain, group.question, rollout.token_ids)
            with torch.no_grad():
                ref = plain_log_probs(anchor, group.question, rollout.token_ids)
            drawn = torch.tensor(rollout.token_ids)[:, None]
            logp, ref_logp = log_probs.gather(-1, drawn)[:, 0], ref.gather(-1, drawn)[:, 0]
            old = torch.from_numpy(rollout.logp) if ratio_from == "sampled" else logp.detach()
            h = entropy(log_probs)
            by_policy, by_band, by_kl = (
                each(kind, len(drawn))
                for kind in (options.policy_denominator, options.band_denominator, options.kl_denominator)
            )
            for t in range(len(drawn)):
                if tokens.policy_T[t]:
                    ratio = (logp[t] - old[t]).exp()
                    clipped = ratio.clamp(1 - options.clip_low, 1 + options.clip_high)
                    policy_term = policy_term - by_policy * torch.min(ratio * advantage, clipped * advantage)
                    kl_term = kl_term + by_kl * divergence(log_probs[t], ref[t], logp[t], ref_logp[t], options.kl)
                if tokens.band_T[t]:
                    low, high = tokens.bounds
                    band_term = band_term + by_band * options.band_low_weight * (low - h[t]).clamp(min=0)
                    band_term = band_term + by_band * options.band_high_weight * (h[t] - high).clamp(min=0)
    kl_mean = options.kl_weight * kl_term / over[options.kl_denominator]
    return Losses(policy_term / over[options.policy_denominator], band_term / over_band, kl_mean)


def divergence(log_pi: Tensor, log_ref: Tensor, logp: Tensor, ref_logp: Tensor, kind: str) -> Tensor:
    if kind == "exact":
        allowed = [v for v in range(len(log_pi)) if v not in BANNED]
        return (log_pi[allowed].exp() * (log_pi[allowed] - log_ref[allowed])).sum()
    return (ref_logp - logp).exp() - 1 - (ref_logp - logp)


def packed_losses(
    policy: Policy, reference: Reference, step: Step, options: MethodConfig, ratio_from: str, budget: int
) -> tuple[Losses, dict[str, Tensor], int]:
    """The same terms and their summed gradient through rows, micro-batches and the packed forward, as the loop does."""
    over = denominators(step.groups, step.tokens, options)
    batches = micro_batches(policy, trained_groups(step.groups, step.tokens, options), budget)
    sums, gradients = torch.zeros(3), {name: torch.zeros_like(p) for name, p in policy.trainable().items()}
    for rows in batches:
        micro = collate(policy, rows)
        anchor = reference.anchor(micro.packed, DIVERGENCES[options.kl])
        trained = policy.text(micro.packed, Distribution(TEMPERATURE, policy.banned), anchor)
        old = micro.sampled_logp_NT if ratio_from == "sampled" else trained.stats.logp_NT.detach()
        terms = losses(trained, micro, old, options, over)
        sums += torch.stack(terms[:3]).detach()
        for name, gradient in gradients_of(policy, terms.total).items():
            gradients[name] += gradient
    return Losses(*sums), gradients, len(batches)


@pytest.mark.parametrize(
    ("ratio_from", "changes"),
    [
        ("own", {}),
        ("sampled", {"clip_low": 0.3, "clip_high": 0.5}),
        ("own", {"kl": "k3", "policy_denominator": "selected", "band_denominator": "selected"}),
        ("own", {"kl_denominator": "all"}),
        ("own", dict.fromkeys(("policy_denominator", "band_denominator", "kl_denominator"), "response")),
    ],
)
def test_losses_and_gradients_are_those_of_a_plain_loop(ratio_from: str, changes: dict[str, Any]) -> None:
    options, step = OPTIONS.model_copy(update=changes), make_step()
    policy, plain = tiny_policy(6), tiny_model(6)
    reference = Reference(policy)
    perturb(policy, 0.03, seed=9)
    plain.load_state_dict(policy.model.state_dict())
    if ratio_from == "sampled":
        step = step_with_old_log_probs(plain, step)
    expected = plain_losses(plain, tiny_model(6), step, options, ratio_from)
    expected.total.backward()
    assert all(abs(term.item()) > 1e-3 for term in expected[:3])
    alone = sum(len(row.leaves) for row in trained_groups(step.groups, step.tokens, options))
    assert alone > 4
    for budget, batches in ((10_000, 1), (1, alone), (130, 2)):
        found, gradients, count = packed_losses(policy, reference, step, options, ratio_from, budget)
        assert count == batches
        torch.testing.assert_close(
            torch.stack(found[:3]), torch.stack(expected[:3]).detach(), rtol=TOLERANCE, atol=1e-6
        )
        assert_gradients_equal(policy, gradients, plain)


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_engines_gradients_are_those_of_a_plain_loop(stage: int, recomputed: bool) -> None:
    """All at once: trees, identical responses, the anchor's weights standing in between forwards, two micro-batches."""
    from mm_spine.training.engine import Engine

    step, policy, plain = make_step(), tiny_policy(6), tiny_model(6)
    reference = Reference(policy)
    perturb(policy, 0.03, seed=9)
    plain.load_state_dict(policy.model.state_dict())
    plain_losses(plain, tiny_model(6), step, OPTIONS, "own").total.backward()
    engine = Engine(policy, OptimConfig(), EngineConfig(zero_stage=stage, checkpoint_activations=recomputed))
    try:
        batches = micro_batches(policy, trained_groups(step.groups, step.tokens, OPTIONS), 130)
        for rows in batches:
            micro = collate(policy, rows)
            anchor = reference.anchor(micro.packed, DIVERGENCES[OPTIONS.kl])
            trained = engine.forward(micro.packed, Distribution(TEMPERATURE, policy.banned), anchor)
            terms = losses(
                trained, micro, trained.stats.logp_NT.detach(), OPTIONS, denominators(step.groups, step.tokens, OPTIONS)
            )
            engine.backward(terms.total, last=rows is batches[-1])
        assert len(batches) == 2
        assert_gradients_equal(policy, engine.gradients(), plain)
    finally:
        engine.close()


@torch.no_grad()
def step_with_old_log_probs(plain: Any, step: Step) -> Step:
    """Old log-probs around today's, so that ratios fall inside and outside the clip."""
    groups = []
    for group in step.groups:
        rollouts = []
        for rollout in group.rollouts:
            log_probs = plain_log_probs(plain, group.question, rollout.token_ids)
            logp = log_probs.gather(-1, torch.tensor(rollout.token_ids)[:, None])[:, 0].numpy()
            shift = 0.5 * np.sin(np.arange(len(logp)) + len(logp))
            rollouts.append(replace(rollout, logp=(logp + shift).astype(np.float32)))
        groups.append(replace(group, rollouts=tuple(rollouts)))
    return Step(groups, step.tokens)


def test_identical_rollouts_are_one_leaf_with_their_weight() -> None:
    step = make_step()
    rows = [merge_identical(group, tokens) for group, tokens in zip(step.groups, step.tokens, strict=True)]
    assert [len(row.leaves) for row in rows] == [4, 3, 2, 2]
    assert [leaf.rollout.weight for leaf in rows[0].leaves] == [3, 1, 1, 1]
    assert [leaf.rollout.weight for leaf in rows[2].leaves] == [3, 1]
    assert denominators(step.groups, step.tokens, OPTIONS) == Denominators(
        policy=sum(len(t.policy_T) for row in step.tokens for t in row),
        band=sum(len(t.policy_T) for row in step.tokens for t in row),
        kl=sum(int(t.policy_T.sum()) for row in step.tokens for t in row),
    )


def test_divided_groups_have_the_gradient_of_whole_ones() -> None:
    """By the rule of exactness, whole groups in fp32 and in double; and directly, to 1e-6 of each tensor's norm."""
    step, policy, double = make_step(), tiny_policy(6), tiny_policy(6)
    double.model.double()
    references = Reference(policy), Reference(double)
    for each in (policy, double):
        perturb(each, 0.03, seed=9)
    with InDouble():
        exact = packed_losses(double, references[1], step, OPTIONS, "own", 10_000)[1]
    whole = packed_losses(policy, references[0], step, OPTIONS, "own", 10_000)[1]
    rows = trained_groups(step.groups, step.tokens, OPTIONS)
    longest = max(packed_length(policy, row) for row in rows)
    counts = []
    for budget in (longest - 1, longest // 2, 1):
        _, divided, count = packed_losses(policy, references[0], step, OPTIONS, "own", budget)
        counts.append(count)
        assert_exact_gradients((name, divided[name], whole[name], exact[name]) for name in exact)
        for name, gradient in divided.items():
            assert (gradient - whole[name]).norm() <= 1e-6 * whole[name].norm(), (budget, name)
    assert counts == sorted(set(counts)) and counts[-1] == sum(len(row.leaves) for row in rows)


def test_micro_batches_are_within_the_budget() -> None:
    policy, step = tiny_policy(), make_step()
    rows = trained_groups(step.groups, step.tokens, OPTIONS)
    lengths = {row.question.id: packed_length(policy, row) for row in rows}
    assert lengths == {row.question.id: collate(policy, [row]).packed.plan.length for row in rows}
    keys = sorted(leaf.key for row in rows for leaf in row.leaves)
    for budget in (1, 70, 130, 10_000):
        batches = micro_batches(policy, rows, budget)
        assert sorted(leaf.key for batch in batches for row in batch for leaf in row.leaves) == keys
        for batch in batches:
            tokens = sum(packed_length(policy, row) for row in batch)
            assert tokens <= budget or sum(len(row.leaves) for row in batch) == 1
