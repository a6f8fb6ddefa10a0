"""Every family against plain transformers in fp32: packed loss and gradients, decoding, adapting, saving, counting."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from exactness import InDouble, assert_exact, assert_exact_gradients, double_of
from families import KINDS, LORA, MERGER, MERGING, TEXT, VISION, ask, mixed, move
from small import BASE
from tiny import (
    END,
    TEMPERATURE,
    banned,
    entropy,
    inputs,
    plain_log_probs,
    tiny_image,
    tiny_model,
    tiny_policy,
)
from torch import Tensor

from mm_spine.adapt import Adapted, Hooks, StepRecord, adapt
from mm_spine.config import DecodingConfig, ModelConfig
from mm_spine.methods.table import configure
from mm_spine.methods.tokens import Tokens
from mm_spine.policy.distribution import Distribution
from mm_spine.policy.errors import ModelError
from mm_spine.policy.families import FAMILIES
from mm_spine.policy.model import Policy
from mm_spine.sampling.hf import HFSampler
from mm_spine.training.batch import collate, merge_identical
from mm_spine.types import AnswerSpec, Group, Question, Rollout, Vote

# --- the packed forward -----------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """Images of each question, lengths of its responses, and every how many tokens one is selected."""

    images: tuple[int, ...]
    lengths: tuple[tuple[int, ...], ...]
    every: int = 1


SEEING = {
    "no image": Case((0,), ((3, 6),)),
    "one image": Case((1,), ((4, 9, 1),)),
    "three images": Case((3,), ((5, 2),)),
    "several questions": Case((1, 3, 0, 1), ((1, 8), (5, 5, 2), (7,), (1,))),
    "few selected": Case((3, 1), ((9, 4), (6,)), 3),
}
READING = {
    "one question": Case((0,), ((4, 9, 1),)),
    "several questions": Case((0, 0, 0), ((1, 8), (5, 5, 2), (7,))),
    "few selected": Case((0, 0), ((9, 4), (6,)), 3),
}
CASES = [
    pytest.param(kind, case, id=f"{kind}-{name}")
    for kind in KINDS
    for name, case in (SEEING if kind in VISION else READING).items()
]


def responses(lengths: Sequence[int], seed: int) -> list[tuple[int, ...]]:
    """Random tokens, the first two shared (a fork), the last one the end token."""
    rng = np.random.default_rng(seed)
    return [(*[7, 9, *rng.integers(0, 415, length).tolist()][: length - 1], END) for length in lengths]


def group_of(question: Question, lengths: Sequence[int], every: int, seed: int) -> tuple[Group, list[Tokens]]:
    """A group of such responses, and its selected tokens."""
    drawn = responses(lengths, seed)
    rollouts = tuple(
        Rollout(question.id, i, tokens, "", np.zeros(len(tokens), np.float32), None, "stop")
        for i, tokens in enumerate(drawn)
    )
    masks = [torch.arange(len(tokens)) % every == 0 for tokens in drawn]
    nothing, advantages = (None,) * len(drawn), torch.ones(len(drawn))
    group = Group(question, rollouts, nothing, Vote(None, 0, {}, 0, 0), None, advantages, parsed=nothing)
    return group, [Tokens(mask, torch.zeros_like(mask), None) for mask in masks]


def weight_of(leaf: int, token: int) -> Tensor:
    """Of a token's log-probability and of its entropy in the loss; no two alike."""
    return torch.tensor([np.sin(1.0 + leaf + 3 * token), np.cos(2.0 + 2 * leaf + token)], dtype=torch.float32)


def packed_loss(policy: Policy, groups: Sequence[tuple[Group, list[Tokens]]]) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, and log-probs and entropies (N, T), by the trainer's forward."""
    packed = collate(policy, [merge_identical(group, tokens) for group, tokens in groups]).packed
    stats = policy.text(packed, Distribution(TEMPERATURE, policy.banned)).stats
    n, t = stats.logp_NT.shape
    weights = torch.stack([torch.stack([weight_of(i, j) for j in range(t)]) for i in range(n)])
    loss = (weights[..., 0] * stats.logp_NT + weights[..., 1] * stats.entropy_NT).sum()
    return loss, stats.logp_NT.detach(), stats.entropy_NT.detach()


