"""The packed forward, the KL anchor, freezing, LoRA and model folders, against plain transformers in fp32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tiny import (
    BANNED,
    END,
    TEMPERATURE,
    entropy,
    inputs,
    plain_log_probs,
    tiny_model,
    tiny_policy,
    tiny_processor,
    tiny_questions,
)
from torch import Tensor

from mm_spine.config import EngineConfig, LoraConfig, MethodConfig, ModelConfig, OptimConfig
from mm_spine.methods.apply import Tokens
from mm_spine.methods.band import Bounds
from mm_spine.policy.distribution import Distribution
from mm_spine.policy.errors import FrozenError
from mm_spine.policy.model import Policy
from mm_spine.policy.packed import Branches, pack
from mm_spine.policy.reference import Reference
from mm_spine.training.batch import collate, merge_identical, micro_batches, packed_length, trained_groups
from mm_spine.training.loss import DIVERGENCES, Denominators, Losses, denominators, losses
from mm_spine.types import Group, Question, Rollout, Vote

TOLERANCE = 1e-5
LORA = ModelConfig(train="lora", lora=LoraConfig(rank=4, alpha=8.0))

Mask = Callable[[int], list[int]]
"""(response length) -> the positions that are selected."""

MASKS: dict[str, Mask] = {
    "all": lambda length: list(range(length)),
    "first": lambda length: [0],
    "last": lambda length: [length - 1],
    "few": lambda length: list(range(1, length, 3)),
}


def responses(lengths: Sequence[int], seed: int) -> list[tuple[int, ...]]:
    """Random tokens, the last one the end token."""
    rng = np.random.default_rng(seed)
    return [(*rng.integers(0, 415, length - 1).tolist(), END) for length in lengths]


def plain_name(name: str) -> str:
    """The name in transformers' model of a parameter of the text policy."""
    return "lm_head.weight" if name == "head.weight" else f"model.{name}"


def assert_gradients_equal(policy: Policy, gradients: dict[str, Tensor], plain: Any) -> None:
    """||g - g_ref|| <= 1e-5 ||g_ref|| for every trainable tensor, none silently zero, none missing."""
    reference = dict(plain.named_parameters())
    wanted = {n for n, p in reference.items() if "visual" not in n and p.requires_grad}
    assert {plain_name(name) for name in gradients} == wanted
    for name, gradient in gradients.items():
        expected = reference[plain_name(name)].grad
        assert expected is not None and expected.norm() > 0, name
        assert (gradient - expected).norm() <= TOLERANCE * expected.norm(), name


def gradients_of(policy: Policy, loss: Tensor) -> dict[str, Tensor]:
    """The gradient of every trainable tensor, by name."""
    named = policy.trainable()
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


class Case(NamedTuple):
    """What is asked: images of each question, lengths of its responses, which tokens are selected."""

    images: tuple[int, ...]
    lengths: tuple[tuple[int, ...], ...]
    mask: str = "all"


def case_questions(images: Sequence[int]) -> list[Question]:
    return [tiny_questions(i + 1, count)[i] for i, count in enumerate(images)]