def plain_loss(model: Any, groups: Sequence[tuple[Group, list[Tokens]]]) -> tuple[Tensor, list[Tensor]]:
    """The loss by a forward of transformers for each response, and each response's log-probs and entropies (T, 2)."""
    distinct = [
        (group.question, leaf.rollout.token_ids, leaf.tokens.policy_T)
        for group, tokens in groups
        for leaf in merge_identical(group, tokens).leaves
    ]
    total, values = torch.zeros(()), []
    for i, (question, ids, mask) in enumerate(distinct):
        log_probs = plain_log_probs(model, question, ids)
        logp, places = log_probs.gather(-1, torch.tensor(ids)[:, None])[:, 0], mask.nonzero()[:, 0]
        values.append(torch.stack([logp, entropy(log_probs)], dim=-1)[places])
        weights = torch.stack([weight_of(i, j) for j in places.tolist()])
        total = total + (weights * values[-1]).sum()
    return total, values


def plain_name(policy: Policy, name: str) -> str:
    """The name in transformers' model of a parameter of the text policy."""
    inside = {id(p): known for known, p in policy.model.named_parameters()}
    return inside[id(policy.trainable()[name])]


def assert_packed_is_plain(policy: Policy, plain: Any, groups: Sequence[tuple[Group, list[Tokens]]]) -> None:
    """Loss, log-probs, entropies and the gradient of every trainable tensor; none silently zero, none missing."""
    loss, logp_NT, entropy_NT = packed_loss(policy, groups)
    names = [plain_name(policy, name) for name in policy.trainable()]

    def loss_values_gradients(model: Any) -> tuple[Tensor, list[Tensor], Sequence[Tensor]]:
        own, values = plain_loss(model, groups)
        parameters = dict(model.named_parameters())
        return own, values, torch.autograd.grad(own, [parameters[name] for name in names])

    its_loss, its_values, its_gradients = loss_values_gradients(plain)
    exact = double_of(plain)
    with InDouble():
        double_loss, double_values, double_gradients = loss_values_gradients(exact)
    masks = [leaf.tokens.policy_T for g, tokens in groups for leaf in merge_identical(g, tokens).leaves]
    ours = [torch.stack([logp_NT[i], entropy_NT[i]], -1)[: len(m)][m] for i, m in enumerate(masks)]
    assert_exact([*ours, loss], [*its_values, its_loss], [*double_values, double_loss])
    found = torch.autograd.grad(loss, list(policy.trainable().values()))
    assert_exact_gradients(zip(names, found, its_gradients, double_gradients, strict=True))


def groups_of(kind: str, case: Case) -> list[tuple[Group, list[Tokens]]]:
    pairs = zip(ask(kind, case.images), case.lengths, strict=True)
    return [group_of(question, lengths, case.every, 7 + i) for i, (question, lengths) in enumerate(pairs)]


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_packed_forward_is_the_plain_forward(kind: str, case: Case) -> None:
    policy, plain = tiny_policy(3, kind=kind), tiny_model(3, kind=kind)
    text = {id(p) for p in policy.model.parameters()} - {id(p) for p in policy.frozen_tower().values()}
    assert {id(p) for p in policy.trainable().values()} == text
    assert_packed_is_plain(policy, plain, groups_of(kind, case))


@pytest.mark.parametrize("kind", KINDS)
def test_an_untied_head_has_a_gradient_of_its_own(kind: str) -> None:
    policy = tiny_policy(3, tied=False, kind=kind)
    assert policy.text.head.weight is not policy.text.language_model.embed_tokens.weight
    assert_packed_is_plain(policy, tiny_model(3, False, kind), [group_of(mixed(kind)[0], (4, 6), 1, 0)])


@pytest.mark.parametrize("kind", KINDS)
def test_lora_gradients_are_those_of_the_plain_forward(kind: str) -> None:
    policy, plain = tiny_policy(2, LORA, kind=kind), tiny_policy(2, LORA, kind=kind)
    for each in (policy, plain):
        move(each)
    assert_packed_is_plain(policy, plain.model, [group_of(mixed(kind)[0], (5, 3), 1, 1)])


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_changes_no_gradient(kind: str) -> None:
    """transformers recomputes each layer, and adds DeepStack's features between layers."""
    policy, case = tiny_policy(3, kind=kind), (SEEING if kind in VISION else READING)["several questions"]
    policy.text.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    policy.text.language_model.train()
    runs: list[int] = []
    policy.text.language_model.layers[0].self_attn.register_forward_pre_hook(lambda *_: runs.append(1))
    assert_packed_is_plain(policy, tiny_model(3, kind=kind), groups_of(kind, case))
    assert len(runs) == 2, "forward, and again in backward"


@pytest.mark.parametrize("kind", MERGING)
def test_trained_mergers_get_the_gradient_of_the_plain_forward(kind: str) -> None:
    policy = tiny_policy(3, MERGER, kind=kind)
    names = {name.split(".")[0] for name in policy.trainable()} - {"language_model", "head"}
    assert names == set(FAMILIES[kind].mergers)
    assert_packed_is_plain(policy, tiny_model(3, kind=kind), groups_of(kind, SEEING["several questions"]))