CASES = {
    "one image": Case((1,), ((4, 9, 1),)),
    "three images": Case((3,), ((5, 2),)),
    "text only": Case((0,), ((3, 6),)),
    "padded together": Case((1, 3, 0, 1), ((1, 8), (5, 5, 2), (7,), (1,))),
    "few": Case((1, 3), ((9, 4), (6,)), "few"),
    "last": Case((3, 1), ((2, 5), (8,)), "last"),
    "first": Case((1, 0), ((1, 5), (6, 2)), "first"),
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_packed_forward_is_the_plain_forward(case: Case, tied: bool) -> None:
    policy, plain = tiny_policy(3, tied=tied), tiny_model(3, tied)
    questions = case_questions(case.images)
    leaves = [responses(lengths, 7 + i) for i, lengths in enumerate(case.lengths)]
    selected = [[mask_of(len(t), case.mask) for t in row] for row in leaves]
    batch = pack(
        [
            Branches(policy.prompt(q), [torch.tensor(t) for t in row], masks)
            for q, row, masks in zip(questions, leaves, selected, strict=True)
        ]
    )
    stats, kl_NT = policy.text(batch, Distribution(TEMPERATURE, policy.banned))
    weights = torch.randn(2, *stats.logp_NT.shape, generator=torch.Generator().manual_seed(5))
    loss = torch.zeros(())
    flat = [
        (q, t, m) for q, row, ms in zip(questions, leaves, selected, strict=True) for t, m in zip(row, ms, strict=True)
    ]
    for n, (question, tokens, mask) in enumerate(flat):
        log_probs = plain_log_probs(plain, question, tokens)
        logp = log_probs.gather(-1, torch.tensor(tokens)[:, None])[:, 0]
        for t in mask.nonzero()[:, 0].tolist():
            torch.testing.assert_close(stats.logp_NT[n, t], logp[t], rtol=TOLERANCE, atol=TOLERANCE)
            torch.testing.assert_close(stats.entropy_NT[n, t], entropy(log_probs)[t], rtol=TOLERANCE, atol=TOLERANCE)
            loss = loss + weights[0, n, t] * logp[t] + weights[1, n, t] * entropy(log_probs)[t]
        padded = torch.nn.functional.pad(mask, (0, stats.logp_NT.shape[1] - len(mask)))
        assert torch.equal(stats.selected_NT[n], padded)
        assert not stats.logp_NT[n, ~padded].any() and not stats.entropy_NT[n, ~padded].any()
    assert not kl_NT.any()
    loss.backward()
    packed_loss = (weights[0] * stats.logp_NT + weights[1] * stats.entropy_NT).sum()
    torch.testing.assert_close(packed_loss, loss, rtol=TOLERANCE, atol=TOLERANCE)
    assert_gradients_equal(policy, gradients_of(policy, packed_loss), plain)


def mask_of(length: int, name: str) -> Tensor:
    mask = torch.zeros(length, dtype=torch.bool)
    mask[MASKS[name](length)] = True
    return mask


def test_packed_row_holds_the_prompt_once_and_no_last_tokens() -> None:
    policy = tiny_policy()
    prompt = policy.prompt(tiny_questions(1)[0])
    leaves = [torch.tensor(t) for t in responses((4, 1, 6), 0)]
    batch = pack([Branches(prompt, leaves, [torch.ones(len(t), dtype=torch.bool) for t in leaves])])
    assert batch.ids_1P.shape == (1, len(prompt.ids_L) + 3 + 0 + 5)
    assert batch.shape_NT == (3, 6)


def test_lora_gradients_are_those_of_the_plain_forward() -> None:
    policy, plain = tiny_policy(2, LORA), tiny_policy(2, LORA)
    for each in (policy, plain):
        perturb(each, 0.1, seed=4)
    plain.model.model.language_model.config._attn_implementation = "sdpa"
    (question,) = case_questions([1])
    leaves = responses((5, 3), 1)
    masks = [torch.ones(len(t), dtype=torch.bool) for t in leaves]
    batch = pack([Branches(policy.prompt(question), [torch.tensor(t) for t in leaves], masks)])
    stats = policy.text(batch, Distribution(TEMPERATURE, policy.banned)).stats
    loss = sum(plain_log_probs(plain.model, question, t).gather(-1, torch.tensor(t)[:, None]).sum() for t in leaves)
    loss.backward()
    assert_gradients_equal(policy, gradients_of(policy, stats.logp_NT.sum()), plain.model)


def test_the_adapted_model_itself_stays_a_causal_transformers_model() -> None:
    """Whoever calls `policy.model` or its `generate` gets transformers' own results, whatever attention we chose."""
    policy, plain = tiny_policy(1), tiny_model(1)
    question = tiny_questions(1, 3)[0]
    made = inputs(question, responses((6,), 0)[0])
    torch.testing.assert_close(policy.model(**made).logits, plain(**made).logits, rtol=1e-4, atol=1e-4)
    prompt = inputs(question, ())
    ours, theirs = (m.generate(**prompt, do_sample=False, max_new_tokens=8) for m in (policy.model, plain))
    assert torch.equal(ours, theirs)


# --- losses -----------------------------------------------------------------------------------------------------------

OPTIONS = MethodConfig(kl="exact", kl_weight=0.3, band_low_weight=0.4, band_high_weight=0.7, unanimous="regularise")


class Step(NamedTuple):
    """A step's groups with everything the losses need, as the loop would hand it over."""

    groups: list[Group]
    tokens: list[list[Tokens]]


def make_step(seed: int = 0) -> Step:
    """Four questions, unequal groups, identical responses (in the first and third group), partial masks."""
    rng = np.random.default_rng(seed)
    lengths = ((6, 3, 3, 9), (4, 1, 12), (5, 5), (2, 7))
    questions = case_questions((1, 3, 0, 1))
    groups, tokens = [], []
    for i, question in enumerate(questions):
        drawn = responses(lengths[i], 30 + i)
        if i in (0, 2):
            drawn = [*drawn, drawn[0], drawn[0]]
        values: dict[tuple[int, ...], Any] = {}
        for t in drawn:
            values.setdefault(t, (rng.normal(-4, 1, len(t)), rng.normal(), tokens_for(len(t), rng)))
        rollouts = tuple(
            Rollout(question.id, n, t, "", values[t][0].astype(np.float32), None, "stop") for n, t in enumerate(drawn)
        )
        vote = Vote(None, 0.0, {}, 0.0, 0)
        advantages = torch.tensor([values[t][1] for t in drawn], dtype=torch.float32)
        nothing = (None,) * len(drawn)
        groups.append(Group(question, rollouts, nothing, vote, advantages, advantages, parsed=nothing))
        tokens.append([values[t][2] for t in drawn])
    return Step(groups, tokens)


def tokens_for(length: int, rng: np.random.Generator) -> Tokens:
    """Policy and band masks that overlap only in part, and bounds on both sides of the usual entropies."""
    policy, band = (torch.from_numpy(rng.random(length) < 0.6) for _ in range(2))
    policy[0] = band[-1] = True
    return Tokens(policy, band, Bounds(torch.tensor(3.0 + rng.random()), torch.tensor(3.5 + rng.random())))


def plain_losses(plain: Any, anchor: Any, step: Step, options: MethodConfig, ratio_from: str) -> Losses:
    """The three terms by a loop over every rollout and token, duplicates included: TRL's shape, nothing shared."""
    counted = [(len(t.policy_T), int(t.policy_T.sum())) for row in step.tokens for t in row]
    band_tokens = sum(int(t.band_T.sum()) for row in step.tokens for t in row)
    everything, chosen = (sum(column) for column in zip(*counted, strict=True))
    over = {"all": everything, "selected": chosen}
    over_band = {"all": everything, "selected": band_tokens}[options.band_denominator]
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
            for t in range(len(drawn)):
                if tokens.policy_T[t]:
                    ratio = (logp[t] - old[t]).exp()
                    clipped = ratio.clamp(1 - options.clip_low, 1 + options.clip_high)
                    policy_term = policy_term - torch.min(ratio * advantage, clipped * advantage)
                    kl_term = kl_term + divergence(log_probs[t], ref[t], logp[t], ref_logp[t], options.kl)
                if tokens.band_T[t]:
                    low, high = tokens.bounds
                    band_term = band_term + options.band_low_weight * (low - h[t]).clamp(min=0)
                    band_term = band_term + options.band_high_weight * (h[t] - high).clamp(min=0)
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
    over = denominators(step.tokens, options)
    batches = micro_batches(policy, trained_groups(step.groups, step.tokens, options), budget)
    sums, gradients = torch.zeros(3), {name: torch.zeros_like(p) for name, p in policy.trainable().items()}
    for rows in batches:
        micro = collate(policy, rows)
        anchor = reference.anchor(micro.packed, DIVERGENCES[options.kl])
        trained = policy.text(micro.packed, Distribution(TEMPERATURE, policy.banned), anchor)
        old = micro.sampled_logp_NT if ratio_from == "sampled" else trained.stats.logp_NT.detach()
        terms = losses(trained, micro, old, options, over)
        sums += torch.stack(terms).detach()
        for name, gradient in gradients_of(policy, sum(terms)).items():
            gradients[name] += gradient
    return Losses(*sums), gradients, len(batches)


@torch.no_grad()
def perturb(policy: Policy, scale: float, seed: int) -> None:
    """Move the trainable weights, as training would."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.trainable().values():
        parameter += scale * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize(
    ("ratio_from", "changes"),
    [
        ("own", {}),
        ("sampled", {"clip_low": 0.3, "clip_high": 0.5}),
        ("own", {"kl": "k3", "policy_denominator": "selected", "band_denominator": "selected"}),
        ("own", {"kl_denominator": "all"}),
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
    sum(expected).backward()
    assert all(abs(term.item()) > 1e-3 for term in expected)
    for budget, batches in ((10_000, 1), (1, 4), (130, 2)):
        found, gradients, count = packed_losses(policy, reference, step, options, ratio_from, budget)
        assert count == batches
        torch.testing.assert_close(torch.stack(found), torch.stack(expected).detach(), rtol=TOLERANCE, atol=1e-6)
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
    sum(plain_losses(plain, tiny_model(6), step, OPTIONS, "own")).backward()
    engine = Engine(policy, OptimConfig(), EngineConfig(zero_stage=stage, checkpoint_activations=recomputed))
    try:
        batches = micro_batches(policy, trained_groups(step.groups, step.tokens, OPTIONS), 130)
        for rows in batches:
            micro = collate(policy, rows)
            anchor = reference.anchor(micro.packed, DIVERGENCES[OPTIONS.kl])
            trained = engine.forward(micro.packed, Distribution(TEMPERATURE, policy.banned), anchor)
            terms = losses(trained, micro, trained.stats.logp_NT.detach(), OPTIONS, denominators(step.tokens, OPTIONS))
            engine.backward(sum(terms), last=rows is batches[-1])
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
    assert denominators(step.tokens, OPTIONS) == Denominators(
        policy=sum(len(t.policy_T) for row in step.tokens for t in row),
        band=sum(len(t.policy_T) for row in step.tokens for t in row),
        kl=sum(int(t.policy_T.sum()) for row in step.tokens for t in row),
    )


def test_micro_batches_keep_groups_whole_and_within_the_budget() -> None:
    policy, step = tiny_policy(), make_step()
    rows = trained_groups(step.groups, step.tokens, OPTIONS)
    lengths = {row.question.id: packed_length(policy, row) for row in rows}
    assert lengths == {row.question.id: collate(policy, [row]).packed.plan.length for row in rows}
    for budget in (1, 70, 130, 10_000):
        batches = micro_batches(policy, rows, budget)
        assert sorted(row.question.id for batch in batches for row in batch) == sorted(lengths)
        for batch in batches:
            assert sum(lengths[row.question.id] for row in batch) <= budget or len(batch) == 1


# --- distribution -----------------------------------------------------------------------------------------------------


def test_distribution_bans_before_the_temperature_and_computes_in_fp32() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0, 1e6]], dtype=torch.bfloat16)
    found = Distribution(2.0, (3,)).log_probs(logits)
    expected = torch.tensor([[0.5, 1.0, 1.5]]).log_softmax(-1)
    assert found.dtype == torch.float32 and found[0, 3] == -torch.inf
    torch.testing.assert_close(found[:, :3], expected)


# --- reference --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("tied", [True, False])
def test_anchor_is_the_starting_policy_and_leaves_the_weights_alone(config: ModelConfig | None, tied: bool) -> None:
    policy, start = tiny_policy(5, config, tied), tiny_policy(5, config, tied)
    reference = Reference(policy)
    perturb(policy, 0.1, seed=1)
    moved = policy.weights()
    micro = collate(policy, trained_groups(*make_step(), OPTIONS))
    anchor = reference.anchor(micro.packed, DIVERGENCES["exact"])
    assert all(torch.equal(p, moved[name]) for name, p in policy.trainable().items())
    assert torch.equal(anchor.hidden_SD, start.text.trunk(micro.packed))
    assert torch.equal(anchor.weight_VD, start.text.head.weight)
    assert not anchor.hidden_SD.requires_grad
    assert not torch.equal(anchor.hidden_SD, policy.text.trunk(micro.packed))


def test_anchor_puts_the_weights_back_when_its_forward_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    reference = Reference(policy)
    perturb(policy, 0.1, seed=1)
    moved = policy.weights()
    monkeypatch.setattr(policy.text, "trunk", lambda batch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        reference.anchor(collate(policy, trained_groups(*make_step(), OPTIONS)).packed, DIVERGENCES["exact"])
    assert all(torch.equal(p, moved[name]) for name, p in policy.trainable().items())


def test_divergence_from_an_unchanged_reference_is_zero() -> None:
    policy = tiny_policy()
    micro = collate(policy, trained_groups(*make_step(), OPTIONS))
    anchor = Reference(policy).anchor(micro.packed, DIVERGENCES["exact"])
    trained = policy.text(micro.packed, Distribution(TEMPERATURE, policy.banned), anchor)
    assert trained.kl_NT.abs().max() < 1e-6


# --- freezing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [None, LORA], ids=["full", "lora"])
def test_parameter_counts_say_what_may_train(config: ModelConfig | None) -> None:
    policy = tiny_policy(config=config)
    trainable, frozen = policy.count_parameters()
    assert trainable == sum(p.numel() for p in policy.trainable().values()) > 0
    tower = sum(p.numel() for p in policy.tower.parameters())
    base = sum(p.numel() for p in tiny_model().parameters())
    assert (trainable, frozen) == (base - tower, tower) if config is None else frozen == base


def test_tower_and_merger_are_frozen_and_absent_from_what_trains() -> None:
    policy = tiny_policy()
    tower = {id(p) for p in policy.tower.parameters()}
    assert any("merger" in name for name, _ in policy.tower.named_parameters())
    assert not any(p.requires_grad for p in policy.tower.parameters())
    assert not tower & {id(p) for p in policy.text.parameters()}
    policy.assert_frozen()


@pytest.mark.parametrize("part", ["merger.mlp.0.weight", "blocks.1.attn.qkv.bias"])
def test_unfreezing_behind_the_back_is_an_error_that_names_the_parameter(part: str) -> None:
    policy = tiny_policy()
    policy.tower.get_parameter(part).requires_grad_(True)
    with pytest.raises(FrozenError, match=part):
        policy.assert_frozen()
    with pytest.raises(FrozenError, match=part):
        engine_of(policy)


def test_a_tower_parameter_smuggled_into_the_optimizer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    policy.text.register_parameter("smuggled", policy.tower.get_parameter("merger.mlp.0.bias").requires_grad_(True))
    monkeypatch.setattr(policy, "assert_frozen", lambda: None)
    with pytest.raises(FrozenError, match=r"merger\.mlp\.0\.bias.*optimizer"):
        engine_of(policy)


def engine_of(policy: Policy) -> Any:
    from mm_spine.training.engine import Engine

    before = torch.are_deterministic_algorithms_enabled()
    try:
        return Engine(policy, OptimConfig(), EngineConfig())
    finally:
        torch.use_deterministic_algorithms(before)


def test_checksum_is_stable_and_sees_one_changed_element() -> None:
    policy = tiny_policy()
    before = policy.tower_checksum()
    assert before == tiny_policy().tower_checksum() != tiny_policy(1).tower_checksum()
    micro = collate(policy, trained_groups(*make_step(), OPTIONS))
    optimizer = torch.optim.AdamW(policy.trainable().values(), lr=0.1)
    policy.text(micro.packed, Distribution(1.0, policy.banned)).stats.logp_NT.sum().backward()
    optimizer.step()
    assert policy.tower_checksum() == before
    with torch.no_grad():
        policy.tower.get_parameter("merger.mlp.2.weight")[3, 5] += 1e-6
    assert policy.tower_checksum() != before


# --- LoRA and saving --------------------------------------------------------------------------------------------------


def test_lora_trains_adapters_of_every_projection_of_the_language_model_only() -> None:
    policy = tiny_policy(config=LORA)
    names = set(policy.trainable())
    parts = ["self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down"]
    assert names == {
        f"language_model.layers.{layer}.{part}_proj.lora_{side}.default.weight"
        for layer in range(2)
        for part in parts
        for side in "AB"
    }
    assert [n for n, p in policy.model.named_parameters() if p.requires_grad and "visual" in n] == []


def test_lora_starts_from_its_seed_alone_and_from_the_base_model() -> None:
    torch.manual_seed(0)
    first, state = tiny_policy(1, LORA), torch.get_rng_state()
    torch.manual_seed(12345)
    again = Policy(tiny_model(1), tiny_processor(), LORA, seed=1)
    other = Policy(tiny_model(1), tiny_processor(), LORA, seed=2)
    weights = [policy.weights() for policy in (first, again, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])
    assert state is not None and torch.equal(torch.manual_seed(12345).get_state(), torch.get_rng_state())
    question, tokens = tiny_questions(1)[0], responses((4,), 0)[0]
    torch.testing.assert_close(
        plain_log_probs(first.model, question, tokens), plain_log_probs(tiny_model(1), question, tokens)
    )


def loaded(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    return AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def folder_log_probs(folder: Path, question: Question, tokens: Sequence[int]) -> Tensor:
    """log pi from a saved folder alone: its model and its own processor."""
    from mm_spine.processors.chat import encode

    model, processor = loaded(folder)
    assert torch.equal(encode(question, processor).ids_L, encode(question, tiny_processor()).ids_L)
    return plain_log_probs(model, question, tokens)


@pytest.mark.parametrize("config", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("tied", [True, False])
def test_saved_folder_loads_alone_and_is_the_adapted_policy(
    config: ModelConfig | None, tied: bool, tmp_path: Path
) -> None:
    policy = tiny_policy(4, config, tied)
    perturb(policy, 0.1, seed=2)
    question, tokens = tiny_questions(2, 3)[1], responses((5,), 3)[0]
    before, adapted = policy.weights(), plain_log_probs(policy.model, question, tokens)
    policy.save(tmp_path / "adapted")
    found = folder_log_probs(tmp_path / "adapted", question, tokens)
    torch.testing.assert_close(found, adapted, rtol=1e-5, atol=1e-5)
    start = plain_log_probs(tiny_model(4, tied), question, tokens)
    assert (found - start)[start > -torch.inf].abs().max() > 0.1
    assert all(torch.equal(p, before[name]) for name, p in policy.trainable().items())
    again = Policy.load(tmp_path / "adapted")
    assert again.tower_checksum() == policy.tower_checksum()
    assert (tmp_path / "adapted" / "adapter").is_dir() == (config is not None)


def test_saved_adapter_on_the_base_model_is_the_adapted_policy(tmp_path: Path) -> None:
    import peft

    policy = tiny_policy(4, LORA)
    perturb(policy, 0.1, seed=2)
    policy.save(tmp_path)
    again = peft.PeftModel.from_pretrained(tiny_model(4), tmp_path / "adapter")
    question, tokens = tiny_questions(1)[0], responses((5,), 3)[0]
    torch.testing.assert_close(
        plain_log_probs(again, question, tokens), plain_log_probs(policy.model, question, tokens), rtol=1e-5, atol=1e-5
    )