@torch.no_grad()
def test_deepstack_features_reach_the_layers_they_are_for() -> None:
    """Each merger's output matters, and only where images are."""
    seeing, blind = ask("qwen3_vl", (1, 0))
    start = [log_probs_of(tiny_policy(1, kind="qwen3_vl"), question) for question in (seeing, blind)]
    for i in range(2):
        policy = tiny_policy(1, kind="qwen3_vl")
        policy.tower.deepstack_merger_list[i].linear_fc2.bias += 1
        found = [log_probs_of(policy, question) for question in (seeing, blind)]
        assert (found[0] - start[0]).abs().max() > 1e-3
        assert torch.equal(found[1], start[1])


def log_probs_of(policy: Policy, question: Question) -> Tensor:
    return packed_loss(policy, [group_of(question, (4, 6), 1, 0)])[1]


# --- decoding ---------------------------------------------------------------------------------------------------------

MANY_ENDS = [END, *range(0, 400, 7)]


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_is_transformers_own_greedy_search(kind: str) -> None:
    policy, plain, questions = tiny_policy(1, kind=kind), tiny_model(1, kind=kind), mixed(kind)
    policy.model.generation_config.eos_token_id = plain.generation_config.eos_token_id = MANY_ENDS
    sampler = HFSampler(policy, DecodingConfig(max_new_tokens=12))
    drawn = sampler.sample(questions, 2, step=0, purpose="test", greedy=True)
    for question, row in zip(questions, drawn, strict=True):
        made = inputs(question, (), kind)
        found = plain.generate(**made, do_sample=False, max_new_tokens=12, suppress_tokens=list(banned(kind)))
        expected = tuple(found[0, made["input_ids"].shape[1] :].tolist())
        assert [rollout.token_ids for rollout in row] == [expected, expected]


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_sampler_reports_the_log_probs_and_entropies_of_the_plain_forward(kind: str) -> None:
    policy, plain, questions = tiny_policy(2, kind=kind), tiny_model(2, kind=kind), mixed(kind)
    policy.model.generation_config.eos_token_id = MANY_ENDS
    sampler = HFSampler(policy, DecodingConfig(max_new_tokens=10, temperature=TEMPERATURE))
    for question, row in zip(questions, sampler.sample(questions, 3, step=0, purpose="test"), strict=True):
        for rollout in row:
            log_probs = plain_log_probs(plain, question, rollout.token_ids)
            drawn = log_probs.gather(-1, torch.tensor(rollout.token_ids)[:, None])[:, 0]
            np.testing.assert_allclose(rollout.logp, drawn.numpy(), atol=1e-4)
            np.testing.assert_allclose(rollout.entropy, entropy(log_probs).numpy(), atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_model_itself_stays_a_causal_transformers_model(kind: str) -> None:
    """Whoever calls `policy.model` or its `generate` gets transformers' own results, whatever attention we chose."""
    policy, plain = tiny_policy(1, kind=kind), tiny_model(1, kind=kind)
    question = mixed(kind)[1]
    made = inputs(question, (5, 6, 7), kind)
    torch.testing.assert_close(policy.model(**made).logits, plain(**made).logits, rtol=1e-4, atol=1e-4)
    prompt = inputs(question, (), kind)
    ours, theirs = (m.generate(**prompt, do_sample=False, max_new_tokens=8) for m in (policy.model, plain))
    assert torch.equal(ours, theirs)


# --- adapting ---------------------------------------------------------------------------------------------------------


def favour_digits(policy: Policy) -> Policy:
    """Make 1, 2, a space and the end of the turn likely, so that votes are won."""
    ids = policy.tokenizer.convert_tokens_to_ids(["1", "2", "Ġ", "<|im_end|>"])
    with torch.no_grad():
        policy.text.language_model.embed_tokens.weight[:, 0] = 2.0
        policy.text.language_model.embed_tokens.weight[ids, 0] = 5.0
        policy.text.language_model.norm.weight[0] = 2.0
    return policy


@pytest.mark.parametrize("model", [ModelConfig(), LORA], ids=["full", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_steps_move_what_trains_and_nothing_else(kind: str, model: ModelConfig) -> None:
    policy = favour_digits(tiny_policy(0, model, kind=kind))
    config = configure(BASE, {"optim": {"steps": 2}, "method": {"name": "spine", "kl": "exact"}})
    before, tower, records = policy.weights(), policy.tower_checksum(), list[StepRecord]()
    ended: Adapted = adapt(mixed(kind), policy, config=config, hooks=Hooks(on_step=records.append))
    assert (ended.steps, ended.stopped_by) == (2, "steps")
    assert all(np.isfinite(r.report.loss) and r.report.tokens_trained > 0 for r in records)
    assert max(r.report.parity_max for r in records) < 1e-3, "sampler and trainer agree"
    moved = [name for name, p in policy.trainable().items() if not torch.equal(p, before[name])]
    assert moved == list(before)
    assert policy.tower_checksum() == tower


@pytest.mark.slow
@pytest.mark.parametrize("model", [ModelConfig(), MERGER], ids=["frozen", "merger"])
def test_partitioned_weights_train_to_the_same_values(model: ModelConfig) -> None:
    """ZeRO-3 gathers around modules, the mergers' and the head's own among them."""
    ends = []
    for stage in (0, 3):
        policy = favour_digits(tiny_policy(0, model, kind="qwen3_vl"))
        config = configure(BASE, {"optim": {"steps": 1}, "method": {"kl": "none"}, "engine": {"zero_stage": stage}})
        start = policy.weights()
        adapt(mixed("qwen3_vl"), policy, config=config)
        ends.append(policy.weights())
        assert not [name for name, weight in ends[-1].items() if torch.equal(weight, start[name])]
    for name, weight in ends[0].items():
        torch.testing.assert_close(ends[1][name], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", TEXT)
def test_adapting_a_text_model_leaves_questions_with_images_out(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    policy, records = favour_digits(tiny_policy(kind=kind)), list[StepRecord]()
    seeing = Question("picture", (tiny_image(0),), "Which digit?", AnswerSpec("integer"))
    with caplog.at_level(logging.WARNING):
        adapt(
            [*mixed(kind), seeing],
            policy,
            config=configure(BASE, {"optim": {"steps": 1}}),
            hooks=Hooks(on_step=records.append),
        )
    assert [g.question.id for g in records[0].groups if g.question.id == "picture"] == []
    assert len(records[0].groups) == 3
    assert "question skipped: picture: 1 image(s), but the model has no vision tower" in caplog.text


# --- freezing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", VISION)
def test_the_tower_with_all_its_mergers_is_frozen(kind: str) -> None:
    policy = tiny_policy(kind=kind)
    tower = dict(policy.tower.named_parameters())
    assert policy.frozen_tower().keys() == tower.keys()
    assert {name.split(".")[0] for name in tower} >= set(FAMILIES[kind].mergers)
    assert not any(p.requires_grad for p in tower.values())
    policy.assert_frozen()
    start = policy.tower_checksum()
    last = "multi_modal_projector" if kind not in MERGING else FAMILIES[kind].mergers[-1]
    for name in (f"{last}.", "blocks.0." if kind in MERGING else "vision_tower.encoder."):
        with torch.no_grad():
            next(p for n, p in tower.items() if n.startswith(name)).view(-1)[0] += 1e-3
        assert policy.tower_checksum() != start
        start = policy.tower_checksum()


@pytest.mark.parametrize("kind", MERGING)
def test_with_trained_mergers_the_rest_of_the_tower_is_frozen(kind: str) -> None:
    policy, frozen = tiny_policy(config=MERGER, kind=kind), tiny_policy(kind=kind)
    mergers = [p for n, p in policy.tower.named_parameters() if n.split(".")[0] in FAMILIES[kind].mergers]
    assert all(p.requires_grad for p in mergers)
    grown = policy.count_parameters()[0] - frozen.count_parameters()[0]
    assert grown == sum(p.numel() for p in mergers)
    policy.assert_frozen()
    assert len(policy.frozen_tower()) == len(frozen.frozen_tower()) - len(mergers)


@pytest.mark.parametrize("kind", TEXT)
def test_a_text_model_has_nothing_frozen_and_no_merger_to_train(kind: str) -> None:
    policy = tiny_policy(kind=kind)
    assert policy.tower is None and policy.frozen_tower() == {}
    assert policy.count_parameters() == (sum(p.numel() for p in policy.model.parameters()), 0)
    assert policy.tower_checksum() == policy.tower_checksum()
    policy.assert_frozen()
    with pytest.raises(ModelError, match=rf"model\.train_merger: a model of type {kind} has no vision tower"):
        tiny_policy(config=MERGER, kind=kind)


@pytest.mark.parametrize("kind", KINDS)
def test_lora_adapts_every_projection_of_the_text_model_only(kind: str) -> None:
    policy = tiny_policy(config=LORA, kind=kind)
    layers = len(policy.text.language_model.layers)
    assert len(policy.trainable()) == layers * 7 * 2
    assert all(re.fullmatch(r"language_model\.layers\..*_proj\.lora_[AB]\..*", name) for name in policy.trainable())
    own = {id(p) for p in policy.trainable().values()}
    assert {id(p) for p in policy.model.parameters() if p.requires_grad} == own
